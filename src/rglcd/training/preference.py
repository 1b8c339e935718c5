"""Pretraining of the latent proxy reward model: CLIP's contrastive objective on cached latents and captions.

Shapes: B batch, N samples, (C, h, w) latents, D text width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rglcd.core.preference import contrastive_loss
from rglcd.data.latents import LatentCache
from rglcd.data.order import sample_indices
from rglcd.models.codec import Codec, Moments
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.training.checkpoint import optimizer_tensors, restore_optimizer
from rglcd.training.distributed import World
from rglcd.training.draws import draw_batch
from rglcd.training.optimization import LearningRate, adamw, optimise

# CLIP clips its temperature at 100 (arXiv 2103.00020, section 2.5).
_MAX_LOG_SCALE = 4.6052


@dataclass(frozen=True)
class PretrainingRecipe:
    """The run in plain values. The last ``validation_fraction`` of the samples is never trained on."""

    batch_size: int
    learning_rate: LearningRate
    weight_decay: float
    validation_fraction: float
    scorer: str
    seed: int


class PreferencePretrainer:
    """The LRM and its optimiser."""

    def __init__(self, *, recipe: PretrainingRecipe, model: LatentRewardModel, codec: Codec, cache: LatentCache, world: World) -> None:
        self.recipe = recipe
        self.model = model
        self.codec = codec
        self.cache = cache
        self.world = world
        self.num_training = len(cache) - int(len(cache) * recipe.validation_fraction)
        self._optimizer = adamw(model.parameters(), weight_decay=recipe.weight_decay)

    def step(self, step: int) -> dict[str, Tensor]:
        """Train on batch ``step``."""
        recipe, device = self.recipe, self.world.device
        indices = sample_indices(recipe.seed, self.num_training, start=step * recipe.batch_size, count=recipe.batch_size)
        cached = self.cache.batch(indices)
        draws = draw_batch(recipe.seed, step, batch_size=recipe.batch_size, latent_shape=self.cache.latent_shape)
        latents = self.codec.latents(Moments(cached.mean.to(device), cached.logvar.to(device)), draws.posterior.to(device))
        text = cached.text[recipe.scorer].to(device)
        loss = contrastive_loss(
            self.model.embed_latents(latents),
            self.model.embed_text(text),
            self.model.log_scale.exp(),
            group_ids=caption_groups(cached.input_ids).to(device),
        )
        loss.backward()
        norm = optimise(self._optimizer, list(self.model.parameters()), rate=recipe.learning_rate.at(step), max_grad_norm=1.0)
        with torch.no_grad():
            self.model.log_scale.clamp_(max=_MAX_LOG_SCALE)
        return {"loss": loss.detach(), "grad_norm": norm}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {"reward_model": dict(self.model.state_dict()), "optimizer": optimizer_tensors(self._optimizer, self.model)}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model.load_state_dict(dict(parts["reward_model"]))
        restore_optimizer(self._optimizer, self.model, parts["optimizer"])

    @torch.no_grad()
    def retrieval_accuracy(self) -> float | None:
        """How often a held-out latent's nearest caption, among all that the held-out samples have, is its own; None without any."""
        held_out = torch.arange(self.num_training, len(self.cache))
        if len(held_out) == 0:
            return None
        cached = self.cache.batch(held_out)
        groups = caption_groups(cached.input_ids)
        _, first = _unique_rows(groups)
        texts = self.model.embed_text(cached.text[self.recipe.scorer][first].to(self.world.device))
        hits = 0
        for rows in torch.arange(len(held_out)).split(256):
            moments = Moments(cached.mean[rows].to(self.world.device), cached.logvar[rows].to(self.world.device))
            latents = self.codec.latents(moments, torch.zeros_like(moments.mean))
            nearest = (self.model.embed_latents(latents) @ texts.T).argmax(dim=1).cpu()
            hits += int((groups[first][nearest] == groups[rows]).sum())
        return hits / len(held_out)


def caption_groups(input_ids: Tensor) -> Tensor:
    """A number (B,) for each caption, equal for equal token ids (B, L)."""
    groups: Tensor = torch.unique(input_ids, dim=0, return_inverse=True)[1]
    return groups


def _unique_rows(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct numbers in ``groups`` (B,), and where each first stands."""
    values, inverse = torch.unique(groups, return_inverse=True)
    first = torch.full((len(values),), len(groups)).scatter_reduce(0, inverse, torch.arange(len(groups)), reduce="amin")
    return values, first
