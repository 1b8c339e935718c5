"""The toy's teacher: a small Stable Diffusion pipeline that learnt pictures and captions as the web has them, good and bad."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from rglcd.toy.checker import check, measure
from rglcd.toy.resuming import Loop
from rglcd.toy.scene import ATTRIBUTES, CANVAS, caption
from rglcd.toy.teacher_networks import (
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
    captions = tuple(caption(scene) for scene in sorted({row.claimed for row in rows}))
    number = {text: place for place, text in enumerate(captions)}
    claimed = torch.tensor([number[caption(row.claimed)] for row in rows])
    examples = encode_examples(codec, draw_pixels(rows, first_seed=first_seed), claimed, captions)
    torch.manual_seed(settings.seed)
    unet = build_unet(settings, codec)
    text_encoder = build_text_encoder(tokenizer, width=settings.text_width, num_layers=settings.text_layers)
    trained = nn.ModuleList([unet, text_encoder])
    averages = tuple(parameter.detach().clone() for parameter in trained.parameters())
    optimizer = torch.optim.AdamW(trained.parameters(), lr=settings.learning_rate, weight_decay=1e-2, fused=True)
    draws = torch.Generator().manual_seed(settings.seed + 1)
    ids = tokenize(tokenizer, [*captions, ""])
    curve = Curve("teacher")
    pipeline = assemble(codec, unet, text_encoder, tokenizer)
    loop = Loop(trained, optimizer, draws, curve, averages)
    for step in loop.steps(settings.num_steps, states and states / "teacher.pt"):
        cosine(optimizer, settings.learning_rate, step=step, total=settings.num_steps)
        loss = v_loss(pipeline, ids, examples, settings, draws)
        descend(loss, optimizer)
        decay = min(settings.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in trained.parameters()], 1 - decay)
        curve.add("v-prediction", step, total=settings.num_steps, loss=loss)
        if (step + 1) % settings.watch_every == 0 and step + 1 < settings.num_steps:
            swap(trained, averages)
            curve.note("exact", step + 1, total=settings.num_steps, **_watch(pipeline, watched[: settings.watch_images]))
            swap(trained, averages)
    swap(trained, averages)
    return pipeline, curve


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


def _watch(pipeline: StableDiffusionPipeline, captions: Sequence[str]) -> dict[str, float]:
    pixels = sample(pipeline, captions, num_steps=20, guidance=GUIDANCE, seed=0)
    right = check(pixels, captions)
    shares = dict(zip(ATTRIBUTES, right.float().mean(0).tolist(), strict=True))
    return {"whole": right.all(1).float().mean().item()} | shares | {"untidiness": measure(pixels).untidiness.median().item()}
