"""``python -m tests.training.average_on_ranks FOLDER``: averaged gradients of a small network, in both precisions and bucket sizes."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from rglcd.training.distributed import World, join_world
from rglcd.training.execution import Execution

HALVED = torch.bfloat16


def gradient(world: World, *, bucket_mib: int | None, averaged_in: torch.dtype | None) -> tuple[torch.Tensor, int]:
    """The averaged gradient of a layer whose loss is each rank's own, and the bytes of a bucket."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(16, 16, bias=False)
    network.weight.data = torch.randn(16, 16, generator=generator)
    rows = torch.randn(8, 16, generator=generator)[world.rows(8)]
    wrapped = world.wrap(network, bucket_mib=bucket_mib, averaged_in=averaged_in)
    wrapped(rows).square().mean().backward()
    assert network.weight.grad is not None
    return network.weight.grad.clone(), int(getattr(wrapped, "bucket_bytes_cap", 0))


def main(folder: Path) -> None:
    eager, compiled = (Execution(mode, "contiguous").bucket_mib for mode in ("eager", "compiled"))
    with join_world() as world:
        full, small = gradient(world, bucket_mib=eager, averaged_in=torch.float32)
        halved, large = gradient(world, bucket_mib=compiled, averaged_in=HALVED)
        tensors = {"full": full, "halved": halved, "bucket_mib": torch.tensor([small, large]) >> 20}
        save_file(tensors, folder / f"{world.rank}-of-{world.size}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
