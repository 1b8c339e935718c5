"""The section ``evaluation``: what is drawn, with how many steps, and who scores it."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from rglcd.config.base import (
    EACH_ONCE,
    ONE_OR_SEVERAL,
    OR_ONE,
    SEVERAL,
    SHORT,
    SHORT_OR_SPELLED_OUT,
    SPELLED_OUT,
    Section,
    SourcePath,
)
from rglcd.config.sources import PromptSource
from rglcd.recipe import NUM_TIMESTEPS, Positive

DrawingPrecision = Literal["float32", "tf32", "bfloat16"]


_Steps = Annotated[Positive, Field(le=NUM_TIMESTEPS)]


class Evaluation(Section):
    """What is drawn, with how many steps, and who scores it."""

    prompts: Annotated[Annotated[SourcePath, Tag(SHORT)] | Annotated[PromptSource, Tag(SPELLED_OUT)], SHORT_OR_SPELLED_OUT] = (
        "prompts/heldout.txt"
    )
    """One prompt a line, within the source folder; drawn in turn until ``num_images``. Or a set of a published kind."""
    reference: SourcePath = "reference/index.tsv"
    """Index of the real images that the Fréchet distance compares with, within the source folder."""
    num_images: int = Field(default=3_200, ge=2)
    """Of each student in each number of steps, and of the teacher. A Fréchet distance needs two."""
    num_steps: Annotated[tuple[Positive, ...], Field(min_length=1), EACH_ONCE, OR_ONE] = (1, 2, 4, 8)
    """In which each student draws."""
    teacher_steps: Annotated[
        Annotated[_Steps, Tag(SHORT)] | Annotated[tuple[_Steps, ...], Field(min_length=1), Tag(SEVERAL)], ONE_OR_SEVERAL
    ] = 50
    """The first is what students are compared with; others are drawn beside it, from the same noise."""
    guidance_scale: float = Field(default=7.5, gt=1)
    """As diffusers counts it: omega + 1."""
    scorers: Annotated[tuple[str, ...], Field(min_length=1), OR_ONE] = ("expert",)
    """Of ``preparation.scorers``; those that trained no student are judges."""
    batch_size: Positive = 32
    """Images drawn and rated at once: also what is made again after a kill, and what several processes share out."""
    decode_chunk: Positive | None = None
    """Images of a batch decoded at once, left out: all. It bounds memory; the pictures are the same to rounding."""
    precision: DrawingPrecision = "float32"
    """``bfloat16``: the networks that draw have such weights. On a GPU it also lets float32 networks, the scorers among them, multiply
    in TF32, as ``tf32`` does; a CPU knows no TF32."""
    grid_prompts: Positive = 8
    """Prompts whose pictures the report shows side by side."""
    seed: int = Field(default=0, ge=-(2**63), lt=2**64)
    """Of the noise that every student and the teacher start from."""

    @property
    def all_teacher_steps(self) -> tuple[int, ...]:
        """``teacher_steps`` as a list, each once."""
        return tuple(dict.fromkeys(self.teacher_steps if isinstance(self.teacher_steps, tuple) else (self.teacher_steps,)))

    @property
    def prompt_source(self) -> PromptSource:
        """``prompts`` spelled out."""
        return self.prompts if isinstance(self.prompts, PromptSource) else PromptSource(kind="lines", source=self.prompts)
