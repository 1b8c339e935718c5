"""Reward models, by the ``kind`` that the registry opens: which files each needs, and what it makes of a caption."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from rglcd.config.base import Section
from rglcd.config.sources import ModelSource, WeightsSource


class Scorer(Section):
    """A reward model.

    ``text`` is what it makes of a caption: a vector that a linear map can read (so that a latent proxy may be
    pretrained on it), token numbers, or nothing at all. ``has_gradient`` says whether its score back-propagates to the pixels;
    None: that shows when it is opened.
    """

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "vector"
    has_gradient: ClassVar[bool | None] = True

    def settings(self) -> dict[str, Any]:
        """Everything but where its files come from: what the registry needs to open the scorer."""
        return self.model_dump(mode="json", exclude={"source", "tokenizer", "head"})

    def sources(self) -> dict[str, ModelSource]:
        """Its files by role: ``source``, ``tokenizer``, ``head``."""
        given = {role: getattr(self, role, None) for role in ("source", "tokenizer", "head")}
        return {role: source for role, source in given.items() if source is not None}


class ClipScorer(Scorer):
    """Any transformers ``CLIPModel`` folder, with the normalisation of its ``preprocessor_config.json``."""

    kind: Literal["clip"]
    source: ModelSource


class PublishedClipScorer(Scorer):
    """HPSv2 and HPSv2.1, CLIPScore (ViT-H/14) and PickScore: the same network, each with its own weights and preprocessing.

    ``tokenizer`` is the folder of the CLIP tokenizer; left out, ``source`` is a folder that has it.
    """

    kind: Literal["hpsv2", "clipscore", "pickscore"]
    source: WeightsSource
    tokenizer: ModelSource | None = None
    """The folder of its tokenizer."""

    @model_validator(mode="after")
    def _complete(self) -> "PublishedClipScorer":
        return _with_tokenizer(self)


class ImageRewardScorer(Scorer):
    """ImageReward: BLIP whose text looks at the image. ``hinge`` is -ReLU(2 - r), flat above 2, as RG-LCD's released code has it."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"

    kind: Literal["imagereward"]
    source: WeightsSource
    tokenizer: ModelSource | None = None
    """The folder of its tokenizer."""
    form: Literal["raw", "hinge"] = "raw"
    """The raw score, or the hinge that is flat above 2."""

    @model_validator(mode="after")
    def _complete(self) -> "ImageRewardScorer":
        return _with_tokenizer(self)


class AestheticScorer(Scorer):
    """LAION's aesthetic predictors: a ``head`` (v1 linear, v2 five layers) on CLIP ViT-L/14's image vector. Reads no caption."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "nothing"

    kind: Literal["aesthetic-v1", "aesthetic-v2"]
    source: ModelSource
    head: WeightsSource
    """The file of the head."""
    logit_scale: float = Field(default=1.0, gt=0)
    """Inverse temperature of its preferences: the predictor was fitted to ratings and has none of its own."""

    @model_validator(mode="after")
    def _complete(self) -> "AestheticScorer":
        if self.head.file is None:
            raise ValueError("head must name its `file`")
        return self


class MixtureScorer(Scorer):
    """A weighted sum of other scorers of ``preparation.scorers``."""

    # The parts' features side by side are no vector of one space.
    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"

    has_gradient: ClassVar[bool | None] = None

    kind: Literal["mixture"]
    weights: dict[str, float] = Field(min_length=1)
    """The weight of each scorer, by its name."""
    logit_scale: float = Field(gt=0)
    """Inverse temperature of its preferences: a sum of several scales has none of its own."""


class Hpsv2ProcessScorer(Scorer):
    """The ``hpsv2`` package itself, run by the Python of its own environment. Scores only: no gradient crosses a process."""

    has_gradient: ClassVar[bool | None] = False

    kind: Literal["hpsv2-process"]
    source: WeightsSource
    interpreter: str = "hpsv2-python"
    """The Python that has hpsv2: a command on the PATH, as in the image ``hpsv2``, or a path."""

    @model_validator(mode="after")
    def _complete(self) -> "Hpsv2ProcessScorer":
        if self.source.file is None:
            raise ValueError("source must name its `file`: HPS_v2.1_compressed.pt")
        return self


class ProcessScorer(Scorer):
    """A reward model of another environment, by a program that speaks the protocol of docs/rewards.md. Scores only, as above.

    ``version`` is what the program must say of itself: it is part of what was prepared.
    """

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"
    has_gradient: ClassVar[bool | None] = False

    kind: Literal["process"]
    program: str
    """A command on the PATH, or a path."""
    version: str
    """What the program must say of itself."""
    arguments: tuple[str, ...] = ()
    """What it is started with, before its folder and device."""
    source: ModelSource | None = None

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"has_weights": self.source is not None}


class EntryPointScorer(Scorer):
    """A user's own: the entry point ``name`` in the group ``rglcd.rewards`` of an installed package."""

    has_gradient: ClassVar[bool | None] = None

    kind: Literal["entry-point"]
    name: str
    """Of the entry point."""
    source: ModelSource | None = None

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"has_weights": self.source is not None}


class OcrScorer(Scorer):
    """How well the text that a caption quotes can be read in the picture, by rapidocr. Scores only: a reader has no gradient.

    A caption that quotes nothing has no score. Its models lie in the package itself (the extra ``ocr``).
    """

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"
    has_gradient: ClassVar[bool | None] = False

    kind: Literal["ocr"]
    logit_scale: float = Field(default=10.0, gt=0)
    """Inverse temperature of its preferences: a share of characters has none of its own."""


class ToyJudgeScorer(Scorer):
    """The toy world's judge."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"

    kind: Literal["toy-judge"]
    source: ModelSource


class ToyCheckerScorer(Scorer):
    """The toy world's checker: it measures, and has no weights."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"
    has_gradient: ClassVar[bool | None] = False

    kind: Literal["toy-checker"]


class ToyVotesScorer(Scorer):
    """The share of the toy world's simulated voters who would show a picture to others: no weights, no gradient."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"
    has_gradient: ClassVar[bool | None] = False

    kind: Literal["toy-votes"]


ScorerSource = Annotated[
    ClipScorer
    | PublishedClipScorer
    | ImageRewardScorer
    | AestheticScorer
    | MixtureScorer
    | Hpsv2ProcessScorer
    | ProcessScorer
    | EntryPointScorer
    | OcrScorer
    | ToyJudgeScorer
    | ToyCheckerScorer
    | ToyVotesScorer,
    Field(discriminator="kind"),
]


_Tokenised = TypeVar("_Tokenised", PublishedClipScorer, ImageRewardScorer)


def _with_tokenizer(scorer: _Tokenised) -> _Tokenised:
    if scorer.source.file is not None and scorer.tokenizer is None:
        raise ValueError(f"{scorer.source.file} holds no tokenizer: name its folder as `tokenizer`")
    return scorer
