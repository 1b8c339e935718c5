"""``python -m benchmarks.step``: what a training step costs, in each mode, with random weights; one JSON line on standard output.

    plain     latent consistency distillation
    pixel     with the reward's gradient through the decoder
    latent    with the latent proxy's gradient, and the proxy tuned to the expert

Milliseconds are medians of steps of which each is waited for; the split is of other steps, in which each part is. Memory is what
torch has allocated: asked of its allocator on a GPU, and on a CPU the tensors alive at any moment of a step. Two batch sizes give
the straight line from which the largest batch follows, a third, smaller one tells how straight it is. Operations are torch's own
count of what ran, against the sum of what each network needs by itself.

`--baseline` also times the step of the published scripts (:mod:`benchmarks.baseline`) beside ours, turn by turn: ``ratio`` is its time
over ours. `--cached` gives it latents too, instead of images to encode.

`--device meta` only counts, on any machine and at any size: its tensors have shapes and no values. As on a GPU, a step that mixed it
with the host would end in an error.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rglcd.core.consistency import BoundaryScalings
from rglcd.core.prediction import PredictionType
from rglcd.core.schedule import NoiseSchedule
from rglcd.latents.cache import Fingerprint, LatentCache, write_fingerprint, write_latents
from rglcd.models.codec import Codec
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.latent_towers import VitShape
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder, TextTower
from rglcd.recipe import ConstantGrid, EmaTarget, Huber, OnlineProxy, SharedPrediction, SoftLabels, UniformTimesteps
from rglcd.rewards.clip import ClipReward
from rglcd.rewards.preprocessing import Fit, Preprocessing
from rglcd.store.manifest import Manifest, results_digest, scan, write_manifest
from rglcd.training.distiller import Distiller
from rglcd.training.distributed import World
from rglcd.training.execution import Execution
from rglcd.training.operations import count_flops
from rglcd.training.optimization import LearningRate
from rglcd.training.reward_guidance import LatentRewardGuidance, PixelRewardGuidance, RewardGuidance
from rglcd.training.run_recipe import Recipe

MODES = ("plain", "pixel", "latent")
RECORDS = Path("docs/step.jsonl")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_FARTHEST = 4
"""How many times the largest batch measured the line of memory is followed."""

# Dense bfloat16 TFLOP/s by the vendor's data sheet, by a word of the device's name; others have no utilisation here.
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}


# --- the networks, by size -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Configurations of the networks as their classes take them, and of the proxy's tower."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    expert: dict[str, Any]
    tower: VitShape
    resolution: int


def toy_sizes() -> Sizes:
    """Those of the toy's own models."""
    teacher = Path("toy/teacher")

    def config(folder: Path) -> dict[str, Any]:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))

    unet, vae, text = (config(teacher / part) for part in ("unet", "vae", "text_encoder"))
    return Sizes(unet, vae, text, config(Path("toy/expert")), VitShape(patch=4, width=64, num_layers=2, num_heads=4), 32)


def sd21_sizes() -> Sizes:
    """Stable Diffusion 2.1's published configurations; the expert has the image tower of HPSv2, ViT-H/14.

    Its text tower is a stub, for in training captions come to the expert as cached features.
    """
    unet = {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    }
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = {**blocks, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14}
    stub = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    expert = {"vision_config": vision | {"hidden_act": "gelu", "image_size": 224}, "text_config": stub, "projection_dim": 1024}
    return Sizes(unet, vae, text, expert, VitShape(patch=4, width=512, num_layers=12, num_heads=8), 512)


SIZES: dict[str, Callable[[], Sizes]] = {"toy": toy_sizes, "sd21": sd21_sizes}


@dataclass(frozen=True)
class Setting:
    """What was asked for."""

    model: str
    resolution: int
    precision: str
    device: str
    batch_size: int
    chunk_size: int
    execution: str
    memory_format: str
    num_steps: int
    memory_gib: float

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]


@dataclass(frozen=True)
class Flops:
    """Operations of one sample in a step: those that ran, and those that its networks need, each by itself."""

    counted: float
    needed: int

    def figures(self) -> dict[str, float]:
        return {"gflop_per_sample": round(self.counted / 1e9, 3), "needed_gflop_per_sample": round(self.needed / 1e9, 3)}


