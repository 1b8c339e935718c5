"""Inception-v3 as FID was defined with it: the network of TensorFlow's ``inception-2015-12-05``, up to its last pooling (2,048 numbers).

Names and shapes are those of the file that torch-fidelity and pytorch-fid publish (``*-inception-2015-12-05-6726825d.pth``,
github.com/toshas/torch-fidelity, feature_extractor_inceptionv3.py). It is not torchvision's Inception-v3 in three ways, each of which
changes FID: averages leave the border out (``count_include_pad=False``), the last block takes a maximum where the one before takes an
average, and pictures are resized as TensorFlow 1 did, without antialiasing and without half-pixel centres.

Shapes: B batch, pixels (B, 3, H, W) in [0, 1], features (B, 2048)
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rglcd.errors import InputError

WEIGHTS: Final = "model.safetensors"
SIDE: Final = 299
NUM_FEATURES: Final = 2048
NAME: Final = "InceptionV3Pool3"

_Size = int | tuple[int, int]


class _Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU; padded so that a window of odd sides keeps the size, unless it strides."""

    def __init__(self, channels: int, out: int, size: _Size, *, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        sides = (size, size) if isinstance(size, int) else size
        padding = (sides[0] // 2, sides[1] // 2) if padded and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, values: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(values)))


def _average(values: Tensor) -> Tensor:
    return F.avg_pool2d(values, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def _maximum(values: Tensor) -> Tensor:
    return F.max_pool2d(values, kernel_size=3, stride=1, padding=1)


def _halved(values: Tensor) -> Tensor:
    return F.max_pool2d(values, kernel_size=3, stride=2)


class _Block(nn.Module):
    """Branches side by side, one of them a pooling (with the convolution ``pooled`` after it, if any).

    Each is a list of convolutions by name; names that end in a or b fork what came before, and both results are kept.
    """

    def __init__(self, branches: Sequence[Sequence[tuple[str, _Convolution]]], *, pooled: str | None, pool: str) -> None:
        super().__init__()
        for branch in branches:
            for name, convolution in branch:
                self.add_module(name, convolution)
        self._branches = [[name for name, _ in branch] for branch in branches]
        self._pooled, self._pool = pooled, {"average": _average, "maximum": _maximum, "halved": _halved}[pool]

    def forward(self, values: Tensor) -> Tensor:
        found = [self._branch(names, values) for names in self._branches if names != [self._pooled]]
        pooled = self._pool(values)
        found.append(pooled if self._pooled is None else self.get_submodule(self._pooled)(pooled))
        return torch.cat(found, dim=1)

    def _branch(self, names: Sequence[str], values: Tensor) -> Tensor:
        forks = [name for name in names if name.endswith(("a", "b"))]
        for name in names:
            if name not in forks:
                values = self.get_submodule(name)(values)
        return torch.cat([self.get_submodule(name)(values) for name in forks], dim=1) if forks else values


def _a(channels: int, pooled: int) -> _Block:
    c = _Convolution
    return _Block(
        [
            [("branch1x1", c(channels, 64, 1))],
            [("branch5x5_1", c(channels, 48, 1)), ("branch5x5_2", c(48, 64, 5))],
            [("branch3x3dbl_1", c(channels, 64, 1)), ("branch3x3dbl_2", c(64, 96, 3)), ("branch3x3dbl_3", c(96, 96, 3))],
            [("branch_pool", c(channels, pooled, 1))],
        ],
        pooled="branch_pool",
        pool="average",
    )


def _b(channels: int) -> _Block:
    c = _Convolution
    return _Block(
        [
            [("branch3x3", c(channels, 384, 3, stride=2))],
            [("branch3x3dbl_1", c(channels, 64, 1)), ("branch3x3dbl_2", c(64, 96, 3)), ("branch3x3dbl_3", c(96, 96, 3, stride=2))],
        ],
        pooled=None,
        pool="halved",
    )


def _c(channels: int, narrow: int) -> _Block:
    c, n = _Convolution, narrow
    return _Block(
        [
            [("branch1x1", c(channels, 192, 1))],
            [("branch7x7_1", c(channels, n, 1)), ("branch7x7_2", c(n, n, (1, 7))), ("branch7x7_3", c(n, 192, (7, 1)))],
            [
                ("branch7x7dbl_1", c(channels, n, 1)),
                ("branch7x7dbl_2", c(n, n, (7, 1))),
                ("branch7x7dbl_3", c(n, n, (1, 7))),
                ("branch7x7dbl_4", c(n, n, (7, 1))),
                ("branch7x7dbl_5", c(n, 192, (1, 7))),
            ],
            [("branch_pool", c(channels, 192, 1))],
        ],
        pooled="branch_pool",
        pool="average",
    )


def _d(channels: int) -> _Block:
    c = _Convolution
    return _Block(
        [
            [("branch3x3_1", c(channels, 192, 1)), ("branch3x3_2", c(192, 320, 3, stride=2))],
            [
                ("branch7x7x3_1", c(channels, 192, 1)),
                ("branch7x7x3_2", c(192, 192, (1, 7))),
                ("branch7x7x3_3", c(192, 192, (7, 1))),
                ("branch7x7x3_4", c(192, 192, 3, stride=2)),
            ],
        ],
        pooled=None,
        pool="halved",
    )


def _e(channels: int, *, pool: str) -> _Block:
    c = _Convolution
    return _Block(
        [
            [("branch1x1", c(channels, 320, 1))],
            [("branch3x3_1", c(channels, 384, 1)), ("branch3x3_2a", c(384, 384, (1, 3))), ("branch3x3_2b", c(384, 384, (3, 1)))],
            [
                ("branch3x3dbl_1", c(channels, 448, 1)),
                ("branch3x3dbl_2", c(448, 384, 3)),
                ("branch3x3dbl_3a", c(384, 384, (1, 3))),
                ("branch3x3dbl_3b", c(384, 384, (3, 1))),
            ],
            [("branch_pool", c(channels, 192, 1))],
        ],
        pooled="branch_pool",
        pool=pool,
    )


class InceptionPool3(nn.Module):
    """The network: pixels -> features (B, 2048), the mean over the last 8 x 8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, padded=False)
        blocks = {"5b": _a(192, 32), "5c": _a(256, 64), "5d": _a(288, 64), "6a": _b(288)}
        blocks |= {"6b": _c(768, 128), "6c": _c(768, 160), "6d": _c(768, 160), "6e": _c(768, 192)}
        blocks |= {"7a": _d(768), "7b": _e(1280, pool="average"), "7c": _e(2048, pool="maximum")}
        self._names = [f"Mixed_{name}" for name in blocks]
        for name, block in blocks.items():
            self.add_module(f"Mixed_{name}", block)

    def forward(self, pixels: Tensor) -> Tensor:
        values = resized_as_tensorflow(pixels * 255, SIDE)
        values = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3((values - 128) / 128)))
        values = _halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(values))))
        for name in self._names:
            values = self.get_submodule(name)(values)
        return values.mean(dim=(2, 3))


def resized_as_tensorflow(pixels: Tensor, side: int) -> Tensor:
    """Pixels (B, C, side, side), bilinear as TensorFlow 1's ``resize_bilinear``: the i-th lies at i * H / side, between two neighbours."""
    for dim in (2, 3):
        size = pixels.shape[dim]
        at = torch.arange(side, dtype=pixels.dtype, device=pixels.device) * (size / side)
        low = at.long().clamp_max(size - 1)
        high = (low + 1).clamp_max(size - 1)
        share = (at - low).view([-1 if axis == dim else 1 for axis in range(4)])
        first, second = pixels.index_select(dim, low), pixels.index_select(dim, high)
        pixels = first + (second - first) * share
    return pixels


def convert_inception(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write the tensors of a published file that pool3 needs to ``folder``. Raises :class:`InputError` for another layout.

    The classifier (``fc``) and the counters of batch normalisation are left out: features do not need them.
    """
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in InceptionPool3().state_dict().items() if not _is_counter(name)}
    found = {name: tensor for name, tensor in state.items() if not (_is_counter(name) or name.startswith("fc."))}
    for name, shape in wanted.items():
        if name not in found or tuple(found[name].shape) != shape:
            there = "lacks it" if name not in found else f"has it as {tuple(found[name].shape)}"
            raise InputError(
                f"FID's Inception-v3 has a tensor {name} {shape}, and the file {there}: name the file that torch-fidelity publishes "
                "(weights-inception-2015-12-05-6726825d.pth), not torchvision's"
            )
    if odd := sorted(found.keys() - wanted.keys()):
        raise InputError(f"the file has {len(odd)} tensors that FID's Inception-v3 has not, {odd[0]} the first: it is another network")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: found[name].contiguous().float() for name in wanted}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps({"architectures": [NAME]}) + "\n", encoding="utf-8")


def load_inception(folder: Path, *, device: torch.device) -> InceptionPool3:
    """The network whose weights :func:`convert_inception` wrote to ``folder``, frozen. Raises :class:`InputError`."""
    with torch.device("meta"):
        network = InceptionPool3()
    try:
        tensors = load_file(str(folder / WEIGHTS))
        counters = {name: torch.zeros((), dtype=torch.long) for name in network.state_dict() if _is_counter(name)}
        network.load_state_dict(tensors | counters, assign=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be opened as FID's Inception-v3: {' '.join(str(error).split())[:300]}") from None
    return network.to(device).eval().requires_grad_(False)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
