"""What a study consists of, and its folder: pairs without arms for the pages, and the key with the arms for the score alone.

``study.json`` holds prompts, picture names and questions; ``key.json`` (mode 0600) says which arm drew which picture, and no server
and no export opens it. ``manifest.json`` has the digest of both and of every picture.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from rglcd.errors import InputError
from rglcd.store.manifest import FileEntry, parse_entries, scan, verify_file, write_json

STUDY, KEY, MANIFEST, PICTURES = "study.json", "key.json", "manifest.json", "pictures"
FORMAT: Final = 1
"""Of the folder. A study of another format is refused."""


class Question(StrEnum):
    """What is asked of a pair: the three questions of Diffusion-DPO's study (Wallace et al. 2023, arXiv 2311.12908)."""

    PREFERENCE = "preference"
    APPEAL = "appeal"
    ALIGNMENT = "alignment"


WORDING: Final[Mapping[Question, str]] = {
    Question.PREFERENCE: "Which picture do you prefer, given the description?",
    Question.APPEAL: "Which picture is more visually appealing? Leave the description aside.",
    Question.ALIGNMENT: "Which picture fits the description better?",
}
"""As raters read them."""


class Answer(StrEnum):
    """Which picture a rater chose, by the side on which it stood."""

    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"


@dataclass(frozen=True)
class Pair:
    """Two pictures of a prompt, by file name. Whose they are, and which is whole in a check, the key says."""

    id: str
    prompt: str
    pictures: tuple[str, str]


@dataclass(frozen=True)
class Study:
    """What pages are made from. ``seed`` draws sides and orders; each rater gets ``pairs_per_rater`` pairs and every check."""

    id: str
    seed: int
    questions: tuple[Question, ...]
    pairs: tuple[Pair, ...]
    checks: tuple[Pair, ...]
    pairs_per_rater: int


@dataclass(frozen=True)
class Key:
    """Which arms drew the two pictures of each pair, and which picture of each check is the whole one (0 or 1)."""

    secret: str
    arms: tuple[str, ...]
    drawn_by: Mapping[str, tuple[str, str]]
    whole: Mapping[str, int]


def write_study(folder: Path, study: Study, key: Key) -> None:
    """Write the records of a study whose pictures lie in ``folder`` already, and the manifest of all."""
    write_json(folder / STUDY, {"format": FORMAT, **asdict(study)})
    private = os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(private, "w", encoding="utf-8") as stream:
        json.dump({"format": FORMAT, **asdict(key)}, stream, indent=1, sort_keys=True)
    write_json(folder / MANIFEST, {"format": FORMAT, "files": {name: asdict(entry) for name, entry in scan(folder).items()}})


def read_study(folder: Path) -> Study:
    """The study in ``folder``. Raises :class:`InputError` if there is none, or if it is not what its manifest says."""
    fields = _read(folder, STUDY)
    try:
        pairs, checks = (
            tuple(Pair(pair["id"], pair["prompt"], (pair["pictures"][0], pair["pictures"][1])) for pair in fields[name])
            for name in ("pairs", "checks")
        )
        questions = tuple(Question(name) for name in fields["questions"])
        return Study(fields["id"], int(fields["seed"]), questions, pairs, checks, int(fields["pairs_per_rater"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{folder / STUDY} cannot be read as a study ({type(error).__name__}: {error}); build it again") from None


def read_key(folder: Path) -> Key:
    """The key of the study in ``folder``. Raises :class:`InputError` as :func:`read_study` does."""
    fields = _read(folder, KEY)
    try:
        drawn_by = {pair: (str(arms[0]), str(arms[1])) for pair, arms in fields["drawn_by"].items()}
        return Key(fields["secret"], tuple(fields["arms"]), drawn_by, dict(fields["whole"]))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{folder / KEY} cannot be read as a key ({type(error).__name__}: {error})") from None


def verify_pictures(folder: Path, study: Study) -> None:
    """Raise :class:`InputError` unless every picture of ``study`` is what the manifest says."""
    entries = _entries(folder)
    for name in picture_names(study):
        entry = entries.get(f"{PICTURES}/{name}")
        problem = "is not in the manifest" if entry is None else verify_file(folder / PICTURES / name, entry)
        if problem is not None:
            raise InputError(f"{folder / PICTURES / name} {problem}; build the study again")


def picture_names(study: Study) -> list[str]:
    """The files of ``study``'s pictures, each once, sorted: in an order that says nothing of arms."""
    return sorted({name for pair in (*study.pairs, *study.checks) for name in pair.pictures})


def _read(folder: Path, name: str) -> dict[str, Any]:
    entries, path = _entries(folder), folder / name
    problem = verify_file(path, entries[name]) if name in entries else "is not in the manifest"
    if problem is not None:
        raise InputError(f"{path} {problem}; it was changed since the study was built")
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("format") != FORMAT:
        raise InputError(f"{path} is of format {fields.get('format')}; this version reads {FORMAT}")
    return fields


def _entries(folder: Path) -> dict[str, FileEntry]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} is no study; make one with: rglcd ab build {folder} --arm A --arm B")
    try:
        return parse_entries(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a manifest ({error}); build the study again") from None
