"""Pretraining of the latent proxy reward model: CLIP's contrastive objective on cached latents and captions.

Shapes: B batch, N samples, (C, h, w) latents, D text width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rglcd.core.preference import contrastive_loss
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.latents.format import LatentBatch
from rglcd.models.codec import Codec, Moments
from rglcd.models.latent_reward import Embedded, LatentRewardModel
from rglcd.training.checkpoint import optimizer_tensors, restore_optimizer
from rglcd.training.distributed import World
from rglcd.training.draws import draw_posterior
from rglcd.training.optimization import LearningRate, adamw, clip, optimise
from rglcd.training.reading import ReadAhead, Reader

# CLIP clips its temperature at 100 (arXiv 2103.00020, section 2.5).
_MAX_LOG_SCALE = 4.6052

_VALIDATION_BATCH = 256

_COMPARED_AT_ONCE = 64


@dataclass(frozen=True)
class PretrainingRecipe:
    """The run in plain values. ``batch_size`` is global; the last ``num_validation`` samples are never trained on.

    Retrieval accuracy is measured at every ``validate_every``-th step.
    """

    batch_size: int
    learning_rate: LearningRate
    weight_decay: float
    num_validation: int
    validate_every: int
    scorer: str
    seed: int


@dataclass(frozen=True)
class _HeldOut:
    """The distinct captions of the held-out samples: text features (M, D), and which of the M each sample (N,) has."""

    texts: Tensor
    captions: Tensor

    @classmethod
    def of(cls, batch: LatentBatch, scorer: str) -> "_HeldOut":
        captions = caption_groups(batch.input_ids)
        num = int(captions.max()) + 1 if len(captions) else 0
        first = torch.full((num,), len(captions)).scatter_reduce(0, captions, torch.arange(len(captions)), reduce="amin")
        return cls(batch.text[scorer][first], captions)


class PreferencePretrainer:
    """The LRM and its optimiser. Ranks embed their share of a batch, and contrast the whole of it."""

    def __init__(self, *, recipe: PretrainingRecipe, model: LatentRewardModel, codec: Codec, cache: LatentCache, world: World) -> None:
        if 2 * recipe.num_validation > len(cache):
            raise InputError(
                f"pretraining.num_validation {recipe.num_validation} holds back more than half of the {len(cache)} cached samples"
            )
        self.recipe = recipe
        self.model = model
        self.codec = codec
        self.cache = cache
        self.world = world
        self.num_training = len(cache) - recipe.num_validation
        self._held_out = _HeldOut.of(cache.batch(torch.arange(self.num_training, len(cache))), recipe.scorer)
        reader = Reader(cache, self.num_training, recipe.seed, recipe.batch_size, world.rows(recipe.batch_size), draw_posterior)
        self._read = ReadAhead(reader, num_steps=recipe.learning_rate.num_steps)
        self._parameters = list(model.parameters())
        self._network: nn.Module = world.wrap(model)
        self._optimizer = adamw(self._parameters, weight_decay=recipe.weight_decay)

    def step(self, step: int) -> dict[str, Tensor]:
        """Train on batch ``step``; the accuracy, where it is measured, is that after the step."""
        recipe, world = self.recipe, self.world
        stored, drawn = self._read(step)
        cached = stored.each(world.to_device).decoded()
        latents = self._latents(cached, world.to_device(drawn))
        ours: Embedded = self._network(latents, cached.text[recipe.scorer])
        groups = first_alike(world.gather(cached.input_ids))
        # Each rank contrasts the whole batch, of which it has the gradient of its own rows.
        loss = contrastive_loss(world.gather(ours.latents), world.gather(ours.text), ours.scale, group_ids=groups)
        loss.backward()
        norm = clip(self._parameters, 1.0)
        optimise(self._optimizer, rate=recipe.learning_rate.at(step))
        with torch.no_grad():
            self.model.log_scale.clamp_(max=_MAX_LOG_SCALE)
        figures = {"loss": loss.detach(), "grad_norm": norm}
        if recipe.num_validation and (step + 1) % recipe.validate_every == 0:
            figures["retrieval_accuracy"] = self.retrieval_accuracy()
        return figures

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {"reward_model": dict(self.model.state_dict()), "optimizer": optimizer_tensors(self._optimizer, self.model)}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model.load_state_dict(dict(parts["reward_model"]))
        restore_optimizer(self._optimizer, self.model, parts["optimizer"])

    @torch.no_grad()
    def retrieval_accuracy(self) -> Tensor:
        """How often a held-out latent's nearest caption, among all that the held-out samples have, is its own; on all ranks."""
        held_out, world = self._held_out, self.world
        texts = self.model.embed_text(held_out.texts.to(world.device))
        hits = torch.zeros((), device=world.device)
        for rows in torch.arange(len(held_out.captions))[world.rank :: world.size].split(_VALIDATION_BATCH):
            cached = self.cache.batch(self.num_training + rows, place=world.to_device)
            nearest = (self.model.embed_latents(self._latents(cached, torch.zeros_like(cached.mean))) @ texts.T).argmax(dim=1)
            hits += (nearest.cpu() == held_out.captions[rows]).sum().to(world.device)
        return world.mean(hits) * world.size / len(held_out.captions)

    def _latents(self, cached: LatentBatch, noise: Tensor) -> Tensor:
        return self.codec.latents(Moments(cached.mean, cached.logvar), noise)


def require_embedding(cache: LatentCache, scorer: str) -> int:
    """The width of the text embedding that ``scorer`` has left in the cache.

    Raises :class:`InputError` when what it has left is none: no text at all, or the numbers of tokens or attributes.
    """
    width = cache.text_dim(scorer)
    features = cache.batch(torch.zeros(1, dtype=torch.int64)).text[scorer]
    if width == 0 or torch.equal(features, features.round()):
        raise InputError(f"pretraining.scorer {scorer!r} gives captions no embedding, which the proxy needs; name a scorer that is a CLIP")
    return width


def caption_groups(input_ids: Tensor) -> Tensor:
    """A number (B,) for each caption, counted from 0, equal for equal token ids (B, L)."""
    groups: Tensor = torch.unique(input_ids, dim=0, return_inverse=True)[1]
    return groups


def first_alike(input_ids: Tensor) -> Tensor:
    """The place (B,) of the first caption of the same token ids (B, L): a step's :func:`caption_groups`, whose number no host waits for."""
    places = torch.arange(len(input_ids), device=input_ids.device)
    alike = torch.cat([(some[:, None] == input_ids[None]).all(dim=-1) for some in input_ids.split(_COMPARED_AT_ONCE)])
    return torch.where(alike, places, len(input_ids)).amin(dim=1)
