"""Simulated raters: programs that stand for people who compare pictures. No person was asked.

Each prefers pictures that show their caption and are neat, with weights and a taste of its own, and errs by a noise of its own.
Four groups share no rater: the expert learns from the first, the judge from the second, the panel answers a study's questions
in place of people, and the voters are a reward without gradient.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rglcd.toy.checker import FORGIVEN_SOFTNESS, SOFTNESS_WEIGHT, caption_indices, measure
from rglcd.toy.draws import between, random_words
from rglcd.toy.scene import ATTRIBUTES, CANVAS

GROUP_SIZE: Final = 16
TRAITS: Final = (*ATTRIBUTES, "neat", "colourful", "bright")
# How much a trait is worth to the average rater; a single one weighs it by half to three halves of that.
USUAL_WEIGHTS: Final = (1.0, 2.0, 1.0, 1.0, 3.0)
TASTE: Final = 2.0  # at most, either way, for a fully colourful or bright picture
NOISE: Final = (0.3, 0.9)  # the deviation of a rater's errors
INDIFFERENCE: Final = (0.15, 0.45)  # less difference than this is a tie
NEAT_AT, SLOPPY_AT = 0.5, 1.7  # untidiness: all of the neatness, none of it

_FIRST_SEED: Final = 3_000_000_000


class Group(Enum):
    """Who rates, by number; no rater is in two of them."""

    EXPERTS = 0
    JUDGES = 1
    PANEL = 2
    VOTERS = 3


class Question(Enum):
    """What a study asks of two pictures of a prompt, in the words of the paper's."""

    GENERAL_PREFERENCE = "general preference"
    VISUAL_APPEAL = "visual appeal"
    PROMPT_ALIGNMENT = "prompt alignment"


class Answer(Enum):
    """Which picture is better."""

    LEFT = "left"
    RIGHT = "right"
    TIE = "tie"


@dataclass(frozen=True)
class Raters:
    """A group: R raters' weights (R, 7) of `TRAITS`, the deviation of their errors (R,), and their indifference (R,)."""

    weights: Tensor
    noise: Tensor
    indifference: Tensor


@cache
def raters(group: Group) -> Raters:
    """The raters of a group: the same on every machine."""
    words = random_words(range(_FIRST_SEED + group.value * GROUP_SIZE, _FIRST_SEED + (group.value + 1) * GROUP_SIZE))
    share = torch.from_numpy(between(words[:, :9], 0, 1000)).double() / 1000
    usual = torch.tensor(USUAL_WEIGHTS, dtype=torch.float64) * (0.5 + share[:, :5])
    taste = TASTE * (2 * share[:, 5:7] - 1)
    noise = NOISE[0] + (NOISE[1] - NOISE[0]) * share[:, 7]
    indifference = INDIFFERENCE[0] + (INDIFFERENCE[1] - INDIFFERENCE[0]) * share[:, 8]
    return Raters(torch.cat([usual, taste], dim=1), noise, indifference)


@cache
def raters_digest() -> str:
    """One digest of all raters and of how they see neatness: what was learnt from other ones is learnt anew."""
    people = [raters(group) for group in Group]
    numbers = [values for group in people for values in (group.weights, group.noise, group.indifference)]
    answers = ",".join(f"{value:.6f}" for values in numbers for value in values.flatten().tolist())
    seen = f"{NEAT_AT},{SLOPPY_AT},{FORGIVEN_SOFTNESS},{SOFTNESS_WEIGHT}"
    return hashlib.sha256(f"{seen},{answers}".encode()).hexdigest()


def traits(pixels: Tensor, captions: Sequence[str]) -> Tensor:
    """What raters see in pictures (B, 3, 32, 32) in [0, 1] of captions: `TRAITS` in [0, 1], (B, 7) float64."""
    return _traits(pixels, caption_indices(captions))


@torch.no_grad()
def _traits(pixels: Tensor, text: Tensor) -> Tensor:
    seen = measure(pixels)
    right = seen.values == text
    neat = ((SLOPPY_AT - seen.untidiness) / (SLOPPY_AT - NEAT_AT)).clamp(0, 1)
    colourful = (pixels.amax(1) - pixels.amin(1)).mean((1, 2))
    looks = torch.stack([neat, colourful, pixels.mean((1, 2, 3))], dim=1)
    return torch.cat([right.double(), looks.double()], dim=1)


def prefers_first(group: Raters, first: Tensor, second: Tensor, draws: torch.Generator) -> Tensor:
    """Which of two pictures a rater prefers, one rater drawn for each pair: 1 the first, 0 the second, 1/2 neither; (B,).

    `first` and `second` are `traits` (B, 7) of two pictures of one caption.
    """
    who = torch.randint(len(group.noise), (len(first),), generator=draws)
    errors = torch.randn(len(first), generator=draws, dtype=torch.float64)
    return _verdict(group, who, (first - second) * group.weights[who], errors)


