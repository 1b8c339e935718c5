"""Conversion of published reward model checkpoints to safetensors folders: tensors renamed, sizes read off their shapes.

    HPS_v2_compressed.pt, HPS_v2.1_compressed.pt    open_clip's ViT-H-14 names under "state_dict"   (xswu/HPSv2)
    open_clip_pytorch_model.bin                     open_clip's names                               (laion/CLIP-ViT-H-14-...)
    pytorch_model.bin                               transformers' CLIPModel names                   (yuvalkirstain/PickScore_v1)
    ImageReward.pt                                  blip.visual_encoder, blip.text_encoder, mlp     (THUDM/ImageReward)
    sa_0_4_vit_l_14_linear.pth                      weight, bias                                    (LAION-AI/aesthetic-predictor)
    sac+logos+ava1-l14-linearMSE.pth                layers.0, .2, .4, .6, .7                        (improved-aesthetic-predictor)

Each tensor of the network must be in the file, in its shape, and each tensor of the file must belong to the network.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from transformers import BlipTextConfig, BlipVisionConfig, CLIPModel

from rglcd.errors import InputError
from rglcd.rewards.head import HEAD_FILE, score_head, widths_of
from rglcd.rewards.imagereward import ImageRewardNetwork, config_text
from rglcd.rewards.published_layouts import (
    HEAD_RULES,
    VIT_H_IMAGE_HEAD,
    State,
    blip_configs,
    by_rules,
    clip_config,
    clip_from_open_clip,
    imagereward_name,
    renamed,
)

WEIGHTS_FILE = "model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"


def convert_clip(state: State, folder: Path) -> None:
    """A ViT-H/14 in open_clip's or transformers' names to a ``CLIPModel`` folder without its tokenizer."""
    tensors = dict(state) if "text_model.final_layer_norm.weight" in state else clip_from_open_clip(state)
    # Older versions of transformers kept this constant among the weights.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("embeddings.position_ids")}
    config = _described(clip_config, tensors)
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    _save(tensors, expected, folder / WEIGHTS_FILE)
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)


def convert_open_clip(state: State, folder: Path) -> None:
    """A ViT-H/14 in open_clip's names as it is, with the model description that open_clip reads: for the ``hpsv2`` package itself."""
    config = _described(clip_config, clip_from_open_clip(state))
    vision, text = config.vision_config, config.text_config
    description = {
        "embed_dim": config.projection_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": VIT_H_IMAGE_HEAD,
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
    tensors = renamed({name: tensor for name, tensor in state.items() if not unused.match(name)}, imagereward_name)
    vision, text = _described(blip_configs, tensors)
    head = _described(lambda tensors: widths_of(tensors, prefix="head."), tensors)
    with torch.device("meta"):
        expected = ImageRewardNetwork(BlipVisionConfig(**vision), BlipTextConfig(**text), head).state_dict()
    _save(tensors, expected, folder / WEIGHTS_FILE)
    (folder / "config.json").write_text(config_text(vision, text, head), encoding="utf-8")


def convert_aesthetic_v1(state: State, folder: Path) -> None:
    """One linear layer to ``head.safetensors``."""
    _save_head(renamed(state, lambda name: f"0.{name}"), folder)


def convert_aesthetic_v2(state: State, folder: Path) -> None:
    """Five linear layers to ``head.safetensors``."""
    _save_head(renamed(state, lambda name: by_rules(name, HEAD_RULES)), folder)


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
"""The conversion of a published file, by the ``kind`` of its scorer."""


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
        raise InputError(
            f"tensors do not match the network: {len(missing)} missing {missing[:1]}, {len(extra)} too many {extra[:1]}; "
            "correct `kind` or `file`"
        )
    for name, tensor in expected.items():
        if tensor.shape != tensors[name].shape:
            raise InputError(
                f"tensor {name!r} has shape {tuple(tensors[name].shape)}, not the network's {tuple(tensor.shape)}; correct `kind` or `file`"
            )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
