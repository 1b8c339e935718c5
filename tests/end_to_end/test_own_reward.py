"""Another version of an own reward measures everything again: no report holds the scores of two."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rglcd.cli import main
from rglcd.config import dump
from tests.tiny_line import (
    TINY_EVALUATION,
    published_model_settings,
    tiny_config,
    write_published_models,
    write_tiny_evaluation_data,
    write_tiny_source,
)

NUM_IMAGES = 6
"""As many as TINY_EVALUATION measures."""

REWARD = """
import torch
from my_reward.colour import CHANNEL

class Colour:
    differentiable, range, logit_scale, text_width = True, (0.0, 1.0), 1.0, 0

    def weights_sha256(self):
        return None

    def encode_text(self, captions):
        return torch.zeros(len(captions), 0)

    def score(self, pixels, text):
        return pixels[:, CHANNEL].mean(dim=(1, 2))

def load(folder, *, dtype, device):
    return Colour()
"""


def install(site: Path, *, version: str, channel: int) -> None:
    """The package my-reward as an editable install leaves it; its score is the mean of one colour."""
    for old in site.glob("*.dist-info"):
        shutil.rmtree(old)
    metadata = site / f"my_reward-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: my-reward\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text("[rglcd.rewards]\nmy-reward = my_reward:load\n")
    (site / "my_reward").mkdir(exist_ok=True)
    (site / "my_reward" / "__init__.py").write_text(REWARD)
    (site / "my_reward" / "colour.py").write_text(f"CHANNEL = {channel}\n")
    shutil.rmtree(site / "my_reward" / "__pycache__", ignore_errors=True)
    for module in [name for name in sys.modules if name.startswith("my_reward")]:
        del sys.modules[module]


def rglcd(*words: str) -> None:
    main(["run", *words])


def means(scorer: str) -> dict[str, float]:
    """What the report says ``scorer`` gives on average, by who drew and in how many steps."""
    metrics = json.loads(Path("artifacts/report/metrics.json").read_text())
    flat = {"real": metrics.pop("real")} | {f"{who} {steps}": row for who, rows in metrics.items() for steps, row in rows.items()}
    return {name: row[scorer]["mean"] for name, row in flat.items()}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A tiny project through all stages with an own reward of version 0.1 as a judge; ``site`` is where it is installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    install(tmp_path / "site", version="0.1", channel=0)
    write_tiny_source(Path("data"))
    write_tiny_evaluation_data(Path("data"))
    write_published_models(Path("models"))
    overrides = ["distillation.match_compute=false", "distillation.arms=[lcm]", "reward={kind: none}", *TINY_EVALUATION]
    mine = ["preparation.scorers.mine={kind: entry-point, name: my-reward}", "evaluation.scorers=[mine, expert]"]
    Path("params.yaml").write_text(dump(tiny_config(*published_model_settings(tmp_path / "models"), *overrides, *mine)))
    rglcd("all")
    capsys.readouterr()
    return tmp_path


@pytest.mark.parametrize("version", ["0.2", "0.1"], ids=["another version", "edited in place"])
def test_another_code_of_an_own_reward_scores_every_arm_and_the_real_images_again(
    project: Path, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    mine, expert = means("mine"), means("expert")
    assert set(mine) == {"real", "teacher 3", "lcm 1", "lcm 2"}
    install(project / "site", version=version, channel=2)
    with pytest.raises(SystemExit) as ended:
        rglcd("evaluate")
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert said.startswith(f"rglcd: the reward mine is my-reward {version} (")
    assert said.endswith("was prepared; run: rglcd run prepare")

    rglcd("all")
    assert "evaluate: done in" in capsys.readouterr().out
    assert all(after != mine[name] for name, after in means("mine").items())
    assert means("expert") == expert
    blue = [np.asarray(Image.open(path))[..., 2].mean() / 255 for path in sorted(Path("data/reference/images").iterdir())[:NUM_IMAGES]]
    assert means("mine")["real"] == pytest.approx(np.mean(blue), abs=1e-6)
