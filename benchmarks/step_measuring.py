"""What a step of the benchmark's distillers takes: milliseconds by part, and bytes at their peak."""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor

from benchmarks.step_bench import Bench, Flops, Setting
from rglcd.planning.counting import LiveBytes
from rglcd.planning.gpus import gpu_of_device
from rglcd.training.distiller import Distiller

FARTHEST = 4
"""How many times the largest batch measured the line of memory is followed."""


class Clock:
    """Wall time of work that a device may do later than it was asked to."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def ms(self, work: Callable[[], Any]) -> tuple[float, Any]:
        self._wait()
        started = time.perf_counter()
        result = work()
        self._wait()
        return 1e3 * (time.perf_counter() - started), result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Timed:
    """Something callable, and the time of its calls added up under a name."""

    def __init__(self, called: Any, clock: Clock, times: dict[str, float], name: str) -> None:
        self._called, self._clock, self._times, self._name = called, clock, times, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ms, result = self._clock.ms(lambda: self._called(*args, **kwargs))
        self._times[self._name] = self._times.get(self._name, 0.0) + ms
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._called, name)


class TimedGuidance:
    """Reward guidance whose two halves are timed."""

    def __init__(self, guidance: Any, clock: Clock, times: dict[str, float]) -> None:
        self._guidance = guidance
        self.gradient = Timed(guidance.gradient, clock, times, "reward gradient")
        self.learn = Timed(guidance.learn, clock, times, "labels and proxy")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guidance, name)


def split_ms(distiller: Any, clock: Clock, *, num_steps: int) -> dict[str, float]:
    """Mean milliseconds of each part of a step; what no part accounts for is the student's backward pass and the losses."""
    times: dict[str, float] = {}
    for attribute, name in (("_batch", "batch and captions"), ("teacher", "teacher"), ("_update", "optimiser and average")):
        setattr(distiller, attribute, Timed(getattr(distiller, attribute), clock, times, name))
    distiller.target = Timed(distiller.target, clock, times, "target")
    distiller.student = Timed(distiller.student, clock, times, "student forward")
    if distiller.reward_guidance is not None:
        distiller.reward_guidance = TimedGuidance(distiller.reward_guidance, clock, times)
    whole = sum(clock.ms(partial(distiller.step, step))[0] for step in range(num_steps))
    times["backward and losses"] = whole - sum(times.values())
    return {name: round(total / num_steps, 3) for name, total in times.items()}


def peak_bytes(bench: Bench, mode: str, batch_size: int) -> int:
    """The most that a step of ``batch_size`` allocates, what lasts included."""
    gc.collect()  # the timed distillers hold themselves in cycles
    distiller = bench.distiller(mode, batch_size)
    distiller.step(0)
    if bench.world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.world.device)
        distiller.step(1)
        torch.cuda.synchronize(bench.world.device)
        return int(torch.cuda.max_memory_allocated(bench.world.device))
    lasting = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _lasting(bench, distiller)}
    # On a CPU the bytes are those of eager networks: what runs in a compiled one is not seen, and dynamo would skip all of them for good.
    with torch.compiler.set_stance("force_eager"), LiveBytes() as live:
        distiller.step(1)
    return int(sum(lasting.values()) + live.peak)


def _lasting(bench: Bench, distiller: Distiller) -> list[Tensor]:
    networks = [bench.codec.vae, bench.text_encoder.towers[0].model, bench.teacher.unet, distiller.student.unet, distiller.evaluated.unet]
    networks += [] if distiller.reward_guidance is None else [bench.expert.model]
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return tensors + [tensor for part in distiller.parts().values() for tensor in part.values()]


def memory_line(bench: Bench, mode: str) -> dict[str, Any]:
    """Bytes = fixed + per_sample x batch, from the larger two of three batch sizes; how far the least is from it; the largest batch.

    Small batches have another peak: where all gradients are there and activations are not, or in a chunk that they do not fill. So
    what follows of batches much larger than those measured is no figure.
    """
    batch = bench.setting.batch_size
    first, second, third = (peak_bytes(bench, mode, size) for size in (batch, 2 * batch, 3 * batch))
    per_sample = (third - second) / batch
    fixed = second - 2 * per_sample * batch
    largest = max(0, int((bench.setting.memory_gib * 2**30 - fixed) / per_sample))
    return {
        "peak_mib": round(first / 2**20, 1),
        "fixed_mib": round(fixed / 2**20, 1),
        "per_sample_mib": round(per_sample / 2**20, 3),
        "error_at_one_batch": round((fixed + batch * per_sample) / first - 1, 4),
        "largest_batch": largest if largest <= FARTHEST * 3 * batch else None,
    }


def times(bench: Bench, mode: str) -> tuple[float, dict[str, float]]:
    """Median milliseconds of a step, and its parts; the first steps, which allocate and compile, are left out."""
    setting, clock = bench.setting, Clock(bench.world.device)
    distiller = bench.distiller(mode, setting.batch_size)
    for step in range(3):
        distiller.step(step)
    ms = statistics.median(clock.ms(partial(distiller.step, step))[0] for step in range(setting.num_steps))
    return ms, split_ms(distiller, clock, num_steps=setting.num_steps)


def measure(bench: Bench, mode: str, flops: Flops) -> dict[str, Any]:
    """Everything about one mode."""
    setting = bench.setting
    ms, split = times(bench, mode)
    samples_per_s = 1e3 * setting.batch_size / ms
    return {
        "ms_per_step": round(ms, 3),
        "samples_per_s": round(samples_per_s, 3),
        "split_ms": split,
        "memory": memory_line(bench, mode),
        **flops.figures(),
        "mfu": utilisation(setting, flops.needed * samples_per_s),
    }


def utilisation(setting: Setting, flops_per_s: float) -> float | None:
    """The share of the device's bfloat16 peak that needed operations reach; None where the peak is not known."""
    if torch.device(setting.device).type != "cuda" or setting.precision != "bfloat16":
        return None
    gpu = gpu_of_device(torch.cuda.get_device_name(setting.device))
    return None if gpu is None else round(flops_per_s / gpu.bf16_tflops / 1e12, 4)


def hardware(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), None)
    found: dict[str, Any] = {"cpu": model, "threads": torch.get_num_threads(), "platform": platform.platform()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
    return found


def versions() -> dict[str, str | None]:
    """Of what computes."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
