"""Reward models as their authors publish them, at tiny sizes, with the weights that the reference implementations were given too."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rglcd.models.checkpoint_import import read_checkpoint
from rglcd.rewards.conversion import CONVERTERS
from tests.assets.rewards.published import pictures, weights

ASSETS = Path(__file__).parents[1] / "assets" / "rewards"
CPU, FLOAT32, FLOAT64 = torch.device("cpu"), torch.float32, torch.float64

# kind: file name, layout, seed of the weights, tokenizer
CLIP_KINDS = {
    "hpsv2": ("HPS_v2.1_compressed.pt", "open_clip tiny", 1, "clip_tokenizer"),
    "clipscore": ("open_clip_pytorch_model.bin", "open_clip tiny", 2, "clip_tokenizer"),
    "pickscore": ("open_clip_pytorch_model.bin", "open_clip tiny", 2, "clip_tokenizer"),
    "imagereward": ("ImageReward.pt", "ImageReward tiny", 3, "bert_tokenizer"),
}


def layout(name: str) -> dict[str, list[int]]:
    """Names and shapes of a reference's state dict."""
    found: dict[str, list[int]] = json.loads((ASSETS / "layouts.json").read_text())[name]
    return found


def answers(kind: str) -> dict[str, Tensor]:
    """What the reference said."""
    return load_file(ASSETS / f"{kind}.safetensors")


def state(layout_name: str, *, seed: int) -> dict[str, Tensor]:
    drawn = {name: torch.from_numpy(value) for name, value in weights(layout(layout_name), seed=seed).items()}
    constants = {name: torch.arange(tensor.shape[1])[None] for name, tensor in drawn.items() if name.endswith("position_ids")}
    return drawn | constants


def publish(kind: str, folder: Path) -> Path:
    """The file of ``kind``, wrapped as its authors wrapped it."""
    folder.mkdir(parents=True, exist_ok=True)
    name, layout_name, seed, _ = CLIP_KINDS[kind]
    tensors = state(layout_name, seed=seed)
    torch.save({"state_dict": tensors} if kind == "hpsv2" else tensors, folder / name)
    return folder / name


def publish_heads(folder: Path, *, width: int) -> tuple[Path, Path]:
    """The heads of the aesthetic predictors v1 and v2 for image vectors of ``width``."""
    folder.mkdir(parents=True, exist_ok=True)
    widths = (width, 1024, 128, 64, 16, 1)
    shapes = {"weight": [1, width], "bias": [1]}
    deep = {
        f"layers.{place}.{part}": [widths[number + 1], widths[number]] if part == "weight" else [widths[number + 1]]
        for number, place in enumerate((0, 2, 4, 6, 7))
        for part in ("weight", "bias")
    }
    paths = folder / "sa_0_4_vit_l_14_linear.pth", folder / "sac+logos+ava1-l14-linearMSE.pth"
    for path, wanted in zip(paths, (shapes, deep), strict=True):
        torch.save({name: torch.from_numpy(value) for name, value in weights(wanted, seed=5).items()}, path)
    return paths


def converted(kind: str, folder: Path) -> Path:
    """The folder that ``prepare`` makes of :func:`publish`, tokenizer and all."""
    published = publish(kind, folder.with_name(f"{folder.name}.published"))
    folder.mkdir(parents=True, exist_ok=True)
    CONVERTERS[kind](read_checkpoint(published), folder)
    shutil.rmtree(published.parent)
    for path in (ASSETS / CLIP_KINDS[kind][3]).iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def pixels_of_pictures() -> list[Tensor]:
    """The pictures as pixels (1, 3, H, W) in [0, 1]."""
    return [
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1)[None] / 255
        for image in pictures()
    ]
