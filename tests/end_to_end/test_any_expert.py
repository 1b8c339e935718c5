"""A reward without gradient trains the student through the latent proxy; as a pixel reward it is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rglcd.models.latent_reward import LatentRewardModel
from rglcd.store.manifest import read_manifest
from tests.end_to_end.conftest import Checkout

HARD = "reward.tuning={kind: online, learning_rate: 3e-4, labels: {kind: hard}, real_image: privileged}"


@pytest.fixture
def own(unbroken: Checkout, tmp_path: Path) -> Checkout:
    """The micro line up to the pretrained proxy, and no student yet."""
    checkout = Checkout(Path(shutil.copytree(unbroken.root, tmp_path / "checkout")))
    for name in ("student", "report"):
        shutil.rmtree(checkout.root / "artifacts" / name)
    return checkout


def use_micro(checkout: Checkout, *overrides: str) -> None:
    done = checkout.run("rglcd", "config", "use", "micro", *(word for override in overrides for word in ("--set", override)))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_reward_without_gradient_trains_the_student_through_the_latent_proxy(own: Checkout) -> None:
    use_micro(own, "reward.expert=checker", HARD)
    for stage in ("distill", "evaluate"):
        done = own.run("rglcd", "run", stage)
        assert done.returncode == 0, done.stderr
    arm = own.root / "artifacts" / "student" / "rg"
    rows = [json.loads(row) for row in (arm / "curves.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for row in rows:
        # The checker's scores are fifths of five conditions, over eight pictures.
        assert row["expert_reward"] * 40 == pytest.approx(round(row["expert_reward"] * 40), abs=1e-4)
        assert row["lrm_loss"] > 0
        assert 0 <= row["lrm_agreement"] <= 1
        assert 0 <= row["lrm_retrieval"] <= 1
    before = load_file(own.root / "artifacts" / "reward_model" / "model.safetensors")
    after = LatentRewardModel.load(arm / "reward_model", device=torch.device("cpu")).state_dict()
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert read_manifest(own.root / "artifacts" / "report", made_by="evaluate").digest


@pytest.mark.slow
def test_reward_without_gradient_is_refused_for_pixel_rewards_with_what_to_do(own: Checkout) -> None:
    done = own.run("rglcd", "config", "use", "micro", "--set", "reward={kind: pixel, expert: checker}")
    assert done.returncode == 2
    assert "reward.expert 'checker' has no gradient: use reward.kind latent, whose proxy learns from it" in done.stderr
    assert not (own.root / "artifacts" / "student").exists()
