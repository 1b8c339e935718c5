"""Import of published checkpoints (.pt, .pth, .bin, .safetensors): read once, by ``prepare``, and stored as safetensors.

``torch.load`` runs with ``weights_only``: it reads tensors and plain containers and runs no code.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rglcd.errors import InputError


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors in ``path`` (.pt, .pth, .bin, .safetensors) by name, on the CPU.

    Both usual wrappings are undone: ``{"state_dict": ...}``, and ``module.`` before every name. Raises :class:`InputError`
    for a file that holds anything but tensors, or that only running code could open.
    """
    _refuse_compressed(path)
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise InputError(
            f"{path.name} cannot be read as weights alone: {' '.join(str(error).split())[:300]}; name a file of tensors and nothing else"
        ) from None
    state = _unwrapped(loaded)
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if not state or odd is not None:
        raise InputError(f"{path.name} is no state dict: " + ("it is empty" if odd is None else f"{odd!r} is no tensor"))
    prefixed = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if prefixed else name: tensor for name, tensor in state.items()}


def _refuse_compressed(path: Path) -> None:
    """Raise :class:`InputError` for a zip whose members are packed: torch writes them as they are, and a packed one may hold any size."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as opened:
            packed = next((member for member in opened.infolist() if member.compress_type != zipfile.ZIP_STORED), None)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # torch says what is wrong with it
    if packed is not None:
        raise InputError(
            f"{path.name} cannot be read as weights alone: its part {packed.filename[:80]!r} is packed, {packed.compress_size:,} bytes for "
            f"{packed.file_size:,}, as torch.save never writes it"
        )


def _unwrapped(loaded: Any) -> Mapping[str, Any]:
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    return inner if isinstance(inner, Mapping) else {}
