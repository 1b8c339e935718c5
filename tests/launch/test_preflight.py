"""What a machine is asked before a job begins on it."""

import json
from pathlib import Path

import pytest
import torch

from rglcd.launch import preflight as checks
from rglcd.launch.failure import JobError
from rglcd.launch.preflight import preflight
from rglcd.store.artifacts import ArtifactLocation
from rglcd.training.distributed import waiting_at_most


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The GPUs, of eight that this machine has not, on which something was computed."""
    devices: list[str] = []
    ones = torch.ones

    def noted(*shape: int, device: str) -> torch.Tensor:
        devices.append(device)
        return ones(*shape)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch, "ones", noted)
    return devices


def check(folder: Path, *, gpus: int) -> dict[str, float]:
    return preflight(json.dumps({"gpus": gpus, "shared_memory_gib": 0}), output=ArtifactLocation(folder / "student", None))


@pytest.mark.parametrize("rank", [0, 3, 7])
def test_a_rank_computes_on_its_own_gpu_and_on_no_other(
    touched: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert check(tmp_path, gpus=8)["gpus"] == 8
    assert touched == [f"cuda:{rank}"]


def test_a_gpu_that_fails_is_the_machines_fault_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_shape: int, device: str) -> torch.Tensor:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", broken)
    with pytest.raises(JobError, match=r"^preflight: GPU 1 computes nothing: CUDA error: uncorrectable ECC error encountered$") as refused:
        check(tmp_path, gpus=2)
    assert refused.value.exit_code == checks.EXIT_CODE


def test_a_rank_whose_peers_do_not_come_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks meet on a store of torchrun's, here one that no other rank comes to."""
    agent = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in {**there, "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    with waiting_at_most(1), pytest.raises(JobError, match=r"^preflight: the ranks cannot reduce together: .+$") as refused:
        check(tmp_path, gpus=0)
    assert refused.value.exit_code == checks.EXIT_CODE


def test_fewer_gpus_than_promised_are_refused(touched: list[str], tmp_path: Path) -> None:
    with pytest.raises(JobError, match="preflight: 9 GPUs were promised, 8 are here") as refused:
        check(tmp_path, gpus=9)
    assert refused.value.exit_code == checks.EXIT_CODE
    assert touched == []
