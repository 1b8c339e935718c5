"""The teacher's (x0, eps) equals the conversion of its UNet's output by diffusers' scheduler."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
)

from rglcd.core.condition import Condition
from rglcd.core.solver import DDIMSolver
from rglcd.errors import InputError
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher, read_schedule
from tests.tiny_models import MAX_TOKENS, TEXT_WIDTH


def load(folder: Path) -> Teacher:
    return Teacher.load(folder, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture
def own(teacher_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(teacher_folder, tmp_path / "teacher"))


def edit_scheduler(folder: Path, **values: object) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_teacher_prediction_equals_diffusers_conversion_of_the_unet_output(own: Path, kind: str) -> None:
    edit_scheduler(own, prediction_type=kind)
    teacher, unet = load(own), UNet2DConditionModel.from_pretrained(own / "unet").eval()
    scheduler = DDIMScheduler.from_pretrained(own / "scheduler")
    scheduler.set_timesteps(1000)
    z_t, cond = torch.randn(1, 4, 8, 8), torch.randn(1, MAX_TOKENS, TEXT_WIDTH)
    for time in (1, 500, 999):
        t = torch.tensor([time])
        with torch.no_grad():
            output = unet(z_t, t, encoder_hidden_states=cond).sample
        prediction = teacher(z_t, t, Condition(cond))
        x0 = scheduler.step(output, time, z_t).pred_original_sample
        torch.testing.assert_close(prediction.x0, x0, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scheduler.add_noise(prediction.x0, prediction.eps, t), z_t, rtol=1e-4, atol=1e-4)


def test_teacher_accepts_a_different_timestep_per_sample(own: Path) -> None:
    teacher = load(own)
    z_t, cond, t = torch.randn(3, 4, 8, 8), Condition(torch.randn(3, MAX_TOKENS, TEXT_WIDTH)), torch.tensor([1, 500, 999])
    together = teacher(z_t, t, cond)
    alone = [teacher(z_t[row : row + 1], t[row : row + 1], cond[row : row + 1]) for row in range(3)]
    torch.testing.assert_close(together.x0, torch.cat([one.x0 for one in alone]), rtol=1e-4, atol=1e-4)


def test_teacher_schedule_equals_that_of_the_diffusers_scheduler(own: Path) -> None:
    scheduler = DDIMScheduler.from_pretrained(own / "scheduler")
    schedule, kind = read_schedule(own / "scheduler")
    assert kind == "v_prediction"
    assert torch.equal(schedule.alphas, scheduler.alphas_cumprod.sqrt())


def test_schedule_does_not_depend_on_the_scheduler_class(own: Path) -> None:
    before, _ = read_schedule(own / "scheduler")
    edit_scheduler(own, _class_name="EulerDiscreteScheduler", timestep_spacing="leading", skip_prk_steps=True)
    assert torch.equal(read_schedule(own / "scheduler")[0].alphas, before.alphas)


OURS = ["DDIM", "DDPM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep"]
OURS += ["UniPCMultistep", "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete", "DEISMultistep", "LCM", "TCD"]


@pytest.mark.parametrize("name", OURS)
def test_every_scheduler_that_stable_diffusion_is_published_with_is_read(own: Path, name: str) -> None:
    before, kind = read_schedule(own / "scheduler")
    declared = json.loads((own / "scheduler" / "scheduler_config.json").read_text())
    shutil.rmtree(own / "scheduler")
    getattr(diffusers, f"{name}Scheduler").from_config(declared).save_pretrained(own / "scheduler")
    schedule, same = read_schedule(own / "scheduler")
    assert torch.equal(schedule.alphas, before.alphas)
    assert same == kind


def test_teacher_prediction_has_no_gradient(own: Path) -> None:
    z_t = torch.randn(1, 4, 8, 8, requires_grad=True)
    prediction = load(own)(z_t, torch.tensor([7]), Condition(torch.randn(1, MAX_TOKENS, TEXT_WIDTH)))
    assert not prediction.x0.requires_grad
    assert not prediction.eps.requires_grad


def test_unknown_prediction_type_is_refused_listing_the_known_ones(own: Path) -> None:
    edit_scheduler(own, prediction_type="flow")
    with pytest.raises(InputError, match="'flow' is none of epsilon, v_prediction, sample"):
        load(own)


def test_loading_a_distilled_unet_as_teacher_is_refused(own: Path) -> None:
    Student.of_teacher(load(own), omega_embedding_dim=8).unet.save_pretrained(own / "unet")
    with pytest.raises(InputError, match="already takes a guidance embedding"):
        load(own)


def test_unet_with_other_conditioning_than_its_pipeline_gives_is_refused(own: Path, xl_folder: Path) -> None:
    shutil.rmtree(own / "unet")
    shutil.copytree(xl_folder / "unet", own / "unet")
    with pytest.raises(InputError, match=r"unet takes text_time as conditioning and its pipeline gives a caption alone"):
        load(own)


# --- zero terminal SNR and other schedules -------------------------------------------------------


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_teacher_predicts_as_diffusers_does_even_from_pure_noise(own: Path, kind: str) -> None:
    edit_scheduler(own, rescale_betas_zero_snr=True, prediction_type=kind, timestep_spacing="trailing")
    teacher, unet = load(own), UNet2DConditionModel.from_pretrained(own / "unet").eval()
    assert teacher.schedule.has_zero_terminal_snr
    scheduler = DDIMScheduler.from_pretrained(own / "scheduler")
    scheduler.set_timesteps(50)
    z_t, cond = torch.randn(1, 4, 8, 8), torch.randn(1, MAX_TOKENS, TEXT_WIDTH)
    solver = DDIMSolver(teacher.schedule, 50)
    for index in (49, 48, 10):
        pair = solver.pair(torch.tensor([index]))
        with torch.no_grad():
            output = unet(z_t, pair.t, encoder_hidden_states=cond).sample
        theirs = scheduler.step(output, int(pair.t), z_t)
        prediction = teacher(z_t, pair.t, Condition(cond))
        torch.testing.assert_close(prediction.x0, theirs.pred_original_sample, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(solver.step(prediction, pair.s), theirs.prev_sample, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(teacher.schedule.diffuse(prediction.x0, prediction.eps, pair.t), z_t, rtol=1e-4, atol=1e-4)


def test_zero_terminal_snr_with_eps_prediction_is_refused_with_the_reason(own: Path) -> None:
    edit_scheduler(own, rescale_betas_zero_snr=True, prediction_type="epsilon")
    with pytest.raises(InputError, match="at its last timestep there is nothing to predict"):
        load(own)


def test_a_sigmoid_schedule_is_diffusers_own(own: Path) -> None:
    edit_scheduler(own, beta_schedule="sigmoid")
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="sigmoid")
    assert torch.equal(load(own).schedule.alphas, theirs.alphas_cumprod.sqrt())


OTHER_FAMILIES = {
    "EDM": (EDMEulerScheduler(prediction_type="epsilon"), "is a EDMEulerScheduler: the teacher is EDM"),
    "EDM, another solver": (EDMDPMSolverMultistepScheduler(), "is a EDMDPMSolverMultistepScheduler: the teacher is EDM"),
    "flow matching": (FlowMatchEulerDiscreteScheduler(), "the teacher is flow matching"),
    "consistency model": (CMStochasticIterativeScheduler(), "the teacher is a consistency model"),
    "flow sigmas": (DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "says use_flow_sigmas: True"),
}


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_a_teacher_of_another_family_is_refused_by_its_name(own: Path, family: str) -> None:
    scheduler, said = OTHER_FAMILIES[family]
    shutil.rmtree(own / "scheduler")
    scheduler.save_pretrained(own / "scheduler")
    with pytest.raises(InputError) as refused:
        load(own)
    assert said in str(refused.value)
    assert "name a teacher of Stable Diffusion 1.x, 2.x or XL" in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"beta_start": None}, "does not say beta_start"),
        ({"beta_schedule": None, "beta_end": None}, "does not say beta_end and beta_schedule"),
        ({"beta_schedule": "cubic"}, "describes no noise schedule: cubic"),
        ({"beta_start": "small"}, "describes no noise schedule"),
        ({"beta_start": 0.5, "beta_end": 2.0}, "describes no noise schedule"),
    ],
)
def test_a_schedule_that_is_not_said_or_is_none_is_refused(own: Path, values: dict[str, object], said: str) -> None:
    edit_scheduler(own, **values)
    with pytest.raises(InputError, match=said):
        load(own)
