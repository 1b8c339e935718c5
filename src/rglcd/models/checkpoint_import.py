"""Import of published checkpoints (.pt, .pth, .bin, .safetensors): read once, by ``prepare``, and stored as safetensors.

``torch.load`` runs with ``weights_only``: it reads tensors and plain containers and runs no code.
"""

import pickle
import re
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
        raise InputError(f"{path.name} cannot be read as weights alone: {_said(error)}; name a file of tensors and nothing else") from None
    state = _unwrapped(loaded)
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if not state or odd is not None:
        raise InputError(f"{path.name} is no state dict: " + ("it is empty" if odd is None else f"{odd!r} is no tensor"))
    odd = next((name for name, tensor in state.items() if not _is_whole(tensor)), None)
    if odd is not None:
        raise InputError(
            f"{path.name} does not hold all values of {odd!r}, of shape {list(state[odd].shape)}; name a file of plain tensors"
        )
    prefixed = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if prefixed else name: tensor for name, tensor in state.items()}


def _said(error: Exception) -> str:
    """What is wrong in a line; torch's own words for a pickle with code say how to run it."""
    text = " ".join(str(error).split())
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"GLOBAL (\S+)", text)
        return "it is no pickle of tensors" if named is None else f"it names {named[1][:80]}, which is code"
    return text.partition(" In PyTorch 2.6, we changed")[0][:300]


def _is_whole(tensor: Tensor) -> bool:
    """Whether a value lies in memory for each place: a shape with steps of zero says any size, and a copy of it takes that."""
    is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not (tensor.is_quantized or tensor.is_nested)
    return is_plain and tensor.nbytes <= tensor.untyped_storage().nbytes()


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
