"""Published reward models to the folders that this package opens: tensors renamed, sizes read off their shapes.

    HPS_v2_compressed.pt, HPS_v2.1_compressed.pt    open_clip's ViT-H-14 names under "state_dict"   (xswu/HPSv2)
    open_clip_pytorch_model.bin                     open_clip's names                               (laion/CLIP-ViT-H-14-...)
    pytorch_model.bin                               transformers' CLIPModel names                   (yuvalkirstain/PickScore_v1)
    ImageReward.pt                                  blip.visual_encoder, blip.text_encoder, mlp     (THUDM/ImageReward)
    sa_0_4_vit_l_14_linear.pth                      weight, bias                                    (LAION-AI/aesthetic-predictor)
    sac+logos+ava1-l14-linearMSE.pth                layers.0, .2, .4, .6, .7                        (improved-aesthetic-predictor)

Every tensor that the network has must come out of the file in its shape, and every tensor of the file must be accounted for.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig, CLIPConfig, CLIPModel

from rglcd.errors import InputError
from rglcd.rewards.head import HEAD_FILE, score_head, widths_of
from rglcd.rewards.imagereward import ImageRewardNetwork, config_text

State = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]
"""Pattern, and what it becomes: the first that matches a name's beginning."""

WEIGHTS_FILE = "model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"

# Widths of an attention head: the one size that no shape tells. ViT-H-14 is open_clip's model_configs/ViT-H-14.json; BLIP's
# towers have 16 heads of 64 (models/BLIP/blip.py, vit="large") and 12 of 64 (med_config.json).
_VIT_H_IMAGE_HEAD, _VIT_H_TEXT_HEAD = 80, 64
_BLIP_HEAD = 64

_CLIP_BLOCK: Rules = (
    (r"ln_1\.", "layer_norm1."),
    (r"ln_2\.", "layer_norm2."),
    (r"attn\.out_proj\.", "self_attn.out_proj."),
    (r"mlp\.c_fc\.", "mlp.fc1."),
    (r"mlp\.c_proj\.", "mlp.fc2."),
)
_BLIP_BLOCK: Rules = (
    (r"norm1\.", "layer_norm1."),
    (r"norm2\.", "layer_norm2."),
    (r"attn\.qkv\.", "self_attn.qkv."),
    (r"attn\.proj\.", "self_attn.projection."),
    (r"mlp\.", "mlp."),
)
# The head's linear layers stand between dropouts, which have numbers too.
_MLP: Rules = ((r"layers\.0\.", "0."), (r"layers\.2\.", "1."), (r"layers\.4\.", "2."), (r"layers\.6\.", "3."), (r"layers\.7\.", "4."))


def convert_clip(state: State, folder: Path) -> None:
    """A ViT-H/14 in open_clip's or transformers' names to a ``CLIPModel`` folder without its tokenizer."""
    tensors = dict(state) if "text_model.final_layer_norm.weight" in state else _clip_from_open_clip(state)
    # Older versions of transformers kept this constant among the weights.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("embeddings.position_ids")}
    config = _described(_clip_config, tensors)
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    _save(tensors, expected, folder / WEIGHTS_FILE)
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)


def convert_open_clip(state: State, folder: Path) -> None:
    """A ViT-H/14 in open_clip's names as it is, with the model description that open_clip reads: for the ``hpsv2`` package itself."""
    config = _described(_clip_config, _clip_from_open_clip(state))
    vision, text = config.vision_config, config.text_config
    description = {
        "embed_dim": config.projection_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": _VIT_H_IMAGE_HEAD,
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
        },
    }
    _save(state, state, folder / WEIGHTS_FILE)
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def convert_imagereward(state: State, folder: Path) -> None:
    """``ImageReward.pt`` to the folder of :mod:`rglcd.rewards.imagereward`, without its tokenizer."""
    # BLIP's contrastive projections take no part in the score; position_ids is a constant.
    unused = re.compile(r"blip\.(vision_proj|text_proj)\.|blip\.text_encoder\.embeddings\.position_ids$")
    tensors = _renamed({name: tensor for name, tensor in state.items() if not unused.match(name)}, _blip_name)
    vision, text = _described(_blip_configs, tensors)
    head = _described(lambda tensors: widths_of(tensors, prefix="head."), tensors)
    with torch.device("meta"):
        expected = ImageRewardNetwork(BlipVisionConfig(**vision), BlipTextConfig(**text), head).state_dict()
    _save(tensors, expected, folder / WEIGHTS_FILE)
    (folder / "config.json").write_text(config_text(vision, text, head), encoding="utf-8")


def convert_aesthetic_v1(state: State, folder: Path) -> None:
    """One linear layer to ``head.safetensors``."""
    _save_head(_renamed(state, lambda name: f"0.{name}"), folder)


def convert_aesthetic_v2(state: State, folder: Path) -> None:
    """Five linear layers to ``head.safetensors``."""
    _save_head(_renamed(state, lambda name: _by_rules(name, _MLP)), folder)


def _save_head(tensors: State, folder: Path) -> None:
    with torch.device("meta"):
        expected = score_head(_described(widths_of, tensors)).state_dict()
    _save(tensors, expected, folder / HEAD_FILE)


Converter = Callable[[State, Path], None]

