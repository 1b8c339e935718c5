"""Answers from Label Studio: its JSON export of a project that was made of our tasks, a file of other people, checked task by task.

https://labelstud.io/guide/task_format: a list of tasks, each with our ``data`` and its ``annotations``, each of which says who made it
(``completed_by``), in how many seconds (``lead_time``), whether it was skipped (``was_cancelled``), and its ``result``. There a pairwise
choice is ``{"type": "pairwise", "value": {"selected": "left"}}``, a tie ``{"type": "choices", "value": {"choices": ["no difference"]}}``.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rglcd.errors import InputError
from rglcd.study.assignment import Task, every_task
from rglcd.study.ballots import Vote
from rglcd.study.label_studio import TIE
from rglcd.study.raters import Rater
from rglcd.study.records import Answer, Study

_LONGEST_FILE: Final = 64 << 20
_LONGEST_SECONDS: Final = 24 * 3600


class ExportError(ValueError):
    """What is wrong with a task of an export."""


def is_export(path: Path) -> bool:
    """Whether ``path`` begins as a JSON list does: no file of answers of ours begins so."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def read_exports(paths: Sequence[Path], study: Study, *, first_rater: int) -> tuple[list[Vote], dict[int, int]]:
    """The votes in ``paths``, and each annotator's number in Label Studio by the rater's, which count from ``first_rater``.

    Skipped tasks and predictions are no votes. Raises :class:`InputError` for a file that is no such export or of another study, an answer
    that is none, and a task that one annotator answered twice: which counts is for a person to say, in Label Studio.
    """
    tasks = {task.id: task for task in every_task(study)}
    raters, votes = dict[int, int](), list[Vote]()
    for path in paths:
        seen = set[tuple[int, str]]()
        for number, given in enumerate(_tasks_in(path), start=1):
            try:
                for annotator, vote in _votes_on(given, tasks):
                    if (annotator, vote.task) in seen:
                        raise ExportError(f"annotator {annotator} answered it twice; delete one answer in Label Studio and export again")
                    seen.add((annotator, vote.task))
                    rater = raters.setdefault(annotator, first_rater + len(raters))
                    votes.append(Vote(vote.id, rater, vote.task, vote.answer, vote.milliseconds, vote.at))
            except ExportError as error:
                raise InputError(f"{path}, task {number}: {error}") from None
    return votes, {rater: annotator for annotator, rater in raters.items()}


def export_raters(annotators: Mapping[int, int]) -> list[Rater]:
    """The annotators as raters, who have no link."""
    return [Rater(number, "", simulated=False) for number in sorted(annotators)]


def _tasks_in(path: Path) -> list[Any]:
    if path.stat().st_size > _LONGEST_FILE:
        raise InputError(f"{path} is larger than {_LONGEST_FILE >> 20} MiB: no file of answers")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        raise InputError(f"{path} does not begin as a file of answers does, and is no JSON that Label Studio exports") from None
    return list(found)


def _votes_on(given: Any, tasks: Mapping[str, Task]) -> Iterator[tuple[int, Vote]]:
    """Who answered a task of an export, and how."""
    data, annotations = (given.get(name) if isinstance(given, dict) else None for name in ("data", "annotations"))
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise ExportError("it has no data and annotations: export the project as JSON, not JSON-MIN or CSV")
    name = data.get("task")
    task = tasks.get(name) if isinstance(name, str) else None
    sides = (data.get("left"), data.get("right"))
    if task is None or not all(isinstance(side, str) for side in sides):
        raise ExportError("it is no task of this study")
    if not (str(sides[0]).endswith(task.left) and str(sides[1]).endswith(task.right)):
        raise ExportError(f"its pictures are not those of {task.id}: is this another study's export?")
    for annotation in annotations:
        if not isinstance(annotation, dict):
            raise ExportError("an annotation is no JSON object")
        if annotation.get("was_cancelled") is True:
            continue
        annotator, answer = _annotator(annotation.get("completed_by")), _answer(annotation.get("result"))
        yield annotator, Vote(_id(annotator, task, answer, annotation), -1, task.id, answer, _milliseconds(annotation), "")


def _annotator(given: Any) -> int:
    """A number, or an object with the number and a name, as the export was asked for."""
    number = given.get("id") if isinstance(given, dict) else given
    if type(number) is not int or not 0 <= number < 1 << 63:
        raise ExportError("completed_by does not say who answered")
    return number


def _answer(result: Any) -> Answer:
    if not isinstance(result, list) or not all(isinstance(each, dict) and isinstance(each.get("value"), dict) for each in result):
        raise ExportError("the result of an annotation is no list of choices")
    found = []
    for each in result:
        match each.get("type"), each["value"]:
            case "pairwise", {"selected": "left" | "right" as side}:
                found.append(Answer(side))
            case "choices", {"choices": [choice]} if choice == TIE:
                found.append(Answer.TIE)
            case _:
                raise ExportError(f"an annotation holds neither left, right nor {TIE!r}")
    if len(found) != 1:
        raise ExportError(f"an annotation gives {'no answer' if not found else 'several answers at once'}; mend it in Label Studio")
    return found[0]


def _milliseconds(annotation: Mapping[str, Any]) -> int | None:
    """None where the time is missing or cannot be one, such as that of a tab left open."""
    seconds = annotation.get("lead_time")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return None
    return round(1000 * seconds) if 0 <= seconds <= _LONGEST_SECONDS else None


def _id(annotator: int, task: Task, answer: Answer, annotation: Mapping[str, Any]) -> str:
    """The same for the same annotation in another file: an export that is read twice counts once."""
    words = json.dumps([annotator, task.id, answer.value, str(annotation.get("id")), _milliseconds(annotation)])
    return hashlib.sha256(words.encode("utf-8", "replace")).hexdigest()[:32]
