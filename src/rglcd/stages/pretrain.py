"""Stage ``pretrain``: contrastive pretraining of the latent proxy reward model (LRM) on cached latents and captions."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_never

import torch

from rglcd.config import Model, Pretraining, ResNetTower, VitTower
from rglcd.latents.cache import LatentCache
from rglcd.latents.order import sample_indices
from rglcd.models.codec import Codec
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.latent_towers import ResNetShape, VitShape
from rglcd.models.precision import tf32
from rglcd.models.threads import one_thread_if_small
from rglcd.stages.cache import fingerprint_of
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.run import Output
from rglcd.training.checkpoint import Checkpointer
from rglcd.training.distributed import World, join_world
from rglcd.training.loop import Run, curve_text, train
from rglcd.training.optimization import LearningRate
from rglcd.training.preference import PreferencePretrainer, PretrainingRecipe, require_embedding

# How often a run measures its retrieval accuracy.
_NUM_VALIDATIONS = 10


def pretrain(model: Model, pretraining: Pretraining, *, latents: Path, pretrained: Path, reward_model: Output) -> Mapping[str, Any]:
    """Write the LRM (``config.json``, ``model.safetensors``) and its learning curve; facts: held-out retrieval accuracy."""
    checkpoints = reward_model.folder / ".checkpoints"
    models = Pretrained.open(pretrained)
    with join_world() as world, tf32(world.device), one_thread_if_small(models.teacher, world.device):
        run = Run("pretrain the latent reward model", pretraining.num_steps, pretraining.batch_size, pretraining.checkpoint_every)
        pretrainer = _pretrainer(model, pretraining, latents=latents, pretrained=models, run=run, world=world)
        curve = train(pretrainer, run, checkpointer=Checkpointer(checkpoints), world=world)
        accuracy = float(pretrainer.retrieval_accuracy()) if pretraining.num_validation else None
        if world.is_main:
            pretrainer.model.save(reward_model.folder)
            (reward_model.folder / "curves.jsonl").write_text(curve_text(curve), encoding="utf-8")
            shutil.rmtree(checkpoints)
    return {
        "retrieval_accuracy": None if accuracy is None else round(accuracy, 4),
        "scorer": pretraining.scorer,
        "images_seen": run.num_steps * run.images_per_step,
    }


def _pretrainer(
    model: Model, pretraining: Pretraining, *, latents: Path, pretrained: Pretrained, run: Run, world: World
) -> PreferencePretrainer:
    codec = Codec.load(pretrained.teacher, dtype=torch.float32, device=world.device)
    cache = LatentCache.open(latents, expected=fingerprint_of(model, pretrained, like=latents))
    cache.anticipate(sample_indices(pretraining.seed, len(cache), start=0, count=len(cache)))
    recipe = PretrainingRecipe(
        batch_size=pretraining.batch_size,
        learning_rate=LearningRate(pretraining.learning_rate, pretraining.warmup_steps, pretraining.num_steps, "cosine"),
        weight_decay=pretraining.weight_decay,
        num_validation=pretraining.num_validation,
        # At steps that have a row in the curve.
        validate_every=run.log_every * max(1, round(run.num_steps / run.log_every / _NUM_VALIDATIONS)),
        scorer=pretraining.scorer,
        seed=pretraining.seed,
    )
    text_dim = require_embedding(cache, pretraining.scorer)
    shape = LatentRewardShape(latent=codec.latent_shape(model.resolution), text_dim=text_dim, tower=tower_shape(pretraining.tower))
    network = LatentRewardModel.at_random(shape, seed=pretraining.seed).to(world.device)
    return PreferencePretrainer(recipe=recipe, model=network, codec=codec, cache=cache, world=world)


def tower_shape(tower: VitTower | ResNetTower) -> VitShape | ResNetShape:
    """The proxy's image tower that the configuration asks for."""
    match tower:
        case VitTower():
            return VitShape(tower.patch, tower.width, tower.num_layers, tower.num_heads)
        case ResNetTower():
            return ResNetShape(tower.blocks, tower.width)
        case _:
            assert_never(tower)
