"""Teachers of other kinds than the pipeline's family are named and refused.

Trained on as if they were of it, they give students of noise (huggingface/diffusers issue 8596).
"""

from pathlib import Path
from typing import Any, Final

from rglcd.errors import InputError

_OURS: Final = "name a teacher of Stable Diffusion 1.x, 2.x or XL"

_SCHEDULERS: Final = {
    "EDM": "EDM (continuous noise levels, preconditioned: Playground v2.5, CosXL)",
    "FlowMatch": "flow matching",
    "CMStochasticIterative": "a consistency model",
    "VQDiffusion": "a discrete diffusion of tokens",
    "ScoreSdeVe": "a variance exploding score model",
    "KarrasVe": "a variance exploding score model",
}
"""By the beginning of a scheduler's ``_class_name``."""

_CONTINUOUS_KEYS: Final = ("sigma_data", "shift", "base_shift")
_FLOW_SWITCHES: Final = ("use_flow_sigmas", "use_dynamic_shifting")


def refuse_other_schedules(declared: dict[str, Any], *, where: Path) -> None:
    """Raise :class:`InputError` for the configuration of a scheduler whose model is no discrete, variance preserving diffusion.

    The class alone does not say: any scheduler may have been saved with a teacher that was trained otherwise.
    """
    named = str(declared.get("_class_name", ""))
    for beginning, family in _SCHEDULERS.items():
        if named.startswith(beginning):
            raise InputError(f"{where} is a {named}: the teacher is {family}: {_OURS}")
    odd = [key for key in _CONTINUOUS_KEYS if declared.get(key) is not None] + [key for key in _FLOW_SWITCHES if declared.get(key)]
    if odd or declared.get("prediction_type") == "flow_prediction":
        said = f"{odd[0]}: {declared[odd[0]]}" if odd else "prediction_type: flow_prediction"
        raise InputError(f"{where} says {said}: the teacher is a flow or has continuous noise levels: {_OURS}")
    if declared.get("trained_betas") is None:
        missing = [key for key in ("beta_start", "beta_end", "beta_schedule") if declared.get(key) is None]
        if missing:
            raise InputError(f"{where} does not say {' and '.join(missing)}, the noise that the teacher was trained with: {_OURS}")


def refuse_other_channels(config: Any, *, latent_channels: int, where: Path) -> None:
    """Raise :class:`InputError` for a UNet that takes or gives more than the latents: inpainting, depth and edit models."""
    taken, given = int(config.in_channels), int(config.out_channels)
    if taken != latent_channels:
        extra = {9: "an inpainting model", 8: "an edit or upscaling model", 5: "a depth model"}.get(taken, "a model with further inputs")
        raise InputError(f"{where} takes {taken} channels and the VAE's latents have {latent_channels}: it is {extra}; {_OURS}")
    if given != latent_channels:
        raise InputError(f"{where} gives {given} channels and the VAE's latents have {latent_channels} (a learned variance?): {_OURS}")
