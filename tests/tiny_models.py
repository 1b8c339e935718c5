"""Model folders of the real classes with random weights: small enough to be written and run in a test."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from rglcd.stages.pretrained import write_catalogue

RESOLUTION = 16
"""Pixels that the tiny teacher draws; its latents are (4, 8, 8)."""

MAX_TOKENS = 16
TEXT_WIDTH = 16
PROJECTION_WIDTH = 12


def write_tiny_teacher(folder: Path, *, seed: int = 0) -> None:
    """A diffusers ``StableDiffusionPipeline`` folder: v-prediction, VAE of factor 2, text encoder of width 16."""
    torch.manual_seed(seed)
    vae, unet = tiny_vae(latent_channels=4), _unet(cross_attention_dim=TEXT_WIDTH)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    tokenizer = tiny_tokenizer()
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text_sizes(tokenizer))),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def write_tiny_xl(folder: Path, *, seed: int = 0) -> None:
    """A diffusers ``StableDiffusionXLPipeline`` folder: eps-prediction, two text encoders, the second padded otherwise, sizes."""
    torch.manual_seed(seed)
    vae = tiny_vae(latent_channels=4)
    unet = _unet(
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + PROJECTION_WIDTH,
    )
    first, second = tiny_tokenizer(), tiny_tokenizer(pad_token="!")  # as SDXL's second tokenizer has it
    texts = {"num_hidden_layers": 2}
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text_sizes(first) | texts)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text_sizes(second) | texts | {"projection_dim": PROJECTION_WIDTH})),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)


def tiny_vae(**sizes: object) -> AutoencoderKL:
    """Of factor 2."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        **sizes,
    )


def _unet(**sizes: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 2,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **sizes,
    )


def write_tiny_clip(folder: Path, *, seed: int = 0) -> None:
    """A ``CLIPModel`` folder with its tokenizer and normalisation, as a scorer of kind ``clip`` has it."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=RESOLUTION, patch_size=8
    )
    config = CLIPConfig(text_config=text_sizes(tokenizer), vision_config=vision.to_dict(), projection_dim=PROJECTION_WIDTH)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    normalisation = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalisation), encoding="utf-8")


def write_tiny_pretrained(folder: Path, *, seed: int = 0, xl: bool = False) -> None:
    """The layout of the artifact ``pretrained`` with a tiny teacher and one scorer, ``expert``; no feature network."""
    (write_tiny_xl if xl else write_tiny_teacher)(folder / "teacher", seed=seed)
    write_tiny_clip(folder / "scorers" / "expert", seed=seed)
    write_catalogue(folder, {"expert": {"kind": "clip"}}, features={"kind": "auto"})


def tiny_tokenizer(**special: str) -> CLIPTokenizer:
    """Printable ASCII, a token a character: any English caption has ids of its own."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], model_max_length=MAX_TOKENS, **special)


def text_sizes(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """A CLIP text encoder for what ``tokenizer`` makes."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
