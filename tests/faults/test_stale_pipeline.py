"""F16: a pipeline that runs again over inputs that changed under their names, by the body of Kubeflow's tasks."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rglcd.config import Config
from rglcd.errors import InputError
from rglcd.launch.kubeflow import execute_component
from rglcd.stages.table import stage_named
from tests.faults.rounds import Trial
from tests.tiny_line import published_model_settings, tiny_config, write_published_models, write_tiny_source


@dataclass
class Reference:
    """A Kubeflow artifact: a small file, and what its card shows."""

    path: str
    metadata: dict[str, Any] = field(default_factory=dict)


def run_task(stage: str, config: Config, root: Path) -> str:
    """The task of ``stage`` as Kubeflow runs it, always by the same addresses; the digest of what it hands on."""
    (output,) = stage_named(stage).outputs
    handed_on = Reference(str(root / f"{output}.reference"))
    sections = {name: config.section(name).model_dump(mode="json") for name in stage_named(stage).sections}
    source = f"{root / 'data'}@{'0' * 32}" if stage == "shard" else None
    execute_component(stage, sections=sections, store=str(root / "store"), inputs={}, outputs={output: handed_on}, source=source)
    assert json.loads(Path(handed_on.path).read_text())["digest"] == handed_on.metadata["digest"]
    return str(handed_on.metadata["digest"])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_published_models(folder)
    return folder


def rows_changed(root: Path, models: Path, rng: random.Random) -> str:
    """One byte of a caption in index.tsv becomes another, at the same address, of the same size."""
    config, index = tiny_config(), root / "data" / "index.tsv"
    write_tiny_source(root / "data")
    before = run_task("shard", config, root)
    assert run_task("shard", config, root) == before, "nothing changed"
    content = bytearray(index.read_bytes())
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    place = rng.choice(ends) - 1 - rng.randrange(5)
    content[place] = ord("z")
    index.write_bytes(bytes(content))
    assert run_task("shard", config, root) != before, f"byte {place} of index.tsv changed, and the old shards were taken"
    return f"byte {place} of index.tsv changed: shards of another digest"


def model_moved(root: Path, models: Path, rng: random.Random) -> str:
    """Another model stands under the name that stays; on a hub, a tag that may move is refused before anything is fetched."""
    shutil.copytree(models, root / "models")
    config = tiny_config(*published_model_settings(root / "models"))
    before = run_task("prepare", config, root)
    weights = rng.choice(sorted((root / "models").rglob("*.safetensors")))
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1  # the last number's lower byte but one: another network, and a sound one
    weights.write_bytes(bytes(content))
    assert run_task("prepare", config, root) != before, f"{weights.name} changed, and the old models were taken"
    with pytest.raises(InputError, match="may move"):
        tiny_config("model.teacher={uri: somebody/model, revision: main}")
    return f"{weights.relative_to(root / 'models')} changed: models of another digest; a tag is refused"


def artifact_gone(root: Path, models: Path, rng: random.Random) -> str:
    """The artifact, or a file of it, is deleted from the store."""
    config = tiny_config()
    write_tiny_source(root / "data")
    before = run_task("shard", config, root)
    (folder,) = (manifest.parent for manifest in (root / "store").rglob("manifest.json"))
    gone = rng.choice([folder, *sorted(folder.glob("*.tar")), folder / "manifest.json"])
    (shutil.rmtree if gone.is_dir() else Path.unlink)(gone)
    assert run_task("shard", config, root) == before
    assert gone.exists(), f"{gone.name} was deleted, and a reference to it was handed on"
    return f"{gone.name} deleted: made again, the same"


KINDS: tuple[Callable[[Path, Path, random.Random], str], ...] = (rows_changed, model_moved, artifact_gone)


@pytest.mark.fault(
    "F16",
    fault="the tasks of a pipeline run again after a byte of index.tsv has changed, a model has been replaced under its name, or an "
    "artifact, or a file of it, has been deleted; addresses and Kubeflow's parameters stay",
    must="no stale result is handed on: what changed is made anew, what is gone is made again; a tag of a hub is refused",
    unit="changes",
    num_rounds=60,
    sample=range(len(KINDS)),
)
def test_what_changed_under_its_name_is_not_taken_for_what_it_was(trial: Trial, models: Path, tmp_path: Path) -> None:
    trial.record(KINDS[trial.number % len(KINDS)](tmp_path, models, trial.rng()))
