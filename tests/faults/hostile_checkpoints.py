"""Model files made to do harm, each put in the place of one that ``prepare`` reads: pickles with code, headers that lie, bombs, configs.

What would run code makes the folder ``canary``.
"""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

HEAD: Final = "sa_0_4_vit_l_14_linear.pth"
"""A published checkpoint, of tensors in a pickle; the rest are folders of safetensors and JSON."""

_UNET: Final = "teacher/unet/diffusion_pytorch_model.safetensors"
_EXPERT: Final = "expert/model.safetensors"

Spoil = Callable[[Path, Path], None]
"""Put the file into a folder of models; with the folder that its code would make."""


class _Code:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.canary),)


class _Wide:
    """Unpickled, a tensor of 2^40 values in the memory of one."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        storage = torch.zeros(1).storage()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (1, 1 << 40), (0, 0), False, OrderedDict())


def _saved(content: Callable[[Path], Any]) -> Spoil:
    return lambda root, canary: torch.save(content(canary), root / HEAD)


def _head(change: Callable[[dict[str, Tensor]], Any]) -> Spoil:
    return lambda root, canary: torch.save(change(torch.load(root / HEAD, weights_only=True)), root / HEAD)


def _bytes(name: str, content: Callable[[Path], bytes]) -> Spoil:
    def spoil(root: Path, canary: Path) -> None:
        (root / name).write_bytes(content(canary))

    return spoil


def _repacked(root: Path, canary: Path) -> None:
    """A zip whose members are packed: 64 MiB of zeros in a few kilobytes."""
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(1, 16 << 20), "bias": torch.zeros(1)}, stream)
    with zipfile.ZipFile(stream) as whole, zipfile.ZipFile(root / HEAD, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))


def _cut(name: str) -> Spoil:
    def spoil(root: Path, canary: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: 2 * len(data) // 3])

    return spoil


def _legacy_tar(canary: Path) -> bytes:
    """torch's oldest format."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(_Code(canary), protocol=2)
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()


def _script(root: Path, canary: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(root / HEAD))


def _header(name: str, header: str, *, length: int | None = None) -> Spoil:
    size = len(header) if length is None else length
    return _bytes(name, lambda canary: struct.pack("<Q", size) + header.encode() + bytes(64))


def _one(name: str, shape: str, offsets: str) -> str:
    return f'"{name}": {{"dtype": "F32", "shape": {shape}, "data_offsets": {offsets}}}'


