"""The artifacts of a tiny configuration up to the latents, to read or to write in."""

import shutil
from pathlib import Path

import pytest

from tests.tiny_line import tiny_config, up_to_latents


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source, shards, pretrained and latents; read it, do not write it."""
    root = tmp_path_factory.mktemp("line")
    up_to_latents(root, tiny_config())
    return root


@pytest.fixture
def own(line: Path, tmp_path: Path) -> Path:
    """A copy of the line to write in."""
    return Path(shutil.copytree(line, tmp_path / "line"))
