"""A batch cut into micro-batches is the batch, and recomputed activations are those that were not kept."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rglcd.config import load_preset
from rglcd.core.consistency import BoundaryScalings
from rglcd.errors import InputError
from rglcd.models.dropout import SampleDropout
from rglcd.stages.assembly import make_recipe
from rglcd.training.distiller import _cut
from rglcd.training.distributed import World, accumulated, micro_batches
from rglcd.training.reward_guidance import LatentRewardGuidance
from tests.tiny_line import tiny_config
from tests.training.conftest import materials_of
from tests.training.double_precision import DoubleDistiller, double_distiller
from tests.training.test_distiller import distiller_of
from tests.training.test_exactness import ICT, SETTINGS

ALONE = World(0, 1, torch.device("cpu"))
PROXY = "{kind: online, learning_rate: 1e-3, label_every: 2, num_updates: 2, real_image: privileged, pairing: %s}"
MODES = {
    **SETTINGS,
    "online proxy": (),
    "online proxy, other captions": (f"reward.tuning={PROXY % 'other_captions'}",),
    "online proxy, other images, own prediction": (f"reward.tuning={PROXY % 'other_images'}", "reward.prediction={kind: own}"),
    "adapter": ("distillation.student={kind: lora, rank: 2, alpha: 4, targets: [to_q, conv1]}",),
    "iCT, pixel, own prediction": (
        "reward={kind: pixel, weight: 2.0, prediction: {kind: own, every: 2}}",
        "distillation.grid={kind: doubling, start: 10, end: 40}",
        *ICT,
    ),
}


def three_steps(line: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """Everything that three steps in float64 make: figures, weights, averages, the optimiser's state."""
    config = tiny_config("distillation.batch_size=8", *overrides)
    distiller = double_distiller(DoubleDistiller, materials_of(line, config), config, world=ALONE)
    made = {f"figures/{step}/{name}": value for step in range(3) for name, value in distiller.step(step).items()}
    return made | {f"{part}/{name}": tensor.detach() for part, tensors in distiller.parts().items() for name, tensor in tensors.items()}


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_are_the_whole_batch_to_the_tenth_digit(line: Path, mode: str) -> None:
    """Three steps, of which each but the first rests on what the one before taught student, average, optimiser and proxy."""
    whole = three_steps(line, *MODES[mode])
    cut = three_steps(line, *MODES[mode], "distillation.micro_batch=2")
    assert cut.keys() == whole.keys()
    for name, tensor in whole.items():
        assert (cut[name] - tensor).norm() <= 1e-10 * tensor.norm() + 1e-13, name


@pytest.mark.parametrize("mode", ["the paper's", "pixel", "online proxy"])
def test_a_micro_batch_of_the_whole_batch_has_the_bits_of_none(line: Path, mode: str) -> None:
    whole, same = (three_steps(line, *MODES[mode], f"distillation.micro_batch={size}") for size in ("null", 8))
    assert all(torch.equal(same[name], tensor) for name, tensor in whole.items())


def test_no_network_that_trains_sees_more_than_a_micro_batch(line: Path) -> None:
    distiller = distiller_of(line, tiny_config().reward, "distillation.batch_size=8", "distillation.micro_batch=2")
    guidance = distiller.reward_guidance
    assert isinstance(guidance, LatentRewardGuidance)
    seen: dict[str, list[int]] = {"student": [], "target": [], "proxy": []}
    for name, network in (("student", distiller.student.unet), ("target", distiller.target.unet), ("proxy", guidance.model)):
        network.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(len(given[0])))
    distiller.step(0)
    # Of the proxy's rows three are of one caption.
    assert seen == {"student": [2] * 4, "target": [2] * 4, "proxy": [6] * 4}


