"""``python -m benchmarks.throughput``: images a second of what `cache` and `evaluate` ask of the networks, random weights; JSON lines.

    encode    pixels to the VAE's posterior, as `cache` does for each image
    score     the reward model on decoded pixels, the resizing included
    student   drawing in two steps, decoding included
    teacher   drawing in fifty guided steps, decoding included

Only networks: reading, decoding and writing of files are `python -m benchmarks.data`.
"""

import argparse
import json
from collections.abc import Callable, Sequence

import torch

from benchmarks.step_bench import PRECISIONS, SIZES, Bench, Setting
from benchmarks.step_measuring import Clock, hardware, versions
from rglcd.core.condition import Condition
from rglcd.core.consistency import BoundaryScalings
from rglcd.evaluation.generation import draw_student, draw_teacher
from rglcd.models.student import Student

TEACHER_STEPS, STUDENT_STEPS, OMEGA = 50, 2, 6.5


def works(bench: Bench) -> dict[str, Callable[[], object]]:
    """What is timed, by name, each for one batch."""
    setting, device = bench.setting, bench.world.device
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(setting.batch_size, 3, setting.resolution, setting.resolution, generator=generator).to(device)
    noises = [torch.randn(setting.batch_size, *bench.latent_shape, generator=generator).to(device) for _ in range(STUDENT_STEPS)]
    features = bench.cache.batch(torch.arange(setting.batch_size)).text["expert"].to(device)
    cond = bench.text_encoder.encode(bench.text_encoder.tokenise(["a"] * setting.batch_size))
    student = Student.of_teacher(bench.teacher, omega_embedding_dim=256)
    student.unet.to(setting.dtype)
    return {
        "encode": lambda: bench.codec.moments(pixels.to(setting.dtype)),
        "score": lambda: _score(bench, pixels, features),
        "student": lambda: draw_student(
            student, bench.codec, cond, omega=OMEGA, noises=_as(noises, setting.dtype), scalings=BoundaryScalings()
        ),
        "teacher": lambda: _teacher(bench, cond, noises[0]),
    }


@torch.no_grad()
def _score(bench: Bench, pixels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return bench.expert.score(pixels, features)


def _teacher(bench: Bench, cond: Condition, noise: torch.Tensor) -> torch.Tensor:
    uncond = bench.text_encoder.null()
    return draw_teacher(bench.teacher, bench.codec, cond, uncond, num_steps=TEACHER_STEPS, omega=OMEGA, noise=noise)


def _as(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    return [tensor.to(dtype) for tensor in tensors]


def main(argv: Sequence[str] | None = None) -> None:
    """Time each work, print its line as it is done."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="toy")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["float32"])
    parser.add_argument("--device", default=default)
    parser.add_argument("--batch-size", type=int, default=8)
    asked = parser.parse_args(argv)
    sizes = SIZES[asked.model]()
    for precision in asked.precision:
        setting = Setting(
            model=asked.model,
            resolution=sizes.resolution,
            precision=precision,
            device=asked.device,
            batch_size=asked.batch_size,
            chunk_size=asked.batch_size,
            execution="eager",
            memory_format="contiguous",
            num_steps=1,
            memory_gib=80.0,
        )
        bench = Bench(setting, sizes)
        clock = Clock(bench.world.device)
        for name, work in works(bench).items():
            if bench.world.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            clock.ms(work)  # allocates, and chooses algorithms
            ms, _ = clock.ms(work)
            peak = torch.cuda.max_memory_allocated() if bench.world.device.type == "cuda" else None
            line = {"work": name, "model": asked.model, "precision": precision, "batch_size": asked.batch_size}
            line |= {"images_per_s": round(1e3 * asked.batch_size / ms, 3), "peak_mib": None if peak is None else round(peak / 2**20, 1)}
            print(json.dumps({**line, "hardware": hardware(bench.world.device), "versions": versions()}), flush=True)
        del bench


if __name__ == "__main__":
    main()
