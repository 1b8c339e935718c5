"""Bytes kept for backward, against chains of layers computed by hand and against a GPU's allocator."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rglcd.config import load_preset
from rglcd.models.recomputation import recompute_activations
from rglcd.planning.counting import GIB, CudaPolicy, LiveBytes, backward
from rglcd.planning.networks import META, Networks, num_bytes
from rglcd.planning.training import training_cost

MEASURED = json.loads((Path(__file__).parent / "h200.json").read_text())
BF16 = torch.bfloat16
PRESETS = {"stable-diffusion-v1-5": "sd15", "stable-diffusion-2-1-base": "sd21-paper-lrm", "stable-diffusion-2-1": "sd21-paper"}


def kept(run: Callable[[], Tensor], *, autocast: torch.dtype = BF16) -> int:
    """Bytes alive after the forward pass, its output included."""
    with LiveBytes() as live, CudaPolicy(autocast):
        output = run()
    assert output.requires_grad
    return live.now


def test_linear_and_gelu_keep_low_precision_input_weight_and_output() -> None:
    x = torch.empty(6, 32, device=META)
    layer = nn.Linear(32, 64, device=META)
    x_cast, weight, linear_out, gelu_out = 2 * 6 * 32, 2 * 32 * 64, 2 * 6 * 64, 2 * 6 * 64
    # The input has no gradient, so the weight's copy and the bias' are dropped with the context; gelu keeps its input.
    assert kept(lambda: nn.functional.gelu(layer(x))) == x_cast + linear_out + gelu_out
    x.requires_grad_()
    assert kept(lambda: nn.functional.gelu(layer(x))) == x_cast + weight + linear_out + gelu_out


def test_convolution_group_norm_and_silu_keep_the_norm_in_float32() -> None:
    x = torch.empty(2, 8, 16, 16, device=META, requires_grad=True)
    conv, norm = nn.Conv2d(8, 16, 3, padding=1, device=META), nn.GroupNorm(4, 16, device=META)
    pixels = 2 * 16 * 16
    conv_in, conv_weight, conv_out = 2 * pixels * 8, 2 * 16 * 8 * 9, 2 * pixels * 16
    norm_in, statistics, norm_out, silu_out = 4 * pixels * 16, 2 * 4 * 2 * 4, 4 * pixels * 16, 4 * pixels * 16
    # The bfloat16 output of the convolution is gone once the norm has its float32 copy.
    assert conv_out > 0
    assert kept(lambda: nn.functional.silu(norm(conv(x)))) == conv_in + conv_weight + norm_in + statistics + norm_out + silu_out


def test_attention_keeps_query_key_value_output_and_one_number_a_row() -> None:
    query, key, value = (torch.empty(2, 4, length, 8, device=META, requires_grad=True) for length in (128, 77, 77))
    rows = 2 * 4 * 128
    saved = 2 * 2 * 4 * 8 * (128 + 77 + 77 + 128)
    counted = kept(lambda: scaled_dot_product_attention(query, key, value))
    # Beside them the kernel keeps two numbers of its random state.
    assert saved + 4 * rows <= counted <= saved + 4 * rows + 32
    assert counted < saved + 4 * rows * 77


def test_float32_run_casts_nothing() -> None:
    x = torch.empty(6, 32, device=META)
    layer = nn.Linear(32, 64, device=META)
    assert kept(lambda: layer(x), autocast=torch.float32) == 4 * 6 * 64


def test_live_bytes_counts_tensors_that_are_alive_and_no_others() -> None:
    with LiveBytes() as live:
        kept = torch.zeros(1000)
        for _ in range(5):
            torch.zeros(250_000).sum()
        view = kept[:10]
    assert live.peak == pytest.approx(1_004_000, abs=64)
    assert live.now == pytest.approx(4000, abs=64)
    assert len(view) == 10


def test_view_of_a_weight_is_no_new_memory() -> None:
    weight = torch.empty(32, 64, device=META)
    with LiveBytes() as live:
        views = (weight.t(), weight[:4])
    assert live.peak == 0
    assert len(views) == 2


def test_backward_pass_recomputes_under_the_same_policy() -> None:
    layer = nn.Linear(32, 32, device=META)
    x = torch.empty(4, 32, device=META, requires_grad=True)
    with CudaPolicy(BF16):
        output = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    backward(output, BF16)
    assert x.grad is not None


# --- against a GPU -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", MEASURED["kept_after_forward"], ids=lambda case: f"{case['teacher']}-{case['activations']}")
def test_what_a_unet_keeps_is_what_a_gpu_measured(case: dict[str, Any]) -> None:
    networks = Networks(load_preset(PRESETS[case["teacher"]]))
    teacher = networks.teacher(BF16)
    student = networks.student(teacher)
    if case["activations"] == "recomputed":
        recompute_activations(student.unet, None)

    def gib(samples: int) -> float:
        t, omega = torch.zeros(samples, dtype=torch.int64, device=META), torch.ones(samples, device=META)
        cond = networks.condition(student, samples, BF16)
        return kept(lambda: student(networks.latents(samples), t, omega, cond).x0) / GIB

    one, three = gib(1), gib(3)
    assert (three - one) / 2 == pytest.approx((case["three"] - case["one"]) / 2, rel=0.05)
    assert (one, three) == (pytest.approx(case["one"], rel=0.1), pytest.approx(case["three"], rel=0.1))


def test_peak_of_a_plain_step_is_what_a_gpu_measured() -> None:
    networks = Networks(
        load_preset("sd21-paper-lrm", overrides=["reward={kind: none}", "distillation.batch_size=64", "distillation.arms=[lcm]"])
    )
    memory = training_cost(networks, count=1).memory
    expert = networks.scorer("expert", BF16, captions="cached")
    assert expert is not None
    # Recorded with the VAE in bfloat16 and with the image tower, which a plain step does not need.
    beside = num_bytes(expert) / GIB - num_bytes(networks.codec(BF16).vae) / GIB
    recorded = {int(samples): gib for samples, gib in MEASURED["peak_of_a_step"]["plain"].items()}
    counted = memory.bytes_at(64) / GIB + beside
    assert counted == pytest.approx(recorded[64], rel=0.1)
    each = sum(part.line.each for part in memory.parts(64)) / GIB
    assert each == pytest.approx((recorded[64] - recorded[16]) / 48, rel=0.05)
    assert counted - 48 * each == pytest.approx(recorded[16], rel=0.1)


@pytest.mark.parametrize("chunk", [4, 16])
def test_peak_of_a_step_with_pixel_reward_is_what_a_gpu_measured(chunk: int) -> None:
    reward = f"reward={{kind: pixel, precision: bfloat16, chunk_size: {chunk}}}"
    networks = Networks(load_preset("sd21-paper-lrm", overrides=[reward, "distillation.batch_size=16"]))
    counted = training_cost(networks, count=1).memory.bytes_at(16) / GIB
    assert counted == pytest.approx(MEASURED["peak_of_a_step"]["pixel_16_samples_by_chunk"][str(chunk)], rel=0.1)


@pytest.mark.slow
def test_gradients_are_held_twice_where_ranks_add_up_micro_batches() -> None:
    """DDP's buckets last, and beside them the sum of the micro-batches until it is averaged; one process has the sum alone."""

    def training(count: int, micro_batch: str) -> float:
        overrides = [
            "reward={kind: none}",
            "distillation.arms=[lcm]",
            "distillation.batch_size=16",
            f"distillation.micro_batch={micro_batch}",
        ]
        networks = Networks(load_preset("sd15", overrides=overrides))
        memory = training_cost(networks, count=count).memory
        learnt = num_bytes(networks.student(networks.teacher(BF16)).unet)
        return sum(part.line.at(0) for part in memory.parts(2) if part.name.startswith("gradients")) / learnt

    assert training(count=2, micro_batch="2") == pytest.approx(2)
    assert training(count=1, micro_batch="2") == pytest.approx(1)
