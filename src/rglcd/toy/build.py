"""Trains the toy's frozen models part by part and records how in `build.json`."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from rglcd.toy.checker import check
from rglcd.toy.codec import CodecSettings, distorted, train_codec
from rglcd.toy.expert import PREPROCESSOR, Corpus, ExpertSettings, train_expert
from rglcd.toy.features import FeatureSettings, train_features
from rglcd.toy.gates import (
    Shares,
    codec_shares,
    expert_shares,
    feature_shares,
    judge_shares,
    teacher_shares,
)
from rglcd.toy.judge_training import JudgeSettings, train_judge
from rglcd.toy.model_folder import read_codec, read_ledger, replace_folder, versions, write_ledger, write_preprocessor
from rglcd.toy.scene import Turns, all_scenes, caption, shuffled, split, world_digest
from rglcd.toy.teacher import TeacherSettings, encode_examples, sample, train_teacher
from rglcd.toy.tokenizer import build_tokenizer
from rglcd.toy.training import Curve, draw_pixels

# First seed of each part's pictures: the corpus has smaller ones, the gates larger ones.
CODEC_PICTURES: Final = 10_000_000
EXPERT_PICTURES: Final = 20_000_000
JUDGE_PICTURES: Final = 30_000_000
FEATURE_PICTURES: Final = 40_000_000


@dataclass(frozen=True)
class BuildSettings:
    """The whole recipe. `num_gate_pictures` are measured once a part is trained, and written beside its curve."""

    codec: CodecSettings = field(default_factory=CodecSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    expert: ExpertSettings = field(default_factory=ExpertSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    num_gate_pictures: int = 432


@dataclass(frozen=True)
class Trained:
    """The result of training one part: how to write it, its curve, its measured quality."""

    write: Callable[[Path], None]
    curve: Curve
    gate: Shares


@dataclass(frozen=True)
class Part:
    """One folder of models, and the settings that decide what is in it: its own and those of what it is made from."""

    name: str
    place: str
    settings: dict[str, Any]
    train: Callable[[], Trained]

    @property
    def resolved_settings(self) -> dict[str, Any]:
        """The settings as JSON gives them back, tuples as lists: what the ledger holds."""
        return dict(json.loads(json.dumps(self.settings)))


def build(folder: Path, *, settings: BuildSettings | None = None) -> None:
    """Train what `folder` lacks: `teacher/` (with its codec), `expert/`, `judge/`, `features/` and `build.json`.

    A part whose settings are those in the ledger is kept as it is. One torch thread, so that the seeds decide the
    weights on a given machine; forty minutes of it.
    """
    torch.set_num_threads(1)
    recipe = settings or BuildSettings()
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts(folder, recipe):
        ledger = read_ledger(folder)
        if ledger.get(part.name, {}).get("settings") == part.resolved_settings and (folder / part.place).is_dir():
            continue
        trained = part.train()
        replace_folder(folder / part.place, trained.write)
        record = {"settings": part.resolved_settings, "cpu_seconds": trained.curve.cpu_seconds, "gate": asdict(trained.gate)}
        write_ledger(folder, ledger | {part.name: record | {"made_with": versions(), "curve": trained.curve.points}})


def parts(folder: Path, recipe: BuildSettings) -> tuple[Part, ...]:
    """The parts in the order of their making; the codec is the teacher's `vae/` from the first."""
    codec, teacher, count, world = asdict(recipe.codec), asdict(recipe.teacher), recipe.num_gate_pictures, {"world": world_digest()}
    return (
        Part("codec", "teacher/vae", codec | world, lambda: _codec(recipe.codec, count)),
        Part("teacher", "teacher", teacher | {"codec": codec} | world, lambda: _teacher(folder, recipe, count)),
        Part(
            "expert",
            "expert",
            asdict(recipe.expert) | {"codec": codec, "teacher": asdict(recipe.teacher)} | world,
            lambda: _expert(folder, recipe, count),
        ),
        Part("judge", "judge", asdict(recipe.judge) | {"codec": codec} | world, lambda: _judge(folder, recipe, count)),
        Part("features", "features", asdict(recipe.features) | world, lambda: _features(recipe.features, count)),
    )


