"""The folder of the toy's frozen models: its ledger `build.json`, parts that are replaced whole, and parts read as they were saved."""

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from diffusers import __version__ as diffusers_version
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file

LEDGER: Final = "build.json"


def read_ledger(folder: Path) -> dict[str, Any]:
    """What `build.json` says of each part made so far; empty before the first."""
    path = folder / LEDGER
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def read_codec(folder: Path) -> AutoencoderKL:
    """The codec as saved; ``from_pretrained`` would write the folder's path into the config of what is saved with it."""
    place = folder / "teacher" / "vae"
    codec = AutoencoderKL.from_config(AutoencoderKL.load_config(place))
    codec.load_state_dict(load_file(place / "diffusion_pytorch_model.safetensors"))
    return codec.eval().requires_grad_(False)


def write_preprocessor(folder: Path, settings: dict[str, Any]) -> None:
    """``preprocessor_config.json``, as transformers reads it."""
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """What ``write`` writes into an empty folder is ``folder`` once it is whole."""
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write(staging)
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def write_ledger(folder: Path, ledger: dict[str, Any]) -> None:
    """``ledger`` as ``build.json``, whole or not at all."""
    staging = folder / f".{LEDGER}.partial"
    staging.write_text(json.dumps(ledger, indent=1) + "\n")
    staging.rename(folder / LEDGER)


def versions() -> dict[str, str]:
    """What a part is made with, and so what its bits depend on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers_version,
        "transformers": transformers.__version__,
    }
