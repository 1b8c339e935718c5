"""The baseline that our step is timed against computes the same step: equal loss and gradients on the same draws."""

import copy
import weakref
from dataclasses import replace

import pytest
import torch

from benchmarks.baseline import PublishedStep, StepInputs
from benchmarks.beside import beside_baseline, published_step, step_inputs
from benchmarks.step_bench import MODES, Bench, Setting, toy_sizes
from rglcd.training.distiller import Distiller


def toy_bench(batch_size: int = 4) -> Bench:
    return Bench(Setting("toy", 32, "float32", "cpu", batch_size, 2, "eager", "contiguous", 1, 1.0), toy_sizes())


@pytest.mark.parametrize("mode", MODES)
def test_baseline_and_ours_have_equal_loss_and_gradients_on_the_same_draws(mode: str) -> None:
    bench = toy_bench()
    distiller = bench.distiller(mode, 4)
    # As it starts the embedding of omega is zero, and nothing would show how it is computed.
    torch.nn.init.normal_(distiller.student.unet.time_embedding.cond_proj.weight, std=0.1)
    distiller.evaluated.unet.load_state_dict(distiller.student.unet.state_dict())
    theirs = published_step(bench, distiller, mode)
    batch = distiller._batch(0)
    drawn = replace(step_inputs(bench, cached=True), latents=batch.z0, features=batch.texts["expert"], **vars_of(batch.draws))
    loss = theirs.backward(drawn)
    distiller._update = lambda step: torch.zeros(())  # the gradients stay
    figures = distiller.step(0)
    distance, reward = float(figures["distance"]), float(figures.get("reward", 0.0))
    assert float(loss) == pytest.approx(distance - reward, rel=1e-5, abs=1e-5 * max(distance, abs(reward)))  # they may cancel
    other = dict(theirs.networks.student.named_parameters())
    ours = dict(distiller.student.unet.named_parameters())
    whole = torch.stack([parameter.grad.norm() for parameter in other.values()]).norm()
    difference = torch.stack([(parameter.grad - other[name].grad).norm() for name, parameter in ours.items()]).norm()
    assert float(difference / whole) < 1e-5


def vars_of(draws: object) -> dict[str, torch.Tensor]:
    return {"index": draws.index, "omega": draws.omega, "noise": draws.eps}


def test_baseline_encodes_images_and_trains_student_target_and_proxy() -> None:
    bench = toy_bench()
    theirs = published_step(bench, bench.distiller("latent", 4), "latent")
    given: StepInputs = step_inputs(bench, cached=False)
    assert given.latents is None
    trained = (theirs.networks.student, theirs.networks.target, theirs.networks.proxy)
    before = [copy.deepcopy(network.state_dict()) for network in trained]
    theirs.step(given)
    for network, was in zip(trained, before, strict=True):
        assert any(not torch.equal(tensor, was[name]) for name, tensor in network.state_dict().items())


def test_a_baseline_that_encodes_images_does_more_operations_than_one_with_latents() -> None:
    bench = toy_bench()
    encoding, cached = (beside_baseline(bench, "plain", cached=cached) for cached in (False, True))
    assert encoding["baseline_gflop_per_sample"] > cached["baseline_gflop_per_sample"] > 0
    assert encoding["ratio"] == pytest.approx(encoding["baseline_ms"] / encoding["ms_per_step"], rel=0.01)


def test_where_the_baseline_runs_out_of_memory_ours_is_timed_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has networks of its own and decodes its whole batch: it needs more than we do, and beside it ours would not fit either."""
    theirs: list[weakref.ref[PublishedStep]] = []
    beside: list[bool] = []
    step = Distiller.step

    def full(self: PublishedStep, given: StepInputs) -> torch.Tensor:
        theirs.append(weakref.ref(self))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nof which 1 GiB is free")

    def ours(self: Distiller, number: int) -> dict[str, torch.Tensor]:
        beside.extend(each() is not None for each in theirs)
        return step(self, number)

    monkeypatch.setattr(PublishedStep, "step", full)
    monkeypatch.setattr(Distiller, "step", ours)
    found = beside_baseline(toy_bench(2), "plain")
    assert found["baseline_error"] == "CUDA out of memory. Tried to allocate 20 GiB."
    assert found["ms_per_step"] > 0
    assert "ratio" not in found
    assert beside
    assert not any(beside)
