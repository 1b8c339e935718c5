"""Calls in chunks: the same results in any chunks, and fewer samples at once when memory runs out."""

import pytest
import torch

from rglcd.errors import InputError
from rglcd.models.chunks import Chunks


class Device:
    """Doubles what it is given, as long as it is at most ``most`` at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[int] = []

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(samples))
        if len(samples) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * samples


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100])
def test_results_are_in_order_whatever_the_chunk(size: int) -> None:
    samples = torch.arange(7)
    assert torch.equal(Chunks("n", size).joined(Device(most=100), samples), 2 * samples)


def test_what_does_not_fit_is_halved_until_it_does_and_so_are_later_calls(capsys: pytest.CaptureFixture[str]) -> None:
    chunks, device = Chunks("n", 8), Device(most=3)
    assert torch.equal(chunks.joined(device, torch.arange(8)), 2 * torch.arange(8))
    assert device.asked == [8, 4, 2, 2, 2, 2]
    chunks.joined(device, torch.arange(4))
    assert device.asked[6:] == [2, 2]
    assert capsys.readouterr().err.splitlines() == [
        "rglcd: 8 samples at once do not fit in memory; going on with 4",
        "rglcd: 4 samples at once do not fit in memory; going on with 2",
    ]


def test_halving_starts_from_what_was_tried_not_from_what_was_allowed() -> None:
    device = Device(most=1)
    Chunks("n", 100).joined(device, torch.arange(3))
    assert device.asked == [3, 1, 1, 1]


def test_one_sample_that_does_not_fit_is_refused_naming_the_setting() -> None:
    with pytest.raises(InputError, match=r"^evaluation\.batch_size: even one sample does not fit in memory; take a device with more"):
        Chunks("evaluation.batch_size", 4).joined(Device(most=0), torch.arange(4))


def test_no_more_halvings_than_allowed() -> None:
    with pytest.raises(InputError, match=r"^caching\.batch_size: 4 samples at once do not fit in memory; lower it"):
        Chunks("caching.batch_size", 8, num_halvings=1).joined(Device(most=3), torch.arange(8))


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    def broken(samples: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        Chunks("n", 4).joined(broken, torch.arange(4))
