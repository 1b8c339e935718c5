"""These tests run where there is a CUDA device, at Stable Diffusion 1.5's shapes, and nowhere else.

``RGLCD_GPU_TESTS=cpu`` runs the same tests on a CPU with the toy's shapes: so their code is tried where no GPU is.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.step_bench import Bench, Setting, Sizes, sd21_sizes, toy_sizes

ON_CPU = os.environ.get("RGLCD_GPU_TESTS") == "cpu"
DEVICE = "cpu" if ON_CPU else "cuda"
ASSETS = Path(__file__).parents[2] / "src" / "rglcd" / "planning" / "shapes"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: those that a module shares would already ask for the device."""
    if not ON_CPU and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    """Networks of Stable Diffusion 1.5's published shapes, and HPSv2's image tower; the toy's on a CPU."""
    if ON_CPU:
        return toy_sizes()
    published = json.loads((ASSETS / "stable-diffusion-v1-5.json").read_text(encoding="utf-8"))
    other = sd21_sizes()
    return Sizes(published["unet"], published["vae"], published["text_encoders"][0], other.expert, other.tower, 512)


def setting(**values: object) -> Setting:
    """A setting of the benchmark's with everything said that a test does not care about."""
    fixed = {"model": "sd15", "precision": "float32", "batch_size": 2, "chunk_size": 1, "execution": "eager", "memory_format": "contiguous"}
    return Setting(**{**fixed, "num_steps": 1, "memory_gib": 80.0, "device": DEVICE, "resolution": 32 if ON_CPU else 512, **values})


@pytest.fixture
def true_float32() -> Iterator[None]:
    """Within the test no TF32: float32 on a GPU is then float32 on a CPU, but for the order of sums."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    yield
    if not ON_CPU and torch.cuda.is_available():
        torch.cuda.empty_cache()


def with_weights_of(bench: Bench, other: Bench) -> Bench:
    """``bench`` with ``other``'s weights: random generators of two devices draw different ones."""
    for mine, theirs in (
        (bench.teacher.unet, other.teacher.unet),
        (bench.codec.vae, other.codec.vae),
        (bench.expert.model, other.expert.model),
        (bench.text_encoder.towers[0].model, other.text_encoder.towers[0].model),
        (bench.lrm, other.lrm),
    ):
        mine.load_state_dict(theirs.state_dict())
    return bench
