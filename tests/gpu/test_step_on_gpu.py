"""A training step on a GPU: what a CPU computes, without waiting for the device, and resumable."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.step_bench import MODES, Bench, Sizes, toy_sizes
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
    """Weights come back bit for bit; what follows is equal but for the order of a GPU's atomic sums."""
    bench = Bench(setting(resolution=32), toy_sizes())
    unbroken = bench.distiller(mode, 2)
    for step in range(2):
        unbroken.step(step)
    saved = {part: {name: tensor.detach().clone() for name, tensor in tensors.items()} for part, tensors in unbroken.parts().items()}
    proxy = None if mode != "latent" else {name: tensor.clone() for name, tensor in bench.lrm.state_dict().items()}
    expected = figures_of(unbroken.step(2))
    resumed = bench.distiller(mode, 2)
    resumed.restore(saved)
    if proxy is not None:
        assert all(torch.equal(tensor, proxy[name]) for name, tensor in bench.lrm.state_dict().items())
    assert all(torch.equal(tensor, saved["student"][name]) for name, tensor in resumed.parts()["student"].items())
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


def test_a_process_group_of_one_averages_gradients_to_themselves() -> None:
    """NCCL on a GPU: the collectives that a step of several ranks makes, in a group of one."""
    backend = "gloo" if ON_CPU else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = torch.nn.Linear(8, 8).to(DEVICE)
        rows = torch.randn(4, 8, device=DEVICE)
        (expected,) = torch.autograd.grad(network(rows).square().sum(), network.weight)
        wrapped = DistributedDataParallel(network, gradient_as_bucket_view=True)
        wrapped(rows).square().sum().backward()
        torch.testing.assert_close(network.weight.grad, expected)
        gathered = torch.empty_like(rows)
        dist.all_gather_into_tensor(gathered, rows)
        assert torch.equal(gathered, rows)
        votes = torch.tensor(1)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        assert int(votes) == 1
    finally:
        dist.destroy_process_group()


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


@pytest.mark.skipif(ON_CPU, reason="minutes of a CPU's compiler: tests/training/test_step.py compiles a smaller step, in the slow suite")
@pytest.mark.parametrize("mode", ["plain", "pixel"])
def test_a_compiled_step_equals_the_eager_one(mode: str) -> None:
    bench = Bench(setting(resolution=32), toy_sizes())
    eager, compiled = (bench.distiller(mode, 2, execution=execution) for execution in ("eager", "compiled"))
    for step in range(2):
        expected, found = (figures_of(distiller.step(step)) for distiller in (eager, compiled))
        assert found == pytest.approx(expected, rel=2e-3)
