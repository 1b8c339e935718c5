"""The section ``monitoring``: what is looked at while the student trains. It changes nothing of the student, and enters no key."""

from typing import Annotated, Literal

from pydantic import Field

from rglcd.config.base import OR_ONE, Section, Seed
from rglcd.recipe import NUM_TIMESTEPS, Positive


class NoMonitoring(Section):
    """Nothing is drawn while the student trains."""

    kind: Literal["none"] = "none"


class PanelMonitoring(Section):
    """A few fixed prompts, drawn from fixed noise and scored every so many steps: a look."""

    kind: Literal["panel"]
    prompts: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]
    """Not the evaluation's: by what is looked at often, settings are chosen."""
    images_per_prompt: Positive = 2
    """Diversity needs two."""
    num_steps: Positive = 2
    """In which the student draws them."""
    teacher_steps: Annotated[Positive, Field(le=NUM_TIMESTEPS)] = 25
    """Of the teacher's pictures of the same prompts and noise, which are drawn once, before training."""
    guidance_scale: float = Field(default=7.5, gt=1)
    """As diffusers counts it: omega + 1."""
    scorers: Annotated[tuple[str, ...], OR_ONE] = ()
    """Of ``preparation.scorers``, beside the reward: held-out ones. Those akin to the reward are shown, and no evidence."""
    every: Positive | None = None
    """Training steps between two looks, the last at the run's end. Null: as often as ``share`` lets, 40 times at most."""
    share: float = Field(default=0.01, gt=0, le=1)
    """Of a process's floating point operations, what the panel may take, the teacher's pictures counted in. By the clock it is up to twice
    that: a look opens its scorers, and its few pictures fill a GPU less than training does."""
    batch_size: Positive = 8
    """Images drawn and rated at once: it bounds the memory that a look takes."""
    when_suspected: Literal["warn", "stop"] = "warn"
    """What a run does when its looks say that it fits the reward and not the prompt; ``stop``: it ends, its state saved."""
    seed: Seed = 0


Monitoring = Annotated[NoMonitoring | PanelMonitoring, Field(discriminator="kind")]
