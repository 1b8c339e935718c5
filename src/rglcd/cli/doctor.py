"""``rglcd doctor --cluster``: whether a cluster has what the first job needs."""

import argparse
from pathlib import Path
from typing import Any

from rglcd.cli.files import add_params_option
from rglcd.errors import InputError


def add_verb(verbs: Any) -> None:
    """``rglcd doctor``."""
    doctor = verbs.add_parser(
        "doctor",
        help="check a cluster before the first job",
        description="Look for what a job needs, create nothing, say what to do about what is missing; ends with 2 if something is.",
    )
    add_params_option(doctor)
    doctor.add_argument("--cluster", action="store_true", required=True, help="the cluster that KUBECONFIG names, as cluster.yaml uses it")
    doctor.set_defaults(act=_doctor)


def _doctor(options: argparse.Namespace) -> None:
    from rglcd.cli.launch import completed
    from rglcd.config import load_params
    from rglcd.launch.cluster_checks import Asked, findings
    from rglcd.launch.cluster_client import cluster_client
    from rglcd.launch.resources import resources_of
    from rglcd.launch.settings import load_settings, placement_of
    from rglcd.stages.table import stages_of

    settings = completed(load_settings())
    stages = stages_of(load_params(Path(options.params), overrides=[]))
    asked = [
        Asked(stage, resources_of(stage.profile, settings.pool), placement_of(settings, stage=stage, request="doctor")) for stage in stages
    ]
    missing = 0
    for finding in findings(cluster_client(only_asks=True), asked):
        print(finding, flush=True)
        missing += finding.is_well is False
    print("not looked at: names and the image from within a pod, the claim's owner, Kubeflow (docs/operations.md)")
    if missing:
        raise InputError(f"{missing} thing{'s are' if missing > 1 else ' is'} missing in the cluster; the lines above say what to do")
