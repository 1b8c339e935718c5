"""Pipeline folders of families of transformers: the real classes with random weights, as small as diffusers' own tests have them."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny_models import PROJECTION_WIDTH, RESOLUTION, TEXT_WIDTH, text_sizes, tiny_tokenizer, tiny_vae

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


def write_tiny_pixart(folder: Path, *, seed: int = 0) -> None:
    """A ``PixArtSigmaPipeline`` folder: eps and a variance, T5 with a mask.

    As the published ones have it, its scheduler is DPM-Solver, and its transformer goes by its class's former name.
    """
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        sample_size=RESOLUTION // 2,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=JOINT_WIDTH,
        cross_attention_dim=24,
        in_channels=4,
        out_channels=8,
    )
    stir(transformer)
    PixArtSigmaPipeline(
        tokenizer=tiny_t5_tokenizer(),
        text_encoder=tiny_t5(),
        vae=tiny_vae(latent_channels=4),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    ).save_pretrained(folder, safe_serialization=True)
    for file in (folder / "model_index.json", folder / "transformer" / "config.json"):
        file.write_text(file.read_text().replace('"PixArtTransformer2DModel"', '"Transformer2DModel"'))


def write_tiny_sana(folder: Path, *, seed: int = 0) -> None:
    """A ``SanaPipeline`` folder: the deep-compression autoencoder of factor 2, Gemma with a mask, DPM-Solver with flow sigmas."""
    torch.manual_seed(seed)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=RESOLUTION // 2,
        timestep_scale=0.001,
    )
    stir(transformer)
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    SanaPipeline(
        tokenizer=tiny_gemma_tokenizer(),
        text_encoder=tiny_gemma(),
        vae=vae,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"),
    ).save_pretrained(folder, safe_serialization=True)


def write_tiny_lumina2(folder: Path, *, seed: int = 0) -> None:
    """A ``Lumina2Pipeline`` folder: Gemma with a mask, time and velocity the other way round."""
    torch.manual_seed(seed)
    transformer = Lumina2Transformer2DModel(
        sample_size=RESOLUTION // 2,
        patch_size=2,
        in_channels=4,
        hidden_size=8,
        num_layers=2,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=16,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=[4, 2, 2],
        axes_lens=[300, 32, 32],
        cap_feat_dim=8,
    )
    stir(transformer)
    Lumina2Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=tiny_vae(latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=tiny_gemma(),
        tokenizer=tiny_gemma_tokenizer(),
    ).save_pretrained(folder, safe_serialization=True)


def write_tiny_flux(folder: Path, *, seed: int = 0, guided: bool = True) -> None:
    """A ``FluxPipeline`` folder: packed latents, a dynamic shift, CLIP's pooled caption and T5, and a guidance input if ``guided``."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=JOINT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guided,
    )
    stir(transformer)
    tokenizer = tiny_tokenizer()
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(CLIPTextConfig(**text_sizes(tokenizer))),
        tokenizer=tokenizer,
        text_encoder_2=tiny_t5(),
        tokenizer_2=tiny_t5_tokenizer(),
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)


def tiny_gemma() -> Gemma2Model:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Gemma2Model(Gemma2Config(vocab_size=len(LETTERS) + 6, head_dim=4, **sizes))


def tiny_gemma_tokenizer() -> GemmaTokenizer:
    """Printable ASCII, a token a character, after a token of its own at the start, as Gemma's has it; pads on the left."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *LETTERS]
    tokenizer = GemmaTokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[], padding_side="left")
    start = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", names.index("<bos>"))])
    tokenizer.backend_tokenizer.post_processor = start
    return tokenizer


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
