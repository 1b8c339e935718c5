"""What fault rows share."""

from collections.abc import Iterator

import pytest
import torch

from tests.faults.micro_pipeline import MicroPipeline


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread for torch: rows fork, and OpenMP's other threads are not in a fork, which would crash in search of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> MicroPipeline:
    """An unbroken run of the micro preset, which rows read and none changes."""
    return MicroPipeline(tmp_path_factory.mktemp("unbroken"))
