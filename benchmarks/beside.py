"""Our step and the baseline's, turn by turn in one process, so that whatever else the machine does meets both alike."""

import copy
import statistics
from typing import Any

import torch

from benchmarks.baseline import Networks, PublishedStep, StepInputs
from benchmarks.step import Bench, Clock
from rglcd.training.distiller import Distiller
from rglcd.training.operations import count_flops


def beside_baseline(bench: Bench, mode: str, *, cached: bool = False) -> dict[str, Any]:
    """Median milliseconds of the baseline's step and of ours, their ratio, and the baseline's operations.

    ``cached``: the baseline is given latents too, instead of encoding its images in each step.
    """
    batch_size, clock = bench.setting.batch_size, Clock(bench.world.device)
    distiller = bench.distiller(mode, batch_size)
    theirs = published_step(bench, distiller, mode)
    given = step_inputs(bench, cached=cached)
    flops = count_flops(lambda: theirs.step(given)) / batch_size
    for step in range(3):
        distiller.step(step)
        theirs.step(given)
    turns = [
        (clock.ms(lambda step=step: distiller.step(step))[0], clock.ms(lambda: theirs.step(given))[0])
        for step in range(bench.setting.num_steps)
    ]
    ours_ms, theirs_ms = (statistics.median(column) for column in zip(*turns, strict=True))
    return {
        "ours_ms": round(ours_ms, 3),
        "baseline_ms": round(theirs_ms, 3),
        "ratio": round(theirs_ms / ours_ms, 3),
        "baseline_gflop_per_sample": round(flops / 1e9, 3),
        "cached": cached,
    }


def published_step(bench: Bench, distiller: Distiller, mode: str) -> PublishedStep:
    """The baseline with networks of its own that train, equal to ``distiller``'s, and the frozen ones shared."""
    student = copy.deepcopy(distiller.student.unet)
    networks = Networks(
        student=student,
        target=copy.deepcopy(student).requires_grad_(False),
        teacher=bench.teacher.unet,
        vae=bench.codec.vae,
        text_encoder=bench.text_encoder.towers[0].model,
        expert=bench.expert.score,
        proxy=copy.deepcopy(bench.lrm),
        alphas=bench.teacher.schedule.alphas,
        sigmas=bench.teacher.schedule.sigmas,
    )
    return PublishedStep(networks, mode=mode, dtype=bench.setting.dtype)


def step_inputs(bench: Bench, *, cached: bool) -> StepInputs:
    """Random inputs of the benchmark's batch, on its device."""
    device, size, side = bench.world.device, bench.setting.batch_size, bench.setting.resolution
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(size, *bench.latent_shape, generator=generator)
    rows = bench.cache.batch(torch.arange(size))
    return StepInputs(
        images=None if cached else (torch.rand(size, 3, side, side, generator=generator) * 2 - 1).to(device),
        latents=latents.to(device) if cached else None,
        input_ids=rows.input_ids.long().to(device),
        empty_ids=bench.text_encoder.tokenise([""]).to(device),
        features=rows.text["expert"].to(device),
        index=torch.randint(50, (size,), generator=generator).to(device),
        omega=(5 + 10 * torch.rand(size, generator=generator)).to(device),
        noise=torch.randn(size, *bench.latent_shape, generator=generator).to(device),
    )
