"""The measurement of one sampler: its images' scores by every scorer, their statistics, and how long they took.

A measurement is stored as a folder of its own, written to a staging folder and renamed, with the key of the computation in
it. So a killed evaluation goes on where it was, and one whose teacher has not changed reuses the teacher's.
"""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from rglcd import progress
from rglcd.errors import InputError
from rglcd.evaluation.frechet import FeatureMoments, frechet_distance
from rglcd.evaluation.generation import as_png, from_png
from rglcd.evaluation.statistics import diversity, high_frequency_energy, saturation
from rglcd.models.features import FeatureFn
from rglcd.rewards.protocol import Reward
from rglcd.store.manifest import write_json
from rglcd.store.staging import STAGING, publish_folder

TEACHER = "teacher"
REAL = "real"

MEASURED_AS = 2
"""Raise it when what draws or measures changes: older measurements are then not reused. A new page needs no new pictures."""

SHEET_COLUMNS = 8

DrawFn = Callable[[Sequence[int]], Tensor]
"""Image indices -> pixels (B, 3, H, W) in [0, 1]."""


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

    ``scores`` holds for each scorer, and ``high_frequency`` and ``saturation`` by themselves, one value per image;
    ``fid`` is the Fréchet distance to the real images (None for these), ``fid_to_teacher`` that to the teacher's (None for
    these too), ``diversity`` how far apart the images of one prompt are. Seconds are stored in a file of their own.
    """

    sampler: Sampler
    scores: dict[str, list[float]]
    full_marks: dict[str, float]
    high_frequency: list[float]
    saturation: list[float]
    fid: float | None
    fid_to_teacher: float | None
    diversity: float | None
    seconds_per_image: float | None

    def in_order_of(self, scorers: Sequence[str]) -> "Measurement":
        """With its scores in the order of ``scorers``, which tables follow, and which JSON does not keep."""
        scores, full_marks = {name: self.scores[name] for name in scorers}, {name: self.full_marks[name] for name in scorers}
        return replace(self, scores=scores, full_marks=full_marks)


@dataclass(frozen=True)
class ScoringPanel:
    """All networks that rate an image: scorers with the text features of each caption, encoded once, and the feature network."""

    scorers: Mapping[str, Reward]
    text: Mapping[str, Tensor]
    rows: Mapping[str, int]
    features: FeatureFn
    device: torch.device

    @classmethod
    def of(
        cls, scorers: Mapping[str, Reward], captions: Iterable[str], *, features: FeatureFn, device: torch.device, batch_size: int
    ) -> "ScoringPanel":
        """The panel for images of ``captions``, in which each may occur many times."""
        unique = list(dict.fromkeys(captions))
        chunks = [unique[start : start + batch_size] for start in range(0, len(unique), batch_size)]
        text = {name: torch.cat([scorer.encode_text(chunk) for chunk in chunks]) for name, scorer in scorers.items()}
        return cls(scorers, text, {caption: row for row, caption in enumerate(unique)}, features, device)

    @torch.no_grad()
    def scores(self, pixels: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """Each scorer's (B,) for ``pixels`` against ``captions``, float32 on the CPU."""
        rows = [self.rows[caption] for caption in captions]
        return {name: scorer.score(pixels, self.text[name][rows]).float().cpu() for name, scorer in self.scorers.items()}


@dataclass(frozen=True)
class Observed:
    """What is kept of a sampler's images: per-image values (N,), features (N, D), the first images for the contact sheet."""

    scores: dict[str, Tensor]
    high_frequency: Tensor
    saturation: Tensor
    features: Tensor
    sheet: Tensor
    seconds_per_image: float

    @property
    def moments(self) -> FeatureMoments:
        return FeatureMoments.of(self.features)


def observe(draw: DrawFn, panel: ScoringPanel, captions: Sequence[str], *, batch_size: int, sheet_images: int, task: str) -> Observed:
    """Draw an image for each of ``captions`` in batches and rate it, rounded as a PNG would be, by the whole panel.

    Time is taken around ``draw`` only, and its median over batches is given: the first batch warms up. Raises
    :class:`InputError` for a picture that is not finite.
    """
    batches = []
    progress.report(task, done=0, total=len(captions), unit="images")
    for start in range(0, len(captions), batch_size):
        indices = range(start, min(start + batch_size, len(captions)))
        drawn, seconds = _timed(draw, indices, panel.device)
        if not bool(drawn.isfinite().all()):
            # As whole numbers they would be black pictures, and be measured as such.
            raise InputError(f"{task}: a picture among numbers {start} to {indices.stop - 1} is not finite (NaN): this model is broken")
        batches.append(_rate(drawn, panel, captions[start : indices.stop], sheet_images=sheet_images - start, seconds=seconds))
        progress.report(task, done=indices.stop, total=len(captions), unit="images")
    return Observed(
        scores={name: torch.cat([batch.scores[name] for batch in batches]) for name in panel.scorers},
        high_frequency=torch.cat([batch.high_frequency for batch in batches]),
        saturation=torch.cat([batch.saturation for batch in batches]),
        features=torch.cat([batch.features for batch in batches]),
        sheet=torch.cat([batch.sheet for batch in batches]),
        seconds_per_image=statistics.median(batch.seconds_per_image for batch in batches),
    )


