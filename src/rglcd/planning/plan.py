"""The plan of a run: does each stage fit, what would fit, and how long it takes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rglcd.config import Config
from rglcd.errors import InputError
from rglcd.planning.arms import costs_of_arms
from rglcd.planning.counting import GIB
from rglcd.planning.gpus import GPUS, Gpu
from rglcd.planning.inference import caching_cost, evaluation_cost
from rglcd.planning.memory import TO_SPARE, StageMemory, largest
from rglcd.planning.networks import Networks

UTILISATION: Final = 0.28
UTILISATION_PIXEL: Final = 0.19
"""Of the data sheet's peak, measured with this package's eager step of Stable Diffusion 2.1 at 512 pixels on an H200, 32 to 64 samples;
with the reward through the decoder, 16. Assumed for every card."""

CARDS_OF_A_NODE: Final = 8
"""Evaluation runs on one node, with a process for each of its cards."""

_MOST = 4096
_STAGES: Final = {"cache": "caching", "distill": "training", "evaluate": "evaluation"}


@dataclass(frozen=True)
class StagePlan:
    """One stage on one card; ``largest`` and the cards leave :data:`TO_SPARE` free, None where none is large enough."""

    memory: StageMemory
    gpu: Gpu
    largest: int
    smallest_gpu: Gpu | None
    smallest_gpu_for_one: Gpu | None

    @classmethod
    def of(cls, memory: StageMemory, gpu: Gpu) -> "StagePlan":
        """What ``memory`` means on one ``gpu``."""

        def fits(card: Gpu, samples: int) -> bool:
            return memory.bytes_at(samples) / GIB <= (1 - TO_SPARE) * card.usable_gib

        if memory.stage == "training":
            # Micro-batches are of one size. All samples at once may fit where fewer do not, for then no gradients are added up.
            sizes = (size for size in range(1, memory.whole + 1) if memory.whole % size == 0)
            most = max((size for size in sizes if fits(gpu, size)), default=0)
        else:
            most = largest(lambda samples: fits(gpu, samples), most=_MOST)
        cards = [next((card for card in GPUS if fits(card, samples)), None) for samples in (memory.samples, 1)]
        return cls(memory, gpu, most, cards[0], cards[1])

    @property
    def gib(self) -> float:
        """What it takes as it is configured."""
        return self.memory.bytes_at(self.memory.samples) / GIB

    @property
    def spare(self) -> float:
        """The share of the card that is left; negative where it does not fit."""
        return 1 - self.gib / self.gpu.usable_gib

    @property
    def fits(self) -> bool:
        """Whether it can run at all."""
        return self.spare >= 0

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.fits:
            return "does not fit"
        return "fits" if self.spare >= TO_SPARE else f"tight: less than {TO_SPARE:.0%} to spare"


@dataclass(frozen=True)
class Hours:
    """By operations: of the whole run on all cards, of caching a million samples on one, of the evaluation on those of a node."""

    training: float
    caching_million: float
    evaluation: float
    evaluation_cards: int
    utilisation: float


@dataclass(frozen=True)
class Plan:
    """What ``rglcd plan`` prints."""

    preset: str
    gpu: Gpu
    count: int
    stages: tuple[StagePlan, ...]
    hours: Hours
    evaluation_precision: str


def plan(config: Config, gpu: Gpu, count: int, *, pretrained: Path | None = None) -> Plan:
    """The plan of ``config`` on ``count`` cards ``gpu``. Raises :class:`InputError` for networks of unknown shapes."""
    networks = Networks(config, pretrained)
    training, training_flops = costs_of_arms(config, pretrained, count=count)
    caching, evaluation = caching_cost(networks), evaluation_cost(networks)
    stages = tuple(StagePlan.of(memory, gpu) for memory in (training, caching.memory, evaluation.memory))
    used = UTILISATION_PIXEL if any(arm.reward.kind == "pixel" for arm in config.arms) else UTILISATION
    hour = 3600e12 * gpu.bf16_tflops
    bf16_hour, tf32_hour = UTILISATION * hour, UTILISATION * hour / 2
    evaluation_cards = min(count, CARDS_OF_A_NODE)
    hours = Hours(
        training=training_flops / (count * used * hour / (1 if config.distillation.precision == "bfloat16" else 2)),
        caching_million=1e6 * caching.flops / tf32_hour,
        evaluation=(evaluation.flops / tf32_hour + evaluation.bf16_flops / bf16_hour) / evaluation_cards,
        evaluation_cards=evaluation_cards,
        utilisation=used,
    )
    return Plan(config.preset, gpu, count, stages, hours, config.evaluation.precision)


def require_fit(planned: Plan, stage: str | None = None) -> None:
    """Raises :class:`InputError` naming what to lower, if ``stage`` of the command line (None: any stage) cannot fit."""
    for one in planned.stages:
        if not one.fits and (stage is None or _STAGES.get(stage) == one.memory.stage):
            raise InputError(_refusal(one))


def _refusal(one: StagePlan) -> str:
    took, memory = f"{one.gib:.1f} GiB", one.memory
    remedy = f"{memory.setting}={one.largest} fits" if one.largest else f"not even one sample at a time fits with {TO_SPARE:.0%} to spare"
    if one.smallest_gpu is not None:
        remedy += f"; so would {one.smallest_gpu.name} as it is"
    return f"{memory.stage} takes {took} and {one.gpu.name} has {one.gpu.usable_gib:g} GiB: {remedy} (rglcd plan shows the parts)"
