"""The measurement of one sampler: its images' scores by every scorer, their statistics, and how long they took.

A measurement is stored as a folder of its own, written to a staging folder and renamed, with the key of the computation in
it: an evaluation whose teacher has not changed reuses the teacher's. ``scores.csv`` is a row for each image; a program for
tables opens it.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from rglcd.evaluation.contact_sheet import contact_sheet
from rglcd.evaluation.distance_names import main_kind
from rglcd.evaluation.distances import NO_DISTANCES, Basis, Distances, FeatureRecord, Records, save_records
from rglcd.evaluation.frechet import frechet_distance
from rglcd.evaluation.observation import Observed
from rglcd.evaluation.score_tables import LONGEST_CAPTION, OTHER_VALUES, read_score_table, write_score_table
from rglcd.evaluation.statistics import diversity
from rglcd.rewards.protocol import Reward
from rglcd.store.manifest import write_json
from rglcd.store.staging import STAGING, publish_folder

TEACHER = "teacher"
REAL = "real"

MEASURED_AS = 4
"""Raise it when what draws or measures changes: older measurements are then not reused. A new page needs no new pictures."""


@dataclass(frozen=True)
class Sampler:
    """A model and its number of sampling steps: the teacher or an arm. The real images stand beside them, in 0 steps."""

    who: str
    num_steps: int

    @property
    def name(self) -> str:
        """``teacher-50``, ``rg-2``, ``real``; its folder has the same name."""
        return f"{self.who}-{self.num_steps}" if self.num_steps else self.who


@dataclass(frozen=True)
class Measurement:
    """What is known of one sampler.

    ``captions`` says what each image is of; ``scores`` holds for each scorer, and ``high_frequency`` and ``saturation`` by themselves,
    one value per image, NaN where a scorer has none for the caption; so does ``unasked_text``, 1 for an image with text that its caption
    does not quote (None: no scorer reads);
    ``distances`` are those to the real images (none for these), measured with ``basis``; ``frechet_to_teacher`` is the Fréchet distance
    to the teacher's images by the main network (None for these and the real ones), ``diversity`` the mean distance between images of
    one prompt. Seconds are stored in a file of their own, which no digest covers: an image's to be drawn (None for the real ones) and
    to be rated, in one process, and those of all processes together.
    """

    sampler: Sampler
    captions: list[str]
    scores: dict[str, list[float]]
    full_marks: dict[str, float]
    high_frequency: list[float]
    saturation: list[float]
    distances: Distances
    basis: dict[str, str]
    frechet_to_teacher: float | None
    diversity: float | None
    seconds_per_image: float | None
    rate_seconds_per_image: float
    total_seconds: float
    unasked_text: list[float] | None = None

    def in_order_of(self, scorers: Sequence[str], kinds: Sequence[str]) -> "Measurement":
        """With its scores in the order of ``scorers``, its distances in that of ``kinds``: tables follow it, and JSON does not keep it."""
        scores, full_marks = {name: self.scores[name] for name in scorers}, {name: self.full_marks[name] for name in scorers}
        return replace(self, scores=scores, full_marks=full_marks, distances=self.distances.in_order_of(kinds))


def measured(
    sampler: Sampler,
    observed: Observed,
    scorers: Mapping[str, Reward],
    captions: Sequence[str],
    *,
    real: Records | None,
    teacher: Records | None,
    kinds: Sequence[str],
    basis: Basis,
) -> tuple[Measurement, Records]:
    """The record of what was observed for ``captions``, and that of its features, by ``kinds`` of networks, the main one first.

    ``real`` are the real images' features and ``teacher`` the teacher's, None for themselves.
    """
    ours = {kind: FeatureRecord.of(observed.features[kind], captions) for kind in kinds}
    main = main_kind(kinds)
    found = Measurement(
        sampler=sampler,
        captions=[caption[:LONGEST_CAPTION] for caption in captions],
        scores={name: observed.scores[name].tolist() for name in scorers},
        full_marks={name: _full_marks(observed.scores[name], scorer.range[1]) for name, scorer in scorers.items()},
        high_frequency=observed.high_frequency.tolist(),
        saturation=observed.saturation.tolist(),
        distances=NO_DISTANCES if real is None else Distances.between(ours, real),
        basis=dict(basis),
        frechet_to_teacher=None if teacher is None else frechet_distance(teacher[main].moments, ours[main].moments),
        diversity=diversity(observed.features[main], captions),
        seconds_per_image=None if real is None else observed.draw_seconds_per_image,
        rate_seconds_per_image=observed.rate_seconds_per_image,
        total_seconds=observed.total_seconds,
        unasked_text=None if observed.unasked_text is None else observed.unasked_text.tolist(),
    )
    return found, ours


def _full_marks(scores: Tensor, greatest: float) -> float:
    """The share of the ``scores`` there are which are the ``greatest``; 0 of none."""
    there = scores[~scores.isnan()]
    return (there >= greatest).double().mean().item() if len(there) else 0.0


# --- on disk -------------------------------------------------------------------------------------

_RECORD, _TABLE, _SPEED = "measurement.json", "scores.csv", "speed.json"
_SECONDS = ("seconds_per_image", "rate_seconds_per_image", "total_seconds")


def save(folder: Path, measurement: Measurement, *, key: str, sheet: Tensor, records: Records | None) -> None:
    """Publish a measurement as ``folder``: whole or absent.

    ``records`` of features are kept for the real images and the teacher, which the arms are compared with.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}{STAGING}")
    staging.mkdir(parents=True)
    record = asdict(measurement)
    write_json(staging / _SPEED, {name: record.pop(name) for name in _SECONDS})
    captions, scores, others = record.pop("captions"), record.pop("scores"), {name: record.pop(name) for name in OTHER_VALUES}
    unasked_text = record.pop("unasked_text")
    write_json(staging / _RECORD, record | {"key": key})
    write_score_table(staging / _TABLE, scores, others, captions, unasked_text)
    contact_sheet(sheet).save(staging / "images.png")
    if records is not None:
        save_records(staging, records)
    shutil.rmtree(folder, ignore_errors=True)
    publish_folder(staging, folder)


def load(folder: Path, *, key: str) -> Measurement | None:
    """The measurement published as ``folder`` if it is there and of the computation ``key``."""
    if not (folder / _RECORD).is_file():
        return None
    record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    if record.pop("key", None) != key:
        return None
    speed = json.loads((folder / _SPEED).read_text(encoding="utf-8"))
    sampler, distances = Sampler(**record.pop("sampler")), Distances.from_json(record.pop("distances"))
    table = read_score_table(folder / _TABLE)
    return Measurement(
        sampler=sampler,
        captions=list(table.captions),
        distances=distances,
        scores={name: list(values) for name, values in table.scores.items()},
        high_frequency=list(table.others["high_frequency"]),
        saturation=list(table.others["saturation"]),
        unasked_text=None if table.unasked_text is None else list(table.unasked_text),
        **record,
        **speed,
    )


def reuse(folder: Path, previous: Path, *, key: str) -> None:
    """Copy the measurement that an earlier evaluation published as ``previous`` to ``folder``, if it is of the computation ``key``."""
    if load(folder, key=key) is None and load(previous, key=key) is not None:
        staging = folder.with_name(f".{folder.name}.{os.getpid()}{STAGING}")
        shutil.copytree(previous, staging)
        shutil.rmtree(folder, ignore_errors=True)
        publish_folder(staging, folder)
