"""The whole configuration: its sections, and what they must agree on."""

from typing import Any

from pydantic import model_validator

from rglcd.config.arms import ArmSettings, arms_of, rewards_of
from rglcd.config.base import Section
from rglcd.config.pretraining import VitTower
from rglcd.config.reward import AnyReward, NoReward
from rglcd.config.scorers import MixtureScorer
from rglcd.config.sections import Sections
from rglcd.recipe import LastBlocks, OnlineProxy


class Config(Sections):
    """The sections, which agree."""

    @model_validator(mode="after")
    def _sections_agree(self) -> "Config":
        self._check_sizes()
        self._check_scorers()
        for arm in self.arms:
            where = f"distillation.arms.{arm.name}: " if isinstance(self.distillation.arms, dict) else ""
            _check_expert(arm.reward, self, where)
            _check_blocks(arm.reward, self, where)
            if self.preparation.initial is not None and arm.distillation.student.kind == "lora":
                raise ValueError(f"{where}preparation.initial is where a whole student starts: choose one of another kind than lora")
            _check_shares(arm, where)
            _check_micro_batch(arm, where)
        if self.distillation.match_compute:
            # What a step costs is counted of the reward section's reward, whichever arm has it.
            counted = ArmSettings("", self.reward, self.distillation, False)
            _check_shares(counted, "")
            _check_micro_batch(counted, "")
        return self

    @property
    def arms(self) -> tuple[ArmSettings, ...]:
        """The students that are made, each with its own sections."""
        return arms_of(self.reward, self.distillation)

    def _check_sizes(self) -> None:
        if self.sharding.resolution != self.model.resolution:
            raise ValueError(
                f"sharding.resolution is {self.sharding.resolution} and model.resolution {self.model.resolution}: they must be equal"
            )
        asked = {"evaluation": max(self.evaluation.num_steps)}
        asked |= {"monitoring": self.monitoring.num_steps} if self.monitoring.kind == "panel" else {}
        for section, most in asked.items():
            if most > self.model.num_ddim_steps:
                raise ValueError(
                    f"{section}.num_steps asks for {most} steps of a grid of {self.model.num_ddim_steps} (model.num_ddim_steps)"
                )

    def _check_scorers(self) -> None:
        for where, names in self._scorers_named().items():
            for name in names:
                if name not in self.preparation.scorers:
                    raise ValueError(f"{where} names {name!r}; preparation.scorers has {', '.join(self.preparation.scorers)}")
        for name in self.caching.scores:
            if name not in self.caching.scorers:
                raise ValueError(f"caching.scores names {name!r}, which scores pictures for captions; add it to caching.scorers")
        is_latent = any(reward.kind == "latent" for reward in rewards_of(self.reward, self.distillation))
        if is_latent and self.pretraining.scorer not in self.caching.scorers:
            raise ValueError(f"pretraining.scorer is {self.pretraining.scorer!r}; add it to caching.scorers")
        proxy = self.preparation.scorers[self.pretraining.scorer]
        if is_latent and proxy.text != "vector":
            raise ValueError(
                f"pretraining.scorer is {self.pretraining.scorer!r}, of kind {proxy.kind}, which makes no vector of a caption: "
                "name one that does (clip, hpsv2, clipscore, pickscore)"
            )
        _check_expert(self.reward, self, "")

    def _scorers_named(self) -> dict[str, tuple[str, ...]]:
        named = {"caching.scorers": self.caching.scorers, "evaluation.scorers": self.evaluation.scorers}
        named |= {"monitoring.scorers": self.monitoring.scorers} if self.monitoring.kind == "panel" else {}
        return named | {"caching.scores": self.caching.scores, "pretraining.scorer": (self.pretraining.scorer,)}

    def section(self, name: str) -> Section:
        """The section called ``name``."""
        section = getattr(self, name)
        assert isinstance(section, Section), name
        return section


def _check_expert(reward: AnyReward, config: Config, where: str) -> None:
    if isinstance(reward, NoReward):
        return
    if reward.expert not in config.caching.scorers:
        raise ValueError(f"{where}reward.expert is {reward.expert!r}; add it to caching.scorers")
    expert = config.preparation.scorers[reward.expert]
    parts = [name for name, weight in expert.weights.items() if weight] if isinstance(expert, MixtureScorer) else [reward.expert]
    if reward.kind == "pixel" and any(config.preparation.scorers[part].has_gradient is False for part in parts):
        raise ValueError(f"{where}reward.expert {reward.expert!r} has no gradient: use reward.kind latent, whose proxy learns from it")


def _check_blocks(reward: AnyReward, config: Config, where: str) -> None:
    """The latent tower has the blocks that learn."""
    tuning = reward.tuning if reward.kind == "latent" else None
    if not isinstance(tuning, OnlineProxy) or not isinstance(tuning.trains, LastBlocks):
        return
    tower = config.pretraining.tower
    most = tower.num_layers if isinstance(tower, VitTower) else sum(tower.blocks)
    if tuning.trains.num_blocks > most:
        raise ValueError(
            f"{where}reward.tuning.trains.num_blocks is {tuning.trains.num_blocks}; the latent tower (pretraining.tower) has {most} "
            "blocks: choose fewer"
        )


def _check_micro_batch(arm: ArmSettings, where: str) -> None:
    """Each micro-batch has as many rewarded samples as another."""
    micro_batch = arm.distillation.micro_batch
    if micro_batch is None or isinstance(arm.reward, NoReward):
        return
    every = arm.reward.prediction.every
    if micro_batch % every:
        raise ValueError(f"{where}reward.prediction.every {every} does not divide distillation.micro_batch {micro_batch}")


def _check_shares(arm: ArmSettings, where: str) -> None:
    """Every n-th sample is rewarded, and of a batch every n-th labelled: all ranks must find as many."""
    reward, batch_size, shares = arm.reward, arm.distillation.batch_size, dict[str, int]()
    if not isinstance(reward, NoReward):
        shares["reward.prediction.every"] = reward.prediction.every
    if reward.kind == "latent" and reward.tuning.kind == "online":
        shares["reward.tuning.label_every"] = reward.tuning.label_every
    for key, every in shares.items():
        if batch_size % every:
            raise ValueError(f"{where}{key} {every} does not divide distillation.batch_size {batch_size}")


SECTIONS: dict[str, Any] = {name: field for name, field in Config.model_fields.items() if name != "preset"}
