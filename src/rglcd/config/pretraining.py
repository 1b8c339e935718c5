"""The section ``pretraining``: the latent proxy reward model (LRM) before it meets the student."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rglcd.config.base import Section, Seed
from rglcd.recipe import Positive


class VitTower(Section):
    """The LRM's image tower: a vision transformer on latents. The defaults are RG-LCD's latent ViT (38.5 M parameters)."""

    kind: Literal["vit"] = "vit"
    patch: Positive = 4
    """Side of a patch, in latent pixels."""
    width: Positive = 512
    """Of the transformer."""
    num_layers: Positive = 12
    """Of the transformer."""
    num_heads: Positive = 8
    """Of its attention; divides the width."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "VitTower":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide width {self.width}")
        return self


class ResNetTower(Section):
    """The LRM's image tower: CLIP's modified ResNet on latents. The defaults are RG-LCD's latent RN50 (38.2 M parameters)."""

    kind: Literal["resnet"] = "resnet"
    blocks: tuple[Positive, ...] = Field(default=(3, 4, 6, 3), min_length=1)
    """Bottleneck blocks of each stage; every stage but the first halves the sides and doubles the channels."""
    width: int = Field(default=64, gt=0, multiple_of=32)
    """Channels of the first stage."""


class Pretraining(Section):
    """Contrastive pretraining of the latent proxy reward model on cached latents and captions."""

    tower: Annotated[VitTower | ResNetTower, Field(discriminator="kind")] = VitTower()
    scorer: str = "expert"
    """The scorer whose cached text features the LRM reads."""
    num_steps: Positive = 10_000
    """Optimiser steps."""
    batch_size: Positive = 480
    """Over all ranks together; every caption of it is contrasted with every other."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Its peak, after the warm-up."""
    weight_decay: float = Field(default=0.2, ge=0)
    """AdamW's."""
    warmup_steps: int = Field(default=500, ge=0)
    """Over which the learning rate rises."""
    num_validation: int = Field(default=1_000, ge=0)
    """The last samples of the cache, never trained on: retrieval accuracy is measured on them ten times a run."""
    checkpoint_every: Positive = 1_000
    """Steps between two saved states."""
    seed: Seed = 0
