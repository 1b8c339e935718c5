"""The micro line, run on this machine by one process: what jobs begin with, and what they must equal."""

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Checkout, make_line


@pytest.fixture(scope="session")
def micro_line(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return make_line(tmp_path_factory.mktemp("micro-line") / "checkout")


def checkout_like(made: Checkout, root: Path) -> Checkout:
    """The same checkout with nothing made in it yet."""
    shutil.copytree(made.root, root, ignore=lambda folder, _: {"artifacts"} if Path(folder) == made.root else set())
    return Checkout(root)
