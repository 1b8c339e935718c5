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
    def _sections_agree(self) -> "Config":
        self._check_sizes()
        self._check_scorers()
        if self.preparation.initial is not None and self.distillation.student.kind == "lora":
            raise ValueError("preparation.initial is where a whole student starts: choose one of another kind than lora")
        if "rg" in self.distillation.arms or self.distillation.match_compute:
            self._check_shares()
            self._check_micro_batch()
        return self

    def _check_sizes(self) -> None:
        if self.sharding.resolution != self.model.resolution:
            raise ValueError(
                f"sharding.resolution is {self.sharding.resolution} and model.resolution {self.model.resolution}: they must be equal"
            )
        most = max(self.evaluation.num_steps)
        if most > self.model.num_ddim_steps:
            raise ValueError(f"evaluation.num_steps asks for {most} steps of a grid of {self.model.num_ddim_steps} (model.num_ddim_steps)")

    def _check_scorers(self) -> None:
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

    def _check_micro_batch(self) -> None:
        """Each micro-batch has as many rewarded samples as another."""
        micro_batch = self.distillation.micro_batch
        if micro_batch is None or self.reward.kind == "none":
            return
        every = self.reward.prediction.every
        if micro_batch % every:
            raise ValueError(f"reward.prediction.every {every} does not divide distillation.micro_batch {micro_batch}")

    def _check_shares(self) -> None:
        """Every n-th sample is rewarded, and of a batch every n-th labelled: all ranks must find as many."""
        batch_size, shares = self.distillation.batch_size, {}
        if self.reward.kind != "none":
            shares["reward.prediction.every"] = self.reward.prediction.every
        if self.reward.kind == "latent" and self.reward.tuning.kind == "online":
            shares["reward.tuning.label_every"] = self.reward.tuning.label_every
        for key, every in shares.items():
            if batch_size % every:
                raise ValueError(f"{key} {every} does not divide distillation.batch_size {batch_size}")

    def _scorers_named(self) -> dict[str, tuple[str, ...]]:
        named = {"caching.scorers": self.caching.scorers, "evaluation.scorers": self.evaluation.scorers}
        return named | {"caching.scores": self.caching.scores, "pretraining.scorer": (self.pretraining.scorer,)}

    def section(self, name: str) -> Section:
        """The section called ``name``."""
        section = getattr(self, name)
        assert isinstance(section, Section), name
        return section


SECTIONS: dict[str, Any] = {name: field for name, field in Config.model_fields.items() if name != "preset"}
