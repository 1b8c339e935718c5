"""A student that starts from an existing few-step model, a folder of its own or an adapter, instead of from the teacher."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file

from rglcd.errors import InputError
from rglcd.models.families import STABLE_DIFFUSION
from rglcd.models.families.stable_diffusion import XL_CONDITIONING
from rglcd.models.loading import load_weights
from rglcd.models.student import ADAPTER_FILE, Student


def start_from(student: Student, folder: Path) -> None:
    """Give the new whole ``student`` the weights of the model in ``folder``: its network's, or its teacher's with the adapter there merged.

    A network that is not given omega leaves the student's layers for it as they start. Raises :class:`InputError` for a folder that holds
    neither, or a model of another shape than the teacher's.
    """
    if (folder / student.family.folder).is_dir():
        _take_over(student, folder / student.family.folder)
    elif (folder / ADAPTER_FILE).is_file():
        _merge(student, folder)
    else:
        raise InputError(f"{folder} holds neither {student.family.folder}/ nor {ADAPTER_FILE}: no few-step model of {student.family.title}")


@torch.no_grad()
def _take_over(student: Student, folder: Path) -> None:
    layers = student.family.omega_layers
    weights = load_weights(student.family.network, folder, dtype=torch.float32).state_dict()
    theirs, mine = student.family.renamed(weights, student.unet.config), student.unet.state_dict()
    missing = sorted(mine.keys() - theirs.keys() - set(layers))
    odd = missing or sorted(theirs.keys() - mine.keys()) or sorted(name for name in theirs if theirs[name].shape != mine[name].shape)
    if odd:
        hint = "; distillation.student.omega_embedding_dim must be its own" if odd[0] in layers else ""
        raise InputError(f"{folder} is no student of this teacher: {len(odd)} tensors differ, first {odd[0]}{hint}")
    for name, tensor in theirs.items():
        mine[name].copy_(tensor)


def _merge(student: Student, folder: Path) -> None:
    """In diffusers' names, or for a UNet in kohya's too, as the published LCM-LoRA files have them."""
    options: dict[str, Any] = {"weight_name": ADAPTER_FILE, "local_files_only": True, "use_safetensors": True}
    network = student.unet
    try:
        if student.family is STABLE_DIFFUSION:
            is_xl = network.config.addition_embed_type == XL_CONDITIONING
            pipeline = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
            tensors, alphas = pipeline.lora_state_dict(str(folder), unet_config=network.config, **options)
            pipeline.load_lora_into_unet(tensors, alphas, unet=network)
        else:
            tensors = load_file(str(folder / ADAPTER_FILE))
            # diffusers takes a scale from beside the tensors or, where it opens the file itself, from its header, and says nothing of one
            # that lies among them.
            alphas = {name: float(tensors.pop(name)) for name in list(tensors) if name.endswith(".alpha")}
            source = tensors if alphas else str(folder)
            network.load_lora_adapter(source, prefix=student.family.folder, network_alphas=alphas or None, **options)
    # For tensors of other names or shapes, or half of a pair, diffusers and peft raise ValueError, RuntimeError, KeyError or IndexError.
    except (OSError, SafetensorError, ValueError, RuntimeError, LookupError) as error:
        raise InputError(f"{folder / ADAPTER_FILE} cannot be merged: {' '.join(str(error).split())[:300]}") from None
    if not getattr(network, "peft_config", None):
        raise InputError(
            f"{folder / ADAPTER_FILE} changes no layer of a {student.family.network.__name__}: it is an adapter of another model"
        )
    network.fuse_lora()
    network.unload_lora()
    network.requires_grad_(True)
