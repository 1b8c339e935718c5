"""What holds for a step in every mode: it waits for no device, goes on where it was saved, and bfloat16 stays near float32."""

from pathlib import Path

import pytest
import torch

from rglcd.stages.assembly import make_distiller
from rglcd.training.checkpoint import Checkpointer
from rglcd.training.distiller import Distiller
from rglcd.training.distributed import World
from tests.tiny_line import tiny_config
from tests.training.conftest import materials_of
from tests.training.test_distiller import distiller_of
from tests.training.waits import NothingCopied, NothingMadeThere, NothingRead

MODES = {
    "none": ("reward={kind: none}",),
    "pixel": ("reward={kind: pixel, weight: 2.0, chunk_size: 3}",),
    "latent": (),
    "iCT": (
        "reward={kind: pixel, prediction: {kind: own, every: 2}}",
        "distillation.target={kind: stop_gradient, evaluation_decay: 0.9}",
        "distillation.timesteps={kind: lognormal, uniform_share: 0.5}",
        "distillation.weighting=inverse_gap",
        "distillation.dropout=0.2",
        "distillation.grid={kind: doubling, start: 10, end: 40}",
    ),
}


def distiller_in(line: Path, mode: str, *overrides: str) -> Distiller:
    return distiller_of(line, tiny_config(*MODES[mode]).reward, *MODES[mode], *overrides)


def flat(distiller: Distiller) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in distiller.student.trainable_parameters.values()])


def test_reading_a_value_on_the_host_is_detected() -> None:
    for read in (lambda tensor: tensor.item(), lambda tensor: bool(tensor), lambda tensor: torch.ones(2)[tensor.bool()[None].expand(2)]):
        with pytest.raises(AssertionError, match="the step waits for"), NothingRead():
            read(torch.ones(()))


@pytest.mark.parametrize("mode", MODES)
def test_a_training_step_never_waits_for_the_device(line: Path, mode: str) -> None:
    distiller = distiller_in(line, mode)
    distiller.step(0)  # makes the grid, once for each stage of the curriculum
    with NothingRead():
        distiller.step(1)


META = World(0, 1, torch.device("meta"))
OTHERS = "{kind: online, pairing: %s, labels: {kind: soft, logit_scale: 50}}"


def test_a_copy_from_the_host_is_detected() -> None:
    there, here = torch.empty(3, device="meta"), torch.arange(3)
    for copy in (lambda: here.to("meta"), lambda: there[here], lambda: there.copy_(here)):
        with pytest.raises(AssertionError, match="the step copies"), NothingCopied():
            copy()
    with pytest.raises(AssertionError, match="are made a tensor of the device"), NothingMadeThere():
        torch.tensor([1.0], device="meta")
    with NothingCopied(), NothingMadeThere():
        there * torch.tensor(2.0)


@pytest.mark.parametrize(
    "overrides",
    [*MODES.values(), *((f"reward.tuning={OTHERS % pairing}",) for pairing in ("other_captions", "other_images"))],
    ids=[*MODES, "other captions", "other images"],
)
def test_a_training_step_copies_to_the_device_from_pinned_memory_alone(line: Path, placed: None, overrides: tuple[str, ...]) -> None:
    config = tiny_config(*overrides)
    distiller = make_distiller(materials_of(line, config), config.reward, num_steps=4, world=META)
    distiller.step(0)  # makes the grid
    with NothingCopied(), NothingMadeThere():
        distiller.step(1)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_broken_and_resumed_is_the_run_bit_for_bit(line: Path, tmp_path: Path, mode: str) -> None:
    unbroken, broken = distiller_in(line, mode), distiller_in(line, mode)
    for step in range(4):
        figures = unbroken.step(step)
    for step in range(2):
        broken.step(step)
    Checkpointer(tmp_path).save(2, broken.parts(), {})
    resumed, saved = distiller_in(line, mode), Checkpointer(tmp_path).latest()
    assert saved is not None
    resumed.restore(saved.parts)
    for step in (2, 3):
        again = resumed.step(step)
    assert {name: float(figure) for name, figure in again.items()} == {name: float(figure) for name, figure in figures.items()}
    ours, theirs = resumed.parts(), unbroken.parts()
    assert {part: tensors.keys() for part, tensors in ours.items()} == {part: tensors.keys() for part, tensors in theirs.items()}
    assert all(torch.equal(tensor, theirs[part][name]) for part, tensors in ours.items() for name, tensor in tensors.items())


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_stays_near_float32(line: Path, mode: str) -> None:
    """Within 2 % in the distance and a cosine of 0.95 in the gradient.

    bfloat16 keeps 8 bits, 0.4 %, of each number; the element-wise Huber's gradient is nearly a sign, which turns where student and
    target almost agree, as they do at the start.
    """

    class Still(Distiller):
        def _update(self, step: int) -> torch.Tensor:
            self.gradient = torch.cat([parameter.grad.flatten() for parameter in self._parameters])
            return self.gradient.norm()

    figures, gradients = [], []
    for precision in ("float32", "bfloat16"):
        distiller = distiller_in(line, mode, f"distillation.precision={precision}")
        distiller.__class__ = Still
        figures.append(distiller.step(0))
        gradients.append(distiller.gradient)
    distance, near = (float(figure["distance"]) for figure in figures)
    assert near == pytest.approx(distance, rel=0.02)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95
    assert gradients[1].dtype == torch.float32


def test_channels_last_is_the_same_step_before_and_after_a_restart(line: Path, tmp_path: Path) -> None:
    contiguous, other = (distiller_in(line, "pixel", f"distillation.memory_format={form}") for form in ("contiguous", "channels_last"))
    weight = other.student.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    before = flat(contiguous)
    for distiller in (contiguous, other):
        distiller.step(0)
    Checkpointer(tmp_path).save(1, other.parts(), {})
    resumed, saved = distiller_in(line, "pixel", "distillation.memory_format=channels_last"), Checkpointer(tmp_path).latest()
    assert saved is not None
    resumed.restore(saved.parts)
    for distiller in (contiguous, other, resumed):
        distiller.step(1)
    assert torch.equal(flat(other), flat(resumed))
    assert (flat(other) - flat(contiguous)).norm() < 0.02 * (flat(contiguous) - before).norm()


@pytest.mark.slow
def test_a_compiled_step_is_the_same_step(line: Path) -> None:
    eager, compiled = (distiller_in(line, "pixel", f"distillation.execution={execution}") for execution in ("eager", "compiled"))
    assert compiled.student.unet.state_dict().keys() == eager.student.unet.state_dict().keys()
    for step in range(2):
        ours, theirs = eager.step(step), compiled.step(step)
        for name, figure in ours.items():
            torch.testing.assert_close(theirs[name], figure, rtol=1e-3, atol=1e-5)
