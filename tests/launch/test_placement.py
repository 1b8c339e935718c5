"""The name of a job follows from its run alone."""

import re

import pytest

from rglcd.errors import InputError
from rglcd.launch.placement import Placement, job_name
from rglcd.stages.table import STAGES, stage_named

DISTILL = stage_named("distill")
IMAGE = "registry/train@sha256:" + "a" * 64


@pytest.mark.parametrize("run", ["No Name", "x" * 64, "-a", "a-", ""])
def test_run_id_that_kubernetes_would_refuse_in_a_name_is_refused(run: str) -> None:
    with pytest.raises(InputError, match="use at most 63 lower case letters"):
        Placement(run=run, image=IMAGE)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
@pytest.mark.parametrize("run", ["r", "0", "a" * 63, "3f2c1a9e-5b7d-4c2e-9f1a-0123456789ab"])
def test_job_name_with_volcanos_suffix_is_a_valid_host_name(stage, run: str) -> None:
    name = job_name(stage, Placement(run=run, image=IMAGE), attempt=99)
    pod = f"{name}-{stage.name}-15-0"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", pod)
    assert len(pod) <= 63


def test_long_run_ids_do_not_collide_in_job_names() -> None:
    names = {job_name(DISTILL, Placement(run="a" * 40 + end, image=IMAGE), attempt=1) for end in "xyz"}
    assert len(names) == 3