def _tensors(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Spoil:
    return lambda root, canary: save_file(change(load_file(root / name)), root / name)


def _first(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {min(tensors): change(tensors[min(tensors)])}


def _pickled_folder(root: Path, canary: Path) -> None:
    (root / _UNET).unlink()
    (root / "teacher/unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(_Code(canary)))


def _json(name: str, **values: Any) -> Spoil:
    def spoil(root: Path, canary: Path) -> None:
        (root / name).write_text(json.dumps(json.loads((root / name).read_text()) | values))

    return spoil


def _own_code(name: str, **values: Any) -> Spoil:
    """A configuration that names a class of a Python file beside it."""

    def spoil(root: Path, canary: Path) -> None:
        _json(name, **values)(root, canary)
        (root / name).with_name("mine.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Mine: pass\n")

    return spoil


def _link(root: Path, canary: Path) -> None:
    (root / _EXPERT).unlink()
    (root / _EXPERT).symlink_to("/etc/passwd")


def _index_that_leads_out(root: Path, canary: Path) -> None:
    """Sharded weights whose index names a file outside the folder."""
    names = list(load_file(root / _EXPERT))
    (root / _EXPERT).rename(root / "secret.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, str(root / "secret.safetensors"))}
    (root / "expert/model.safetensors.index.json").write_text(json.dumps(index))


_AUTO: Final = {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}

CHECKPOINTS: Final[dict[str, tuple[Spoil, str]]] = {
    "a pickle with code, as torch saves it": (_saved(_Code), HEAD),
    "code among the weights": (_saved(lambda canary: {"weight": torch.zeros(1, 4), "bias": _Code(canary)}), HEAD),
    "a bare pickle with code": (_bytes(HEAD, lambda canary: pickle.dumps(_Code(canary), protocol=2)), HEAD),
    "a call of eval": (
        _bytes(HEAD, lambda canary: b"\x80\x02cbuiltins\neval\nX%s\x85R." % _text(f"__import__('os').mkdir({str(canary)!r})")),
        HEAD,
    ),
    "torch's oldest format, with code": (_bytes(HEAD, _legacy_tar), HEAD),
    "a TorchScript program": (_script, HEAD),
    "a packed zip": (_repacked, HEAD),
    "a tensor of 2^40 values in the memory of one": (_saved(lambda canary: {"weight": _Wide(), "bias": torch.zeros(1)}), HEAD),
    "a cut zip": (_cut(HEAD), HEAD),
    "text": (_bytes(HEAD, lambda canary: b"<html>not found</html>"), HEAD),
    "no tensors": (_saved(lambda canary: {"weight": 3}), HEAD),
    "a head of another width": (_head(lambda held: held | {"weight": torch.zeros(1, 999)}), "beauty"),
    "a head without its bias": (_head(lambda held: {"weight": held["weight"]}), "bias"),
    "a head that is not a number": (_head(lambda held: held | {"bias": torch.tensor([float("nan")])}), "beauty"),
    "offsets beyond the end": (_header(_UNET, "{" + _one("a", "[4]", "[0, 9999]") + "}"), "unet"),
    "a header of 2^62 bytes": (_header(_UNET, "{}", length=1 << 62), "unet"),
    "tensors that overlap": (_header(_EXPERT, "{" + _one("a", "[4]", "[0, 16]") + "," + _one("b", "[4]", "[8, 24]") + "}"), "expert"),
    "a shape that overflows": (_header(_EXPERT, "{" + _one("a", "[4294967296, 4294967296, 4]", "[0, 64]") + "}"), "expert"),
    "one name twice": (_header(_EXPERT, "{" + _one("a", "[8]", "[0, 32]") + "," + _one("a", "[8]", "[32, 64]") + "}"), "expert"),
    "a header nested 100,000 deep": (_header(_EXPERT, "[" * 100_000), "expert"),
    "cut safetensors": (_cut(_UNET), "unet"),
    "weights that are not numbers": (_tensors(_UNET, _first(lambda tensor: tensor * float("nan"))), "NaN"),
    "a tensor of another shape": (_tensors(_UNET, _first(lambda tensor: tensor.repeat(2, *[1] * (tensor.dim() - 1)))), "unet"),
    "a tensor that is not there": (_tensors(_EXPERT, lambda held: {name: held[name] for name in sorted(held)[1:]}), "expert"),
    "a pickle in place of safetensors": (_pickled_folder, "unet"),
    "a class of another library": (_json("teacher/unet/config.json", _class_name="Popen"), "Popen"),
    "a tokenizer with code of its own": (
        _own_code("teacher/tokenizer/tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]}),
        "tokenizer",
    ),
    "a feature network with code of its own": (_own_code("features/config.json", model_type="mine", auto_map=_AUTO), "features"),
    "a link to another file": (_link, "link"),
    "an index that leads out of the folder": (_index_that_leads_out, "expert"),
    "a config of a network of terabytes": (_json("teacher/unet/config.json", block_out_channels=[1 << 20, 1 << 21]), "unet"),
    "a config of a network of gigabytes": (_json("teacher/unet/config.json", block_out_channels=[1 << 12, 1 << 13]), "unet"),
    "a config of a VAE of gigabytes": (_json("teacher/vae/config.json", block_out_channels=[1 << 12, 1 << 13]), "vae"),
    "a config of a text encoder of gigabytes": (_json("teacher/text_encoder/config.json", intermediate_size=1 << 25), "text_encoder"),
    "a schedule of 10^9 steps": (_json("teacher/scheduler/scheduler_config.json", num_train_timesteps=10**9), "scheduler"),
}
"""Each with what the refusal names: the file, its folder, or what is wrong."""


def _text(code: str) -> bytes:
    return struct.pack("<I", len(code)) + code.encode()
