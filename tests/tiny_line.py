"""The pipeline at its smallest: random images, tiny random models, a few steps. Real stages, nothing mocked."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from rglcd.config import Config, dump, resolve
from rglcd.stages.run import Outcome, run_stage
from rglcd.stages.table import SOURCE, inputs_of, stage_named
from tests.publishing import publish
from tests.tiny_models import RESOLUTION, write_tiny_clip, write_tiny_pretrained, write_tiny_teacher

NUM_IMAGES = 12


def tiny_config(*overrides: str) -> Config:
    """Twelve images of 16 pixels, two arms of four steps."""
    nowhere = {"uri": "./nowhere"}
    values = {
        "preset": "tiny",
        "sharding": {"resolution": RESOLUTION, "image_format": "png", "samples_per_shard": 5},
        "model": {"teacher": nowhere, "resolution": RESOLUTION},
        "preparation": {"scorers": {"expert": {"kind": "clip", "source": nowhere}}, "features": {"kind": "auto", "source": nowhere}},
        "caching": {"batch_size": 4},
        "pretraining": {
            "tower": {"kind": "vit", "patch": 4, "width": 16, "num_layers": 1, "num_heads": 2},
            "num_steps": 6,
            "batch_size": 4,
            "warmup_steps": 2,
            "num_validation": 3,
            "checkpoint_every": 2,
        },
        "reward": {"kind": "latent", "weight": 1.0, "tuning": {"kind": "online", "learning_rate": 1e-3}},
        "distillation": {
            "arms": ["lcm", "rg"],
            "match_compute": True,
            "num_steps": 4,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "checkpoint_every": 2,
        },
        "evaluation": {},
    }
    return resolve(values, overrides=overrides, where="tiny")


def write_tiny_source(folder: Path) -> None:
    """A source folder of random images, each with a caption of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    (folder / "images").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "images" / f"{number:05d}.png")
    rows = [f"images/{number:05d}.png\t{chr(ord('a') + number) * 10}\n" for number in range(NUM_IMAGES)]
    (folder / "index.tsv").write_text("".join(rows))


def write_published_models(folder: Path, *, teacher: Callable[[Path], None] = write_tiny_teacher) -> None:
    """Third-party model folders: what ``prepare`` reads under :func:`published_model_settings`."""
    teacher(folder / "teacher")
    write_tiny_clip(folder / "expert")
    write_tiny_features(folder / "features")


def published_model_settings(folder: Path) -> list[str]:
    """Configuration overrides that name the models in ``folder``."""
    return [
        f"model.teacher.uri={folder}/teacher",
        f"preparation.scorers.expert.source.uri={folder}/expert",
        f"preparation.features.source.uri={folder}/features",
    ]


def write_tiny_features(folder: Path) -> None:
    """A feature network for Fréchet distances."""
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")).save_pretrained(folder)


def write_tiny_evaluation_data(data: Path) -> None:
    """The part of a source folder that ``evaluate`` reads: prompts, and the images once more as reference."""
    (data / "prompts").mkdir()
    (data / "prompts" / "heldout.txt").write_text("a red circle\n\na <b>blue</b> square\nsomething else\n")
    shutil.copytree(data / "images", data / "reference" / "images")
    shutil.copy(data / "index.tsv", data / "reference" / "index.tsv")


def write_tiny_project(root: Path, *overrides: str, teacher: Callable[[Path], None]) -> None:
    """Models, source and ``params.yaml``: all that ``rglcd run all`` reads where it stands."""
    write_published_models(root / "models", teacher=teacher)
    write_tiny_source(root / "data")
    write_tiny_evaluation_data(root / "data")
    (root / "params.yaml").write_text(dump(tiny_config(*published_model_settings(root / "models"), *overrides)))


TINY_EVALUATION = [
    f"evaluation.{setting}"
    for setting in ("num_images=6", "num_steps=[1,2]", "teacher_steps=3", "guidance_scale=3.0", "batch_size=4", "grid_prompts=2")
]
"""Configuration overrides: six images per model under evaluation."""


def write_pretrained_artifact(folder: Path, *, xl: bool = False) -> None:
    """The artifact ``pretrained`` as if ``prepare`` had made it."""
    write_tiny_pretrained(folder, xl=xl)
    publish(folder, stage="prepare", sections={name: tiny_config().section(name) for name in ("model", "preparation")})


def run(root: Path, config: Config, name: str) -> Outcome:
    """Run one stage on the artifacts under ``root``."""
    stage = stage_named(name)
    names = (*inputs_of(stage, config), *stage.outputs)
    artifacts = {artifact: root / ("data" if artifact == SOURCE else artifact) for artifact in names}
    return run_stage(name, {section: config.section(section) for section in stage.sections}, artifacts)


def up_to_latents(root: Path, config: Config, *, xl: bool = False) -> None:
    """Source, shards, pretrained and latents under ``root``."""
    write_tiny_source(root / "data")
    write_pretrained_artifact(root / "pretrained", xl=xl)
    run(root, config, "shard")
    run(root, config, "cache")
