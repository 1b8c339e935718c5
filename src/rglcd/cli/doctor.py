"""``rglcd doctor``: whether a cluster, or an object store, has what the first job needs."""

import argparse
from itertools import chain
from pathlib import Path
from typing import Any

from rglcd.cli.files import add_params_option
from rglcd.errors import InputError


def add_verb(verbs: Any) -> None:
    """``rglcd doctor``."""
    doctor = verbs.add_parser(
        "doctor",
        help="check a cluster or an object store before the first job",
        description="Look for what a job needs, say what to do about what is missing; ends with 2 if something is. Nothing is created in a "
        "cluster (with --pod one small pod, which is deleted again); in a store, one small object, which is removed again.",
    )
    add_params_option(doctor)
    looked_at = doctor.add_mutually_exclusive_group(required=True)
    looked_at.add_argument("--cluster", action="store_true", help="the cluster that KUBECONFIG names, as cluster.yaml uses it")
    looked_at.add_argument(
        "--store", nargs="?", const="", metavar="URL", help="an object store (s3://bucket/prefix; default: RGLCD_STORE, or cluster.yaml's)"
    )
    doctor.add_argument("--pod", action="store_true", help="with --cluster: also start a small pod, which looks at image, names and claim")
    doctor.set_defaults(act=_doctor)


def _doctor(options: argparse.Namespace) -> None:
    if options.pod and not options.cluster:
        raise InputError("--pod starts a pod in a cluster: say --cluster too")
    if options.cluster:
        _look_at_cluster(options)
    else:
        _look_at_store(options.store)


def _look_at_store(named: str) -> None:
    from rglcd.launch.settings import exporting_store, load_settings
    from rglcd.store.environment import store_in_force
    from rglcd.store.probe import probe

    with exporting_store(load_settings()):
        store = named or store_in_force()
    if not store or not store.startswith("s3://"):
        raise InputError("--store looks at an object store: name it (s3://bucket/prefix), or set RGLCD_STORE")
    able = probe(store)
    print(f"ok       {store} can be written to, and gives back what was written")
    print("ok       conditional put (If-None-Match)" if able.conditional_put else "MISSING  conditional put (If-None-Match)")
    print(
        f"{'ok' if able.checksums else 'note':8} checksums with what is sent (x-amz-checksum-*){'' if able.checksums else ' are refused'}"
    )
    print(f"{'ok' if able.deletes else 'note':8} {'' if able.deletes else 'no '}deleting, which `rglcd clean --store` needs")
    for line in able.shortcomings():
        print(f"         {line}")
    if not able.conditional_put:
        raise InputError(f"{store}: conditional put is missing, without which one process at a time may write there")


def _look_at_cluster(options: argparse.Namespace) -> None:
    from rglcd.cli.launch import completed
    from rglcd.config import load_params
    from rglcd.launch.cluster_checks import Asked, findings
    from rglcd.launch.cluster_client import cluster_client
    from rglcd.launch.cluster_trial import trial
    from rglcd.launch.resources import resources_of
    from rglcd.launch.settings import load_settings, placement_of
    from rglcd.stages.table import stages_of

    settings = completed(load_settings())
    stages = stages_of(load_params(Path(options.params), overrides=[]))
    asked = [
        Asked(stage, resources_of(stage.profile, settings.pool), placement_of(settings, stage=stage, request="doctor")) for stage in stages
    ]
    missing, api = 0, cluster_client(only_asks=True)
    for finding in chain(findings(api, asked), trial(api, asked[0].placement) if options.pod else ()):
        print(finding, flush=True)
        missing += finding.is_well is False
    if not options.pod:
        print("not looked at: names and the image from within a pod, the claim's owner (--pod does)")
    if missing:
        raise InputError(f"{missing} thing{'s are' if missing > 1 else ' is'} missing in the cluster; the lines above say what to do")
