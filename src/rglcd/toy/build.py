"""Trains the frozen models of the toy's web-like world part by part and records how in `build.json`.

The same command goes on after a kill: parts that are whole are kept, the one at work goes on from its last saved step.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPModel

from rglcd.toy import measuring
from rglcd.toy.codec import CodecSettings, train_codec
from rglcd.toy.features import FeatureSettings, train_features
from rglcd.toy.flow_networks import FlowTeacherSettings
from rglcd.toy.gates import gate
from rglcd.toy.headroom import Models, measure_headroom
from rglcd.toy.judge import ToyJudge
from rglcd.toy.model_folder import read_codec, read_ledger, replace_folder, versions, write_ledger, write_preprocessor
from rglcd.toy.preprocessing import PREPROCESSOR
from rglcd.toy.raters import raters_digest
from rglcd.toy.scene import caption, shuffled, split
from rglcd.toy.scorers import EXPERT_SIDE, ExpertSettings, JudgeSettings, TrainingPictures, train_expert, train_judge
from rglcd.toy.teacher import train_flow_teacher, train_teacher
from rglcd.toy.teacher_networks import TeacherSettings
from rglcd.toy.tokenizer import build_tokenizer
from rglcd.toy.training import Curve
from rglcd.toy.training_pictures import DrawingSettings, make_training_pictures
from rglcd.toy.web import WEB, Mixture, Row, draw_pixels, rows_of, world_digest

STATES: Final = ".states"

# First seed of each part's pictures: the corpus has smaller ones, the gates larger ones.
CODEC_PICTURES: Final = 10_000_000
TEACHER_PICTURES: Final = 15_000_000
EXPERT_PICTURES: Final = 20_000_000
JUDGE_PICTURES: Final = 30_000_000
FEATURE_PICTURES: Final = 40_000_000


@dataclass(frozen=True)
class BuildSettings:
    """The whole recipe. `num_gate_pictures` are measured once a part is trained, and written beside its curve."""

    codec: CodecSettings = field(default_factory=CodecSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    flow: FlowTeacherSettings | None = None
    """Of a second teacher, which predicts a flow, if one is wanted."""
    features: FeatureSettings = field(default_factory=FeatureSettings)
    expert_drawings: DrawingSettings = field(default_factory=lambda: DrawingSettings(seed=1000))
    judge_drawings: DrawingSettings = field(default_factory=lambda: DrawingSettings(seed=2000))
    expert: ExpertSettings = field(default_factory=ExpertSettings)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    num_gate_pictures: int = 450
    num_gate_captions: int | None = None  # all held-out ones
    num_gate_steps: int = 50


@dataclass(frozen=True)
class Trained:
    """The result of training one part: how to write it, its curve, its measured quality."""

    write: Callable[[Path], None]
    curve: Curve
    figures: dict[str, float]


@dataclass(frozen=True)
class Part:
    """One folder of models, and the settings that decide what is in it: its own and those of what it is made from."""

    name: str
    place: str
    settings: dict[str, Any]
    train: Callable[[Path], Trained]

    @property
    def resolved_settings(self) -> dict[str, Any]:
        """The settings as JSON gives them back, tuples as lists: what the ledger holds."""
        return dict(json.loads(json.dumps(self.settings)))


def build(folder: Path, *, settings: BuildSettings | None = None) -> None:
    """Train what `folder` lacks: `teacher/` (with its codec), `expert/`, `judge/`, `features/`, `build.json`.

    And `flow-teacher/`, where the settings have one.

    A part whose settings are those in the ledger is kept as it is. One torch thread, so that the seeds decide the weights on a given
    machine.
    """
    torch.set_num_threads(1)
    recipe = settings or BuildSettings()
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts(folder, recipe):
        ledger = read_ledger(folder)
        if ledger.get(part.name, {}).get("settings") == part.resolved_settings and (folder / part.place).is_dir():
            continue
        states = _states(folder, part)
        trained = part.train(states)
        replace_folder(folder / part.place, trained.write)
        record = {"settings": part.resolved_settings, "cpu_seconds": trained.curve.cpu_seconds, "figures": trained.figures}
        write_ledger(folder, ledger | {part.name: record | {"made_with": versions(), "curve": trained.curve.points}})
        shutil.rmtree(states)
    shutil.rmtree(folder / STATES, ignore_errors=True)
    _gates(folder, recipe)


def parts(folder: Path, recipe: BuildSettings) -> tuple[Part, ...]:
    """The parts in the order of their making; the codec is the teacher's `vae/` from the first."""
    world = {"world": world_digest()}
    codec = asdict(recipe.codec) | world
    teacher = asdict(recipe.teacher) | {"codec": codec}
    count = recipe.num_gate_pictures
    common = {"teacher": teacher, "raters": raters_digest()}
    scorers = {
        "expert": asdict(recipe.expert) | {"drawings": asdict(recipe.expert_drawings)} | common,
        "judge": asdict(recipe.judge) | {"drawings": asdict(recipe.judge_drawings)} | common,
    }
    return (
        Part("codec", "teacher/vae", codec, lambda states: _codec(recipe.codec, count, states)),
        Part("teacher", "teacher", teacher, lambda states: _teacher(folder, recipe.teacher, count, states)),
        Part("expert", "expert", scorers["expert"], lambda states: _expert(folder, recipe, count, states)),
        Part("judge", "judge", scorers["judge"], lambda states: _judge(folder, recipe, count, states)),
        Part("features", "features", asdict(recipe.features) | world, lambda states: _features(recipe.features, count, states)),
        *(() if recipe.flow is None else (_flow_part(folder, recipe.flow, codec, count),)),
    )


