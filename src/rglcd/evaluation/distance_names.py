"""What a distance is called, by the network whose features it compares. A name stands for one network: FID is Inception's and no other's.

Imports nothing: the launcher names plots by it.
"""

from collections.abc import Mapping, Sequence
from typing import Final

FRECHET: Final[Mapping[str, str]] = {"auto": "frechet", "inception": "fid", "dinov2": "fd_dinov2"}
"""Of Fréchet distances (CMMD's network has none)."""

KERNEL: Final[Mapping[str, str]] = {"auto": "kernel_distance", "inception": "kid", "dinov2": "kd_dinov2", "clip": "cmmd"}

LABELS: Final[Mapping[str, str]] = {
    "frechet": "Fréchet",
    "fid": "FID",
    "fd_dinov2": "FD-DINOv2",
    "kernel_distance": "kernel distance",
    "kid": "KID",
    "kd_dinov2": "KD-DINOv2",
    "cmmd": "CMMD",
}
"""As pages write them."""


def main_kind(kinds: Sequence[str]) -> str:
    """The first kind that has a Fréchet distance: that of plots and headlines."""
    return next((kind for kind in kinds if kind in FRECHET), kinds[0])
