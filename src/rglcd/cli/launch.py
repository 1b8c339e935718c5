"""``rglcd launch``: one stage as a job in a cluster."""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from rglcd.cli.files import IMAGES, add_params_option, add_set_option
from rglcd.config import load_params
from rglcd.errors import InputError
from rglcd.stages.table import SOURCE, STAGES, inputs_of, stage_named, stages_of

_MOUNT = Path("/store")
"""Where pods mount the claim of the artifacts, or of unfinished work where those lie in an object store."""


def add_verb(verbs: Any) -> None:
    """``rglcd launch STAGE``."""
    launch = verbs.add_parser(
        "launch",
        help="run one stage as a job in a Kubernetes cluster with Volcano",
        description="Submit one stage as a Volcano Job, follow its log and progress, and end as it ends. Killed and started again, it "
        "follows the same job; interrupted, it deletes the job, whose pods save their state. The rest of where and how: RGLCD_* "
        "variables (docs/operations.md).",
    )
    launch.add_argument("stage", choices=[stage.name for stage in STAGES], metavar="STAGE", help="shard, cache, distill, ...")
    add_params_option(launch)
    add_set_option(launch)
    launch.add_argument(
        "--store", default=str(_MOUNT), metavar="WHERE", help=f"where the pods find the artifacts: a folder (default: {_MOUNT}) or a URL"
    )
    launch.add_argument(
        "--claim", default="rglcd-store", metavar="NAME", help=f"the volume claim mounted there, or at {_MOUNT} (default: rglcd-store)"
    )
    launch.add_argument("--source", metavar="WHERE", help="where the pods find the source (default: STORE/data)")
    launch.add_argument("--image", help="what the pods run, by digest (default: train in images/lock.yaml)")
    launch.add_argument("--run", help="the run's id (default: a digest of what the stage is asked)")
    launch.add_argument("--nodes", type=int, metavar="N", help="nodes of a gang (default: 1)")
    launch.add_argument("--dry-run", action="store_true", help="print the job as YAML, for `kubectl apply -f -`, and do nothing")
    launch.set_defaults(act=_launch)


def _launch(options: argparse.Namespace) -> None:
    from rglcd.launch.cluster_job import job_manifest, launch
    from rglcd.launch.progress_display import drawing
    from rglcd.progress import reporting_to

    stage, config = stage_named(options.stage), load_params(options.params, overrides=options.set)
    if stage not in stages_of(config):
        raise InputError(f"{stage.name} does not run with reward.kind {config.reward.kind}")
    names = (*inputs_of(stage, config), *stage.outputs)
    request: dict[str, Any] = {
        "sections": {name: config.section(name) for name in stage.sections},
        "artifacts": {name: _place_in_cluster(name, options) for name in names},
        "variables": _variables(options),
    }
    if options.dry_run:
        print(yaml.safe_dump(job_manifest(stage.name, **request), sort_keys=False, width=110), end="")
        return
    with drawing(sys.stderr) as sink, reporting_to(sink):
        launch(stage.name, **request)
    print(f"{stage.name}: done; {_place_in_cluster(stage.outputs[0], options)}")


def _place_in_cluster(artifact: str, options: argparse.Namespace) -> Path | str:
    from rglcd.launch.artifact_reference import artifact_location
    from rglcd.store.files import is_remote

    if artifact != SOURCE:
        return artifact_location(options.store, artifact)
    if options.source is None:
        return artifact_location(options.store, "data")
    return options.source if is_remote(options.source) else Path(options.source)


def _variables(options: argparse.Namespace) -> dict[str, str]:
    """What the options say, as the environment would."""
    from rglcd.store.files import is_remote

    said = {
        "RGLCD_IMAGE": options.image or _locked_image(),
        "RGLCD_RUN": options.run,
        "RGLCD_NUM_NODES": str(options.nodes) if options.nodes is not None else None,
        "RGLCD_STORE_CLAIM": f"{options.claim}={_MOUNT if is_remote(options.store) else options.store}",
    }
    return {name: value for name, value in said.items() if value is not None}


def _locked_image() -> str | None:
    if not IMAGES.is_file():
        return None
    image: str | None = yaml.safe_load(IMAGES.read_text(encoding="utf-8")).get("train")
    return image
