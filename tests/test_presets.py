"""The presets of the published sizes: every source pinned, every network built at full size on tensors without values."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, DDIMScheduler
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rglcd.config import Config, ModelSource, load_preset, preset_names
from rglcd.core.prediction import PredictionType
from rglcd.core.schedule import NoiseSchedule
from rglcd.models.codec import Codec, Moments
from rglcd.models.families import family_named
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder, TextTower
from rglcd.stages.assembly import make_student
from rglcd.stages.pretrain import tower_shape

PUBLISHED = Path(__file__).parents[1] / "src" / "rglcd" / "planning" / "shapes"
META = torch.device("meta")
VAE, VAE_OF_16_CHANNELS, VAE_OF_32_CHANNELS = 83_653_863, 83_819_683, 312_250_275
T5_XXL = 4_762_310_656


@dataclass(frozen=True)
class Expected:
    """Published parameter counts, and the latents of a picture."""

    unet: int
    texts: tuple[int, ...]
    latent: tuple[int, int, int]
    prediction: str
    learnt: int
    """Of the student: the UNet with one layer more, or an adapter."""
    vae: int = VAE
    tokens: int | None = None
    """Of T5 or Gemma, as diffusers' pipeline pads captions for them."""


# The counts are those of the public weights: 859.5 M (SD 1.5), 865.9 M (SD 2.1), 2.57 B (SDXL), 123.1 M (CLIP ViT-L), 340.4 M (23 layers
# of OpenCLIP ViT-H), 694.7 M (OpenCLIP bigG). A whole student has 256 x 320 more, for omega. The released LCM-LoRA for SDXL, of the same
# rank and targets, is a file of 394 MB in float16.
EXPECTED = {
    "sd15": Expected(859_520_964, (123_060_480,), (4, 64, 64), "epsilon", 859_520_964 + 256 * 320),
    "sd21-paper": Expected(865_910_724, (340_387_840,), (4, 96, 96), "v_prediction", 865_910_724 + 256 * 320),
    "sd21-paper-lrm": Expected(865_910_724, (340_387_840,), (4, 64, 64), "epsilon", 865_910_724 + 256 * 320),
    "sdxl": Expected(2_567_463_684, (123_060_480, 694_659_840), (4, 128, 128), "epsilon", 2_567_463_684 + 256 * 320),
    # Of SD 3.5 Medium: 2.24 B (its card rounds to 2.5), and of T5-XXL's encoder 4.76 B.
    "sd35-medium-lora": Expected(
        2_243_171_520, (123_650_304, 694_659_840, T5_XXL), (16, 64, 64), "flow_prediction", 56_623_104, VAE_OF_16_CHANNELS, 256
    ),
    # 2.03 B, 0.61 B, 1.60 B with DC-AE and Gemma 2 of 2.6 B: their papers' and cards' own sizes. Students have no input more.
    "sd3-medium": Expected(
        2_028_328_000, (123_650_304, 694_659_840, T5_XXL), (16, 64, 64), "flow_prediction", 2_028_328_000, VAE_OF_16_CHANNELS, 256
    ),
    "sd35-medium": Expected(
        2_243_171_520, (123_650_304, 694_659_840, T5_XXL), (16, 64, 64), "flow_prediction", 2_243_171_520, VAE_OF_16_CHANNELS, 256
    ),
    "pixart-sigma": Expected(610_856_096, (T5_XXL,), (4, 64, 64), "epsilon", 610_856_096, VAE, 300),
    "sana-1600m": Expected(1_604_462_752, (2_614_341_888,), (32, 16, 16), "flow_prediction", 1_604_462_752, VAE_OF_32_CHANNELS, 300),
    # 12 B by its card: a file of 23.8 GB in bfloat16.
    "flux-dev-lora": Expected(11_901_408_320, (123_060_480, T5_XXL), (16, 64, 64), "flow_prediction", 141_950_976, VAE_OF_16_CHANNELS, 512),
    "sdxl-lora": Expected(2_567_463_684, (123_060_480, 694_659_840), (4, 128, 128), "epsilon", 196_751_360),
}


