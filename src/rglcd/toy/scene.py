"""What a picture of the toy world shows: one subject in a size, at a place, on a ground; and its caption.

A caption is ambiguous, as real captions are: a rocket may fly to the left or to the right, and the subject lies anywhere along the
named edge. Without that, the mean of all pictures of a caption would itself be a correct picture, one denoising step would draw
it, and there would be nothing to distil.
"""

import hashlib
import re
from dataclasses import astuple, dataclass
from functools import cache
from typing import Final

from rglcd.errors import InputError

CANVAS: Final = 32  # pixels
SIZES: Final = ("small", "large")
SUBJECTS: Final = (
    "apple",
    "cat",
    "doughnut",
    "eggplant",
    "frog",
    "house",
    "mushroom",
    "octopus",
    "penguin",
    "rocket",
    "star",
    "tree",
)
PLACES: Final = ("top", "bottom", "left", "right", "middle")
GROUNDS: Final = ("white", "blue", "green", "pink", "dark")

ATTRIBUTES: Final = ("size", "subject", "place", "ground")
VALUES: Final = (SIZES, SUBJECTS, PLACES, GROUNDS)

_CAPTION = re.compile(r"a ({}) ({}) (?:at|in) the ({}) on a ({}) background".format(*("|".join(values) for values in VALUES)))
_HELD_OUT_EVERY: Final = 4


@dataclass(frozen=True, order=True)
class Scene:
    """What a caption says: one value of every attribute."""

    size: str
    subject: str
    place: str
    ground: str

    @property
    def indices(self) -> tuple[int, ...]:
        """The value's place in each attribute's list, in the order of `ATTRIBUTES`."""
        return tuple(values.index(value) for values, value in zip(VALUES, astuple(self), strict=True))


@dataclass(frozen=True)
class Split:
    """Captions to train on, and held-out captions that the teacher and the students never see."""

    train: tuple[Scene, ...]
    held_out: tuple[Scene, ...]


def caption(scene: Scene) -> str:
    """The scene in words."""
    where = "in the middle" if scene.place == "middle" else f"at the {scene.place}"
    return f"a {scene.size} {scene.subject} {where} on a {scene.ground} background"


@cache
def parse(text: str) -> Scene:
    """The scene a caption describes.

    Raises:
        InputError: the caption is not one of the toy world's 600.
    """
    match = _CAPTION.fullmatch(text)
    scene = Scene(*match.groups()) if match else None
    if scene is None or caption(scene) != text:
        raise InputError(f"caption {text!r} is not of the toy world; write it like {caption(all_scenes()[0])!r}")
    return scene


@cache
def all_scenes() -> tuple[Scene, ...]:
    """The 600 scenes, in lexicographic order of the attributes' lists."""
    return tuple(Scene(size, subject, place, ground) for size in SIZES for subject in SUBJECTS for place in PLACES for ground in GROUNDS)


@cache
def split() -> Split:
    """A quarter held out, exactly: twelve subjects make every remainder equally frequent, whatever the other values are."""
    held_out = tuple(scene for scene in all_scenes() if sum(scene.indices) % _HELD_OUT_EVERY == 0)
    return Split(train=tuple(scene for scene in all_scenes() if scene not in held_out), held_out=held_out)


def shuffled(scenes: tuple[Scene, ...], salt: str) -> list[Scene]:
    """The scenes in the order of their captions' salted digests: the same on every machine."""
    return sorted(scenes, key=lambda scene: hashlib.sha256(f"{salt}:{caption(scene)}".encode()).digest())


def scene_numbers(scenes: tuple[Scene, ...] | list[Scene]) -> list[int]:
    """Each scene's place in `all_scenes()`."""
    places = _places()
    return [places[scene] for scene in scenes]


@cache
def _places() -> dict[Scene, int]:
    return {scene: number for number, scene in enumerate(all_scenes())}
