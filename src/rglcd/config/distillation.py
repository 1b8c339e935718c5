"""The section ``distillation``: the training run of the student."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, Tag, model_validator

from rglcd.config.base import SHORT, SHORT_OR_SPELLED_OUT, SPELLED_OUT, Section, Seed
from rglcd.recipe import (
    Activations,
    ConstantGrid,
    Distance,
    EmaTarget,
    ExecutionMode,
    FullStudent,
    Grid,
    Guard,
    Huber,
    MemoryFormat,
    Neighbour,
    Positive,
    Precision,
    Probability,
    Schedule,
    StopGuard,
    Student,
    Target,
    Timesteps,
    UniformTimesteps,
    Weighting,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")

Changes = Mapping[str, JsonValue]
"""Values of the sections ``reward`` and ``distillation`` by their keys, ``reward.weight`` say; ``reward`` alone is the whole section."""


Arms = Annotated[
    Annotated[tuple[Literal["lcm", "rg"], ...], Tag(SHORT)] | Annotated[dict[str, dict[str, JsonValue]], Tag(SPELLED_OUT)],
    SHORT_OR_SPELLED_OUT,
]

_TAKEN = frozenset({"real", "teacher", "lrm"})


class Distillation(Section):
    """The distillation run. Each arm is a student: ``rg`` as the reward section says, ``lcm`` with no reward."""

    arms: Arms = ("rg",)
    """Or any number of arms by names of your own, each with what it changes: ``{lcm: {reward: {kind: none}}, strong: {reward.weight: 3}}``.

    The report is about ``rg``, or else the last by name; ``lcm`` is what each is compared with, where there is one.
    """
    student: Annotated[Student, Field(discriminator="kind")] = FullStudent()
    match_compute: bool = False
    """Give arms without a reward as many more steps as the reward costs, counted in floating point operations.

    That is the reward section's reward; an arm that says its own ``distillation.num_steps`` has those.
    """
    num_steps: Positive = 10_000
    """Optimiser steps of an arm."""
    batch_size: Positive = 16
    """Over all ranks together: the world size changes the speed, not the run."""
    micro_batch: Positive | None = None
    """Samples that a process works on at once; their gradients are added up to the batch's. Null: all of its samples.

    It bounds the memory and changes the rounding, nothing else. Because it rounds otherwise it names another result.
    """
    activations: Activations = "kept"
    learning_rate: float = Field(default=1e-6, gt=0)
    """Its peak, after the warm-up."""
    warmup_steps: int = Field(default=0, ge=0)
    """Over which the learning rate rises."""
    schedule: Schedule = "constant"
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The student's gradients are scaled down to this norm where it is larger."""
    target: Annotated[Target, Field(discriminator="kind")] = EmaTarget()
    neighbour: Neighbour = "teacher"
    omega: tuple[float, float] = (5.0, 15.0)
    """Guidance weights are drawn uniformly from this range (LCM notation: cond + omega (cond - uncond))."""
    caption_dropout: Probability = 0.0
    """Share of the samples whose caption is left empty."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In a UNet's residual blocks, which a transformer has none of; student and target drop the same."""
    distance: Annotated[Distance, Field(discriminator="kind")] = Huber()
    timesteps: Annotated[Timesteps, Field(discriminator="kind")] = UniformTimesteps()
    weighting: Weighting = "even"
    grid: Annotated[Grid, Field(discriminator="kind")] = ConstantGrid()
    precision: Precision = "float32"
    """Of the networks' computation while training."""
    all_reduce: Precision = "float32"
    """In which the student's gradients are averaged over the processes; bfloat16 halves what travels between them."""
    execution: ExecutionMode = "eager"
    memory_format: MemoryFormat = "contiguous"
    checkpoint_every: Positive = 1_000
    """Steps between two saved states."""
    guard: Annotated[Guard, Field(discriminator="kind")] = StopGuard()
    """What a step that goes wrong does to the run."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _sound(self) -> "Distillation":
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError("arms must name at least one arm, each once")
        for name in self.arms:
            if not _NAME.fullmatch(name):
                raise ValueError(f"arms: {name!r} names a folder: small letters, digits, '.', '_' and '-', at most 40")
        if taken := _TAKEN.intersection(self.arms):
            raise ValueError(f"arms: {', '.join(sorted(taken))} is what the report calls something else; choose another name")
        if self.omega[0] > self.omega[1]:
            raise ValueError(f"omega runs from low to high, not {list(self.omega)}")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}")
        return self
