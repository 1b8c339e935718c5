"""A teacher that declares another prediction type than its own is found by what it makes of real pictures."""

from pathlib import Path

import pytest
import torch

from rglcd.core.prediction import PredictionType
from rglcd.models.codec import Codec
from rglcd.models.declared_type import doubt_about, errors_of_x0
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.toy.drawing import draw_batch
from rglcd.toy.scene import all_scenes, caption

TOY = Path("toy/teacher")
NUM_PICTURES = 16


@pytest.fixture(scope="module")
def errors() -> dict[PredictionType, float]:
    """Of the toy's teacher, which predicts v."""
    options = {"dtype": torch.float32, "device": torch.device("cpu")}
    codec, text = Codec.load(TOY, **options), TextEncoder.load(TOY, **options)
    scenes = all_scenes()[:: len(all_scenes()) // NUM_PICTURES][:NUM_PICTURES]
    pixels = torch.from_numpy(draw_batch(scenes, range(NUM_PICTURES))).float() / 255
    moments = codec.moments(pixels if pixels.shape[1] == 3 else pixels.permute(0, 3, 1, 2))
    latents = codec.latents(moments, torch.zeros_like(moments.mean))
    ids = text.tokenise([caption(scene) for scene in scenes])
    return errors_of_x0(Teacher.load(TOY, **options), latents, lambda rows: text.encode(ids[rows]))


def test_a_trained_teacher_explains_pictures_best_by_its_own_type(errors: dict[PredictionType, float]) -> None:
    assert min(errors, key=lambda kind: errors[kind]) is PredictionType.V
    assert doubt_about(PredictionType.V, errors) is None


@pytest.mark.parametrize("declared", [PredictionType.EPSILON, PredictionType.SAMPLE])
def test_another_declared_type_is_said_with_both_errors(declared: PredictionType, errors: dict[PredictionType, float]) -> None:
    said = doubt_about(declared, errors)
    assert said is not None
    assert f"says prediction_type {declared}, but" in said
    assert f"{errors[PredictionType.V]:.3g}, as {declared} {errors[declared]:.3g}" in said


def test_types_that_explain_about_as_well_are_no_doubt() -> None:
    errors = {PredictionType.EPSILON: 0.19, PredictionType.V: 0.1, PredictionType.SAMPLE: 0.3}
    assert doubt_about(PredictionType.EPSILON, errors) is None
