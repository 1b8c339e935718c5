"""The noise schedule that a pipeline's scheduler folder declares, and what its network predicts."""

import math
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import DDPMScheduler

from rglcd.core.prediction import PredictionType
from rglcd.core.schedule import NoiseSchedule
from rglcd.errors import InputError
from rglcd.models.families.refusals import refuse_other_schedules
from rglcd.models.loading import read_json

EXPORTED_SHIFT: Final = "_shift"
"""A key of an exported ``SCMScheduler``, which has none for it: diffusers reads over names that start so."""

_DIFFUSIONS: Final = (PredictionType.EPSILON, PredictionType.V, PredictionType.SAMPLE)
_MOST_TIMESTEPS: Final = 100_000
"""Published teachers have 1,000."""
_NOT_A_PATH: Final = ("invert_sigmas", "shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Switches of flow schedulers that change which noise levels are drawn at, beyond a shift."""


def read_schedule(folder: Path, *, is_flow: bool = False, num_tokens: int | None = None) -> tuple[NoiseSchedule, PredictionType]:
    """The noise schedule and prediction type that a diffusers scheduler folder declares, of a family that is a flow or is not.

    ``num_tokens`` of a picture decide on the shift of a flow that has a dynamic one. Raises :class:`InputError`.
    """
    path = folder / "scheduler_config.json"
    declared = read_json(path)
    count = declared.get("num_train_timesteps")
    if isinstance(count, int | float) and _MOST_TIMESTEPS < count < math.inf:
        raise InputError(f"{path} says num_train_timesteps {count}: more than {_MOST_TIMESTEPS:,} are no schedule; name another teacher")
    if is_flow:
        return _flow(declared, num_tokens=num_tokens, where=path), PredictionType.FLOW
    refuse_other_schedules(declared, where=path)
    return _diffusion(declared, where=path)


def _diffusion(declared: dict[str, Any], *, where: Path) -> tuple[NoiseSchedule, PredictionType]:
    said = declared.get("prediction_type", PredictionType.EPSILON)
    if said not in _DIFFUSIONS:
        raise InputError(f"{where.parent}: prediction_type {said!r} is none of {', '.join(_DIFFUSIONS)}; name another teacher")
    kind = PredictionType(said)
    # Every discrete scheduler of diffusers shares these keys; DDPM's class, which knows all schedules, multiplies the alphas.
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    try:
        scheduler = DDPMScheduler(**{key: declared[key] for key in keys if key in declared})
        schedule = NoiseSchedule.from_alphas_cumprod(scheduler.alphas_cumprod)
    # An unknown beta_schedule is a NotImplementedError, which is a RuntimeError, as are counts and betas that torch refuses.
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{where} describes no noise schedule: {' '.join(str(error).split())[:300]}") from None
    if schedule.has_zero_terminal_snr and kind is PredictionType.EPSILON:
        # Pure noise holds nothing of x0, so predicting the noise says nothing: arXiv 2305.08891, Sec. 3.1
        raise InputError(
            f"{where} says rescale_betas_zero_snr and prediction_type epsilon: at its last timestep there is nothing to predict; "
            "name a teacher that was trained on v_prediction, or one without it"
        )
    return schedule, kind


def _flow(declared: dict[str, Any], *, num_tokens: int | None, where: Path) -> NoiseSchedule:
    named = str(declared.get("_class_name", ""))
    if named == "SCMScheduler":
        declared = {"shift": _shift_of_export(declared, where=where), "num_train_timesteps": declared.get("num_train_timesteps", 1000)}
    elif not named.startswith("FlowMatch") and not declared.get("use_flow_sigmas"):
        raise InputError(f"{where} is a {named or 'scheduler without a name'}, and the teacher is a flow: expected a FlowMatch scheduler")
    odd = next((key for key in _NOT_A_PATH if declared.get(key)), None)
    if odd is not None:
        raise InputError(f"{where} says {odd}: {declared[odd]}; of the settings of flows only the shift is supported")
    try:
        shift = _dynamic_shift(declared, num_tokens) if declared.get("use_dynamic_shifting") else _fixed_shift(declared)
        schedule = NoiseSchedule.rectified_flow(shift=shift, num_timesteps=int(declared.get("num_train_timesteps", 1000)))
    # Values that are infinite, and two sizes alike between which there is no line, are ArithmeticErrors.
    except (ValueError, TypeError, ArithmeticError) as error:
        raise InputError(f"{where} describes no flow: {error}") from None
    return schedule.to(dtype=torch.float32)


def _shift_of_export(declared: dict[str, Any], *, where: Path) -> float:
    """SANA-Sprint's scheduler is given its noise levels with each picture: only an exported student's says where they were trained."""
    if EXPORTED_SHIFT not in declared:
        raise InputError(
            f"{where} does not say {EXPORTED_SHIFT}: this SANA-Sprint was not exported by rglcd, which draws with its own alone"
        )
    return float(declared[EXPORTED_SHIFT])


def _fixed_shift(declared: dict[str, Any]) -> float:
    """FlowMatch schedulers call it ``shift``, DPM-Solver with flow sigmas ``flow_shift``; 1 is diffusers' default of both."""
    return float(declared.get("flow_shift" if declared.get("use_flow_sigmas") else "shift", 1.0))


def _dynamic_shift(declared: dict[str, Any], num_tokens: int | None) -> float:
    """The shift of pictures of ``num_tokens``: diffusers' ``calculate_shift``, and its defaults where the file says nothing."""
    assert num_tokens is not None, "the shift depends on the picture's size"
    few, many = int(declared.get("base_image_seq_len", 256)), int(declared.get("max_image_seq_len", 4096))
    low, high = float(declared.get("base_shift", 0.5)), float(declared.get("max_shift", 1.15))
    mu = low + (high - low) * (num_tokens - few) / (many - few)
    return math.exp(mu) if declared.get("time_shift_type", "exponential") == "exponential" else mu
