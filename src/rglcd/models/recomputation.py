"""Activation checkpointing of the student's network: its blocks run a second time in the backward pass (arXiv 1604.06174)."""

from typing import Any

import torch
from diffusers import ModelMixin
from torch import nn
from torch.utils.checkpoint import checkpoint

from rglcd.models.dropout import SampleSeeds


def recompute_activations(unet: ModelMixin, seeds: SampleSeeds | None) -> None:
    """Keep only the inputs of the blocks of ``unet``; ``seeds`` are those of its dropouts, if it has any.

    Nothing in a block draws random numbers: its dropouts' masks are functions of the seeds, which by the time of the backward
    pass may be those of other samples. So these are held, and no generator is rewound.
    """

    def checkpointed(block: nn.Module, *inputs: Any) -> Any:
        # In a compiled graph the seeds are inputs of the block, which the backward pass gets too.
        again = block if seeds is None or torch.compiler.is_compiling() else seeds.held(block)
        return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=False)

    unet.enable_gradient_checkpointing(checkpointed)
