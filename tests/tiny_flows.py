"""Pipeline folders of flow-matching families: the real classes with random weights, as small as diffusers' own tests have them."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from tests.tiny_models import PROJECTION_WIDTH, RESOLUTION, TEXT_WIDTH, text_sizes, tiny_tokenizer

JOINT_WIDTH = 2 * TEXT_WIDTH
LETTERS = [chr(code) for code in range(33, 127)]


def write_tiny_sd3(folder: Path, *, seed: int = 0, t5: bool = True, shift: float = 3.0) -> None:
    """A ``StableDiffusion3Pipeline`` folder: 16 channels and a shift of latents, two CLIP encoders, and T5 where asked for."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=RESOLUTION // 2,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=JOINT_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * PROJECTION_WIDTH,
        out_channels=16,
        pos_embed_max_size=RESOLUTION // 2,
    )
    stir(transformer)
    tokenizers = [tiny_tokenizer(), tiny_tokenizer(pad_token="!")]  # as SD3's second tokenizer has it
    clips = [
        CLIPTextModelWithProjection(CLIPTextConfig(**text_sizes(tokenizer) | {"num_hidden_layers": 2, "projection_dim": PROJECTION_WIDTH}))
        for tokenizer in tokenizers
    ]
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=tiny_vae(latent_channels=16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clips[0],
        tokenizer=tokenizers[0],
        text_encoder_2=clips[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=tiny_t5() if t5 else None,
        tokenizer_3=tiny_t5_tokenizer() if t5 else None,
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


def tiny_t5(width: int = JOINT_WIDTH) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=len(LETTERS) + 4, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def tiny_t5_tokenizer() -> T5Tokenizer:
    """Printable ASCII, a token a character."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def stir(network: torch.nn.Module) -> None:
    """Give layers that start at zero, such as the gates of diffusion transformers, something to say."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