def _flow_part(folder: Path, settings: FlowTeacherSettings, codec: dict[str, Any], count: int) -> Part:
    """A teacher beside the first: of the same pictures, captions and codec, which no scorer is made from."""
    return Part("flow teacher", "flow-teacher", asdict(settings) | {"codec": codec}, lambda states: _flow(folder, settings, count, states))


def _gates(folder: Path, recipe: BuildSettings) -> None:
    """Measure whether the models have what the method's claims need, once for these models."""
    ledger = read_ledger(folder)
    of = {part.name: part.resolved_settings for part in parts(folder, replace(recipe, flow=None))}
    if ledger.get("gates", {}).get("settings") == of:
        return
    models = Models(
        teacher=read_teacher(folder),
        expert=CLIPModel.from_pretrained(folder / "expert").eval(),
        tokenizer=build_tokenizer(),
        judge=ToyJudge.from_pretrained(folder / "judge"),
    )
    found = measure_headroom(models, num_captions=recipe.num_gate_captions, num_steps=recipe.num_gate_steps)
    codec, judge = ledger["codec"]["figures"], ledger["judge"]["figures"]
    gates = [
        gate("codec: neat pictures read right", codec["right"]),
        gate("codec: neat and flawed pictures told apart", codec["told apart"]),
        gate("judge: accepts what matches and is neat, refuses the rest", judge["right"]),
        *found.gates(),
    ]
    met = {gate.name: {"figure": gate.figure, "low": gate.low, "high": gate.high, "met": gate.met} for gate in gates}
    write_ledger(folder, ledger | {"gates": {"settings": of, "gates": met, "figures": asdict(found)}})


def _codec(settings: CodecSettings, count: int, states: Path) -> Trained:
    mixture = Mixture(flawed=settings.percent_flawed, wrong=0)
    rows = rows_of(split().train, count=settings.num_pictures, first_seed=CODEC_PICTURES, mixture=mixture)
    codec, curve = train_codec(draw_pixels(rows, first_seed=CODEC_PICTURES), settings, states=states)
    return Trained(codec.save_pretrained, curve, measuring.codec_figures(codec, count=count))


