"""Distances of a sampler's images to the real ones, by each feature network; and what they are measured with, which must be equal.

Of each network the running sums of all images are kept (Fréchet), and the features of the first few thousand (kernel distances).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rglcd.errors import InputError
from rglcd.evaluation.distance_names import FRECHET, KERNEL
from rglcd.evaluation.frechet import FeatureMoments, frechet_distance
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.kernel_distance import KERNEL_IMAGES, Kernel, blocks_of, cubic, gaussian, kernel_distance

_FILE: Final = "moments.safetensors"
_KERNELS: Final[Mapping[str, Kernel]] = {"cmmd": gaussian}


@dataclass(frozen=True)
class FeatureRecord:
    """One network's features of a set of images: sums over all, the first rows (M, D) and their blocks (M,)."""

    moments: FeatureMoments
    first: Tensor
    blocks: Tensor

    @classmethod
    def of(cls, features: Tensor, captions: Sequence[str]) -> "FeatureRecord":
        """Of ``features`` (N, D) of images of ``captions``."""
        first = features[:KERNEL_IMAGES].float().cpu().contiguous()
        return cls(FeatureMoments.of(features), first, blocks_of(captions[:KERNEL_IMAGES]))


Records = Mapping[str, FeatureRecord]
"""By kind of network."""


@dataclass(frozen=True)
class Distances:
    """To the real images, by name: Fréchet distances, which have no interval, and kernel distances, which have one."""

    frechet: dict[str, float]
    kernel: dict[str, Estimate]

    @classmethod
    def between(cls, ours: Records, real: Records) -> "Distances":
        """By every network of ``ours``, which are of the networks of ``real``."""
        frechet = {FRECHET[kind]: frechet_distance(real[kind].moments, ours[kind].moments) for kind in ours if kind in FRECHET}
        kernel: dict[str, Estimate] = {}
        for kind, record in ours.items():
            name, theirs = KERNEL[kind], real[kind]
            found = kernel_distance(
                record.first,
                theirs.first,
                kernel=_KERNELS.get(name, cubic),
                our_blocks=record.blocks,
                their_blocks=theirs.blocks,
            )
            kernel |= {} if found is None else {name: found}
        return cls(frechet, kernel)

    def in_order_of(self, kinds: Sequence[str]) -> "Distances":
        """With its names in the order of ``kinds``, which tables follow, and which files do not keep."""
        frechet = {FRECHET[kind]: self.frechet[FRECHET[kind]] for kind in kinds if FRECHET.get(kind) in self.frechet}
        kernel = {KERNEL[kind]: self.kernel[KERNEL[kind]] for kind in kinds if KERNEL[kind] in self.kernel}
        return Distances(frechet, kernel)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Distances":
        """What ``dataclasses.asdict`` made of one."""
        return cls(dict(record["frechet"]), {name: Estimate(**value) for name, value in record["kernel"].items()})


NO_DISTANCES: Final = Distances({}, {})
"""Of the real images to themselves."""

Basis = Mapping[str, str]
"""What distances are measured with: counts, digest of the reference, how pictures are resized, the networks."""


def differing_in(one: Basis, other: Basis) -> list[str]:
    """The names of what was not the same when distances were measured."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def refuse_other_basis(one: Basis, other: Basis) -> None:
    """Raise :class:`InputError` naming what differs: such distances are numbers of two kinds (clean-fid: Parmar et al., 2104.11222)."""
    if differing := differing_in(one, other):
        said = "; ".join(f"{name}: {one.get(name, 'none')} and {other.get(name, 'none')}" for name in differing)
        raise InputError(
            f"these distances to real images cannot be compared, for they were measured differently ({said}); measure both alike"
        )


def save_records(folder: Path, records: Records) -> None:
    """Keep ``records`` in ``folder``, for what is compared with them."""
    tensors: dict[str, Tensor] = {}
    for kind, record in records.items():
        parts = {"count": torch.tensor(record.moments.count), "total": record.moments.total, "outer": record.moments.outer.contiguous()}
        parts |= {"first": record.first, "blocks": record.blocks}
        tensors |= {f"{kind}/{name}": tensor for name, tensor in parts.items()}
    save_file(tensors, folder / _FILE)


def load_records(folder: Path) -> dict[str, FeatureRecord]:
    """What :func:`save_records` kept in ``folder``."""
    tensors, found = load_file(folder / _FILE), dict[str, FeatureRecord]()
    for kind in dict.fromkeys(name.partition("/")[0] for name in tensors):
        count, total, outer, first, blocks = (tensors[f"{kind}/{name}"] for name in ("count", "total", "outer", "first", "blocks"))
        found[kind] = FeatureRecord(FeatureMoments(int(count), total, outer), first, blocks)
    return found