class Bench:
    """The frozen networks, made once; a distiller for each mode and batch size."""

    def __init__(self, setting: Setting, sizes: Sizes) -> None:
        self.setting = setting
        self.world = World(0, 1, torch.device(setting.device))
        torch.manual_seed(0)
        tokenizer = _tokenizer(length=int(sizes.text.get("max_position_embeddings", 77)))
        text_config = CLIPTextConfig(**{**sizes.text, "vocab_size": sizes.text.get("vocab_size", 49408)})
        schedule = NoiseSchedule.scaled_linear(beta_start=0.00085, beta_end=0.012, num_timesteps=1000).to(self.world.device, torch.float32)
        with self.world.device:
            unet = UNet2DConditionModel.from_config(sizes.unet)
            vae = AutoencoderKL.from_config(sizes.vae)
            text = CLIPTextModel(text_config).to(setting.dtype)
            expert = CLIPModel(CLIPConfig(**sizes.expert)).to(setting.dtype)
        self.teacher = Teacher(nn.Module.to(unet, setting.dtype), schedule, PredictionType.V)
        self.codec = Codec(nn.Module.to(vae, setting.dtype))
        self.text_encoder = TextEncoder([TextTower(text, tokenizer)], zero_null=False)
        self.expert = ClipReward(expert, tokenizer, preprocessing=Preprocessing.of(Fit.SHORTEST_CROPPED))
        width = int(sizes.expert["projection_dim"])
        self.latent_shape = self.codec.latent_shape(setting.resolution)
        self.lrm = LatentRewardModel.at_random(LatentRewardShape(self.latent_shape, width, sizes.tower), seed=0).to(self.world.device)
        self._folder = TemporaryDirectory()
        self.cache = _random_cache(Path(self._folder.name), self.latent_shape, text_width=width, length=tokenizer.model_max_length)

    def distiller(self, mode: str, batch_size: int, *, execution: str | None = None) -> Distiller:
        """A fresh one, with the paper's recipe; executed as the setting says unless `execution` is given."""
        return Distiller(
            recipe=self._recipe(batch_size, execution or self.setting.execution),
            student=Student.of_teacher(self.teacher, omega_embedding_dim=256),
            teacher=self.teacher,
            codec=self.codec,
            text_encoder=self.text_encoder,
            cache=self.cache,
            reward_guidance=self._reward_guidance(mode),
            world=self.world,
        )

    def _recipe(self, batch_size: int, execution: str) -> Recipe:
        return Recipe(
            num_steps=10_000,
            batch_size=batch_size,
            learning_rate=LearningRate(1e-6, 0, 10_000, "constant"),
            weight_decay=0.0,
            max_grad_norm=1.0,
            target=EmaTarget(),
            neighbour="teacher",
            omega=(5.0, 15.0),
            caption_dropout=0.0,
            dropout=0.0,
            distance=Huber(),
            timesteps=UniformTimesteps(),
            weighting="even",
            scalings=BoundaryScalings(),
            grid=ConstantGrid(),
            num_ddim_steps=50,
            prediction=SharedPrediction(),
            precision=self.setting.precision,
            execution=Execution(execution, self.setting.memory_format),
            seed=0,
        )

    def _reward_guidance(self, mode: str) -> RewardGuidance | None:
        if mode == "plain":
            return None
        if mode == "pixel":
            return PixelRewardGuidance(self.expert, self.codec, "expert", 1.0, self.setting.chunk_size)
        return LatentRewardGuidance(
            self.lrm,
            expert=self.expert,
            codec=self.codec,
            expert_scorer="expert",
            model_scorer="expert",
            weight=1.0,
            chunk_size=self.setting.chunk_size,
            tuning=OnlineProxy(labels=SoftLabels(logit_scale=100.0)),
            world=self.world,
        )

    def flops(self, mode: str) -> Flops:
        """Counted eagerly: compiled networks hide what runs in them, and do the same."""
        distiller = self.distiller(mode, self.setting.batch_size, execution="eager")
        return Flops(count_flops(lambda: distiller.step(0)) / self.setting.batch_size, self._needed_flops(mode, distiller))

    def _needed_flops(self, mode: str, distiller: Distiller) -> int:
        """Operations that one sample needs: each network by itself, once for each time that the equations name it."""
        student, teacher, batch = distiller.student, distiller.teacher, distiller._batch(0)
        z0, cond, omega, t = batch.z0[:1], batch.cond[:1], batch.draws.omega[:1], torch.full((1,), 499, device=self.world.device)
        features = batch.texts["expert"][:1]

        def learn() -> None:
            student(z0, t, omega, cond).x0.sum().backward()
            student.unet.zero_grad(set_to_none=True)

        def gradient(score: Callable[[Tensor], Tensor]) -> Callable[[], None]:
            def work() -> None:
                leaf = z0.detach().requires_grad_()
                torch.autograd.grad(score(leaf).sum(), leaf)

            return work

        def without_gradient(work: Callable[[], object]) -> Callable[[], None]:
            def quiet() -> None:
                with torch.no_grad():
                    work()

            return quiet

        def fit() -> None:
            self.lrm(z0.repeat(3, 1, 1, 1), features.repeat(3, 1)).logits.sum().backward()
            self.lrm.zero_grad(set_to_none=True)

        parts = [
            2 * count_flops(lambda: teacher(z0, t, cond)),
            count_flops(without_gradient(lambda: student(z0, t, omega, cond))),
            count_flops(learn),
            count_flops(lambda: self.text_encoder.encode(self.cache.batch(torch.zeros(1, dtype=torch.long)).input_ids)),
        ]
        if mode == "pixel":
            parts.append(count_flops(gradient(lambda z: self.expert.score(self.codec.decode(z), features))))
        if mode == "latent":
            parts += [
                count_flops(gradient(lambda z: self.lrm.score(z, features))),
                3 * count_flops(without_gradient(lambda: self.expert.score(self.codec.decode(z0), features))),
                count_flops(fit),
            ]
        return sum(parts)


