"""Makes a study: pairs of pictures without a trace of whose they are, attention checks, and the key.

Pictures are written anew from their pixels as PNG, named by a digest of their bytes with a secret: neither name nor date nor metadata
says anything, and whoever has an arm's pictures cannot find their names.
"""

import hmac
import io
import os
import random
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from rglcd.errors import InputError
from rglcd.progress import track
from rglcd.store.disk_space import disk_space_for
from rglcd.store.staging import STAGING, flush, rename_flushed
from rglcd.study.records import PICTURES, Key, Pair, Question, Study, write_study
from rglcd.study.sources import Drawn, Open

LONGEST_PROMPT: Final = 4000
_LONGEST_ARM = 60
_DATE: Final = 946_684_800
"""Of every picture file, in seconds since 1970: when it was written tells whose it is. The year 2000: zip files have none before 1980."""


@dataclass(frozen=True)
class Design:
    """What a study asks, of how many.

    ``num_prompts`` are drawn at random of all (None: all); ``pairs_per_rater`` None: every pair; ``side``: what the longer side of each
    picture is resized to (None: as it is, and both of a pair must have one size).
    """

    questions: Sequence[Question]
    seed: int
    num_checks: int
    num_prompts: int | None
    pairs_per_rater: int | None
    side: int | None


def build(folder: Path, drawn: Drawn, design: Design) -> Study:
    """Write the study of every pair of arms for every prompt to ``folder``, whole or not at all.

    Raises :class:`InputError` if there is something already, for fewer than two arms, and for pictures of a pair that differ in size.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; a study is not built over another, whose votes would be lost")
    arms = _checked_arms(drawn.arms)
    rows = _chosen(len(drawn.prompts), design)
    secret = secrets.token_hex(32)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}{STAGING}")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / PICTURES).mkdir(parents=True)
    try:
        with disk_space_for(folder):
            study, key = _drawn_up(_Writer(staging / PICTURES, secret, design.side), drawn, design, rows=rows, arms=arms)
            for path in (staging / PICTURES).iterdir():
                os.utime(path, (_DATE, _DATE))
            write_study(staging, study, key)
            for path in staging.rglob("*"):  # not publish_folder, which gives the key the mode of other files
                flush(path)
            flush(staging)
            rename_flushed(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return study


@dataclass(frozen=True)
class _Writer:
    folder: Path
    secret: str
    side: int | None

    def write(self, image: Image.Image) -> str:
        """The name of the file that ``image`` is written to."""
        stream = io.BytesIO()
        Image.frombytes("RGB", image.size, image.tobytes()).save(stream, format="PNG")
        name = f"{self.digest('picture', stream.getvalue())}.png"
        (self.folder / name).write_bytes(stream.getvalue())
        return name

    def read(self, source: Open) -> Image.Image:
        image = source()
        if self.side is None or max(image.size) == self.side:
            return image
        width, height = (max(1, round(length * self.side / max(image.size))) for length in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)

    def digest(self, what: str, content: bytes) -> str:
        return hmac.digest(self.secret.encode(), what.encode() + b":" + content, "sha256").hex()[:32]


def _drawn_up(writer: _Writer, drawn: Drawn, design: Design, *, rows: Sequence[int], arms: Sequence[str]) -> tuple[Study, Key]:
    pairs, drawn_by = list[Pair](), dict[str, tuple[str, str]]()
    for row in track(rows, task="write pictures", unit="prompts"):
        images = {arm: writer.read(drawn.arms[arm][row]) for arm in arms}
        names = {arm: writer.write(image) for arm, image in images.items()}
        for first, second in combinations(arms, 2):
            if images[first].size != images[second].size:
                sizes = f"{images[first].size} and {images[second].size}"
                raise InputError(
                    f"picture {row + 1}: {first!r} and {second!r} differ in size, {sizes}, which gives them away; use --side N"
                )
            id_ = writer.digest("pair", f"{row}/{first}/{second}".encode())
            pairs.append(Pair(id_, drawn.prompts[row][:LONGEST_PROMPT], (names[first], names[second])))
            drawn_by[id_] = (first, second)
    per_rater = len(pairs) if design.pairs_per_rater is None else design.pairs_per_rater
    if per_rater > len(pairs):
        raise InputError(f"there are {len(pairs)} pairs; {per_rater} a rater would show some twice")
    checks, whole = _checks(writer, drawn, design)
    study = Study(secrets.token_hex(8), design.seed, tuple(design.questions), tuple(pairs), tuple(checks), per_rater)
    return study, Key(writer.secret, tuple(arms), drawn_by, whole)


def _checks(writer: _Writer, drawn: Drawn, design: Design) -> tuple[list[Pair], dict[str, int]]:
    """Attention checks: a picture beside its own pixels in disorder, which has the same colours and shows nothing."""
    rng = random.Random(f"{design.seed}/checks")  # noqa: S311 (a choice, no secret)
    checks, whole = list[Pair](), dict[str, int]()
    for row in rng.sample(range(len(drawn.for_checks)), min(design.num_checks, len(drawn.for_checks))):
        prompt, source = drawn.for_checks[row]
        image = writer.read(source)
        names = [writer.write(image), writer.write(_in_disorder(image, rng))]
        place = rng.randrange(2)
        id_ = writer.digest("check", str(row).encode())
        checks.append(Pair(id_, prompt[:LONGEST_PROMPT], (names[place], names[1 - place])))
        whole[id_] = place
    return checks, whole


def _in_disorder(image: Image.Image, rng: random.Random) -> Image.Image:
    pixels = np.asarray(image).reshape(-1, 3)
    order = np.random.default_rng(rng.getrandbits(64)).permutation(len(pixels))
    return Image.frombytes("RGB", image.size, pixels[order].tobytes())


def _chosen(count: int, design: Design) -> list[int]:
    if count == 0:
        raise InputError("there are no prompts")
    if design.num_prompts is None or design.num_prompts == count:
        return list(range(count))
    if design.num_prompts > count:
        raise InputError(
            f"there are {count} prompts with pictures, not {design.num_prompts}; a report's are 64, or evaluation.grid_prompts"
        )
    return sorted(random.Random(f"{design.seed}/prompts").sample(range(count), design.num_prompts))  # noqa: S311 (a choice, no secret)


def _checked_arms(arms: Mapping[str, object]) -> list[str]:
    if len(arms) < 2:
        raise InputError("a study compares two arms or more: name them with --arm A --arm B")
    for arm in arms:
        if not 0 < len(arm) <= _LONGEST_ARM or not arm.isprintable():
            raise InputError(f"an arm's name is up to {_LONGEST_ARM} printable characters, not {arm[:80]!r}")
    return list(arms)
