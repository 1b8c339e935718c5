"""Schedulers that show a teacher of another kind than its pipeline's family are named and refused.

Trained on as if they were of it, they give students of noise (huggingface/diffusers issue 8596).
"""

from pathlib import Path
from typing import Any, Final

from rglcd.errors import InputError
from rglcd.models.families import NAME_ANOTHER

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
            raise InputError(f"{where} is a {named}: the teacher is {family}, and its pipeline's family is not: {NAME_ANOTHER}")
    odd = [key for key in _CONTINUOUS_KEYS if declared.get(key) is not None] + [key for key in _FLOW_SWITCHES if declared.get(key)]
    if odd or declared.get("prediction_type") == "flow_prediction":
        said = f"{odd[0]}: {declared[odd[0]]}" if odd else "prediction_type: flow_prediction"
        raise InputError(
            f"{where} says {said}: the teacher is a flow or has continuous noise levels, and its pipeline's family is not: {NAME_ANOTHER}"
        )
    if declared.get("trained_betas") is None:
        missing = [key for key in ("beta_start", "beta_end", "beta_schedule") if declared.get(key) is None]
        if missing:
            raise InputError(f"{where} does not say {' and '.join(missing)}, the noise that the teacher was trained with: {NAME_ANOTHER}")
