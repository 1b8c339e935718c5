"""Where a study's pictures come from: the contact sheets of a report, or plain folders with the prompts in a file."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from rglcd.errors import InputError
from rglcd.evaluation.contact_sheet import SHEET_COLUMNS, open_sheet, sheet_image
from rglcd.evaluation.prompt_formats import text_of
from rglcd.evaluation.score_tables import read_score_table
from rglcd.sharding.accounting import RowRejectedError
from rglcd.sharding.decoding import decode
from rglcd.store.manifest import altered_files, read_manifest

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_DRAWS, _FILES, _REAL = "draws", ("images.png", "scores.csv"), "real"

Open = Callable[[], Image.Image]
"""Reads a picture: RGB, upright, without metadata of its file's."""


@dataclass(frozen=True)
class Drawn:
    """The pictures of each arm, one for each prompt, and pictures with their prompts that a check can be made of."""

    prompts: Sequence[str]
    arms: Mapping[str, Sequence[Open]]
    for_checks: Sequence[tuple[str, Open]]


def is_of_report(name: str, *, arms: Sequence[str]) -> bool:
    """Whether :func:`from_report` reads the report's file called ``name`` for ``arms``."""
    return name in {f"{_DRAWS}/{arm}/{file}" for arm in (*arms, _REAL) for file in _FILES}


def from_report(report: Path, arms: Sequence[str]) -> Drawn:
    """The pictures that a report shows of ``arms`` (``teacher-50``, ``rg-2``); checks are made of the real images.

    Raises :class:`InputError` if the report has no such arm, or if its pictures are not what its manifest says.
    """
    manifest = read_manifest(report, made_by="evaluate")
    known = sorted(name.split("/")[1] for name in manifest.files if name.startswith(f"{_DRAWS}/") and name.endswith("/images.png"))
    for arm in arms:
        if arm not in known:
            raise InputError(f"{report} has no pictures of {arm!r}; it has: {', '.join(known)}")
    read = [*arms, *([_REAL] if _REAL in known else [])]
    altered = altered_files(report, manifest, names=[name for name in manifest.files if is_of_report(name, arms=arms)])
    if altered:
        raise InputError(f"{report}: {altered[0]}; make it again: rglcd run evaluate")
    pictures = {arm: _sheet(report / _DRAWS / arm) for arm in read}
    prompts = {arm: _captions(report / _DRAWS / arm / "scores.csv") for arm in read}
    count = min(len(pictures[arm]) for arm in arms)
    shown = prompts[arms[0]][:count]
    if any(prompts[arm][:count] != shown for arm in arms):
        raise InputError(f"{report}: {' and '.join(arms)} were drawn for different prompts")
    checks = _REAL if _REAL in known else arms[0]
    return Drawn(shown, {arm: pictures[arm][:count] for arm in arms}, list(zip(prompts[checks], pictures[checks], strict=False)))


def from_folders(folders: Mapping[str, Path], prompts_file: Path) -> Drawn:
    """The pictures in a folder for each arm, the same names in all, and the prompts one a line, in the order of the names.

    Names are ordered as people count: ``2.png`` before ``10.png``. Checks are made of the first arm's pictures.
    Raises :class:`InputError` where names or counts differ.
    """
    names = {arm: _pictures_in(folder) for arm, folder in folders.items()}
    first, *others = names
    for arm in others:
        lacking = sorted(names[first].keys() ^ names[arm].keys(), key=_as_counted)
        if lacking:
            has, not_ = (first, arm) if lacking[0] in names[first] else (arm, first)
            raise InputError(f"{folders[has]} has a picture {lacking[0]!r} and {folders[not_]} has none: each arm needs the same names")
    prompts = _lines(prompts_file)
    order = sorted(names[first], key=_as_counted)
    if len(prompts) != len(order):
        raise InputError(f"{prompts_file} has {len(prompts)} prompts, and {folders[first]} {len(order)} pictures")
    arms = {arm: [_opener(names[arm][name]) for name in order] for arm in names}
    return Drawn(prompts, arms, list(zip(prompts, arms[first], strict=True)))


def _sheet(folder: Path) -> list[Open]:
    """The pictures of a contact sheet: as many as have a caption and a place, less the black ones that fill the last row."""
    with open_sheet(folder / "images.png") as opened:
        sheet = opened.convert("RGB")
    side = sheet.width // SHEET_COLUMNS
    count = min(len(_captions(folder / "scores.csv")), SHEET_COLUMNS * (sheet.height // side))
    pictures = [sheet_image(sheet, index, side=side) for index in range(count)]
    while pictures and pictures[-1].getbbox() is None:
        pictures.pop()
    return [picture.copy for picture in pictures]


def _captions(table: Path) -> list[str]:
    return list(read_score_table(table).captions)


def _pictures_in(folder: Path) -> dict[str, Path]:
    """Files below ``folder`` by their name without suffix. Raises :class:`InputError` if it has none, or one name twice."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of pictures")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise InputError(f"{folder} has two pictures called {name!r}: {found[name].name} and {path.name}")
            found[name] = path
    if not found:
        raise InputError(f"{folder} has no pictures ({', '.join(SUFFIXES)})")
    return found


def _opener(path: Path) -> Open:
    def opened() -> Image.Image:
        try:
            return decode(path.read_bytes())
        except RowRejectedError as error:
            raise InputError(f"{path} is no picture that can be shown: {error}") from None

    return opened


def _lines(path: Path) -> list[str]:
    lines = text_of(path).splitlines()
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise InputError(f"{path}, line {empty[0]} is empty; each line is the prompt of a picture")
    return lines


def _as_counted(name: str) -> list[tuple[int, int, str]]:
    """A key that orders numbers in names by value."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"([0-9]+)", name) if part]
