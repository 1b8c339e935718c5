"""Stage pretrain: the latent proxy reward model."""

import json
from pathlib import Path

import pytest
import torch

from rglcd.errors import InputError
from rglcd.models.latent_reward import LatentRewardModel
from tests.tiny_line import run, tiny_config, up_to_latents


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("line")
    up_to_latents(root, tiny_config())
    return root


def test_pretrain_writes_a_model_a_curve_and_the_held_out_accuracy(line: Path) -> None:
    outcome = run(line, tiny_config(), "pretrain")
    rows = [json.loads(row) for row in (line / "reward_model" / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert 0 <= outcome.manifest.facts["retrieval_accuracy"] <= 1
    assert not (line / "reward_model" / ".checkpoints").exists()


def test_a_pretrained_models_scores_are_cosines(line: Path) -> None:
    run(line, tiny_config(), "pretrain")
    model = LatentRewardModel.load(line / "reward_model", device=torch.device("cpu"))
    scores = model.score(torch.randn(5, 4, 8, 8), torch.randn(5, 12))
    assert scores.abs().max() <= 1


def test_more_validation_than_training_samples_are_refused(line: Path) -> None:
    with pytest.raises(InputError, match="num_validation 7 holds back more than half of the 12 cached samples"):
        run(line, tiny_config("pretraining.num_validation=7"), "pretrain")