def published(name: str) -> dict[str, Any]:
    content = json.loads((PUBLISHED / f"{name}.json").read_text())
    assert isinstance(content, dict)
    return content


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Built:
    """A preset's networks on ``meta``."""

    config: Config
    teacher: Teacher
    student: Student
    codec: Codec
    text: TextEncoder


@pytest.fixture(scope="module", params=EXPECTED)
def built(request: pytest.FixtureRequest) -> tuple[Built, Expected]:
    config = load_preset(request.param)
    declared = published(config.model.teacher.uri.split("/")[1])
    family = family_named(declared.get("pipeline", ""))
    with META:
        network = family.network.from_config(declared[family.folder])
        alphas = NoiseSchedule(torch.empty(1000), torch.empty(1000), shift=declared["scheduler"].get("shift"))
        kind = PredictionType(declared["scheduler"].get("prediction_type", PredictionType.FLOW))
        teacher = Teacher(network, alphas, kind, family=family)
        student = make_student(config.distillation, teacher=teacher, start=teacher)
        vae = AutoencoderDC if declared.get("vae_class") == "AutoencoderDC" else AutoencoderKL
        codec = Codec(vae.from_config(declared["vae"]))
        kinds = zip(family.text_kinds, declared["text_encoders"], strict=False)
        models = [kind(kind.config_class(**sizes)) for kind, sizes in kinds]
    tokenizer = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[], model_max_length=77)
    expected, clips = EXPECTED[request.param], (CLIPTextModel, CLIPTextModelWithProjection)
    towers = [TextTower(model, tokenizer, None if isinstance(model, clips) else expected.tokens) for model in models]
    return Built(config, teacher, student, codec, TextEncoder(towers, family=family)), expected


def sources(config: Config) -> list[ModelSource]:
    scorers = [source for scorer in config.preparation.scorers.values() for source in scorer.sources().values()]
    assert config.preparation.features.source is not None
    return [config.model.teacher, *scorers, config.preparation.features.source]


def test_every_full_size_preset_is_built_here() -> None:
    assert set(preset_names()) - {"micro", "toy"} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_every_model_is_pinned_to_a_commit(name: str) -> None:
    for source in sources(load_preset(name)):
        assert source.revision is not None
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision), source.uri


@pytest.mark.parametrize("name", EXPECTED)
def test_each_number_of_a_preset_has_its_source_beside_it(name: str) -> None:
    text = (Path("src/rglcd/presets") / f"{name}.yaml").read_text()
    # Addresses and digests are no numbers; sharding repeats the resolution, which has its source where the model says it.
    no_number = re.compile(r"\s*(#|sharding:|uri:|file:|sha256:|revision:|source:|tokenizer:|\{uri:|\{kind: auto|- )")
    numbers = [line for line in text.splitlines() if not no_number.match(line) and re.search(r"\d", line.split("#")[0].split(":", 1)[-1])]
    assert len(numbers) > 12
    assert [line for line in numbers if not re.search(r"# .*\[(paper|card|code|lcm|clip|ours)\]", line)] == []


@pytest.mark.parametrize("name", ["sd21-paper", "sd21-paper-lrm"])
def test_the_papers_numbers_are_the_papers(name: str) -> None:
    config = load_preset(name)
    run = config.distillation
    assert (run.num_steps, run.learning_rate, run.omega) == (10_000, 1e-6, (5.0, 15.0))
    assert run.target.kind == "ema"
    assert run.target.decay == 0.95
    assert (run.student.kind, run.distance.kind, run.grid.kind, run.neighbour) == ("full", "huber", "constant", "teacher")
    assert 1000 // config.model.num_ddim_steps == 20
    assert config.reward.kind == ("latent" if name.endswith("lrm") else "pixel")
    assert config.reward.weight == 1.0
    assert config.preparation.scorers[config.reward.expert].kind == "hpsv2"


