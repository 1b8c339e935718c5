"""``rglcd launch``: one stage as a job in a cluster."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rglcd.cli.files import IMAGES, add_params_option, add_set_option, load_params_for
from rglcd.config import Config
from rglcd.errors import InputError
from rglcd.stages.required_files import require_files, source_at_hand, warn_of_downloads_no_pod_keeps, warn_of_models_no_pod_sees
from rglcd.stages.table import SOURCE, STAGES, Stage, inputs_of, stage_named, stages_of

if TYPE_CHECKING:
    from rglcd.launch.settings import ClusterSettings

_MOUNT = "/store"
"""Where pods mount the claim of the artifacts, or of unfinished work where those lie in an object store."""
_CLAIM = "rglcd-store"


def add_verb(verbs: Any) -> None:
    """``rglcd launch STAGE``."""
    launch = verbs.add_parser(
        "launch",
        help="run one stage as a job in a Kubernetes cluster with Volcano",
        description="Submit one stage as a Volcano Job, follow its log and progress, and end as it ends. Killed and started again, it "
        "follows the same job; interrupted, it deletes the job, whose pods save their state. The rest of where and how: cluster.yaml, "
        "and RGLCD_* variables that override it (manifests/cluster.example.yaml explains both).",
    )
    names = [stage.name for stage in STAGES]
    launch.add_argument("stage", nargs="?", choices=names, metavar="STAGE", help="shard, cache, distill, ...")
    add_params_option(launch)
    add_set_option(launch)
    launch.add_argument(
        "--store", metavar="WHERE", help=f"where the pods find the artifacts: a folder (default: store_claim's, or {_MOUNT}) or a URL"
    )
    launch.add_argument(
        "--claim", metavar="NAME", help=f"the volume claim mounted there, or at {_MOUNT} (default: store_claim's, or {_CLAIM})"
    )
    launch.add_argument("--source", metavar="WHERE", help="where the pods find the source (default: STORE/data)")
    launch.add_argument("--image", help="what the pods run, by digest (default: the settings' image, or train in images/lock.yaml)")
    launch.add_argument("--run", help="the run's id (default: a digest of what the stage is asked)")
    launch.add_argument("--nodes", type=int, metavar="N", help="nodes of distill (default: 1)")
    launch.add_argument("--no-plan", action="store_true", help="submit even what `rglcd plan` says cannot fit on the GPUs")
    launch.add_argument("--dry-run", action="store_true", help="print the job as YAML, for `kubectl apply -f -`, and do nothing")
    launch.add_argument(
        "--show-settings", action="store_true", help="print the settings in force and where each comes from, and do nothing"
    )
    launch.set_defaults(act=_launch)


def _launch(options: argparse.Namespace) -> None:
    from rglcd.launch.settings import load_settings, shown

    given = _given(options, load_settings())
    settings = completed(load_settings(**given))
    if options.show_settings:
        print(shown(settings, **given), end="")
        return
    if options.stage is None:
        raise InputError("the following arguments are required: STAGE (see: rglcd launch --help)")
    _launch_stage(stage_named(options.stage), settings, options)


def _launch_stage(stage: Stage, settings: "ClusterSettings", options: argparse.Namespace) -> None:
    from rglcd.launch.cluster_job import job_manifest, launch
    from rglcd.launch.progress_display import drawing
    from rglcd.launch.provenance import with_provenance
    from rglcd.launch.released_image import require_published, warn_unless_published
    from rglcd.progress import reporting_to

    settings = with_provenance(settings)
    config = load_params_for(stage, options.params, overrides=options.set)
    if stage not in stages_of(config):
        raise InputError(f"{stage.name} does not run with reward.kind {config.reward.kind}")
    artifacts = {name: _location(name, settings, options) for name in (*inputs_of(stage, config), *stage.outputs)}
    require_files(config, [stage], source=source_at_hand(Path(), artifacts.get(SOURCE)), in_pods=True)
    warn_of_models_no_pod_sees(config, [stage])
    warn_of_downloads_no_pod_keeps(config, [stage])
    sections = {name: config.section(name) for name in stage.sections}
    if options.dry_run:
        warn_unless_published(settings.image)
        job = job_manifest(stage.name, sections=sections, artifacts=artifacts, settings=settings)
        print(yaml.safe_dump(job, sort_keys=False, width=110), end="")
        return
    require_published(settings.image)
    if not options.no_plan:
        _require_fit(config, stage, settings)
    with drawing(sys.stderr) as sink, reporting_to(sink):
        launch(stage.name, sections=sections, artifacts=artifacts, settings=settings)
    print(f"{stage.name}: done; {artifacts[stage.outputs[0]]}")


def _require_fit(config: Config, stage: Stage, settings: "ClusterSettings") -> None:
    from rglcd.launch.resources import resources_of
    from rglcd.planning.check import Nodes, refuse_what_cannot_fit

    if settings.gpus == 0:
        return
    num_training = settings.num_nodes * resources_of(stage.profile, settings.pool).gpus if stage.name == "distill" else None
    refuse_what_cannot_fit(config, Nodes(settings.gpu_label, num_training), stage=stage.name)


def _location(artifact: str, settings: "ClusterSettings", options: argparse.Namespace) -> Path | str:
    from rglcd.launch.artifact_reference import artifact_location
    from rglcd.store.files import is_remote

    path, _ = settings.volume or (_MOUNT, _CLAIM)
    store = options.store or path
    if artifact != SOURCE:
        return artifact_location(store, artifact)
    if options.source is None:
        return artifact_location(store, "data")
    if is_remote(options.source):
        return str(options.source)
    return Path(_of_the_pods("--source", options.source))


def _given(options: argparse.Namespace, settings: "ClusterSettings") -> dict[str, str | None]:
    """What the options say in place of ``settings``; ``None`` where they say nothing."""
    return {
        "image": options.image,
        "run": options.run,
        "num_nodes": str(options.nodes) if options.nodes is not None else None,
        "store_claim": _given_volume(options, settings),
    }


def _given_volume(options: argparse.Namespace, settings: "ClusterSettings") -> str | None:
    from rglcd.store.files import is_remote

    if options.store is None and options.claim is None:
        return None
    path, claim = settings.volume or (_MOUNT, _CLAIM)
    if options.store is not None and not is_remote(options.store):
        path = _of_the_pods("--store", options.store)
    return f"{options.claim or claim}={path}"


def _of_the_pods(option: str, path: str) -> str:
    if not path.startswith("/"):
        raise InputError(f"{option} {path!r} is neither a URL nor a folder of the pods: those begin with /")
    return path


def completed(settings: "ClusterSettings") -> "ClusterSettings":
    """With what this command fills in where nobody says it: the released image, the claim that manifests/ makes."""
    image, volume = settings.image or _locked_image(), settings.store_claim or f"{_CLAIM}={_MOUNT}"
    return settings.model_copy(update={"image": image, "store_claim": volume})


def _locked_image() -> str | None:
    if not IMAGES.is_file():
        return None
    image: str | None = yaml.safe_load(IMAGES.read_text(encoding="utf-8")).get("train")
    return image