def _codec(settings: CodecSettings, num_gate_pictures: int) -> Trained:
    pixels = draw_pixels(split().train, count=settings.num_pictures, first_seed=CODEC_PICTURES, turns=Turns.ALL)
    codec, curve = train_codec(pixels, settings)
    return Trained(codec.save_pretrained, curve, codec_shares(codec, count=num_gate_pictures))


def _teacher(folder: Path, recipe: BuildSettings, num_gate_pictures: int) -> Trained:
    codec, scenes, count = read_codec(folder), split().train, recipe.teacher.num_pictures
    pixels = draw_pixels(scenes, count=count, first_seed=CODEC_PICTURES)
    captions = tuple(caption(scene) for scene in scenes)
    examples = encode_examples(codec, pixels, torch.arange(count) % len(scenes), captions)
    watched = [caption(scene) for scene in shuffled(split().held_out, "watched")]
    pipeline, curve = train_teacher(codec, build_tokenizer(), examples, recipe.teacher, watched=watched)
    return Trained(pipeline.save_pretrained, curve, teacher_shares(pipeline, count=num_gate_pictures))


def _expert(folder: Path, recipe: BuildSettings, num_gate_pictures: int) -> Trained:
    settings, tokenizer, scenes = recipe.expert, build_tokenizer(), all_scenes()
    pixels = _drawn_and_coded(folder, settings, first_seed=EXPERT_PICTURES)
    drawings, right = _few_step_drawings(folder, settings)
    expert, curve = train_expert(tokenizer, Corpus(pixels, drawings, right), scenes, settings)

    def write(folder: Path) -> None:
        expert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_preprocessor(folder, PREPROCESSOR)

    return Trained(write, curve, expert_shares(expert, tokenizer, count=num_gate_pictures))


def _drawn_and_coded(folder: Path, settings: ExpertSettings | JudgeSettings, *, first_seed: int) -> Tensor:
    """Pictures of all captions, in every orientation: half drawn, half decoded from noisy latents."""
    assert settings.num_pictures % len(all_scenes()) == 0, "both halves begin with the first scene"
    pixels = draw_pixels(all_scenes(), count=2 * settings.num_pictures, first_seed=first_seed, turns=Turns.ALL)
    drawn, source = torch.split(pixels, settings.num_pictures)
    coded = distorted(read_codec(folder), source, latent_noise=settings.latent_noise, seed=settings.seed)
    return torch.cat([drawn, coded])


def _few_step_drawings(folder: Path, settings: ExpertSettings) -> tuple[Tensor, Tensor]:
    """Every caption drawn by the teacher once a round, and how many attributes the checker finds right."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "teacher", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    # Few steps must begin at the noisiest timestep, where diffusers' default spacing does not (Lin et al. 2024).
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    captions = [caption(scene) for scene in all_scenes()]
    rounds = [
        sample(pipeline, captions, num_steps=steps, guidance=guidance, seed=settings.seed + 1000 + number)
        for number, (guidance, steps) in enumerate(product(settings.drawing_guidances, settings.drawing_steps))
    ]
    return torch.cat(rounds), torch.cat([check(drawn, captions).sum(1) for drawn in rounds])


def _judge(folder: Path, recipe: BuildSettings, num_gate_pictures: int) -> Trained:
    settings, scenes = recipe.judge, all_scenes()
    pixels = _drawn_and_coded(folder, settings, first_seed=JUDGE_PICTURES)
    judge, curve = train_judge(pixels, scenes, settings)
    return Trained(judge.save_pretrained, curve, judge_shares(judge, count=num_gate_pictures))


def _features(settings: FeatureSettings, num_gate_pictures: int) -> Trained:
    scenes = split().train
    pixels = draw_pixels(scenes, count=settings.num_pictures, first_seed=FEATURE_PICTURES, turns=Turns.ALL)
    network, classifier, curve = train_features(pixels, scenes, settings)

    def write(folder: Path) -> None:
        network.save_pretrained(folder)
        write_preprocessor(folder, PREPROCESSOR)

    return Trained(write, curve, feature_shares(network, classifier, count=num_gate_pictures))