def test_networks_are_of_the_published_sizes(built: tuple[Built, Expected]) -> None:
    networks, expected = built
    assert count(networks.teacher.unet) == expected.unet
    assert count(networks.codec.vae) == expected.vae
    assert tuple(count(tower.model) for tower in networks.text.towers) == expected.texts
    assert sum(parameter.numel() for parameter in networks.student.trainable_parameters.values()) == expected.learnt
    assert networks.teacher.kind == expected.prediction


def test_captions_predictions_and_images_have_the_expected_shapes(built: tuple[Built, Expected]) -> None:
    networks, expected = built
    config, text = networks.config, networks.text
    latent = networks.codec.latent_shape(config.model.resolution)
    assert latent == expected.latent
    ids = torch.zeros(2, sum(tower.length for tower in text.towers), dtype=torch.int64, device="meta")
    sizes = text.drawing_sizes(config.model.resolution)
    # A mask is looked at before it is used, so encoders with one cannot run without values.
    blank = networks.teacher.family.blank(networks.teacher.unet.config, 2, dtype=torch.float32, device=META)
    cond = blank if blank.mask is not None else text.encode(ids).with_time_ids(None if sizes is None else sizes.to("meta"))
    z_t, t, omega = torch.empty(2, *latent, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta"), torch.ones(2, device="meta")
    assert networks.teacher(z_t, t, cond).x0.shape == z_t.shape
    prediction = networks.student(z_t, t, omega, cond)
    assert prediction.x0.shape == prediction.eps.shape == z_t.shape
    assert prediction.x0.requires_grad
    latents = networks.codec.latents(Moments(z_t, z_t), z_t)
    side = config.model.resolution
    with torch.no_grad():
        assert networks.codec.decode(latents).shape == (2, 3, side, side)
        assert networks.codec.moments(torch.empty(1, 3, side, side, device="meta")).mean.shape == (1, *latent)


def test_the_proxy_of_the_latent_preset_is_of_the_released_towers_size() -> None:
    config = load_preset("sd21-paper-lrm")
    with META:
        model = LatentRewardModel(LatentRewardShape(latent=(4, 64, 64), text_dim=1024, tower=tower_shape(config.pretraining.tower)))
    # latent_ViT.json of the RG-LCD authors' code: 12 layers of width 512 on 256 patches, to CLIP ViT-H's 1024.
    assert count(model.tower) == pytest.approx(38.5e6, rel=0.01)
    latents, text = torch.empty(2, 4, 64, 64, device="meta"), torch.empty(2, 1024, device="meta")
    assert model.score(latents, text).shape == (2,)


def test_schedules_are_stable_diffusions() -> None:
    for name in ("stable-diffusion-v1-5", "stable-diffusion-2-1", "stable-diffusion-2-1-base", "stable-diffusion-xl-base-1.0"):
        declared = published(name)["scheduler"]
        schedule = NoiseSchedule.from_alphas_cumprod(DDIMScheduler(**declared).alphas_cumprod)
        assert schedule.num_timesteps == 1000
        # Rombach et al., arXiv 2112.10752: the last step still has a sigma of 14.6 to one of signal.
        assert schedule.ve_sigma()[-1].item() == pytest.approx(14.61, abs=0.01)


def test_hpsv21s_network_is_of_the_published_size_and_scores_what_a_preset_draws() -> None:
    sizes = published("CLIP-ViT-H-14")
    with META:
        model = CLIPModel(CLIPConfig(**{name: value for name, value in sizes.items() if name not in ("source", "note")}))
    # OpenCLIP ViT-H/14 has 986.11 M.
    assert count(model) == 986_109_441
    pixels, ids = torch.empty(2, 3, 224, 224, device="meta"), torch.zeros(2, 77, dtype=torch.int64, device="meta")
    with torch.no_grad():
        assert model(input_ids=ids, pixel_values=pixels).logits_per_image.shape == (2, 2)
