from pathlib import Path

import pytest
import torch

from rglcd.config import Config
from rglcd.latents.cache import LatentCache
from rglcd.stages.assembly import Materials
from rglcd.stages.pretrained import Pretrained
from rglcd.training.distributed import World
from tests.tiny_line import run, tiny_config, up_to_latents


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with source, shards, pretrained, latents and reward_model of the tiny line; read it, do not write it."""
    root = tmp_path_factory.mktemp("line")
    up_to_latents(root, tiny_config())
    run(root, tiny_config(), "pretrain")
    return root


def materials_of(line: Path, config: Config) -> Materials:
    latents, pretrained = line / "latents", Pretrained(line / "pretrained")
    world = World(0, 1, torch.device("cpu"))
    return Materials(config.model, config.distillation, latents, pretrained, line / "reward_model", LatentCache.open(latents), world)


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is placed by ``World.to_device`` is there: on a GPU, from pinned memory."""
    monkeypatch.setattr(World, "to_device", lambda self, tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device))
