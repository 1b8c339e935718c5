"""What a scheduler folder declares is read or refused in one line that says where. A diffusion's folders are in test_teacher.py."""

import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from rglcd.core.prediction import PredictionType
from rglcd.errors import InputError
from rglcd.models.schedules import read_schedule

DYNAMIC = {"use_dynamic_shifting": True}


def flow(folder: Path, **values: object) -> Path:
    declared = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0} | values
    (folder / "scheduler_config.json").write_text(json.dumps(declared))
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shift": "large"}, "describes no flow: could not convert"),
        ({"shift": None}, "describes no flow"),
        ({"shift": 0.0}, "describes no flow: a flow's shift is positive"),
        ({"shift": math.inf}, "describes no flow: a flow's shift is positive"),
        ({"num_train_timesteps": math.inf}, "describes no flow"),
        ({"num_train_timesteps": 0}, "describes no flow: a flow has two timesteps at least, not 0"),
        ({"num_train_timesteps": -5}, "describes no flow: a flow has two timesteps at least, not -5"),
        (DYNAMIC | {"base_image_seq_len": 256, "max_image_seq_len": 256}, "describes no flow"),
        (DYNAMIC | {"max_shift": 1e9}, "describes no flow"),
        ({"shift_terminal": 0.1}, r"says shift_terminal: 0\.1; of the settings of flows only the shift is supported"),
        ({"_class_name": "DDIMScheduler"}, "is a DDIMScheduler, and the teacher is a flow"),
    ],
)
def test_a_flow_whose_noise_levels_are_not_said_is_refused(tmp_path: Path, values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_schedule(flow(tmp_path, **values), is_flow=True, num_tokens=1024)


# --- published teachers --------------------------------------------------------------------------

SHIFTS = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
SOLVER = {
    "_class_name": "DPMSolverMultistepScheduler",
    **{"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "euler_at_final": False, "lower_order_final": True},
    **{"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None, "num_train_timesteps": 1000},
    **{"dynamic_thresholding_ratio": 0.995, "lambda_min_clipped": -math.inf, "sample_max_value": 1.0, "steps_offset": 0},
    **{"thresholding": False, "timestep_spacing": "linspace", "use_karras_sigmas": False, "use_lu_lambdas": False, "variance_type": None},
}
PUBLISHED = {
    # huggingface.co/stabilityai/stable-diffusion-3.5-medium and stable-diffusion-3-medium-diffusers
    "sd3": ({"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.29.0.dev0", "shift": 3.0}, 16),
    # The same as later versions of diffusers save it.
    "sd3-saved-again": ({**SHIFTS, "shift": 3.0, "use_dynamic_shifting": False, "invert_sigmas": False, "shift_terminal": None}, 16),
    # huggingface.co/black-forest-labs/FLUX.1-dev and FLUX.1-schnell
    "flux-dev": ({**SHIFTS, "shift": 3.0, "use_dynamic_shifting": True}, 16),
    "flux-schnell": ({**SHIFTS, "shift": 1.0, "use_dynamic_shifting": False}, 16),
    # huggingface.co/Efficient-Large-Model/Sana_1600M_512px_diffusers
    "sana": (
        {
            **SOLVER,
            **{"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "rescale_betas_zero_snr": False},
            **{"final_sigmas_type": "zero", "use_beta_sigmas": False, "use_exponential_sigmas": False},
        },
        32,
    ),
}
"""scheduler_config.json of published teachers, and how many pixels a token of their networks is wide."""


@pytest.mark.parametrize("pixels", [512, 1024])
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_published_flow_has_the_noise_levels_of_its_own_scheduler(tmp_path: Path, name: str, pixels: int) -> None:
    declared, width = PUBLISHED[name]
    tokens = (pixels // width) ** 2
    schedule, kind = read_schedule(flow(tmp_path, **declared), is_flow=True, num_tokens=tokens)
    assert kind is PredictionType.FLOW
    stock = scheduler(tmp_path)
    if "flow_shift" in declared:
        # Its steps are even between 0 and 1 - 1 / T, where those of the others end at 1.
        stock.set_timesteps(8)
        tolerance = 5e-4
    else:
        shifts = [stock.config[key] for key in SHIFTS]
        mu = calculate_shift(tokens, shifts[0], shifts[2], shifts[1], shifts[3]) if stock.config.use_dynamic_shifting else None
        stock.set_timesteps(sigmas=[1 - step / 8 for step in range(8)], mu=mu)
        tolerance = 1e-6
    ours = schedule.sigmas[[1000 - 125 * step - 1 for step in range(8)]]
    torch.testing.assert_close(ours, stock.sigmas[:8], rtol=0, atol=tolerance)
    torch.testing.assert_close(schedule.alphas, 1 - schedule.sigmas)


def test_pixart_sigmas_published_solver_has_the_alphas_of_its_own_scheduler(tmp_path: Path) -> None:
    # huggingface.co/PixArt-alpha/PixArt-Sigma-XL-2-1024-MS, and as later versions of diffusers save it
    for more in ({}, {"flow_shift": 1.0, "use_flow_sigmas": False, "final_sigmas_type": "zero", "rescale_betas_zero_snr": False}):
        schedule, kind = read_schedule(flow(tmp_path, **SOLVER, prediction_type="epsilon", shift=None, **more), is_flow=False)
        assert kind is PredictionType.EPSILON
        assert torch.equal(schedule.alphas, scheduler(tmp_path).alphas_cumprod.sqrt())


def scheduler(folder: Path) -> Any:
    declared = json.loads((folder / "scheduler_config.json").read_text())
    return getattr(diffusers, declared["_class_name"]).from_config(declared)
