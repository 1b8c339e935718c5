"""What a step takes of a GPU's memory is what ``rglcd plan`` says."""

import gc

import pytest
import torch

from benchmarks.step_bench import Bench, Sizes
from rglcd.config import load_preset
from rglcd.planning.networks import Networks, num_bytes
from rglcd.planning.training import training_cost
from tests.gpu.conftest import ON_CPU, setting

SAMPLES = 8


def planned_bytes(mode: str) -> float:
    """Of a process with so many samples of Stable Diffusion 1.5's."""
    reward = "{kind: none}" if mode == "plain" else "{kind: pixel, expert: expert, precision: bfloat16, chunk_size: 1}"
    arm = "lcm" if mode == "plain" else "rg"
    sizes = [f"distillation.batch_size={SAMPLES}", "distillation.micro_batch=null"]
    config = load_preset("sd15", overrides=[f"reward={reward}", f"distillation.arms=[{arm}]", *sizes])
    return training_cost(Networks(config), count=1).memory.bytes_at(SAMPLES)


def bytes_beside(mode: str, bench: Bench) -> int:
    """What the benchmark has on the card and the plan has not: what the mode does not use. The VAE of a plain run is in float32."""
    idle = num_bytes(bench.lrm)
    return idle if mode == "pixel" else idle + num_bytes(bench.expert.model) - num_bytes(bench.codec.vae)


@pytest.mark.skipif(ON_CPU, reason="the plan counts what CUDA's allocator gives")
@pytest.mark.parametrize("mode", ["plain", "pixel"])
def test_the_peak_of_a_step_is_within_a_tenth_of_the_plans(sizes: Sizes, mode: str) -> None:
    bench = Bench(setting(precision="bfloat16"), sizes)
    distiller = bench.distiller(mode, SAMPLES)
    distiller.step(0)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    distiller.step(1)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() == pytest.approx(planned_bytes(mode) + bytes_beside(mode, bench), rel=0.1)