def _rate(drawn: Tensor, panel: ScoringPanel, captions: Sequence[str], *, sheet_images: int, seconds: float) -> Observed:
    png = as_png(drawn)
    pixels = from_png(png)
    return Observed(
        scores=panel.scores(pixels, captions),
        high_frequency=high_frequency_energy(pixels).cpu(),
        saturation=saturation(pixels).cpu(),
        features=panel.features(pixels).cpu(),
        sheet=png[: max(sheet_images, 0)].cpu(),
        seconds_per_image=seconds / len(captions),
    )


def measured(
    sampler: Sampler,
    observed: Observed,
    scorers: Mapping[str, Reward],
    captions: Sequence[str],
    *,
    real: FeatureMoments | None,
    teacher: FeatureMoments | None,
) -> Measurement:
    """The record of what was observed for ``captions``. The real images' and the teacher's feature sums are None for themselves."""
    return Measurement(
        sampler=sampler,
        scores={name: observed.scores[name].tolist() for name in scorers},
        full_marks={name: (observed.scores[name] >= scorer.range[1]).double().mean().item() for name, scorer in scorers.items()},
        high_frequency=observed.high_frequency.tolist(),
        saturation=observed.saturation.tolist(),
        fid=None if real is None else frechet_distance(real, observed.moments),
        fid_to_teacher=None if teacher is None else frechet_distance(teacher, observed.moments),
        diversity=diversity(observed.features, captions),
        seconds_per_image=None if real is None else observed.seconds_per_image,
    )


def _timed(draw: DrawFn, indices: Sequence[int], device: torch.device) -> tuple[Tensor, float]:
    started = time.perf_counter()
    pixels = draw(indices)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return pixels, time.perf_counter() - started


# --- on disk -------------------------------------------------------------------------------------


_STORED_AS = "subject"
"""The key of the sampler in ``scores.json``; measurements of earlier versions stay usable."""


def save(folder: Path, measurement: Measurement, *, key: str, sheet: Tensor, moments: FeatureMoments | None) -> None:
    """Publish a measurement as ``folder``: whole or absent.

    ``moments`` are kept for the real images and the teacher, which the arms are compared with.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}{STAGING}")
    staging.mkdir(parents=True)
    record = asdict(measurement)
    record[_STORED_AS] = record.pop("sampler")
    write_json(staging / "speed.json", {"seconds_per_image": record.pop("seconds_per_image")})
    write_json(staging / "scores.json", record | {"key": key})
    contact_sheet(sheet).save(staging / "images.png")
    if moments is not None:
        tensors = {"count": torch.tensor(moments.count), "total": moments.total, "outer": moments.outer.contiguous()}
        save_file(tensors, staging / "moments.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    publish_folder(staging, folder)


def load(folder: Path, *, key: str) -> Measurement | None:
    """The measurement published as ``folder`` if it is there and of the computation ``key``."""
    if not (folder / "scores.json").is_file():
        return None
    record = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    if record.pop("key", None) != key:
        return None
    speed = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    sampler = Sampler(**record.pop(_STORED_AS))
    return Measurement(sampler=sampler, **record, **speed)


def load_moments(folder: Path) -> FeatureMoments:
    """The feature sums that were kept in ``folder``."""
    tensors = load_file(folder / "moments.safetensors")
    return FeatureMoments(int(tensors["count"]), tensors["total"], tensors["outer"])


def reuse(folder: Path, previous: Path, *, key: str) -> None:
    """Copy the measurement that an earlier evaluation published as ``previous`` to ``folder``, if it is of the computation ``key``."""
    if load(folder, key=key) is None and load(previous, key=key) is not None:
        staging = folder.with_name(f".{folder.name}.{os.getpid()}{STAGING}")
        shutil.copytree(previous, staging)
        shutil.rmtree(folder, ignore_errors=True)
        publish_folder(staging, folder)


def contact_sheet(images: Tensor) -> Image.Image:
    """uint8 ``images`` (N, 3, H, W), :data:`SHEET_COLUMNS` a row without gaps, in order, the last row filled with black."""
    num_images, channels, height, width = images.shape
    num_rows = -(-num_images // SHEET_COLUMNS)
    filled = torch.zeros(num_rows * SHEET_COLUMNS, channels, height, width, dtype=torch.uint8)
    filled[:num_images] = images
    grid = filled.view(num_rows, SHEET_COLUMNS, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(grid.reshape(num_rows * height, SHEET_COLUMNS * width, channels).numpy())


def sheet_image(sheet: Image.Image, index: int, *, side: int) -> Image.Image:
    """The ``index``-th image of a contact sheet of square images of ``side`` pixels."""
    row, column = divmod(index, SHEET_COLUMNS)
    return sheet.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
