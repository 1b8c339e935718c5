"""The teacher's (x0, eps) equals the conversion of its UNet's output by diffusers' scheduler."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from rglcd.core.condition import Condition
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


def test_zero_terminal_snr_schedule_is_refused(own: Path) -> None:
    edit_scheduler(own, rescale_betas_zero_snr=True)
    with pytest.raises(InputError, match="zero terminal signal"):
        load(own)
