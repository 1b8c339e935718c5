"""A training step on a GPU: what a CPU computes, without waiting for the device, and resumable."""

import copy
import math
import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.step_bench import MODES, Bench, Sizes, toy_sizes
from rglcd.launch.preflight import _check_devices, _check_peers
from rglcd.training.distributed import _average_in_bfloat16, gather_into, join_world, unequal_work
from tests.gpu.conftest import DEVICE, ON_CPU, setting, with_weights_of


def figures_of(figures: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(figure) for name, figure in figures.items()}


@pytest.fixture(scope="module")
def half_precision(sizes: Sizes) -> Bench:
    return Bench(setting(precision="bfloat16"), sizes)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_in_bfloat16_is_finite_and_does_not_wait_for_the_device(half_precision: Bench, mode: str) -> None:
    distiller = half_precision.distiller(mode, 2)
    distiller.step(0)  # makes the grid
    if not ON_CPU:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        figures = distiller.step(1)
    finally:
        if not ON_CPU:
            torch.cuda.set_sync_debug_mode("default")
    assert all(math.isfinite(figure) for figure in figures_of(figures).values()), figures


@pytest.mark.parametrize("mode", MODES)
def test_a_resumed_run_goes_on_as_the_unbroken_one(mode: str) -> None:
    """Weights, averages and optimisers' states come back bit for bit; what follows is equal but for the order of a GPU's atomic sums."""
    bench = Bench(setting(resolution=32), toy_sizes())
    unbroken = bench.distiller(mode, 2)
    for step in range(2):
        unbroken.step(step)
    saved = {part: {name: tensor.detach().clone() for name, tensor in tensors.items()} for part, tensors in unbroken.parts().items()}
    expected = figures_of(unbroken.step(2))
    resumed = bench.distiller(mode, 2)
    resumed.restore({part: {name: tensor.cpu() for name, tensor in tensors.items()} for part, tensors in saved.items()})  # as a file's
    again = resumed.parts()
    assert {part: tensors.keys() for part, tensors in again.items()} == {part: tensors.keys() for part, tensors in saved.items()}
    assert [f"{part}/{name}" for part in saved for name in saved[part] if not torch.equal(again[part][name], saved[part][name])] == []
    assert figures_of(resumed.step(2)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(ON_CPU, reason="on a CPU the order of values stays as diffusers makes it")
def test_the_decoder_keeps_the_usual_order_of_values_after_its_attention(half_precision: Bench) -> None:
    """In the order that diffusers' attention leaves, four images took 62 ms on an H200 instead of 50."""
    seen: list[bool] = []
    hook = half_precision.codec.vae.decoder.up_blocks[-1].register_forward_hook(
        lambda _block, _inputs, output: seen.append(output.is_contiguous())
    )
    with torch.no_grad():
        half_precision.codec.decode(torch.randn(1, *half_precision.latent_shape, device=DEVICE))
    hook.remove()
    assert seen == [True]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts the only rank of a group."""
    there = {"TORCHELASTIC_RUN_ID": "gpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        there["MASTER_PORT"] = str(probe.getsockname()[1])
    for name, value in there.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("launched")
def test_a_process_group_of_one_averages_gradients_to_themselves() -> None:
    """NCCL on a GPU: the collectives that a step of several ranks makes, in a group of one."""
    with join_world() as world:
        assert world.device.type == DEVICE
        network = torch.nn.Linear(8, 8).to(world.device)
        rows = torch.randn(4, 8, device=world.device)
        (expected,) = torch.autograd.grad(network(rows).square().sum(), network.weight)
        halved = DistributedDataParallel(copy.deepcopy(network), gradient_as_bucket_view=True)
        halved.register_comm_hook(world.size, _average_in_bfloat16)
        wrapped = DistributedDataParallel(network, gradient_as_bucket_view=True)
        for each in (wrapped, halved):
            each(rows).square().sum().backward()
        torch.testing.assert_close(network.weight.grad, expected)
        torch.testing.assert_close(halved.module.weight.grad, expected.bfloat16().float(), rtol=2**-7, atol=0)
        assert torch.equal(halved.module.weight.grad, halved.module.weight.grad.bfloat16().float())
        gathered = torch.empty_like(rows)
        gather_into(gathered, rows)
        assert torch.equal(gathered, rows)
        votes = torch.tensor(1)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        assert int(votes) == 1
        dist.barrier()
        with unequal_work(replace(world, size=2)):  # of a world of one it would wait for nobody
            pass


@pytest.mark.usefixtures("launched")
def test_the_ranks_check_of_the_machine_passes_on_this_one() -> None:
    """The check makes a group and leaves it; the stage makes its own afterwards."""
    assert _check_devices(0 if ON_CPU else 1) >= (not ON_CPU)
    assert _check_peers()["all_reduce_gib_per_second"] > 0
    with join_world() as world:
        dist.all_reduce(torch.ones(1, device=world.device))


# --- the slow ones last: half a minute each on an H200's 16 cores, for the CPU computes too, or a compiler does ---


@pytest.fixture(scope="module")
def on_both_devices(sizes: Sizes) -> tuple[Bench, Bench]:
    """Networks of the same weights on the CPU and here, in float32. Few pixels: a CPU computes with them, too."""
    resolution = 32 if ON_CPU else 128
    on_cpu = Bench(setting(device="cpu", resolution=resolution), sizes)
    return on_cpu, with_weights_of(Bench(setting(resolution=resolution), sizes), on_cpu)


@pytest.mark.parametrize("mode", MODES)  # the last one, latent, tunes the proxy that they share
def test_a_step_equals_the_cpus_in_float32(on_both_devices: tuple[Bench, Bench], mode: str, true_float32: None) -> None:
    """Within one part in a thousand for every figure: sums of millions of terms in another order, and their differences."""
    expected, found = (figures_of(bench.distiller(mode, 2).step(0)) for bench in on_both_devices)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)


def steps_executed(mode: str, execution: str) -> list[dict[str, float]]:
    """Figures of two steps. Networks are compiled in place, teacher and decoder too: those of an eager step are others."""
    bench = Bench(setting(resolution=32), toy_sizes())
    distiller = bench.distiller(mode, 2, execution=execution)
    return [figures_of(distiller.step(step)) for step in range(2)]


@pytest.mark.skipif(ON_CPU, reason="minutes of a CPU's compiler: tests/training/test_step.py compiles a smaller step, in the slow suite")
@pytest.mark.parametrize("mode", ["plain", "pixel"])
def test_a_compiled_step_equals_the_eager_one(mode: str) -> None:
    expected, found = (steps_executed(mode, execution) for execution in ("eager", "compiled"))
    assert found == [pytest.approx(figures, rel=2e-3) for figures in expected]
