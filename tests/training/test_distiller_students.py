"""The training step with every kind of student, on Stable Diffusion and on SDXL: what moves, what is averaged, what is kept."""

from pathlib import Path

import pytest
import torch

from rglcd.config import LatentReward, NoReward
from rglcd.stages.assembly import make_distiller
from tests.tiny_line import run, tiny_config, up_to_latents
from tests.training.conftest import materials_of

ADAPTER = "distillation.student={kind: lora, rank: 2, alpha: 4, targets: [to_q, to_v, conv1]}"


@pytest.fixture(scope="module", params=[False, True], ids=["sd", "xl"])
def either_line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny line up to the pretrained reward model, of a Stable Diffusion or an SDXL teacher; read it, do not write it."""
    root = tmp_path_factory.mktemp("line")
    up_to_latents(root, tiny_config(), xl=request.param)
    run(root, tiny_config(), "pretrain")
    return root


def distiller_of(line: Path, reward: object, *overrides: str):
    materials = materials_of(line, tiny_config(*overrides))
    return make_distiller(materials, reward, num_steps=4, world=materials.world)


def test_only_an_adapter_moves_and_only_it_is_averaged_and_kept(either_line: Path) -> None:
    distiller = distiller_of(either_line, LatentReward(weight=1.0), ADAPTER)
    base = {name: parameter.clone() for name, parameter in distiller.teacher.unet.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in distiller.student.trainable_parameters.items()}
    figures = [distiller.step(step) for step in range(2)]
    assert all(torch.isfinite(value).all() for row in figures for value in row.values())
    assert all(torch.equal(parameter, base[name]) for name, parameter in distiller.teacher.unet.named_parameters())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in distiller.student.trainable_parameters.items())
    parts = distiller.parts()
    assert parts["student"].keys() == parts["average"].keys() == before.keys()
    assert {key.rpartition("/")[0] for key in parts["optimizer"]} == before.keys()
    assert sum(tensor.numel() for tensor in parts["student"].values()) < sum(tensor.numel() for tensor in base.values()) / 4


def test_an_adapters_average_is_the_average_of_its_two_factors(either_line: Path) -> None:
    distiller = distiller_of(either_line, NoReward(), ADAPTER)
    before = {name: parameter.clone() for name, parameter in distiller.target.trainable_parameters.items()}
    distiller.step(0)
    for name, parameter in distiller.student.trainable_parameters.items():
        torch.testing.assert_close(distiller.target.trainable_parameters[name], 0.95 * before[name] + 0.05 * parameter.detach())


def test_a_broken_run_of_an_adapter_ends_bit_for_bit_where_an_unbroken_one_does(either_line: Path) -> None:
    unbroken, first, second = (distiller_of(either_line, LatentReward(), ADAPTER) for _ in range(3))
    for step in range(4):
        unbroken.step(step)
    for step in range(2):
        first.step(step)
    saved = {part: {name: tensor.detach().clone() for name, tensor in tensors.items()} for part, tensors in first.parts().items()}
    second.restore(saved)
    for step in range(2, 4):
        second.step(step)
    expected, found = unbroken.parts(), second.parts()
    assert found.keys() == expected.keys()
    for part, tensors in expected.items():
        assert found[part].keys() == tensors.keys()
        assert all(torch.equal(found[part][name], tensor) for name, tensor in tensors.items()), part


def test_an_adapter_in_bfloat16_rests_on_the_frozen_teacher_and_learns_in_float32(either_line: Path) -> None:
    distiller = distiller_of(either_line, NoReward(), ADAPTER, "distillation.precision=bfloat16")
    assert torch.isfinite(distiller.step(0)["distance"])
    assert {parameter.dtype for parameter in distiller.student.trainable_parameters.values()} == {torch.float32}
    assert {parameter.dtype for parameter in distiller.teacher.unet.parameters()} == {torch.bfloat16}


def test_cached_captions_and_sizes_are_those_that_are_encoded(either_line: Path, tmp_path: Path) -> None:
    plain = distiller_of(either_line, NoReward())
    up_to_latents(tmp_path / "line", tiny_config("caching.text_embeddings=true"), xl=plain.text_encoder.is_xl)
    kept = distiller_of(tmp_path / "line", NoReward())
    ours, theirs = kept._batch(0).cond, plain._batch(0).cond
    # float16 keeps eleven bits
    torch.testing.assert_close(ours.embeddings, theirs.embeddings, rtol=2**-10, atol=1e-5)
    assert (ours.pooled is None) is (theirs.pooled is None) is not plain.text_encoder.is_xl
    if plain.text_encoder.is_xl:
        torch.testing.assert_close(ours.pooled, theirs.pooled, rtol=2**-10, atol=1e-5)
        assert torch.equal(ours.time_ids, theirs.time_ids)
        assert theirs.time_ids.shape == (4, 6)


@pytest.mark.parametrize("student", [(), (ADAPTER,)], ids=["whole", "adapter"])
def test_every_student_recomputes_in_micro_batches_what_it_kept_in_a_whole_batch(either_line: Path, student: tuple[str, ...]) -> None:
    """SDXL's pooled captions and sizes are cut with the batch. In float32: one step's figures, to its rounding."""
    cut = ("distillation.micro_batch=2", "distillation.activations=recomputed")
    whole, small = (distiller_of(either_line, LatentReward(), *student, *overrides).step(0) for overrides in ((), cut))
    assert small.keys() == whole.keys()
    for name, figure in whole.items():
        torch.testing.assert_close(small[name], figure, rtol=1e-4, atol=1e-6)
