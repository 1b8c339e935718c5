"""Drawing and rating a sampler's images, batch by batch; each batch is a file until all are there.

A batch is the unit of work: the images of consecutive numbers, whatever process draws them. So several processes share the batches
out, a killed run goes on with the batches that it lacks, and what comes of it has the same bits in every case.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rglcd import progress
from rglcd.errors import InputError
from rglcd.evaluation.generation import as_png, from_png
from rglcd.evaluation.statistics import high_frequency_energy, saturation
from rglcd.models.chunks import Chunks
from rglcd.models.features import FeatureFn
from rglcd.rewards.protocol import Reward, TextReader, has_score
from rglcd.store.shard_tasks import Part, finish_task, finished_task
from rglcd.store.staging import staging_file

DrawFn = Callable[[Sequence[int]], Tensor]
"""Image indices -> pixels (B, 3, H, W) in [0, 1]."""

Made = TypeVar("Made")

_SCORES, _FEATURES = "scores/", "features/"
"""Of the names of a batch's tensors: what follows is the scorer's, or the kind of feature network."""

_UNASKED = "unasked_text"


@dataclass(frozen=True)
class ScoringPanel:
    """All networks that rate an image: scorers with the text features of each caption, encoded once, and feature networks by kind.

    The first of these is the one whose features say how much images of one prompt differ.
    """

    scorers: Mapping[str, Reward]
    text: Mapping[str, Tensor]
    rows: Mapping[str, int]
    features: Mapping[str, FeatureFn]
    device: torch.device
    at_once: Chunks

    @classmethod
    def of(
        cls,
        scorers: Mapping[str, Reward],
        captions: Iterable[str],
        *,
        features: Mapping[str, FeatureFn],
        device: torch.device,
        at_once: Chunks,
    ) -> "ScoringPanel":
        """The panel for images of ``captions``, in which each may occur many times."""
        unique = list(dict.fromkeys(captions))
        text = {name: at_once.joined(scorer.encode_text, unique) for name, scorer in scorers.items()}
        return cls(scorers, text, {caption: row for row, caption in enumerate(unique)}, features, device, at_once)

    def num_scored(self, name: str, captions: Iterable[str]) -> int:
        """For how many of the ``captions`` the scorer ``name`` has a score."""
        rows = [self.rows[caption] for caption in captions]
        scored = has_score(self.scorers[name], self.text[name][rows])
        return len(rows) if scored is None else int(scored.sum())

    @torch.no_grad()
    def ratings(self, png: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """Of uint8 images (B, 3, H, W) of ``captions``: each scorer's (B,), NaN where it has no score for a caption, ``high_frequency``
        and ``saturation`` (B,), each feature network's (B, D), and ``unasked_text`` (B,) where a scorer reads; float32 on the CPU."""

        def rate(rows: range) -> dict[str, Tensor]:
            return self._ratings(png[rows.start : rows.stop], captions[rows.start : rows.stop])

        parts = list(self.at_once.calls(rate, range(len(png))))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def scores(self, ratings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of :meth:`ratings`, those of the scorers, by their names."""
        return {name: ratings[_SCORES + name] for name in self.scorers}

    def compared_features(self, ratings: Mapping[str, Tensor]) -> Tensor:
        """Of :meth:`ratings`, the features (B, D) that say how much images of one prompt differ."""
        return ratings[_FEATURES + next(iter(self.features))]

    def _ratings(self, png: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        pixels, rows = from_png(png), [self.rows[caption] for caption in captions]
        scores, others = {}, {"high_frequency": high_frequency_energy(pixels), "saturation": saturation(pixels)}
        for name, scorer in self.scorers.items():
            text = self.text[name][rows]
            if isinstance(scorer, TextReader):
                found, others[_UNASKED] = scorer.score_and_unasked_text(pixels, text)
            else:
                found = scorer.score(pixels, text)
            if not bool(found.isfinite().all()):
                raise InputError(f"the scorer {name!r} gave a score that is not finite (NaN or infinite): it is broken")
            scored = has_score(scorer, text)
            scores[_SCORES + name] = found if scored is None else found.masked_fill(~scored.to(found.device), math.nan)
        features = {_FEATURES + kind: network(pixels) for kind, network in self.features.items()}
        return {name: values.float().cpu() for name, values in (scores | others | features).items()}


@dataclass(frozen=True)
class Observed:
    """What is kept of a sampler's images: per-image values (N,), features (N, D) by kind, the first images for the contact sheet.

    A score is NaN where the scorer has none for the caption; ``unasked_text`` is 1 where an image holds text that its caption does not
    quote, and None where no scorer reads. Seconds are those of one process; ``total_seconds`` all processes' together, of drawing and
    rating.
    """

    scores: dict[str, Tensor]
    high_frequency: Tensor
    saturation: Tensor
    unasked_text: Tensor | None
    features: dict[str, Tensor]
    sheet: Tensor
    draw_seconds_per_image: float
    rate_seconds_per_image: float
    total_seconds: float


@dataclass(frozen=True)
class Batches:
    """A sampler's images, ``batch_size`` at a time, in ``folder``; of the first ``sheet_images`` the pixels are kept too."""

    folder: Path
    captions: Sequence[str]
    batch_size: int
    sheet_images: int

    @property
    def ranges(self) -> list[range]:
        """The image numbers of each batch."""
        starts = range(0, len(self.captions), self.batch_size)
        return [range(start, min(start + self.batch_size, len(self.captions))) for start in starts]

    def observe(self, make_draw: Callable[[], DrawFn], panel: Callable[[], ScoringPanel], *, task: str, share: Part) -> None:
        """Draw and rate the batches of ``share`` that are not there yet. Networks are asked for when there is one.

        Time is taken around drawing and around rating, images being rounded as a PNG would be in between. Raises
        :class:`InputError` for a picture that is not finite.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        total, draw = len(self.captions), None
        mine = [indices for indices in share.of(self.ranges) if finished_task(self._record(indices)) is None]
        progress.report(task, done=mine[0].start if mine else total, total=total, unit="images")
        for indices in mine:
            draw = draw or make_draw()
            self._observe(indices, draw, panel(), task=task)
            # Of all processes', which work side by side: what lies before one's own batch is done, more or less.
            progress.report(task, done=indices.stop, total=total, unit="images")

    def _observe(self, indices: range, draw: DrawFn, panel: ScoringPanel, *, task: str) -> None:
        png, draw_seconds = _timed(lambda: as_png(_finite(draw(indices), indices, task=task)), panel.device)
        captions = self.captions[indices.start : indices.stop]
        tensors, rate_seconds = _timed(lambda: panel.ratings(png, captions), panel.device)
        tensors["sheet"] = png[: max(self.sheet_images - indices.start, 0)].cpu().contiguous()
        tensors["seconds"] = torch.tensor([draw_seconds, rate_seconds], dtype=torch.float64)
        file = self._file(indices)
        with staging_file(file) as staging:
            save_file(tensors, staging)
        finish_task(self._record(indices), [file.name])

    def collected(self) -> Observed:
        """All batches together. Raises :class:`InputError` where one is missing: the processes do not share this folder."""
        for indices in self.ranges:
            if not self._record(indices).is_file():
                raise InputError(
                    f"{self.folder} lacks the images from number {indices.start} on: the processes of evaluate must share one folder"
                )
        batches = [load_file(self._file(indices)) for indices in self.ranges]
        joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0] if name != "seconds"}
        seconds = torch.stack([batch["seconds"] for batch in batches])
        per_image = (seconds / torch.tensor([[len(indices)] for indices in self.ranges])).T.tolist()
        return Observed(
            scores={name.removeprefix(_SCORES): values for name, values in joined.items() if name.startswith(_SCORES)},
            high_frequency=joined["high_frequency"],
            saturation=joined["saturation"],
            unasked_text=joined.get(_UNASKED),
            features={name.removeprefix(_FEATURES): values for name, values in joined.items() if name.startswith(_FEATURES)},
            sheet=joined["sheet"],
            # Medians: the first batch warms up.
            draw_seconds_per_image=statistics.median(per_image[0]),
            rate_seconds_per_image=statistics.median(per_image[1]),
            total_seconds=float(seconds.sum()),
        )

    def _file(self, indices: range) -> Path:
        return self.folder / f"{indices.start // self.batch_size:05d}.safetensors"

    def _record(self, indices: range) -> Path:
        return self.folder / f"{indices.start // self.batch_size:05d}_stats.json"


def _finite(drawn: Tensor, indices: range, *, task: str) -> Tensor:
    """``drawn``, of which no number is NaN or infinite: as whole numbers they would be black pictures, and be measured as such."""
    if not bool(drawn.isfinite().all()):
        raise InputError(f"{task}: a picture among numbers {indices.start} to {indices.stop - 1} is not finite (NaN): this model is broken")
    return drawn


def _timed(make: Callable[[], Made], device: torch.device) -> tuple[Made, float]:
    started = time.perf_counter()
    made = make()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return made, time.perf_counter() - started
