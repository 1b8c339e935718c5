"""``python -m pipelines compile | run | submit``: the Kubeflow pipeline of the configuration in force."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components import TRAIN_IMAGE
from pipelines.rg_lcd import STORE, arguments, compile_pipeline, pipeline, source_reference
from rglcd.config import Config, load_params
from rglcd.errors import InputError
from rglcd.launch.boundary import process_boundary
from rglcd.launch.kubeflow_server import Access, require_kubeflow, resume_run, start_run
from rglcd.launch.provenance import with_provenance
from rglcd.launch.released_image import require_published, warn_unless_published
from rglcd.launch.settings import ClusterSettings, load_settings
from rglcd.planning.check import Nodes, refuse_students_of_another_family, refuse_what_cannot_fit
from rglcd.stages.required_files import require_files, source_at_hand, warn_of_downloads_no_pod_keeps, warn_of_models_no_pod_sees
from rglcd.stages.table import stages_of
from rglcd.store.files import is_remote

SERVICE_ACCOUNT = "rglcd-launcher"
"""Who the tasks of a cluster's run are: manifests/base gives it what launching needs."""


def compile_(config: Config, *, root: Path, out: Path | None, store: str, settings: ClusterSettings) -> None:
    """Write the pipeline's IR YAML to ``out``, or to stdout."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        source = source_reference(root, uri=f"{_mount(settings)}/data")
        compile_pipeline(config, path, source=source, store=store, cluster=settings)
        text = path.read_text(encoding="utf-8")
    if out is None:
        sys.stdout.write(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


def submit(config: Config, *, root: Path, server: "Server", namespace: str, store: str, settings: ClusterSettings) -> None:
    """Start a run of the pipeline on a Kubeflow; say where to look. Raises :class:`InputError` if it does not take it."""
    source = source_reference(root, uri=f"{_mount(settings)}/data")
    require_kubeflow(server.host, server.access, namespace=namespace, own_namespace=server.own_namespace)
    address = start_run(
        pipeline(config, cluster=settings),
        arguments(config, source=source, store=store),
        host=server.host,
        access=server.access,
        namespace=namespace,
        service_account=SERVICE_ACCOUNT,
    )
    print(f"run at {address}")


def resume(run: str, *, server: "Server", namespace: str) -> None:
    """Start a run that takes ``run`` up where it stopped; say where to look."""
    require_kubeflow(server.host, server.access, namespace=namespace, own_namespace=server.own_namespace)
    address = resume_run(run, host=server.host, access=server.access)
    print(f"run at {address} takes up {run}: what is finished is found by key")


@dataclass(frozen=True)
class Server:
    """A Kubeflow Pipelines API, and who we are to it."""

    host: str
    access: Access
    own_namespace: str


def _mount(settings: ClusterSettings) -> str:
    """The path at which the tasks find the claim of the artifacts."""
    path, _ = settings.volume or (STORE, "")
    return path


def _store(named: str | None, settings: ClusterSettings) -> str:
    """Where the artifacts lie; :class:`InputError` for a folder that goes with each task's pod."""
    mount = _mount(settings)
    if named is None or is_remote(named) or Path(os.path.normpath(named)).is_relative_to(mount):
        return named or mount
    raise InputError(f"--store {named!r} is neither a URL nor a folder of the claim, which is at {mount} (store_claim in cluster.yaml)")


def main(words: Sequence[str] | None = None) -> None:
    """Parse ``words`` and do what they say; ends the process with the exit codes of rglcd."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the configuration (default: params.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; may be repeated")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run", help="run on this machine, a process per task")
    compiling = verbs.add_parser("compile", help="write the pipeline as IR YAML")
    compiling.add_argument("--out", type=Path, help="file (default: stdout)")
    submitting = verbs.add_parser("submit", help="start a run on a cluster")
    submitting.add_argument("--host", help="address of the Kubeflow Pipelines API")
    submitting.add_argument(
        "--resume", metavar="RUN", help="take up the run of this id, which failed or was terminated: the same pipeline and settings"
    )
    submitting.add_argument("--no-plan", action="store_true", help="submit even what `rglcd plan` says cannot fit on the GPUs")
    submitting.add_argument("--token-file", type=Path, help="file of a token that the API takes (default: what Kubeflow mounts in a pod)")
    submitting.add_argument("--cookie-file", type=Path, help="file of a Cookie header, as a browser has it after the login")
    submitting.add_argument("--ca", type=Path, help="file of the authorities that signed the API's certificate")
    submitting.add_argument("--kubeflow-namespace", default="kubeflow", help="where a Kubeflow for one user starts its runs")
    submitting.add_argument("--namespace", help="namespace of the run (default: the settings', rglcd)")
    for verb in (compiling, submitting):
        verb.add_argument("--store", help=f"where the artifacts lie: in the claim (default: {STORE}), or s3://bucket/prefix")
    given = parser.parse_args(words)
    with process_boundary():
        if given.verb == "submit":
            _refuse_what_does_not_go_together(given)
            if given.resume is not None:
                resume(given.resume, server=_server(given), namespace=given.namespace or load_settings().namespace)
                return
        config, root, settings = load_params(given.params, overrides=given.set), Path.cwd(), with_provenance(load_settings())
        match given.verb:
            case "run":
                from pipelines.local_run import run  # the light image lacks what it needs

                require_files(config, stages_of(config), source=source_at_hand(root), made=root / "artifacts")
                refuse_students_of_another_family(config)

                run(config, root=root)
            case "compile":
                store = _store(given.store, settings)
                warn_of_models_no_pod_sees(config, stages_of(config))
                warn_of_downloads_no_pod_keeps(config, stages_of(config))
                warn_unless_published(settings.image or TRAIN_IMAGE)
                compile_(config, root=root, out=given.out, store=store, settings=settings)
            case "submit":
                store = _store(given.store, settings)
                namespace = given.namespace or settings.namespace
                require_published(settings.image or TRAIN_IMAGE)
                require_files(config, stages_of(config), source=source_at_hand(root), in_pods=True)
                warn_of_models_no_pod_sees(config, stages_of(config))
                warn_of_downloads_no_pod_keeps(config, stages_of(config))
                if not given.no_plan and settings.gpus:
                    refuse_what_cannot_fit(config, Nodes(settings.gpu_label))
                submit(config, root=root, server=_server(given), namespace=namespace, store=store, settings=settings)


def _refuse_what_does_not_go_together(given: argparse.Namespace) -> None:
    if given.host is None:  # said at once: counting takes up to a minute
        raise InputError("submit needs --host, the address of a Kubeflow Pipelines API; without a cluster: python -m pipelines run")
    if given.resume is not None and (given.set or given.store is not None):
        other = "--set" if given.set else "--store"
        raise InputError(
            f"--resume asks for what the run asked for; without it, {other} makes another run, which finds finished stages too"
        )


def _server(given: argparse.Namespace) -> Server:
    access = Access.of_files(token=given.token_file, cookies=given.cookie_file, authorities=given.ca)
    return Server(given.host, access, given.kubeflow_namespace)


if __name__ == "__main__":
    main()
