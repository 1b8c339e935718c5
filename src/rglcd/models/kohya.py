"""A LoRA adapter as kohya's trainer writes it, for ComfyUI, A1111 and Forge: they know few of the names that diffusers gives its own.

The rule (https://github.com/kohya-ss/sd-scripts, networks/lora.py): ``lora_unet_`` and the layer's path in diffusers' UNet, its dots
underscores; then ``.lora_down.weight`` (A), ``.lora_up.weight`` (B) and ``.alpha``, where the layer gains alpha / rank B A. The published
LCM-LoRA files are written so, of SDXL too. ComfyUI looks each path up under this name (comfy/lora.py, model_lora_keys_unet); A1111 and
Forge turn it into the original checkpoint's (extensions-builtin/Lora/networks.py, convert_diffusers_name_to_compvis).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

KOHYA_FILE = "kohya_lora.safetensors"
"""Not the name that diffusers looks for: of two files with it diffusers would take neither."""

_SIDES = {"lora_A": "lora_down", "lora_B": "lora_up"}


def kohya_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, of scale one by diffusers' names (``unet.<layer>.lora_A.weight``), by kohya's; alpha is the rank: one too."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        layer, side, _ = name.removeprefix("unet.").rsplit(".", 2)
        stem = "lora_unet_" + layer.replace(".", "_")
        renamed[f"{stem}.{_SIDES[side]}.weight"] = tensor
        if side == "lora_A":
            renamed[f"{stem}.alpha"] = torch.tensor(float(tensor.shape[0]))
    return renamed
