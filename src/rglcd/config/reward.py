"""The section ``reward``: what guides the student beside the teacher, and by which way its gradient comes."""

from typing import Annotated, Literal

from pydantic import Field

from rglcd.config.base import Section
from rglcd.recipe import DecoderActivations, OnlineProxy, Positive, Precision, Prediction, ProxyStart, SharedPrediction, Tuning


class NoReward(Section):
    """Plain latent consistency distillation."""

    kind: Literal["none"] = "none"


class PixelReward(Section):
    """The reward's gradient through the VAE decoder: RG-LCD, Algorithm 3. Differentiable experts only."""

    kind: Literal["pixel"] = "pixel"
    expert: str = "expert"
    """The scorer that the student is trained on, of ``preparation.scorers``."""
    weight: float = Field(default=1.0, ge=0)
    """Of the reward in the loss."""
    chunk_size: Positive = 4
    """Images decoded with gradient at a time: bounds the memory, changes nothing else."""
    activations: DecoderActivations = "kept"
    precision: Precision = "float32"
    """Of the decoder and the expert, whatever the networks that train are in."""
    prediction: Annotated[Prediction, Field(discriminator="kind")] = SharedPrediction()


class LatentReward(Section):
    """The reward's gradient from a latent proxy (LRM) that is tuned against the expert as training goes: Algorithm 4."""

    kind: Literal["latent"] = "latent"
    expert: str = "expert"
    """The scorer that the student is trained on, of ``preparation.scorers``."""
    weight: float = Field(default=1.0, ge=0)
    """Of the reward in the loss."""
    chunk_size: Positive = 4
    """Images decoded without gradient at a time, for the expert's labels."""
    initial: ProxyStart = "pretrained"
    tuning: Annotated[Tuning, Field(discriminator="kind")] = OnlineProxy()
    precision: Precision = "float32"
    """Of the decoder and the expert, whatever the networks that train are in."""
    prediction: Annotated[Prediction, Field(discriminator="kind")] = SharedPrediction()


AnyReward = NoReward | PixelReward | LatentReward

Reward = Annotated[AnyReward, Field(discriminator="kind")]
