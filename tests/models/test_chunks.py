"""Calls in chunks: the same results in any chunks, and fewer samples at once when memory runs out."""

import pytest
import torch

from rglcd.errors import InputError
from rglcd.models.chunks import Chunks


class Device:
    """Doubles what it is given, as long as it is at most ``most`` at once."""

    def __init__(self, most: int, *, error: Exception | None = None) -> None:
        self.most = most
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.asked: list[int] = []

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(samples))
        if len(samples) > self.most:
            raise self.error
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


EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:131] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
]
PERHAPS = [
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]


def named(error: Exception) -> str:
    return f"{type(error).__name__} {error}"[:50]


@pytest.mark.parametrize("error", [*EXHAUSTED, *PERHAPS], ids=named)
def test_what_libraries_of_a_gpu_say_when_they_get_no_memory_is_halved_too(error: Exception) -> None:
    device = Device(most=2, error=error)
    assert torch.equal(Chunks("n", 8).joined(device, torch.arange(5)), 2 * torch.arange(5))
    assert device.asked == [5, 2, 2, 1]


@pytest.mark.parametrize("error", EXHAUSTED, ids=named)
def test_one_sample_without_memory_is_refused_whoever_found_none(error: Exception) -> None:
    with pytest.raises(InputError, match=r"^n: even one sample does not fit in memory"):
        Chunks("n", 4).joined(Device(most=0, error=error), torch.arange(4))


@pytest.mark.parametrize("error", PERHAPS, ids=named)
@pytest.mark.parametrize("num_halvings", [None, 1])
def test_what_may_have_another_cause_is_raised_as_it_is_where_fewer_samples_do_not_help(error: Exception, num_halvings: int | None) -> None:
    with pytest.raises(RuntimeError) as raised:
        Chunks("n", 4, num_halvings=num_halvings).joined(Device(most=0, error=error), torch.arange(4))
    assert raised.value is error
