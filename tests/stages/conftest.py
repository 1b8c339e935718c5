"""The artifacts of a tiny configuration up to the latents, to read or to write in."""

import shutil
from pathlib import Path

import pytest

from tests.stages.evaluated_line import make_evaluated_line
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


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny line up to its report; read it, do not write it."""
    root = tmp_path_factory.mktemp("evaluated")
    make_evaluated_line(root)
    return root


@pytest.fixture
def own_evaluated(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of it to write in."""
    return Path(shutil.copytree(evaluated, tmp_path / "line"))