def _teacher(folder: Path, settings: TeacherSettings, count: int, states: Path) -> Trained:
    rows, codec = _teachers_rows(settings.num_pictures), read_codec(folder)
    pipeline, curve = train_teacher(codec, rows, settings, first_seed=TEACHER_PICTURES, watched=_watched(), states=states)
    return Trained(pipeline.save_pretrained, curve, measuring.teacher_figures(pipeline, count=count))


def _flow(folder: Path, settings: FlowTeacherSettings, count: int, states: Path) -> Trained:
    rows, codec = _teachers_rows(settings.num_pictures), read_codec(folder)
    pipeline, curve = train_flow_teacher(codec, rows, settings, first_seed=TEACHER_PICTURES, watched=_watched(), states=states)

    def write(folder: Path) -> None:
        # The file of a used tokenizer holds how it was last used.
        pipeline.register_modules(tokenizer=build_tokenizer(), tokenizer_2=build_tokenizer())
        pipeline.save_pretrained(folder)

    return Trained(write, curve, measuring.teacher_figures(pipeline, count=count))


def _teachers_rows(count: int) -> list[Row]:
    return rows_of(split().train, count=count, first_seed=TEACHER_PICTURES, mixture=WEB)


def _watched() -> list[str]:
    return [caption(scene) for scene in shuffled(split().held_out, "watched")]


def _features(settings: FeatureSettings, count: int, states: Path) -> Trained:
    rows = rows_of(split().train, count=settings.num_pictures, first_seed=FEATURE_PICTURES, mixture=Mixture(50, 0))
    network, classifier, curve = train_features(draw_pixels(rows, first_seed=FEATURE_PICTURES), rows, settings, states=states)

    def write(folder: Path) -> None:
        network.save_pretrained(folder)
        write_preprocessor(folder, PREPROCESSOR)

    return Trained(write, curve, measuring.feature_figures(network, classifier, count=count))


def _expert(folder: Path, recipe: BuildSettings, count: int, states: Path) -> Trained:
    settings, tokenizer = recipe.expert, build_tokenizer()
    pictures = _pictures(folder, settings, recipe.expert_drawings, first_seed=EXPERT_PICTURES, states=states)
    expert, curve = train_expert(tokenizer, pictures, settings, states=states)

    def write(folder: Path) -> None:
        expert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        side = {"shortest_edge": EXPERT_SIDE}
        write_preprocessor(folder, PREPROCESSOR | {"size": side, "crop_size": {"height": EXPERT_SIDE, "width": EXPERT_SIDE}})

    return Trained(write, curve, measuring.expert_figures(expert, tokenizer, count=count))


def _judge(folder: Path, recipe: BuildSettings, count: int, states: Path) -> Trained:
    pictures = _pictures(folder, recipe.judge, recipe.judge_drawings, first_seed=JUDGE_PICTURES, states=states)
    judge, curve = train_judge(pictures, recipe.judge, states=states)
    return Trained(judge.save_pretrained, curve, measuring.judge_figures(judge, read_codec(folder), count=count))


def _pictures(
    folder: Path, settings: ExpertSettings | JudgeSettings, drawings: DrawingSettings, *, first_seed: int, states: Path
) -> TrainingPictures:
    """What a scorer learns from."""
    return make_training_pictures(
        read_teacher(folder),
        drawings,
        num_pictures=settings.num_pictures,
        latent_noise=settings.latent_noise,
        first_seed=first_seed,
        kept=states / "pictures.safetensors",
    )


def read_teacher(folder: Path) -> StableDiffusionPipeline:
    """The teacher as saved, silent."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "teacher", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _states(folder: Path, part: Part) -> Path:
    """Where a part's training keeps its state: another place for other settings, so that no state of theirs is gone on from."""
    states = folder / STATES / part.name
    marker, settings = states / "settings.json", json.dumps(part.resolved_settings) + "\n"
    if not marker.is_file() or marker.read_text() != settings:
        shutil.rmtree(states, ignore_errors=True)
        states.mkdir(parents=True)
        marker.write_text(settings)
    return states
