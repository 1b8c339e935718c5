"""Contrastive pretraining learns what there is to learn, and says so on samples it never saw."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.models.codec import Codec
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.latent_towers import VitShape
from rglcd.training.distributed import World
from rglcd.training.optimization import LearningRate
from rglcd.training.preference import PreferencePretrainer, PretrainingRecipe, caption_groups, first_alike, require_embedding
from tests.latent_caches import write_cache
from tests.training.waits import NothingCopied, NothingMadeThere, NothingRead

NUM_CAPTIONS, NUM_SAMPLES, SHAPE, TEXT_DIM = 5, 200, (4, 8, 8), 12


def cache_of(line: Path, *, signal: float, **changed: np.ndarray) -> LatentCache:
    """Latents that are a pattern of their caption, times ``signal``, under unit noise; columns may be ``changed``."""
    random = np.random.default_rng(0)
    patterns, texts = random.standard_normal((NUM_CAPTIONS, *SHAPE)), random.standard_normal((NUM_CAPTIONS, TEXT_DIM))
    caption = random.integers(0, NUM_CAPTIONS, NUM_SAMPLES)
    columns = {
        "latent_mean": (signal * patterns[caption] + random.standard_normal((NUM_SAMPLES, *SHAPE))).astype(np.float16),
        "latent_logvar": np.full((NUM_SAMPLES, *SHAPE), -20, dtype=np.float32),
        "input_ids": caption[:, None].astype(np.int32),
        "text.expert": texts[caption].astype(np.float32),
    }
    columns |= changed
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    return write_cache(Path(tempfile.mkdtemp(dir=line)) / "latents", tensors, scorers=("expert",))


CPU = World(0, 1, torch.device("cpu"))


def pretrainer_of(line: Path, *, signal: float = 1.0, validate_every: int = 80, world: World = CPU) -> PreferencePretrainer:
    torch.manual_seed(0)
    return PreferencePretrainer(
        recipe=PretrainingRecipe(16, LearningRate(3e-3, 5, 80, "cosine"), 0.05, 50, validate_every, "expert", seed=0),
        model=LatentRewardModel(LatentRewardShape(SHAPE, TEXT_DIM, VitShape(patch=4, width=16, num_layers=1, num_heads=2))).to(
            world.device
        ),
        codec=Codec.load(line / "pretrained" / "teacher", dtype=torch.float32, device=world.device),
        cache=cache_of(line, signal=signal),
        world=world,
    )


def accuracy(line: Path, *, signal: float, num_steps: int) -> float:
    pretrainer = pretrainer_of(line, signal=signal)
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


def test_a_step_finds_equal_captions_as_the_held_out_ones_are_found() -> None:
    ids = torch.randint(3, (150, 4), generator=torch.Generator().manual_seed(0))
    first, groups = first_alike(ids), caption_groups(ids)
    assert torch.equal(first[:, None] == first[None], groups[:, None] == groups[None])


def test_a_step_of_pretraining_reads_no_value_on_the_host(line: Path) -> None:
    pretrainer = pretrainer_of(line)
    pretrainer.step(0)
    with NothingRead():
        pretrainer.step(1)


@pytest.mark.usefixtures("placed")
def test_a_step_of_pretraining_copies_to_the_device_from_pinned_memory_alone(line: Path) -> None:
    pretrainer = pretrainer_of(line, world=World(0, 1, torch.device("meta")))
    pretrainer.step(0)
    with NothingCopied(), NothingMadeThere():
        pretrainer.step(1)


def test_a_run_taken_up_again_is_the_run_bit_for_bit(line: Path) -> None:
    unbroken, before, after = (pretrainer_of(line) for _ in range(3))
    figures = [unbroken.step(step) for step in range(6)]
    for step in range(3):
        before.step(step)
    after.restore({part: {key: tensor.clone() for key, tensor in tensors.items()} for part, tensors in before.parts().items()})
    assert [after.step(step) for step in range(3, 6)] == figures[3:]
    for part, tensors in unbroken.parts().items():
        assert all(torch.equal(tensor, after.parts()[part][key]) for key, tensor in tensors.items()), part


def test_retrieval_accuracy_is_measured_during_training_on_held_out_samples(line: Path) -> None:
    pretrainer = pretrainer_of(line, validate_every=20)
    measured = {step: figures["retrieval_accuracy"] for step in range(80) if "retrieval_accuracy" in (figures := pretrainer.step(step))}
    assert list(measured) == [19, 39, 59, 79]
    assert measured[79] == pretrainer.retrieval_accuracy()
    assert measured[79] > measured[19]
    assert pretrainer.num_training == NUM_SAMPLES - 50


def test_held_out_samples_change_nothing_in_training(line: Path) -> None:
    seen, unseen = pretrainer_of(line), pretrainer_of(line)
    means = unseen.cache.batch(torch.arange(NUM_SAMPLES)).mean.half().numpy()
    means[-50:] = 0
    unseen.cache = cache_of(line, signal=1.0, latent_mean=means)
    for pretrainer in (seen, unseen):
        for step in range(12):
            pretrainer.step(step)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen.model.parameters(), unseen.model.parameters(), strict=True))


@pytest.mark.parametrize("features", [np.zeros((NUM_SAMPLES, 0)), np.full((NUM_SAMPLES, 3), 49407.0)], ids=["none", "token numbers"])
def test_a_scorer_that_gives_captions_no_embedding_is_refused(line: Path, features: np.ndarray) -> None:
    assert require_embedding(cache_of(line, signal=1.0), "expert") == TEXT_DIM
    cache = cache_of(line, signal=1.0, **{"text.expert": features.astype(np.float32)})
    with pytest.raises(InputError, match="'expert' gives captions no embedding"):
        require_embedding(cache, "expert")