def _tokenizer(*, length: int) -> CLIPTokenizer:
    pieces = ["a</w>", "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], model_max_length=length)


def _random_cache(folder: Path, latent_shape: tuple[int, int, int], *, text_width: int, length: int) -> LatentCache:
    """A cache of noise, written and published as the stage does."""
    generator = torch.Generator().manual_seed(0)
    num_samples = 256
    columns = {
        "latent_mean": torch.randn(num_samples, *latent_shape, generator=generator).half(),
        "latent_logvar": torch.full((num_samples, *latent_shape), -10.0),
        "input_ids": torch.zeros(num_samples, length, dtype=torch.int32),
        "text.expert": torch.randn(num_samples, text_width, generator=generator),
    }
    fingerprint = Fingerprint(0, "", "", "", {"expert": ""})
    rows = [{"key": f"{row:09d}", "caption": ""} for row in range(num_samples)]
    write_latents(folder, "00000", columns, rows=rows, fingerprint=fingerprint)
    write_fingerprint(folder, fingerprint)
    files = scan(folder)
    write_manifest(folder, Manifest("latents", "cache", 1, "benchmark", results_digest(files), {}, {}, files))
    return LatentCache.open(folder)


# --- measuring -----------------------------------------------------------------------------------


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
    whole = sum(clock.ms(lambda step=step: distiller.step(step))[0] for step in range(num_steps))
    times["backward and losses"] = whole - sum(times.values())
    return {name: round(total / num_steps, 3) for name, total in times.items()}


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors, made while it is on, that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


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
    with LiveBytes() as live:
        distiller.step(1)
    return sum(lasting.values()) + live.peak


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
        "largest_batch": largest if largest <= _FARTHEST * 3 * batch else None,
    }


def times(bench: Bench, mode: str) -> tuple[float, dict[str, float]]:
    """Median milliseconds of a step, and its parts; the first steps, which allocate and compile, are left out."""
    setting, clock = bench.setting, Clock(bench.world.device)
    distiller = bench.distiller(mode, setting.batch_size)
    for step in range(3):
        distiller.step(step)
    ms = statistics.median(clock.ms(lambda step=step: distiller.step(step))[0] for step in range(setting.num_steps))
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
    if not torch.cuda.is_available() or setting.precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(setting.device)
    peak = next((tflops for word, tflops in PEAK_TFLOPS.items() if word in name), None)
    return None if peak is None else round(flops_per_s / peak / 1e12, 4)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the modes asked for, tell each as it is done, and print the line."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog="benchmarks.step", description="What a training step costs.")
    parser.add_argument("--model", choices=SIZES, default="toy")
    parser.add_argument("--resolution", type=int, help="pixels a side; the model's own unless given")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default=default, help=f"cpu, cuda, or meta, which counts operations (default: {default})")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--batch-size", type=int, default=4, help="memory is measured at once, twice and three times as much (default: 4)")
    parser.add_argument("--chunk-size", type=int, default=2)
    parser.add_argument("--execution", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--memory-format", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--memory-gib", type=float, default=80.0, help=f"for the largest batch; given up to {_FARTHEST} times the largest measured"
    )
    parser.add_argument("--baseline", action="store_true", help="time the published scripts' step beside ours")
    parser.add_argument("--cached", action="store_true", help="with --baseline: it is given latents, not images")
    parser.add_argument("--record", action="store_true", help=f"append the line to {RECORDS}, which docs/results.md shows")
    asked = parser.parse_args(argv)
    from benchmarks.beside import beside_baseline  # it reads this module

    sizes = SIZES[asked.model]()
    setting = Setting(
        model=asked.model,
        resolution=asked.resolution or sizes.resolution,
        precision=asked.precision,
        device=asked.device,
        batch_size=asked.batch_size,
        chunk_size=asked.chunk_size,
        execution=asked.execution,
        memory_format=asked.memory_format,
        num_steps=asked.steps,
        memory_gib=asked.memory_gib,
    )
    counting = setting.device == "meta"
    if counting and setting.precision != "float32":
        parser.error("--device meta has no half precision; the count is the same in each")
    bench = Bench(setting, sizes)
    flops = {mode: bench.flops(mode) for mode in asked.modes}
    modes = {}
    for mode in asked.modes:
        modes[mode] = flops[mode].figures() if counting else measure(bench, mode, flops[mode])
        if asked.baseline and not counting:
            modes[mode]["baseline"] = beside_baseline(bench, mode, cached=asked.cached)
        print(f"{mode:7} {modes[mode]}", file=sys.stderr)
    line = json.dumps({**vars(setting), "modes": modes, "hardware": hardware(bench.world.device), "versions": versions()})
    print(line)
    if asked.record:
        with RECORDS.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")


if __name__ == "__main__":
    main()