def ask(group: Group, prompts: Sequence[str], left: Tensor, right: Tensor, question: Question, *, rater: int | None = None) -> list[Answer]:
    """One rater's answer to each pair of pictures (B, 3, 32, 32) in [0, 1] of a prompt.

    Which rater of the group answers (``rater`` by number, if it is given), and how it errs, is settled by the prompt, the pictures as
    files hold them (whole levels) and the question: the same pair is answered in the same way, whatever else is asked.
    """
    sides = [_levels(left), _levels(right)]
    verdict = _asked(group, prompts, sides, _seen(sides, prompts), question, rater)
    return [Answer.LEFT if value == 1 else Answer.RIGHT if value == 0 else Answer.TIE for value in verdict.tolist()]


def poll(group: Group, prompts: Sequence[str], left: Tensor, right: Tensor, question: Question) -> Tensor:
    """What every rater of a group answers on each of B pairs, as `ask` does: 1 left, 0 right, 1/2 neither; (16, B) float64."""
    sides = [_levels(left), _levels(right)]
    seen = _seen(sides, prompts)
    return torch.stack([_asked(group, prompts, sides, seen, question, rater) for rater in range(GROUP_SIZE)])


def answer(prompt: str, left: Tensor, right: Tensor, question: Question, *, group: Group = Group.PANEL, rater: int | None = None) -> Answer:
    """The panel's answer, or that of one of its raters, on one pair of pictures (3, 32, 32) in [0, 1] of a prompt."""
    return ask(group, [prompt], left[None], right[None], question, rater=rater)[0]


class VotesReward:
    """The share of the voters who would show a picture to others: a reward without gradient, of raters who rate nothing else."""

    differentiable: Literal[False] = False
    range: tuple[float, float] = (0.0, 1.0)
    logit_scale: float = 8.0
    text_width: int = len(ATTRIBUTES)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "VotesReward":
        """The voters as a scorer: they have no weights."""
        return cls()

    def weights_sha256(self) -> None:
        """They have no weights."""
        return None

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """The captions' attribute values by number: int64 (B, 4). Raises InputError for a caption of another world."""
        return caption_indices(captions)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The share of the voters for whom a picture (B, 3, H, W) in [0, 1] has enough of what they want: (B,).

        Another size than 32 is averaged to it.
        """
        people = raters(Group.VOTERS)
        worth = _traits(F.adaptive_avg_pool2d(pixels.float().cpu(), CANVAS), text.cpu()) @ people.weights.T
        votes = worth > _WANTED * people.weights[:, : len(USUAL_WEIGHTS)].sum(1)
        return votes.float().mean(1).to(pixels.device)


def _seen(sides: Sequence[np.ndarray], prompts: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(traits(torch.from_numpy(side).float() / 255, prompts) for side in sides)


def _asked(
    group: Group, prompts: Sequence[str], sides: Sequence[np.ndarray], seen: Sequence[Tensor], question: Question, rater: int | None
) -> Tensor:
    """`_verdict` of one rater on each pair, of whom `sides` are the levels and `seen` the traits."""
    people = raters(group)
    words = random_words([_seed(group, prompt, question, *pair, rater=rater) for prompt, *pair in zip(prompts, *sides, strict=True)])
    drawn = torch.from_numpy(between(words[:, 0], 0, GROUP_SIZE - 1)).long()
    who = drawn if rater is None else torch.full_like(drawn, rater)
    # The sum of twelve even draws is normal enough, and needs no library's logarithm (Irwin and Hall 1927).
    errors = torch.from_numpy(between(words[:, 1:13], -500, 500).sum(1)).double() / 1000
    weights = people.weights[who] * torch.tensor(_ASKED[question], dtype=torch.float64)
    return _verdict(people, who, (seen[0] - seen[1]) * weights, errors)


def _verdict(people: Raters, who: Tensor, differences: Tensor, errors: Tensor) -> Tensor:
    """1, 0 or 1/2 of weighted differences (B, 7) in the eyes of raters `who` (B,)."""
    felt = differences.sum(1) + people.noise[who] * errors
    tied = felt.abs() < people.indifference[who]
    return torch.where(tied, 0.5, (felt > 0).double())


def _levels(pixels: Tensor) -> np.ndarray:
    return np.asarray((pixels.clamp(0, 1) * 255).round().byte().contiguous().numpy())


def _seed(group: Group, prompt: str, question: Question, left: np.ndarray, right: np.ndarray, *, rater: int | None) -> int:
    named = f"{group.name}:{'' if rater is None else f'{rater}:'}{question.value}:{prompt}:".encode()
    digest = hashlib.sha256(named + left.tobytes() + right.tobytes()).digest()
    return int.from_bytes(digest[:6], "little")


_ASKED: Final = {
    Question.GENERAL_PREFERENCE: (1.0,) * len(TRAITS),
    Question.VISUAL_APPEAL: (0.0,) * len(ATTRIBUTES) + (1.0, 1.0, 1.0),
    Question.PROMPT_ALIGNMENT: (1.0,) * len(ATTRIBUTES) + (0.0, 0.0, 0.0),
}
_WANTED: Final = 0.85  # of all that is right and neat
