"""The whole configuration: its sections, and what they must agree on."""

from typing import Any

from pydantic import model_validator

from rglcd.config.base import Section
from rglcd.config.distillation import Distillation
from rglcd.config.evaluation import Evaluation
from rglcd.config.preparation import Caching, Model, Preparation
from rglcd.config.pretraining import Pretraining
from rglcd.config.reward import Reward
from rglcd.config.sharding import Sharding


class Config(Section):
    """Everything that a run computes. Sections only; where a stage runs is the environment's business."""

    preset: str
    sharding: Sharding
    model: Model
    preparation: Preparation
    caching: Caching
    pretraining: Pretraining
    reward: Reward
    distillation: Distillation
    evaluation: Evaluation

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if self.sharding.resolution != self.model.resolution:
            raise ValueError(
                f"sharding.resolution is {self.sharding.resolution} and model.resolution {self.model.resolution}: they must be equal"
            )
        for where, names in self._scorers_named().items():
            for name in names:
                if name not in self.preparation.scorers:
                    raise ValueError(f"{where} names {name!r}; preparation.scorers has {', '.join(self.preparation.scorers)}")
        for name in self.caching.scores:
            if name not in self.caching.scorers:
                raise ValueError(f"caching.scores names {name!r}, which scores pictures for captions; add it to caching.scorers")
        if self.reward.kind == "latent" and self.pretraining.scorer not in self.caching.scorers:
            raise ValueError(f"pretraining.scorer is {self.pretraining.scorer!r}; add it to caching.scorers")
        proxy = self.preparation.scorers[self.pretraining.scorer]
        if self.reward.kind == "latent" and proxy.text != "vector":
            raise ValueError(
                f"pretraining.scorer is {self.pretraining.scorer!r}, of kind {proxy.kind}, which makes no vector of a caption: "
                "name one that does (clip, hpsv2, clipscore, pickscore)"
            )
        if self.reward.kind != "none" and self.reward.expert not in self.caching.scorers:
            raise ValueError(f"reward.expert is {self.reward.expert!r}; add it to caching.scorers")
        return self

    def _scorers_named(self) -> dict[str, tuple[str, ...]]:
        named = {"caching.scorers": self.caching.scorers, "evaluation.scorers": self.evaluation.scorers}
        return named | {"caching.scores": self.caching.scores, "pretraining.scorer": (self.pretraining.scorer,)}

    def section(self, name: str) -> Section:
        """The section called ``name``."""
        section = getattr(self, name)
        assert isinstance(section, Section), name
        return section


SECTIONS: dict[str, Any] = {name: field for name, field in Config.model_fields.items() if name != "preset"}
