"""``python -m benchmarks.beside``: our step and the baseline's, turn by turn in one process; a JSON line.

So whatever else the machine does meets both alike. Our step's figures are its own: the first step's time (compilation), the
samples a second, the share of the device's peak that needed operations reach, and the memory before the baseline is made.
"""

import argparse
import copy
import gc
import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.baseline import Networks, PublishedStep, StepInputs
from benchmarks.planned import planned_mib
from benchmarks.step_bench import MODES, SIZES, Bench, Setting, add_setting_options, setting_of
from benchmarks.step_measuring import Clock, hardware, utilisation, versions
from rglcd.errors import lack_of_memory
from rglcd.training.distiller import Distiller
from rglcd.training.operations import count_flops


def beside_baseline(bench: Bench, mode: str, *, cached: bool = False) -> dict[str, Any]:
    """Median milliseconds of a step of ours and of the baseline's, their ratio, operations and memory.

    ``cached``: the baseline is given latents too, instead of encoding its images in each step.
    """
    setting, clock = bench.setting, Clock(bench.world.device)
    needed = bench.flops(mode).needed
    distiller = bench.distiller(mode, setting.batch_size)
    first_ms, _ = clock.ms(lambda: distiller.step(0))
    distiller.step(1)
    peak_mib = _peak_mib(bench, distiller)
    ours = {
        "first_step_ms": round(first_ms, 1),
        "peak_mib": peak_mib,
        "largest_kernels": largest_kernels(lambda: distiller.step(3), bench.world.device),
        "needed_gflop_per_sample": round(needed / 1e9, 3),
        "cached": cached,
    }
    turns, flops, failure = list[tuple[float, float]](), 0.0, ""
    try:
        turns, flops = _turns(bench, distiller, mode, cached=cached)
    except RuntimeError as error:  # the baseline has networks of its own, and decodes its whole batch
        if lack_of_memory(error) is None:
            raise
        failure = str(error).splitlines()[0]
    if failure:  # not above: what the baseline had lives as long as its error, and would leave no memory for ours
        gc.collect()
        torch.cuda.empty_cache()
        alone_ms = statistics.median(clock.ms(partial(distiller.step, step))[0] for step in range(3, 3 + setting.num_steps))
        return {**ours, **_speed(setting, needed, alone_ms), "baseline_error": failure}
    ours_ms, theirs_ms = (statistics.median(column) for column in zip(*turns, strict=True))
    return {
        **ours,
        **_speed(setting, needed, ours_ms),
        "baseline_ms": round(theirs_ms, 3),
        "ratio": round(theirs_ms / ours_ms, 3),
        "baseline_gflop_per_sample": round(flops / 1e9, 3),
    }


def _speed(setting: Setting, needed: int, ms: float) -> dict[str, float | None]:
    samples_per_s = 1e3 * setting.batch_size / ms
    return {
        "ms_per_step": round(ms, 3),
        "samples_per_s": round(samples_per_s, 3),
        "mfu": utilisation(setting, needed * samples_per_s),
    }


def _turns(bench: Bench, distiller: Distiller, mode: str, *, cached: bool) -> tuple[list[tuple[float, float]], float]:
    """Milliseconds of our step and the baseline's, alternately, and the baseline's operations for a sample."""
    setting, clock = bench.setting, Clock(bench.world.device)
    theirs, given = published_step(bench, distiller, mode), step_inputs(bench, cached=cached)

    def their_step() -> None:
        with torch.compiler.set_stance("force_eager"):  # the frozen networks are ours, and may be compiled
            theirs.step(given)

    flops = count_flops(their_step) / setting.batch_size
    their_step()
    distiller.step(4)
    steps = range(5, 5 + setting.num_steps)
    return [(clock.ms(partial(distiller.step, step))[0], clock.ms(their_step)[0]) for step in steps], flops


def largest_kernels(work: Callable[[], object], device: torch.device, *, count: int = 8) -> list[dict[str, Any]] | None:
    """The kernels that take most of the GPU's time in ``work``, by name, with their share of all kernels' time; None on a CPU."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize(device)
    found = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in found)
    return [
        {"kernel": event.key[:120], "share": round(event.self_device_time_total / total, 4), "calls": event.count}
        for event in found[:count]
    ]


def _peak_mib(bench: Bench, distiller: Distiller) -> float | None:
    """The most that one of our steps has allocated on the GPU, while the baseline is not there; None on a CPU."""
    if bench.world.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    distiller.step(2)
    torch.cuda.synchronize()
    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one mode and print its line; on a GPU then one of its peak beside the plan's."""
    parser = argparse.ArgumentParser(prog="benchmarks.beside", description="Our step beside the published scripts', turn by turn.")
    add_setting_options(parser, chunk_size=4)
    parser.add_argument("--mode", choices=MODES, default="plain")
    parser.add_argument("--cached", action="store_true", help="the baseline is given latents, not images")
    asked = parser.parse_args(argv)
    setting = setting_of(asked)
    bench = Bench(setting, SIZES[setting.model]())
    found = beside_baseline(bench, asked.mode, cached=asked.cached)
    line = {**vars(setting), "mode": asked.mode, **found, "hardware": hardware(bench.world.device), "versions": versions()}
    print(json.dumps(line), flush=True)
    if found["peak_mib"] is not None:  # counted for ten seconds, so not before the line is out
        planned = {"planned_mib": planned_mib(bench, asked.mode), "peak_mib": found["peak_mib"]}
        print(json.dumps({"plan of": asked.mode, **planned}), flush=True)


if __name__ == "__main__":
    main()
