"""Contrastive pretraining learns what there is to learn, and says so on samples it never saw."""

from pathlib import Path

import numpy as np
import torch

from rglcd.data.latents import Fingerprint, LatentCache
from rglcd.models.codec import Codec
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.latent_towers import VitShape
from rglcd.training.distributed import World
from rglcd.training.optimization import LearningRate
from rglcd.training.preference import PreferencePretrainer, PretrainingRecipe, caption_groups

NUM_CAPTIONS, NUM_SAMPLES, SHAPE, TEXT_DIM = 5, 200, (4, 8, 8), 12


def cache_of(*, signal: float) -> LatentCache:
    """Latents that are a pattern of their caption, times ``signal``, under unit noise."""
    random = np.random.default_rng(0)
    patterns, texts = random.standard_normal((NUM_CAPTIONS, *SHAPE)), random.standard_normal((NUM_CAPTIONS, TEXT_DIM))
    caption = random.integers(0, NUM_CAPTIONS, NUM_SAMPLES)
    columns = {
        "latent_mean": (signal * patterns[caption] + random.standard_normal((NUM_SAMPLES, *SHAPE))).astype(np.float16),
        "latent_logvar": np.full((NUM_SAMPLES, *SHAPE), -20, dtype=np.float16),
        "input_ids": caption[:, None].astype(np.int32),
        "text.expert": texts[caption].astype(np.float32),
    }
    return LatentCache([columns], [], Fingerprint(16, "", "", "", {"expert": ""}))


def accuracy(line: Path, *, signal: float, num_steps: int) -> float:
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    pretrainer = PreferencePretrainer(
        recipe=PretrainingRecipe(16, LearningRate(3e-3, 5, 80, "cosine"), 0.05, 50, 80, "expert", seed=0),
        model=LatentRewardModel(LatentRewardShape(SHAPE, TEXT_DIM, VitShape(patch=4, width=16, num_layers=1, num_heads=2))),
        codec=Codec.load(line / "pretrained" / "teacher", dtype=torch.float32, device=cpu),
        cache=cache_of(signal=signal),
        world=World(0, 1, cpu),
    )
    for step in range(num_steps):
        pretrainer.step(step)
    return float(pretrainer.retrieval_accuracy())


def test_held_out_latents_find_their_captions_after_training_and_not_before(line: Path) -> None:
    assert accuracy(line, signal=1.0, num_steps=0) < 0.6
    assert accuracy(line, signal=1.0, num_steps=80) > 0.95


def test_where_there_is_nothing_to_learn_the_accuracy_stays_at_chance(line: Path) -> None:
    assert accuracy(line, signal=0.0, num_steps=80) < 0.45


def test_equal_captions_share_a_group_and_others_do_not() -> None:
    groups = caption_groups(torch.tensor([[1, 2], [3, 4], [1, 2], [3, 5]]))
    assert groups[0] == groups[2]
    assert len(set(groups.tolist())) == 3
