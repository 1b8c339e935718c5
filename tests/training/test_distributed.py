"""The world size changes the speed, not the run: processes share a batch, and the weights are those of one process."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rglcd.config import Config
from rglcd.errors import InputError
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.stages.table import stage_named
from rglcd.training.distributed import World, join_world, unequal_work, waiting_at_most
from tests.tiny_line import tiny_config

CPU = torch.device("cpu")
PARTIAL = (
    "{kind: online, learning_rate: 1e-3, num_updates: 2, pairing: other_captions, real_image: privileged, "
    "labels: {kind: soft, logit_scale: 50}, trains: {kind: last, num_blocks: 0, text: stays}}"
)


@given(share=st.integers(1, 9), size=st.integers(1, 9))
def test_ranks_share_a_batch_out_evenly_in_order_and_whole(share: int, size: int) -> None:
    batch = list(range(share * size))
    rows = [batch[World(rank, size, CPU).rows(len(batch))] for rank in range(size)]
    assert {len(part) for part in rows} == {share}
    assert [row for part in rows for row in part] == batch


@given(batch_size=st.integers(1, 40), size=st.integers(2, 9))
def test_a_batch_that_cannot_be_shared_evenly_is_refused(batch_size: int, size: int) -> None:
    world = World(0, size, CPU)
    if batch_size % size == 0:
        assert world.rows(batch_size).start == 0
    else:
        with pytest.raises(InputError, match=f"batch size {batch_size} is not a multiple of the {size} processes"):
            world.rows(batch_size)


def test_a_single_process_is_a_world_of_one_without_communication() -> None:
    with join_world() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        module, value = torch.nn.Linear(2, 2), torch.tensor(3.0)
        assert world.wrap(module) is module
        assert world.mean(value) is value
        assert [world.any(flag) for flag in (False, True)] == [False, True]
        world.wait()


def ranks_that(work: Callable[[World], None]) -> list[int | None]:
    """The exit codes of two ranks, in forks, whose collective operations wait two seconds."""

    def rank(number: int, port: int) -> None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        with waiting_at_most(2), join_world() as world:
            work(world)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [multiprocessing.get_context("fork").Process(target=rank, args=(number, port)) for number in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


def late(world: World) -> None:
    time.sleep(6 * world.rank)


@pytest.mark.slow
def test_ranks_wait_for_the_slowest_after_unequal_work_and_for_nobody_else_so_long(capfd: pytest.CaptureFixture[str]) -> None:
    def wait_at_a_barrier(world: World) -> None:
        late(world)
        world.wait()

    def work_unequally(world: World) -> None:
        with unequal_work(world):
            late(world)
        world.wait()

    def work_too_unequally(world: World) -> None:
        with unequal_work(world, at_most=timedelta(seconds=1)):
            late(world)

    assert ranks_that(work_unequally) == [0, 0]
    assert 1 in ranks_that(wait_at_a_barrier), "the timeout is what it was set to"
    capfd.readouterr()
    assert 1 in ranks_that(work_too_unequally)
    assert "Ranks 1 failed to pass monitoredBarrier" in capfd.readouterr().err


def launch(name: str, line: Path, config: Config, folder: Path, *, num_processes: int) -> subprocess.CompletedProcess[str]:
    """The command of a job, by itself or under torchrun."""
    stage = stage_named(name)
    sections = {section: config.section(section).model_dump(mode="json") for section in stage.sections}
    made = [artifact for artifact in stage.inputs if artifact != "reward_model" or config.reward.kind == "latent"]
    artifacts = {artifact: line / artifact for artifact in made} | {stage.outputs[0]: folder}
    command = ["rglcd", "run", name, "--sections", json.dumps(sections)]
    for artifact, place in artifacts.items():
        command += ["--artifact", f"{artifact}={place}"]
    gang = ["rglcd.launch.process_group", "--nproc-per-node", str(num_processes), "--standalone", "-m"] if num_processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": str(folder.parent / "error.json")}
    return subprocess.run(
        [sys.executable, "-m", *gang, *command], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def curve_of(arm: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (arm / "curves.jsonl").read_text().splitlines()]


def weights_of(student: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.relative_to(student).as_posix(): load_file(path) for path in sorted(student.rglob("*.safetensors"))}


def assert_learnt_alike(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor], *, start: Mapping[str, torch.Tensor]) -> None:
    """What the network learnt is compared, not only where it ended, for a small step ends close anyway.

    Over the network, not tensor by tensor: AdamW makes every weight's step about as long, so where a gradient is the rounding of sums
    that cancel, another order of them turns the step round. How many such weights a tensor has depends on the processor. Weights
    themselves are rounded at each step, which beside a small step shows: the last digit of two weights may differ.
    """
    assert one.keys() == two.keys()
    learnt, apart, rounding = (
        torch.stack([norm_of(name) for name in one]).norm()
        for norm_of in (
            lambda name: (one[name] - start.get(name, torch.zeros_like(one[name]))).norm(),
            lambda name: (two[name] - one[name]).norm(),
            lambda name: torch.finfo(one[name].dtype).eps * one[name].norm(),
        )
    )
    assert apart <= 2e-3 * learnt + rounding, f"{apart / learnt:.1e} of what was learnt"


@pytest.mark.slow
@pytest.mark.parametrize(
    "reward",
    [
        pytest.param(("reward.kind=latent",), id="latent"),
        pytest.param((f"reward.tuning={PARTIAL}",), id="latent-partial-shuffled"),
        pytest.param(("reward={kind: pixel, weight: 1.0, chunk_size: 1}",), id="pixel"),
    ],
)
def test_two_processes_make_the_weights_that_one_makes(line: Path, tmp_path: Path, reward: tuple[str, ...]) -> None:
    """In float32, up to the order of sums: what was learnt is compared, not only where it ended, for a small step ends close anyway."""
    config = tiny_config(*reward, "distillation.learning_rate=1e-5")
    for num_processes in (1, 2):
        ran = launch("distill", line, config, tmp_path / str(num_processes) / "student", num_processes=num_processes)
        assert ran.returncode == 0, ran.stderr[-3000:]
        assert ran.stdout.count("distill: done") == 1, "one rank speaks for all"
    alone, together = (weights_of(tmp_path / str(number) / "student") for number in (1, 2))
    assert alone.keys() == together.keys()
    assert any("rg/unet" in name for name in alone)
    starts = {"unet": line / "pretrained" / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"}
    starts["reward_model"] = line / "reward_model" / "model.safetensors"
    for name, tensors in alone.items():
        part = Path(name).parent.name
        if part in starts:
            assert_learnt_alike(tensors, together[name], start=load_file(starts[part]))
        else:
            assert all(torch.equal(together[name][tensor], value) for tensor, value in tensors.items()), name
    for arm in ("lcm", "rg"):
        rows, others = (curve_of(tmp_path / str(number) / "student" / arm) for number in (1, 2))
        assert others == [pytest.approx(row, rel=1e-5) for row in rows]
    assert [path.name for path in (tmp_path / "2" / ".work").iterdir()] == ["student.moving"], "a lock, and nothing else, is left"


ICT = (
    "distillation.target={kind: stop_gradient, evaluation_decay: 0.9}",
    "distillation.timesteps={kind: lognormal}",
    "distillation.dropout=0.2",
)


def run_in_float64(line: Path, file: Path, overrides: tuple[str, ...], *, num_processes: int) -> dict[str, torch.Tensor]:
    """What three steps of some processes make."""
    gang = ["rglcd.launch.process_group", "--nproc-per-node", str(num_processes), "--standalone", "-m"]
    command = [sys.executable, "-m", *gang, "tests.training.double_precision", str(line), str(file), *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHELASTIC_ERROR_FILE": str(file.parent / "error.json")}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return load_file(file)


def assert_equal_to_the_tenth_digit(alone: Mapping[str, torch.Tensor], together: Mapping[str, torch.Tensor]) -> None:
    """Student, average and figures."""
    assert alone.keys() == together.keys()
    for part in ("student", "average", "figures"):
        names = [name for name in alone if name.startswith(f"{part}/")]
        assert names
        for name in names:
            one, two = alone[name].double(), together[name].double()
            assert (two - one).norm() <= 1e-10 * one.norm(), name


FLOAT64_RUNS = [
    pytest.param(("reward={kind: none}", *ICT), id="iCT"),
    pytest.param(("reward={kind: pixel, chunk_size: 1, prediction: {kind: own, every: 2}}",), id="pixel"),
    pytest.param((), id="latent"),
    pytest.param(("distillation.student={kind: lora, rank: 2, alpha: 4, targets: [to_q, conv1]}",), id="adapter"),
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", FLOAT64_RUNS)
def test_in_float64_two_processes_learn_what_one_learns_to_the_tenth_digit(line: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Three steps, of which each but the first rests on what the one before taught student, average, optimiser and proxy."""
    alone, together = (run_in_float64(line, tmp_path / f"{number}.safetensors", overrides, num_processes=number) for number in (1, 2))
    assert_equal_to_the_tenth_digit(alone, together)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", FLOAT64_RUNS)
