"""F14: model files that would run code, fill the memory or be taken for others, on their way through ``prepare``."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from rglcd.config import Config
from rglcd.errors import InputError
from tests.faults.hostile_checkpoints import CHECKPOINTS, HEAD
from tests.faults.rounds import Trial
from tests.faults.watched_process import Ended, run_forked
from tests.rewards.published_models import publish_heads
from tests.tiny_line import published_model_settings, run, tiny_config, write_published_models
from tests.tiny_models import PROJECTION_WIDTH

_SECONDS = 60.0
_GROWTH = 256 << 20
"""Bytes of memory that a hostile file may take beyond what the same models take without it."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a scorer, a scorer with a published head, and a feature network."""
    root = tmp_path_factory.mktemp("models") / "source_models"
    write_published_models(root)
    publish_heads(root, width=PROJECTION_WIDTH)
    return root


@pytest.fixture(scope="module")
def whole(models: Path) -> tuple[str, Ended]:
    """The digest of these models prepared, and what that took."""
    ended = run_forked(lambda: _prepare(models), timeout=_SECONDS)
    assert ended.error is None
    return str(ended.value), ended


def _config(models: Path) -> Config:
    beauty = {"kind": "aesthetic-v1", "source": {"uri": f"{models}/expert"}, "head": {"uri": f"{models}", "file": HEAD}}
    return tiny_config(*published_model_settings(models), f"preparation.scorers.beauty={json.dumps(beauty)}")


def _prepare(models: Path) -> str:
    return run(models.parent, _config(models), "prepare").manifest.digest


@pytest.mark.fault(
    "F14",
    fault="a model file made to do harm in the place of one that prepare reads: pickles, archives and configs with code, headers and "
    "indexes that lie, links, bombs, tensors that are missing, misshapen or not numbers",
    must="refused in one line that names the file, its folder or what is wrong; no code ran, at most 256 MiB more memory than the right "
    "file takes, nothing is published; with the right file, the same command makes what it would have made",
    unit="files",
    num_rounds=len(CHECKPOINTS),
    sample=(0, 6, 14, 27),
)
def test_hostile_checkpoint_is_refused(trial: Trial, tmp_path: Path, models: Path, whole: tuple[str, Ended]) -> None:
    name = list(CHECKPOINTS)[trial.number]
    spoil, named = CHECKPOINTS[name]
    root, canary = tmp_path / "root" / "source_models", tmp_path / "canary"
    shutil.copytree(models, root)
    spoil(root, canary)
    ended = run_forked(lambda: _prepare(root), timeout=_SECONDS)
    assert isinstance(ended.error, InputError), f"{name}: ended with {ended.exit_code}, {ended.value}, {ended.error!r}"
    said = str(ended.error)
    assert "\n" not in said, f"{name}: more than a line: {said}"
    assert named in said, f"{name}: refused, and {named} is not named: {said}"
    assert len(said) < 900, f"{name}: {len(said)} characters"
    assert not canary.exists(), f"{name}: code ran"
    assert not (root.parent / "pretrained").exists(), f"{name}: refused, and published"
    taken = ended.peak_bytes - whole[1].peak_bytes
    assert taken < _GROWTH, f"{name}: took {taken >> 20} MiB more"
    shutil.rmtree(root)
    shutil.copytree(models, root)
    again = run_forked(lambda: _prepare(root), timeout=_SECONDS)
    assert (again.value, again.error) == (whole[0], None), f"{name}: with the right file {again.value}, {again.error!r}"
    trial.record(f"{name}: {said.replace(str(tmp_path), '')}")


@pytest.mark.parametrize("name", ["a pickle with code, as torch saves it", "a bare pickle with code", "a call of eval"])
def test_a_pickle_would_run_its_code_if_it_were_opened_as_one(name: str, tmp_path: Path) -> None:
    CHECKPOINTS[name][0](tmp_path, tmp_path / "canary")
    path = tmp_path / HEAD
    if path.read_bytes().startswith(b"PK"):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert (tmp_path / "canary").is_dir()


@pytest.mark.parametrize("name", ["a tokenizer with code of its own", "a feature network with code of its own"])
def test_a_python_file_beside_a_config_would_run_if_it_were_imported(name: str, tmp_path: Path) -> None:
    for folder in ("teacher/tokenizer", "features"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "tokenizer_config.json").write_text("{}")
        (tmp_path / folder / "config.json").write_text("{}")
    CHECKPOINTS[name][0](tmp_path, tmp_path / "canary")
    (code,) = tmp_path.rglob("mine.py")
    exec(code.read_text())
    assert (tmp_path / "canary").is_dir()
