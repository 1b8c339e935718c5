"""The networks of the step benchmark, with random weights at the toy's or Stable Diffusion 2.1's size, and a distiller for each mode."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from rglcd.core.consistency import BoundaryScalings
from rglcd.core.prediction import PredictionType
from rglcd.core.schedule import NoiseSchedule
from rglcd.latents.cache import LatentCache
from rglcd.latents.format import Fingerprint, write_fingerprint, write_latents
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

ExecutionKind = Literal["eager", "compiled"]

MODES = ("plain", "pixel", "latent")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))

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
    precision: Literal["float32", "bfloat16"]
    device: str
    batch_size: int
    chunk_size: int
    execution: ExecutionKind
    memory_format: Literal["contiguous", "channels_last"]
    num_steps: int
    memory_gib: float

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]


def add_setting_options(parser: argparse.ArgumentParser, *, chunk_size: int) -> None:
    """The options that :func:`setting_of` reads."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--model", choices=SIZES, default="toy")
    parser.add_argument("--resolution", type=int, help="pixels a side; the model's own unless given")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--device", default=default, help=f"cpu, cuda, or meta, which counts operations (default: {default})")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--chunk-size", type=int, default=chunk_size)
    parser.add_argument("--execution", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--memory-format", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--memory-gib", type=float, default=80.0, help="for the largest batch, near what was measured")


def setting_of(asked: argparse.Namespace) -> Setting:
    """The setting that the options ask for."""
    taken = ("model", "precision", "device", "batch_size", "chunk_size", "execution", "memory_format", "memory_gib")
    resolution = asked.resolution or SIZES[asked.model]().resolution
    return Setting(**{name: getattr(asked, name) for name in taken}, resolution=resolution, num_steps=asked.steps)


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

    def distiller(self, mode: str, batch_size: int, *, execution: ExecutionKind | None = None) -> Distiller:
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

    def _recipe(self, batch_size: int, execution: ExecutionKind) -> Recipe:
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
                2 * count_flops(without_gradient(lambda: self.expert.score(self.codec.decode(z0), features))),
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
        "score.expert": torch.rand(num_samples, generator=generator),
    }
    fingerprint = Fingerprint(0, "", "", "", {"expert": ""})
    rows = [{"key": f"{row:09d}", "caption": ""} for row in range(num_samples)]
    write_latents(folder, "00000", columns, rows=rows, fingerprint=fingerprint)
    write_fingerprint(folder, fingerprint)
    files = scan(folder)
    write_manifest(folder, Manifest("latents", "cache", 1, "benchmark", results_digest(files), {}, {}, files))
    return LatentCache.open(folder)
