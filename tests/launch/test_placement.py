"""Where a job runs is read from the environment once, and a name follows from the run alone."""

import re

import pytest

from rglcd.errors import InputError
from rglcd.launch.placement import Accelerators, Owner, Placement, job_name, placement_from
from rglcd.stages.table import STAGES, stage_named

DISTILL, EVALUATE = stage_named("distill"), stage_named("evaluate")
IMAGE = "registry/train@sha256:" + "a" * 64


def test_what_the_environment_leaves_out_is_the_default() -> None:
    placement = placement_from({"RGLCD_IMAGE": IMAGE}, stage=DISTILL, request={})
    expected = Placement(run=placement.run, image=IMAGE, processes_per_node=8, provenance={"image": "sha256:" + "a" * 64})
    assert placement == expected


def test_what_the_environment_says_is_taken() -> None:
    environment = {
        "RGLCD_IMAGE": IMAGE,
        "RGLCD_RUN": "r1",
        "RGLCD_NAMESPACE": "elsewhere",
        "RGLCD_NUM_NODES": "2",
        "RGLCD_NUM_PROCESSES": "4",
        "RGLCD_STORE_CLAIM": "claim=/mnt/x",
        "RGLCD_GRACE_SECONDS": "60",
        "RGLCD_LAUNCHER_NAME": "pod-1",
        "RGLCD_LAUNCHER_UID": "u-1",
        "RGLCD_ACCELERATORS": "simulated",
        "RGLCD_HAND_ON": "AWS_ENDPOINT_URL,NOT_SET",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "RGLCD_GIT_COMMIT": "abc",
        "RGLCD_STORE": "s3://bucket/run",
        "RGLCD_DEVICES": "vpc.amazonaws.com/efa=4,hugepages-2Mi=5120Mi",
        "RGLCD_PATIENCE": "60",
    }
    placement = placement_from(environment, stage=DISTILL, request={})
    assert (placement.run, placement.namespace, placement.num_nodes, placement.processes_per_node) == ("r1", "elsewhere", 2, 4)
    assert (placement.store, placement.grace_seconds) == (("/mnt/x", "claim"), 60)
    assert (placement.owner, placement.accelerators) == (Owner("pod-1", "u-1"), Accelerators.SIMULATED)
    assert placement.environment == {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    assert placement.provenance["git-commit"] == "abc"
    assert (placement.object_store, placement.patience_seconds) == ("s3://bucket/run", 60)
    assert placement.devices == {"vpc.amazonaws.com/efa": "4", "hugepages-2Mi": "5120Mi"}


def test_only_a_gang_has_several_nodes_and_a_network_between_them() -> None:
    environment = {"RGLCD_IMAGE": IMAGE, "RGLCD_NUM_NODES": "2", "RGLCD_DEVICES": "vpc.amazonaws.com/efa=4"}
    placement = placement_from(environment, stage=EVALUATE, request={})
    assert (placement.num_nodes, placement.devices) == (1, {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RGLCD_IMAGE", ""),
        ("RGLCD_NUM_NODES", "none"),
        ("RGLCD_QUEUE_SECONDS", "0"),
        ("RGLCD_STORE_CLAIM", "claim"),
        ("RGLCD_STORE_CLAIM", "claim=relative"),
        ("RGLCD_RUN", "No Name"),
        ("RGLCD_RUN", "x" * 64),
        ("RGLCD_ACCELERATORS", "imagined"),
        ("RGLCD_DEVICES", "vpc.amazonaws.com/efa"),
        ("RGLCD_DEVICES", "=4"),
        ("RGLCD_PATIENCE", "0"),
    ],
)
def test_a_wrong_word_is_refused(variable: str, value: str) -> None:
    with pytest.raises(InputError):
        placement_from({"RGLCD_IMAGE": IMAGE, variable: value}, stage=DISTILL, request={})


def test_the_same_request_is_the_same_run_and_another_is_another() -> None:
    runs = [placement_from({"RGLCD_IMAGE": IMAGE}, stage=DISTILL, request=request).run for request in ({"a": 1}, {"a": 1}, {"a": 2})]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
@pytest.mark.parametrize("run", ["r", "0", "a" * 63, "3f2c1a9e-5b7d-4c2e-9f1a-0123456789ab"])
def test_names_with_volcano_s_suffix_are_host_names(stage, run: str) -> None:
    name = job_name(stage, Placement(run=run, image=IMAGE), attempt=99)
    pod = f"{name}-{stage.name}-15-0"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", pod)
    assert len(pod) <= 63


def test_long_runs_do_not_collide() -> None:
    names = {job_name(DISTILL, Placement(run="a" * 40 + end, image=IMAGE), attempt=1) for end in "xyz"}
    assert len(names) == 3
