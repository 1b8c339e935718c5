"""The names that tensors have in single-file checkpoints, from those of diffusers and transformers: the way back, written from the layout
of CompVis' and Stability AI's repositories and of open_clip."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def original_unet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with_attention = {match[1] for name in tensors if (match := re.match(r"up_blocks\.(\d+)\.attentions", name))}

    def renamed(name: str) -> str:
        for new, old in _UNET.items():
            if name.startswith(f"{new}."):
                return old + _in_resnet(name.removeprefix(new))
        if match := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)(.*)", name):
            block = 3 * int(match[1]) + int(match[3]) + 1
            return f"input_blocks.{block}.{int(match[2] == 'attentions')}{_in_resnet(match[4])}"
        if match := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)(.*)", name):
            return f"output_blocks.{3 * int(match[1]) + int(match[3])}.{int(match[2] == 'attentions')}{_in_resnet(match[4])}"
        if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv(.*)", name):
            return f"input_blocks.{3 * (int(match[1]) + 1)}.0.op{match[2]}"
        match = re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv(.*)", name)
        assert match is not None, name
        return f"output_blocks.{3 * int(match[1]) + 2}.{1 + (match[1] in with_attention)}.conv{match[2]}"

    return {f"model.diffusion_model.{renamed(name)}": tensor for name, tensor in tensors.items()}


def original_vae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", new)
        new = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{3 - int(match[1])}.block.", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f"up.{3 - int(match[1])}.upsample.", new)
        if ".mid_block.attentions.0." in new:
            for given, old in _VAE_ATTENTION.items():
                new = new.replace(f"mid_block.attentions.0.{given}.", f"mid.attn_1.{old}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        renamed[f"first_stage_model.{new}"] = tensor
    return renamed


def original_clip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}


def original_open_clip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """With what the models have besides: a temperature, and, where nothing is projected, a projection that is not read."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    width = plain["final_layer_norm.weight"].shape[0]
    renamed = {
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "logit_scale": torch.ones((), device=plain["final_layer_norm.weight"].device),
        "text_projection": plain.get("text_projection.weight", torch.empty(width, width, device=plain["final_layer_norm.weight"].device)).T,
    }
    for name, tensor in plain.items():
        if (match := re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)) is None:
            continue
        place = f"transformer.resblocks.{match[1]}"
        if match[2] in _OPEN_CLIP:
            renamed[f"{place}.{_OPEN_CLIP[match[2]]}.{match[3]}"] = tensor
        elif match[2] == "self_attn.q_proj":
            parts = [plain[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            renamed[f"{place}.attn.in_proj_{match[3]}"] = torch.cat(parts)
    return {f"{prefix}{name}": tensor.contiguous() if tensor.device.type != "meta" else tensor for name, tensor in renamed.items()}


def _in_resnet(rest: str) -> str:
    _, part, *others = rest.split(".")
    return ".".join(["", _RESNET.get(part, part), *others])
