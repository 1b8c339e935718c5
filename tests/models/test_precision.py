"""TF32 by choice, on a GPU alone, and only while it is asked for."""

import pytest
import torch

from rglcd.models.precision import tf32


@pytest.mark.parametrize(("device", "within"), [("cuda", "high"), ("cpu", "highest")])
def test_float32_matrices_are_multiplied_in_tf32_on_a_gpu_within_the_context(device: str, within: str) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    with tf32(torch.device(device)):
        assert torch.get_float32_matmul_precision() == within
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_failure_ends_it_too() -> None:
    with pytest.raises(RuntimeError, match="stop"), tf32(torch.device("cuda")):
        raise RuntimeError("stop")
    assert torch.get_float32_matmul_precision() == "highest"
