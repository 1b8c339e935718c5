"""The micro preset by command line, DVC and Kubeflow's local runner: the same digests, and each reuses the others' results."""

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end.conftest import ARTIFACTS, Checkout

pytestmark = pytest.mark.slow


def test_dvc_repro_gives_the_digests_of_the_command_line(checkout: Checkout, unbroken: Checkout) -> None:
    made = checkout.run("dvc", "repro")
    assert made.returncode == 0, made.stderr
    assert checkout.digests() == unbroken.digests()
    assert "Data and pipelines are up to date" in checkout.run("dvc", "repro").stdout

    shown = checkout.run("dvc", "metrics", "show").stdout
    assert "checker" in shown
    plots = checkout.run("dvc", "plots", "show", "--json")
    assert plots.returncode == 0, plots.stderr
    assert "judge by number of steps" in plots.stdout

    checkout.run("rglcd", "config", "use", "micro", "--set", "reward.weight=3.0")
    status = checkout.run("dvc", "status").stdout
    # The new weight concerns distill; what it will make is what evaluate reads.
    assert "distill" in status
    assert not any(stage in status for stage in ("shard", "prepare", "cache", "pretrain"))


def test_kubeflow_run_gives_the_digests_of_the_command_line_and_dvc_adopts_it(checkout: Checkout, unbroken: Checkout) -> None:
    made = checkout.run("python", "-m", "pipelines", "run")
    assert made.returncode == 0, made.stderr
    assert checkout.digests() == unbroken.digests()

    again = checkout.run("python", "-m", "pipelines", "run")
    assert again.returncode == 0, again.stderr
    assert "distill" not in again.stderr  # nobody reports progress where there is nothing to do

    adopted = checkout.run("rglcd", "adopt")
    assert adopted.returncode == 0, adopted.stderr
    again = checkout.run("dvc", "repro")
    assert again.returncode == 0, again.stderr
    assert "Running stage" not in again.stdout


def test_new_reward_weight_reruns_only_the_guided_arm_and_the_evaluation(checkout: Checkout) -> None:
    first = checkout.run("rglcd", "run", "all")
    assert first.returncode == 0, first.stderr
    before = checkout.digests()
    second = checkout.run("rglcd", "run", "all", "--set", "reward.weight=3.0")
    assert second.returncode == 0, second.stderr
    assert [line.split(":")[0] for line in second.stdout.splitlines() if "nothing to do" not in line] == ["distill", "evaluate"]
    assert "distill rg" in second.stderr
    assert "distill lcm" not in second.stderr
    assert {name for name in ARTIFACTS if checkout.digests()[name] != before[name]} == {"student", "report"}


def test_two_processes_under_torchx_train_the_same_student(checkout: Checkout, unbroken: Checkout) -> None:
    for name in ("shards", "pretrained", "latents", "reward_model"):
        (checkout.root / "artifacts").mkdir(exist_ok=True)
        (checkout.root / "artifacts" / name).symlink_to(unbroken.root / "artifacts" / name)
    done = checkout.run("rglcd", "run", "distill", env={"RGLCD_RUNTIME": "torchx:local_cwd", "RGLCD_NUM_PROCESSES": "2"})
    assert done.returncode == 0, done.stderr
    for arm in ("lcm", "rg"):
        folders = [at.root / "artifacts/student" / arm / "unet/diffusion_pytorch_model.safetensors" for at in (checkout, unbroken)]
        two, one = (torch.cat([tensor.flatten() for tensor in load_file(path).values()]) for path in folders)
        assert (two - one).norm() <= 1e-5 * one.norm(), arm