def test_two_processes_with_micro_batches_learn_what_one_learns_without(line: Path, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Gradients are averaged over the ranks once a step, when all micro-batches are added up; activations are recomputed."""
    settings = (*overrides, "distillation.batch_size=8")
    cut = (*settings, "distillation.micro_batch=2", "distillation.activations=recomputed")
    alone = run_in_float64(line, tmp_path / "whole.safetensors", settings, num_processes=1)
    assert_equal_to_the_tenth_digit(alone, run_in_float64(line, tmp_path / "cut.safetensors", cut, num_processes=2))


@pytest.mark.slow
def test_a_contrast_over_two_ranks_has_the_gradients_of_one(tmp_path: Path) -> None:
    """In float64, to rounding: each rank's own, averaged as those of any loss, are the whole batch's."""
    for number in (1, 2):
        gang = ["rglcd.launch.process_group", "--nproc-per-node", str(number), "--standalone", "-m"]
        words = [sys.executable, "-m", *gang, "tests.training.contrast_on_ranks", str(tmp_path)]
        subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=300)
    alone, *ranks = (load_file(tmp_path / f"{name}.safetensors") for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert {tensor.dtype for tensor in alone.values()} == {torch.float64}
    for name, gradient in alone.items():
        for rank in ranks:
            torch.testing.assert_close(rank[name], gradient, rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.slow
def test_gradients_are_averaged_in_the_precision_and_the_buckets_asked_for(tmp_path: Path) -> None:
    """Halved, they are rounded to eight bits, and still the same on every rank. A compiled network has large buckets."""
    for number in (1, 2):
        gang = ["rglcd.launch.process_group", "--nproc-per-node", str(number), "--standalone", "-m"]
        words = [sys.executable, "-m", *gang, "tests.training.average_on_ranks", str(tmp_path)]
        subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=300)
    alone, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("0-of-1", "0-of-2", "1-of-2"))
    torch.testing.assert_close(first["full"], alone["full"], rtol=1e-5, atol=1e-6)
    assert torch.equal(first["halved"], first["halved"].bfloat16().float())
    assert not torch.equal(first["full"], first["full"].bfloat16().float())
    assert (first["halved"] - alone["full"]).norm() < 2**-7 * alone["full"].norm()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["bucket_mib"].tolist() == [25, 256]


@pytest.mark.slow
def test_pretraining_learns_the_same_however_many_ranks_do_it(line: Path, tmp_path: Path) -> None:
    """Each rank embeds its share, and the contrast is between all captions of the batch."""
    ran = launch("pretrain", line, tiny_config(), tmp_path / "reward_model", num_processes=2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    alone, together = (load_file(folder / "reward_model" / "model.safetensors") for folder in (line, tmp_path))
    start = LatentRewardModel.at_random(LatentRewardModel.load(tmp_path / "reward_model", device=CPU).shape, seed=0).state_dict()
    assert_learnt_alike(alone, together, start=start)
    rows, others = (curve_of(folder / "reward_model") for folder in (line, tmp_path))
    assert others == [pytest.approx(row, rel=1e-4) for row in rows]
    assert not list((tmp_path / "reward_model").glob(".*"))


@pytest.mark.slow
def test_a_batch_that_two_processes_cannot_share_is_refused(line: Path, tmp_path: Path) -> None:
    ran = launch("distill", line, tiny_config("distillation.batch_size=3"), tmp_path / "made", num_processes=2)
    assert ran.returncode == InputError.exit_code
    assert "batch size 3 is not a multiple of the 2 processes that share it" in (tmp_path / "error.json").read_text()
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_a_cache_is_the_same_however_many_ranks_make_it(line: Path, tmp_path: Path) -> None:
    ran = launch("cache", line, tiny_config(), tmp_path / "latents", num_processes=2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    made, alone = (
        {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} for folder in (tmp_path / "latents", line / "latents")
    )
    assert len(made) > 1, "each rank had something to do"
    assert made == alone
