"""The toy's teachers: small Stable Diffusion pipelines, of v and of a flow, that learnt what the web has, good and bad."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from rglcd.toy.checker import check, measure
from rglcd.toy.flow_networks import FlowTeacherSettings, build_flow_pipeline, flow_loss, trained_parts
from rglcd.toy.resuming import Loop
from rglcd.toy.scene import ATTRIBUTES, CANVAS, caption
from rglcd.toy.teacher_networks import (
    Examples,
    TeacherSettings,
    assemble,
    build_text_encoder,
    build_unet,
    encode_examples,
    sample,
    swap,
    tokenize,
    v_loss,
)
from rglcd.toy.tokenizer import build_tokenizer
from rglcd.toy.training import Curve, cosine, descend
from rglcd.toy.web import Row, draw_pixels

GUIDANCE: Final = 3.0  # diffusers' guidance_scale, 1 + omega; the gates and the comparisons with fifty steps use it


def train_teacher(
    codec: AutoencoderKL,
    rows: Sequence[Row],
    settings: TeacherSettings,
    *,
    first_seed: int,
    watched: Sequence[str],
    states: Path | None = None,
) -> tuple[StableDiffusionPipeline, Curve]:
    """Train UNet and text encoder on the rows' pictures and captions; every so often the curve notes how `watched` come out."""
    tokenizer = build_tokenizer()
    examples = _examples(codec, rows, first_seed=first_seed)
    torch.manual_seed(settings.seed)
    unet = build_unet(settings, codec)
    text_encoder = build_text_encoder(tokenizer, width=settings.text_width, num_layers=settings.text_layers)
    pipeline = assemble(codec, unet, text_encoder, tokenizer)
    loss = partial(v_loss, pipeline, tokenize(tokenizer, [*examples.captions, ""]), examples, settings)
    curve = Curve("teacher")
    lesson = Lesson(pipeline, nn.ModuleList([unet, text_encoder]), loss, "v-prediction")
    _learn(lesson, settings, curve, watched=watched, state=states and states / "teacher.pt")
    return pipeline, curve


def train_flow_teacher(
    codec: AutoencoderKL,
    rows: Sequence[Row],
    settings: FlowTeacherSettings,
    *,
    first_seed: int,
    watched: Sequence[str],
    states: Path | None = None,
) -> tuple[StableDiffusion3Pipeline, Curve]:
    """The same for a transformer that predicts a flow, and its two text encoders."""
    tokenizer = build_tokenizer()
    examples = _examples(codec, rows, first_seed=first_seed)
    torch.manual_seed(settings.seed)
    pipeline = build_flow_pipeline(settings, codec, tokenizer)
    loss = partial(flow_loss, pipeline, tokenize(tokenizer, [*examples.captions, ""]), examples, settings)
    curve = Curve("flow teacher")
    _learn(
        Lesson(pipeline, trained_parts(pipeline), loss, "flow"), settings, curve, watched=watched, state=states and states / "teacher.pt"
    )
    return pipeline, curve


@dataclass(frozen=True)
class Lesson:
    """A pipeline, what of it learns, its loss as a function of random draws, and what it predicts."""

    pipeline: StableDiffusionPipeline | StableDiffusion3Pipeline
    trained: nn.ModuleList
    loss: Callable[[torch.Generator], Tensor]
    predicts: str


def _examples(codec: AutoencoderKL, rows: Sequence[Row], *, first_seed: int) -> Examples:
    captions = tuple(caption(scene) for scene in sorted({row.claimed for row in rows}))
    number = {text: place for place, text in enumerate(captions)}
    claimed = torch.tensor([number[caption(row.claimed)] for row in rows])
    return encode_examples(codec, draw_pixels(rows, first_seed=first_seed), claimed, captions)


def _learn(
    lesson: Lesson, settings: TeacherSettings | FlowTeacherSettings, curve: Curve, *, watched: Sequence[str], state: Path | None
) -> None:
    """AdamW down the loss; in the end the weights are their averages."""
    trained = lesson.trained
    averages = tuple(parameter.detach().clone() for parameter in trained.parameters())
    optimizer = torch.optim.AdamW(trained.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
    draws = torch.Generator().manual_seed(settings.seed + 1)
    loop = Loop(trained, optimizer, draws, curve, averages)
    for step in loop.steps(settings.num_steps, state):
        cosine(optimizer, settings.learning_rate, step=step, total=settings.num_steps)
        loss = lesson.loss(draws)
        descend(loss, optimizer)
        decay = min(settings.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in trained.parameters()], 1 - decay)
        curve.add(lesson.predicts, step, total=settings.num_steps, loss=loss)
        if (step + 1) % settings.watch_every == 0 and step + 1 < settings.num_steps:
            swap(trained, averages)
            curve.note("exact", step + 1, total=settings.num_steps, **_watch(lesson.pipeline, watched[: settings.watch_images]))
            swap(trained, averages)
    swap(trained, averages)


def few_step(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """The pipeline for few steps, which must begin at the noisiest timestep, where diffusers' default does not (Lin et al. 2024)."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    return assemble(pipeline.vae, pipeline.unet, pipeline.text_encoder, pipeline.tokenizer, scheduler=scheduler)


def drawings(
    pipeline: StableDiffusionPipeline, captions: Sequence[str], *, steps: Sequence[int], guidances: Sequence[float], seed: int
) -> Tensor:
    """Every caption drawn once for each guidance and number of steps: (G S C, 3, 32, 32), the captions in turn; seeds from `seed` on."""
    quick = few_step(pipeline)
    recipes = [(guidance, count) for guidance in guidances for count in steps]
    parts = [
        sample(quick, captions, num_steps=count, guidance=guidance, seed=seed + number) for number, (guidance, count) in enumerate(recipes)
    ]
    return torch.cat(parts) if parts else torch.empty(0, 3, CANVAS, CANVAS)


def _watch(pipeline: StableDiffusionPipeline | StableDiffusion3Pipeline, captions: Sequence[str]) -> dict[str, float]:
    pixels = sample(pipeline, captions, num_steps=20, guidance=GUIDANCE, seed=0)
    right = check(pixels, captions)
    shares = dict(zip(ATTRIBUTES, right.float().mean(0).tolist(), strict=True))
    return {"whole": right.all(1).float().mean().item()} | shares | {"untidiness": measure(pixels).untidiness.median().item()}