CONVERTERS: Mapping[str, Converter] = {
    "hpsv2": convert_clip,
    "clipscore": convert_clip,
    "pickscore": convert_clip,
    "imagereward": convert_imagereward,
    "aesthetic-v1": convert_aesthetic_v1,
    "aesthetic-v2": convert_aesthetic_v2,
    "hpsv2-process": convert_open_clip,
}
"""What a published file becomes, by the ``kind`` of its scorer."""


# --- CLIP ----------------------------------------------------------------------------------------


def _clip_from_open_clip(state: State) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        inside = re.match(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if inside is None:
            target = _by_rules(name, _CLIP_OUTSIDE)
            # open_clip multiplies by its projections from the right, transformers has linear layers.
            tensors[target] = tensor.T if target.endswith("_projection.weight") else tensor
            continue
        tower = "vision_model" if inside[1] else "text_model"
        prefix, rest = f"{tower}.encoder.layers.{inside[2]}.", inside[3]
        if rest.startswith("attn.in_proj_"):
            for part, third in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                tensors[f"{prefix}self_attn.{part}.{rest.removeprefix('attn.in_proj_')}"] = third
        else:
            tensors[prefix + _by_rules(rest, _CLIP_BLOCK)] = tensor
    return tensors


_CLIP_OUTSIDE: Rules = (
    (r"positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"token_embedding\.weight$", "text_model.embeddings.token_embedding.weight"),
    (r"ln_final\.", "text_model.final_layer_norm."),
    (r"text_projection$", "text_projection.weight"),
    (r"logit_scale$", "logit_scale"),
    (r"visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"visual\.conv1\.weight$", "vision_model.embeddings.patch_embedding.weight"),
    (r"visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"visual\.proj$", "visual_projection.weight"),
)


def _clip_config(tensors: State) -> CLIPConfig:
    vocabulary, text_width = tensors["text_model.embeddings.token_embedding.weight"].shape
    width, _, patch, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
    embedding = tensors["text_projection.weight"].shape[0]
    text = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "intermediate_size": tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(tensors, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": text_width // _VIT_H_TEXT_HEAD,
        "max_position_embeddings": tensors["text_model.embeddings.position_embedding.weight"].shape[0],
        "hidden_act": "gelu",
        # CLIP's vocabulary ends with the two marks.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
        "projection_dim": embedding,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(tensors, r"vision_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // _VIT_H_IMAGE_HEAD,
        "image_size": patch * _side(tensors["vision_model.embeddings.position_embedding.weight"].shape[0]),
        "patch_size": patch,
        "hidden_act": "gelu",
        "projection_dim": embedding,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=embedding)


# --- ImageReward ---------------------------------------------------------------------------------


def _blip_name(name: str) -> str:
    block = re.match(r"blip\.visual_encoder\.blocks\.(\d+)\.(.+)", name)
    if block is not None:
        return f"vision_model.encoder.layers.{block[1]}.{_by_rules(block[2], _BLIP_BLOCK)}"
    if name.startswith("mlp."):
        return "head." + _by_rules(name.removeprefix("mlp."), _MLP)
    return _by_rules(name, _BLIP_OUTSIDE)


_BLIP_OUTSIDE: Rules = (
    (r"blip\.visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"blip\.text_encoder\.", "text_model."),
)


def _blip_configs(tensors: State) -> tuple[dict[str, object], dict[str, object]]:
    width, _, patch, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
    vision = {
        "hidden_size": width,
        "intermediate_size": tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _count(tensors, r"vision_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // _BLIP_HEAD,
        "image_size": patch * _side(tensors["vision_model.embeddings.position_embedding"].shape[1]),
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    vocabulary, text_width = tensors["text_model.embeddings.word_embeddings.weight"].shape
    text = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "encoder_hidden_size": width,
        "intermediate_size": tensors["text_model.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "num_hidden_layers": _count(tensors, r"text_model\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": text_width // _BLIP_HEAD,
        "max_position_embeddings": tensors["text_model.embeddings.position_embeddings.weight"].shape[0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        # BLIP adds its own two marks to bert-base-uncased's vocabulary.
        "bos_token_id": vocabulary - 2,
        "pad_token_id": 0,
    }
    return vision, text


# --- names and shapes ----------------------------------------------------------------------------


def _by_rules(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        found = re.match(pattern, name)
        if found is not None:
            return replacement + name[found.end() :]
    raise InputError(f"unknown tensor {name!r}: it is not a model of the kind that its scorer names")


def _renamed(state: State, rename: Callable[[str], str]) -> dict[str, Tensor]:
    return {rename(name): tensor for name, tensor in state.items()}


def _count(tensors: State, pattern: str) -> int:
    return len({found[1] for found in (re.match(pattern, name) for name in tensors) if found is not None})


def _side(num_positions: int) -> int:
    """Patches along a side of the picture; one position more is the class token's."""
    return math.isqrt(num_positions - 1)


T = TypeVar("T")


def _described(describe: Callable[[State], T], tensors: State) -> T:
    try:
        return describe(tensors)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"a tensor that gives the model's size is missing or misshapen: {error}") from None


def _save(tensors: State, expected: State, path: Path) -> None:
    """Write ``tensors`` if they are exactly what the network expects."""
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise InputError(f"tensors do not match the network: {len(missing)} missing {missing[:1]}, {len(extra)} too many {extra[:1]}")
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise InputError(f"tensor {name!r} has shape {tuple(tensors[name].shape)}, not the network's {tuple(tensor.shape)}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
