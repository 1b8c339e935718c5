"""What a report holds of a run, and what of two runs may be compared: numbers that are of two kinds are named, with what differs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from PIL import Image

from rglcd.evaluation.distances import Basis, Distances, differing_in
from rglcd.evaluation.measurement import REAL, Sampler
from rglcd.evaluation.score_tables import ScoreTable

_SAME_NETWORK: Final = 0.01
"""Two scores of one real image by one scorer differ by less than this share of the scores' standard deviation: by rounding."""


@dataclass(frozen=True)
class Measured:
    """What a report holds of one sampler."""

    table: ScoreTable
    distances: Distances
    basis: Basis
    seconds_per_image: float | None


@dataclass(frozen=True)
class Run:
    """A report with what it was made from: the digests of report and student, and the ``sections`` of every stage behind it.

    ``origins`` are what no setting says: digests of models, the code of rewards. ``pictures`` gives a sampler's first pictures.
    """

    name: str
    digest: str
    student: str
    sections: Mapping[str, Any]
    origins: Mapping[str, Any]
    measured: Mapping[Sampler, Measured]
    pictures: Callable[[Sampler], Sequence[Image.Image]] = field(compare=False)

    @property
    def drawn(self) -> list[Sampler]:
        """Every sampler but the real images."""
        return [sampler for sampler in self.measured if sampler.who != REAL]

    def setting(self, key: str) -> Any:
        """The value of ``section.key`` that it was made with."""
        section, _, name = key.partition(".")
        return self.sections.get(section, {}).get(name)

    @property
    def rewards(self) -> set[str]:
        """The scorers that trained a student of it."""
        reward = self.sections.get("reward", {})
        arms = self.sections.get("distillation", {}).get("arms", {})
        changes = arms.values() if isinstance(arms, Mapping) else []
        found = [reward.get("expert"), *(change.get("reward.expert") for change in changes)]
        found += [change["reward"].get("expert") for change in changes if isinstance(change.get("reward"), Mapping)]
        return {name for name in found if name}


def paired_captions(a: Run, b: Run, sampler: Sampler) -> tuple[tuple[str, ...], list[str]]:
    """The captions of the pictures that both have, none where the prompts differ; and why those are no pairs, if they are none."""
    ours, theirs = a.measured[sampler].table.captions, b.measured[sampler].table.captions
    count = min(len(ours), len(theirs))
    other = next((number for number in range(count) if ours[number] != theirs[number]), None)
    if other is not None:
        return (), [f"the prompts are others (picture {other} is {ours[other]!r} in A and {theirs[other]!r} in B)"]
    reasons = [
        f"{what} ({key} is {a.setting(key)} in A and {b.setting(key)} in B)"
        for key, what in (("evaluation.seed", "the noise is another"), ("model.resolution", "pictures of two sizes start from other noise"))
        if a.setting(key) != b.setting(key)
    ]
    return ours[:count], reasons


def same_scorers(a: Run, b: Run, sampler: Sampler) -> tuple[list[str], list[str]]:
    """Scorers of both runs that are one network, and what to say of the others.

    One network gives one real image one score. Where the real images are others, the settings must be equal.
    """
    found, refused = [], []
    ours, theirs = (run.measured[sampler].table.scores for run in (a, b))
    for name in ours:
        if name not in theirs:
            refused.append(f"scorer {name}: {b.name} has no scores by it")
        elif not num_scored(a, b, sampler, name):
            refused.append(f"scorer {name}: it has no score for any prompt of both")
        elif reason := _other_scorer(a, b, name):
            refused.append(f"scorer {name}: {reason}")
        else:
            found.append(name)
    refused += [f"scorer {name}: {a.name} has no scores by it" for name in theirs if name not in ours]
    return found, refused


def num_scored(a: Run, b: Run, sampler: Sampler, name: str) -> int:
    """How many pairs of pictures the scorer ``name`` has scores for: that is a matter of their prompts."""
    columns = (run.measured[sampler].table.scores[name] for run in (a, b))
    return sum(not math.isnan(one) and not math.isnan(other) for one, other in zip(*columns, strict=False))


def _other_scorer(a: Run, b: Run, name: str) -> str | None:
    ours, theirs = (_real_scores(run, name) for run in (a, b))
    if ours is not None and theirs is not None and _reference(a) == _reference(b):
        count = min(len(ours), len(theirs))
        largest = (ours[:count] - theirs[:count]).abs().nan_to_num().max()
        if largest > _SAME_NETWORK * ours[~ours.isnan()].std() + 1e-6:
            return f"it gives the same real images other scores, by up to {float(largest):.3g}: it is another network"
        return None
    one, other = (run.sections.get("preparation", {}).get("scorers", {}).get(name) for run in (a, b))
    if one is None or one != other:
        return "there are no real images in common, and its settings are not the same: nothing shows that it is one network"
    return None


def _real_scores(run: Run, name: str) -> torch.Tensor | None:
    """Of the real images; None where it has no score for two of their captions."""
    real = run.measured.get(Sampler(REAL, 0))
    scores = torch.tensor([] if real is None else real.table.scores.get(name, ()), dtype=torch.float64)
    return scores if int((~scores.isnan()).sum()) > 1 else None


def _reference(run: Run) -> str | None:
    return next((one.basis.get("reference") for one in run.measured.values()), None)


def same_basis(a: Run, b: Run, shared: Sequence[Sampler]) -> tuple[dict[Sampler, list[str]], list[str]]:
    """By sampler the distances that were measured alike, and what to say where they were not."""
    names: dict[Sampler, list[str]] = {}
    refused: dict[str, None] = {}
    for sampler in shared:
        ours, theirs = a.measured[sampler], b.measured[sampler]
        differing = differing_in(ours.basis, theirs.basis)
        if differing:
            said = "; ".join(f"{name}: {ours.basis.get(name, 'none')} in A, {theirs.basis.get(name, 'none')} in B" for name in differing)
            refused[f"distances to real images: they were measured otherwise ({said})"] = None
        known = distance_values(theirs.distances)
        names[sampler] = [] if differing else [name for name in distance_values(ours.distances) if name in known]
    return names, list(refused)


def distance_values(distances: Distances) -> dict[str, float]:
    """All distances to the real images by name, without intervals."""
    return {**distances.frechet, **{name: found.value for name, found in distances.kernel.items()}}
