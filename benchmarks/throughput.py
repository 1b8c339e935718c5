"""``python -m benchmarks.throughput``: images a second of what `cache` and `evaluate` ask of the networks, random weights; JSON lines.

    encode    pixels to the VAE's posterior, as `cache` does for each image
    score     the reward model on decoded pixels, the resizing included; float32 weights alone, as `evaluate` has them
    student   drawing in two steps, decoding included
    teacher   drawing in fifty guided steps, decoding included

A precision is meant as in `evaluation.precision`: `tf32` is float32 with multiplications in TF32, and `bfloat16` what draws.
Only networks: reading, decoding and writing of files are `python -m benchmarks.data`.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from benchmarks.step_bench import SIZES, Bench, Setting
from benchmarks.step_measuring import Clock, hardware, versions
from rglcd.core.condition import Condition
from rglcd.core.consistency import BoundaryScalings
from rglcd.evaluation.generation import decoded, student_latents, teacher_latents
from rglcd.models.chunks import Chunks
from rglcd.models.precision import tf32
from rglcd.models.student import Student

PRECISIONS = ("float32", "tf32", "bfloat16")
TEACHER_STEPS, STUDENT_STEPS, OMEGA = 50, 2, 6.5


@dataclass(frozen=True)
class Work:
    """What is timed, and what warms it up: itself unless said."""

    whole: Callable[[], object]
    first: Callable[[], object] | None = None


def works(bench: Bench, *, decode_chunk: int) -> dict[str, Work]:
    """What is timed, by name, each for one batch. Of fifty equal steps one warms up: all would be half of the time that `make gpu` has."""
    setting, device = bench.setting, bench.world.device
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(setting.batch_size, 3, setting.resolution, setting.resolution, generator=generator).to(device)
    noises = [torch.randn(setting.batch_size, *bench.latent_shape, generator=generator).to(device) for _ in range(STUDENT_STEPS)]
    features = bench.cache.batch(torch.arange(setting.batch_size)).text["expert"].to(device)
    cond = bench.text_encoder.encode(bench.text_encoder.tokenise(["a"] * setting.batch_size))
    student = Student.of_teacher(bench.teacher, omega_embedding_dim=256)
    student.unet.to(setting.dtype)
    scoring = {"score": Work(lambda: _score(bench, pixels, features))} if setting.dtype == torch.float32 else {}

    def draw(num_steps: int) -> Callable[[], object]:
        return lambda: decoded(bench.codec, _teacher(bench, cond, noises[0], num_steps), Chunks("--decode-chunk", decode_chunk))

    return {
        "encode": Work(lambda: bench.codec.moments(pixels.to(setting.dtype))),
        **scoring,
        "student": Work(lambda: decoded(bench.codec, _student(student, cond, noises), Chunks("--decode-chunk", decode_chunk))),
        "teacher": Work(draw(TEACHER_STEPS), draw(1)),
    }


@torch.no_grad()
def _score(bench: Bench, pixels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return bench.expert.score(pixels, features)


def _teacher(bench: Bench, cond: Condition, noise: torch.Tensor, num_steps: int) -> torch.Tensor:
    uncond, schedule = bench.text_encoder.null(), bench.teacher.schedule
    return teacher_latents(bench.teacher.guided, cond, uncond, noise, schedule=schedule, num_steps=num_steps, omega=OMEGA)


def _student(student: Student, cond: Condition, noises: Sequence[torch.Tensor]) -> torch.Tensor:
    return student_latents(student, cond, noises, schedule=student.schedule, scalings=BoundaryScalings(), omega=OMEGA)


def main(argv: Sequence[str] | None = None) -> None:
    """Time each work, print its line as it is done."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="toy")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument("--device", default=default)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--decode-chunk", type=int, help="images decoded at once (default: the batch)")
    asked = parser.parse_args(argv)
    sizes = SIZES[asked.model]()
    for precision in asked.precision:
        setting = Setting(
            model=asked.model,
            resolution=sizes.resolution,
            precision="bfloat16" if precision == "bfloat16" else "float32",
            device=asked.device,
            batch_size=asked.batch_size,
            chunk_size=asked.batch_size,
            execution="eager",
            memory_format="contiguous",
            num_steps=1,
            memory_gib=80.0,
        )
        bench = Bench(setting, sizes)
        with nullcontext() if precision == "float32" else tf32(bench.world.device):
            for line in measured(bench, decode_chunk=asked.decode_chunk or asked.batch_size):
                line = {**line, "model": asked.model, "precision": precision, "batch_size": asked.batch_size}
                print(json.dumps({**line, "hardware": hardware(bench.world.device), "versions": versions()}), flush=True)
        del bench


def measured(bench: Bench, *, decode_chunk: int) -> Iterator[dict[str, object]]:
    """A record for each work: images a second, peak memory where there is a GPU."""
    clock, is_gpu = Clock(bench.world.device), bench.world.device.type == "cuda"
    for name, work in works(bench, decode_chunk=decode_chunk).items():
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
        clock.ms(work.first or work.whole)  # allocates, and chooses algorithms
        ms, _ = clock.ms(work.whole)
        peak = round(torch.cuda.max_memory_allocated() / 2**20, 1) if is_gpu else None
        yield {"work": name, "images_per_s": round(1e3 * bench.setting.batch_size / ms, 3), "peak_mib": peak}


if __name__ == "__main__":
    main()
