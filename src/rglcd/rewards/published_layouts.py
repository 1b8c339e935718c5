"""Published reward models' tensor names as transformers' modules have them, and the sizes that their shapes give.

open_clip's ViT-H-14 becomes a ``CLIPModel``, ImageReward's BLIP the towers and head of :mod:`rglcd.rewards.imagereward`.
"""

import math
import re
from collections.abc import Callable, Mapping

from torch import Tensor
from transformers import CLIPConfig

from rglcd.errors import InputError

State = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]
"""Pairs of a pattern and its replacement: the first that matches the beginning of a name applies."""

# Widths of an attention head: the one size that cannot be read off a shape. ViT-H-14 is open_clip's model_configs/ViT-H-14.json; BLIP's
# towers have 16 heads of 64 (models/BLIP/blip.py, vit="large") and 12 of 64 (med_config.json).
VIT_H_IMAGE_HEAD, _VIT_H_TEXT_HEAD = 80, 64
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
HEAD_RULES: Rules = ((r"layers\.0\.", "0."), (r"layers\.2\.", "1."), (r"layers\.4\.", "2."), (r"layers\.6\.", "3."), (r"layers\.7\.", "4."))


# --- CLIP ----------------------------------------------------------------------------------------


def clip_from_open_clip(state: State) -> dict[str, Tensor]:
    """The tensors of open_clip's model under the names, and in the orientation, of transformers' ``CLIPModel``."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        inside = re.match(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if inside is None:
            target = by_rules(name, _CLIP_OUTSIDE)
            # open_clip multiplies by its projections from the right, transformers has linear layers.
            tensors[target] = tensor.T if target.endswith("_projection.weight") else tensor
            continue
        tower = "vision_model" if inside[1] else "text_model"
        prefix, rest = f"{tower}.encoder.layers.{inside[2]}.", inside[3]
        if rest.startswith("attn.in_proj_"):
            for part, third in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                tensors[f"{prefix}self_attn.{part}.{rest.removeprefix('attn.in_proj_')}"] = third
        else:
            tensors[prefix + by_rules(rest, _CLIP_BLOCK)] = tensor
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


def clip_config(tensors: State) -> CLIPConfig:
    """The sizes of a ViT-H/14 ``CLIPModel``, read off its tensors."""
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
        "num_attention_heads": width // VIT_H_IMAGE_HEAD,
        "image_size": patch * _side(tensors["vision_model.embeddings.position_embedding.weight"].shape[0]),
        "patch_size": patch,
        "hidden_act": "gelu",
        "projection_dim": embedding,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=embedding)


# --- ImageReward ---------------------------------------------------------------------------------


def imagereward_name(name: str) -> str:
    """A tensor name of ``ImageReward.pt`` as :class:`rglcd.rewards.imagereward.ImageRewardNetwork` has it."""
    block = re.match(r"blip\.visual_encoder\.blocks\.(\d+)\.(.+)", name)
    if block is not None:
        return f"vision_model.encoder.layers.{block[1]}.{by_rules(block[2], _BLIP_BLOCK)}"
    if name.startswith("mlp."):
        return "head." + by_rules(name.removeprefix("mlp."), HEAD_RULES)
    return by_rules(name, _BLIP_OUTSIDE)


_BLIP_OUTSIDE: Rules = (
    (r"blip\.visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"blip\.text_encoder\.", "text_model."),
)


def blip_configs(tensors: State) -> tuple[dict[str, object], dict[str, object]]:
    """The sizes of ImageReward's vision and text tower, read off their tensors."""
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


def by_rules(name: str, rules: Rules) -> str:
    """``name`` with its beginning replaced by the first rule that matches. Raises :class:`InputError` when none does."""
    for pattern, replacement in rules:
        found = re.match(pattern, name)
        if found is not None:
            return replacement + name[found.end() :]
    raise InputError(f"unknown tensor {name!r}: the file is no model of its scorer's `kind`; correct `kind` or `file`")


def renamed(state: State, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The same tensors under other names."""
    return {rename(name): tensor for name, tensor in state.items()}


def _count(tensors: State, pattern: str) -> int:
    return len({found[1] for found in (re.match(pattern, name) for name in tensors) if found is not None})


def _side(num_positions: int) -> int:
    """Patches along a side of the picture; one position more is the class token's."""
    return math.isqrt(num_positions - 1)