def test_micro_batches_are_all_rows_in_order() -> None:
    assert micro_batches(6, None) == [slice(0, 6)]
    assert micro_batches(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(accumulated(nn.Linear(1, 1), micro_batches(5, 2))) == micro_batches(5, 2)


LEFT: list[object] = []
"""Groups outlive their networks: see rglcd.training.distributed."""


def test_ranks_average_their_gradients_once_a_step() -> None:
    """A group of one, whose reductions are counted: the last micro-batch's alone, of the sum of all."""
    reduced: list[torch.Tensor] = []

    def hook(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        reduced.append(bucket.buffer().clone())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        network = DistributedDataParallel(nn.Linear(1, 1, bias=False), gradient_as_bucket_view=True)
        network.register_comm_hook(None, hook)
        rows = torch.tensor([[1.0], [2.0], [4.0]])
        for part in accumulated(network, micro_batches(len(rows), 1)):
            network(rows[part]).sum().backward()
        assert [buffer.tolist() for buffer in reduced] == [[7.0]]
    finally:
        LEFT.append(dist.group.WORLD)
        dist.destroy_process_group()


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("distillation.micro_batch=3",), "micro_batch 3 does not divide batch_size 16"),
        (("distillation.micro_batch=0",), r"distillation\.micro_batch"),
        (
            ("distillation.micro_batch=2", "reward.prediction={kind: shared, every: 4}"),
            r"reward\.prediction\.every 4 does not divide distillation\.micro_batch 2",
        ),
        (("distillation.activations=dropped",), r"distillation\.activations"),
    ],
)
def test_a_micro_batch_that_arithmetic_forbids_is_refused_by_the_configuration(overrides: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_preset("toy", overrides=overrides)


def test_samples_of_a_process_that_micro_batches_cannot_share_are_refused(line: Path) -> None:
    config = tiny_config("reward={kind: none}", "distillation.batch_size=24", "distillation.micro_batch=4")
    quarter = World(0, 4, torch.device("cpu"))
    with pytest.raises(InputError, match=r"distillation\.micro_batch 4 does not divide the 6 samples of a process"):
        double_distiller(DoubleDistiller, materials_of(line, config), config, world=quarter)


def test_processes_so_many_that_each_has_less_than_a_micro_batch_have_one(line: Path) -> None:
    """More GPUs are no reason to change the run's settings."""
    config = tiny_config("reward={kind: none}", "distillation.batch_size=8", "distillation.micro_batch=4")
    assert _cut(2, make_recipe(materials_of(line, config), config.reward, num_steps=4, scalings=BoundaryScalings())) == [slice(0, 2)]


# --- recomputed activations ----------------------------------------------------------------------

BFLOAT16 = "distillation.precision=bfloat16"
RECOMPUTED = {
    "plain": SETTINGS["the paper's"],
    "plain in bfloat16": (*SETTINGS["the paper's"], BFLOAT16),
    "iCT": SETTINGS["iCT"],
    "pixel": SETTINGS["pixel"],
    "pixel, its own, dropout": MODES["iCT, pixel, own prediction"],
    "pixel, its own, dropout, in bfloat16 and micro-batches": (
        *MODES["iCT, pixel, own prediction"],
        BFLOAT16,
        "distillation.micro_batch=2",
    ),
    "online proxy": (),
    "adapter": MODES["adapter"],
    "adapter in bfloat16": (*MODES["adapter"], BFLOAT16),
}


@pytest.mark.parametrize("mode", RECOMPUTED)
def test_recomputed_activations_change_no_bit(line: Path, mode: str) -> None:
    made = []
    for activations in ("kept", "recomputed"):
        overrides = (*RECOMPUTED[mode], f"distillation.activations={activations}")
        distiller = distiller_of(line, tiny_config(*overrides).reward, *overrides)
        figures = [distiller.step(step) for step in range(2)]
        made.append({f"{step}/{name}": value for step, row in enumerate(figures) for name, value in row.items()})
        made[-1] |= {f"{part}/{name}": tensor for part, tensors in distiller.parts().items() for name, tensor in tensors.items()}
    kept, recomputed = made
    assert recomputed.keys() == kept.keys()
    assert [name for name, tensor in kept.items() if not torch.equal(recomputed[name], tensor)] == []


class Saved:
    """Bytes that a graph keeps for its backward pass."""

    def __init__(self) -> None:
        self.tensors: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors[tensor.data_ptr()] = tensor.nbytes
        return tensor


def test_only_the_student_recomputes_and_keeps_less(line: Path) -> None:
    kept, recomputed = (
        distiller_of(line, tiny_config("reward={kind: none}").reward, f"distillation.activations={choice}")
        for choice in ("kept", "recomputed")
    )
    assert recomputed.student.unet.is_gradient_checkpointing
    assert not recomputed.target.unet.is_gradient_checkpointing
    assert not recomputed.teacher.unet.is_gradient_checkpointing
    bytes_kept = []
    for distiller in (kept, recomputed):
        saved, batch = Saved(), distiller._batch(0)
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            distiller.student(batch.z0, torch.full((4,), 499), batch.draws.omega, batch.cond)
        bytes_kept.append(sum(saved.tensors.values()))
    assert bytes_kept[1] < 0.7 * bytes_kept[0]


def test_recomputation_runs_the_students_blocks_once_more(line: Path) -> None:
    overrides = ("reward={kind: none}", "distillation.dropout=0.3", "distillation.activations=recomputed")
    distiller = distiller_of(line, tiny_config(*overrides).reward, *overrides)
    block = next(module for module in distiller.student.unet.modules() if isinstance(module, SampleDropout))
    calls: list[int] = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    distiller.step(0)
    assert len(calls) == 2


@pytest.mark.slow
def test_a_compiled_step_may_recompute_and_take_micro_batches(line: Path) -> None:
    """Traced as a whole, recomputation and dropout included; the code generator that follows is torch's."""
    overrides = ("reward={kind: none}", "distillation.dropout=0.2")
    cut = ("distillation.activations=recomputed", "distillation.micro_batch=2")
    reward = tiny_config(*overrides).reward
    eager, compiled = distiller_of(line, reward, *overrides), distiller_of(line, reward, *overrides, *cut)
    compiled.student.unet.compile(backend="aot_eager", fullgraph=True)
    for step in range(2):
        ours, theirs = eager.step(step), compiled.step(step)
        for name, figure in ours.items():
            torch.testing.assert_close(theirs[name], figure, rtol=1e-3, atol=1e-5)
