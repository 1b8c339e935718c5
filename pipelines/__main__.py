"""``python -m pipelines compile | run | submit``: the Kubeflow pipeline of the configuration in force."""

import argparse
import contextlib
import io
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
from kfp import local

from pipelines.rg_lcd import STORE, Placement, arguments, compile_pipeline, pipeline, source_reference
from rglcd.config import Config, load_params
from rglcd.errors import InputError, StateSaved
from rglcd.launch.console import drawing, following
from rglcd.launch.execute import children_reporting, process_boundary
from rglcd.launch.failure import JobError, exception_of
from rglcd.signals import handling_stops

SERVICE_ACCOUNT = "rglcd-launcher"
"""Who the tasks of a cluster's run are: manifests/base gives it what launching needs."""

_LOG_LINES_SHOWN = 40
_SHELLS = frozenset({"sh", "dash", "bash"})
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def run(config: Config, *, root: Path) -> None:
    """Run the pipeline on this machine, a process per task, and draw its progress.

    Artifacts go to ``artifacts/`` under ``root``, as by every other way in: what is done there is not done again.
    Raises what the stage that failed raised, or :class:`JobError` with the end of its log if it crashed.
    """
    store = (root / "artifacts").resolve()
    values = arguments(config, source=source_reference(root), store=str(store))
    kfp_root = store / ".kfp"
    log = io.StringIO()
    try:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(kfp_root))
        with (
            drawing(sys.stderr) as draw,
            children_reporting() as channel,
            following(channel.progress, draw),
            _kfp_quiet(log),
            _terminating_as_interrupted(),
        ):
            try:
                pipeline(config, placement=Placement.LOCAL)(**values)
            except RuntimeError as error:
                failure = channel.failure()
                raise exception_of(failure) if failure else _crash(error, log) from None
            except KeyboardInterrupt:  # the task of the moment has been told too
                _wait_for_task()
                failure = channel.failure()
                raise exception_of(failure) if failure else StateSaved("interrupted; the same command goes on from here") from None
    finally:
        shutil.rmtree(kfp_root, ignore_errors=True)
    print(f"done; the report is {store / 'report' / 'index.html'}")


def compile_(config: Config, *, root: Path, out: Path | None, store: str = STORE) -> None:
    """Write the pipeline's IR YAML to ``out``, or to stdout."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_pipeline(config, path, source=source_reference(root, uri=f"{STORE}/data"), store=store)
        text = path.read_text(encoding="utf-8")
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")


def submit(config: Config, *, root: Path, host: str | None, namespace: str = "rglcd", store: str = STORE) -> None:
    """Start a run of the pipeline on the Kubeflow at ``host``; say where to look. Raises :class:`InputError` without one."""
    if host is None:
        raise InputError("submit needs --host, the address of a Kubeflow Pipelines API; without a cluster: python -m pipelines run")
    source = source_reference(root, uri=f"{STORE}/data")

    from kfp.client import Client
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        started = Client(host=host, namespace=namespace).create_run_from_pipeline_func(
            pipeline(config, placement=Placement.CLUSTER),
            arguments=arguments(config, source=source, store=store),
            namespace=namespace,
            service_account=SERVICE_ACCOUNT,
            enable_caching=False,
        )
    except (HTTPError, ApiException, OSError, ValueError) as error:
        raise InputError(f"{host} does not take the run: {' '.join(str(error).split())[:300]}") from None
    print(f"run {started.run_id} at {host}")


def main(words: Sequence[str] | None = None) -> None:
    """Parse ``words`` and do what they say; ends the process with the house's exit codes."""
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the configuration (default: params.yaml)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; may be repeated")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run", help="run on this machine, a process per task")
    compiling = verbs.add_parser("compile", help="write the pipeline as IR YAML")
    compiling.add_argument("--out", type=Path, help="file (default: stdout)")
    submitting = verbs.add_parser("submit", help="start a run on a cluster")
    submitting.add_argument("--host", help="address of the Kubeflow Pipelines API")
    submitting.add_argument("--namespace", default="rglcd", help="namespace of the run (default: rglcd)")
    for verb in (compiling, submitting):
        verb.add_argument("--store", default=STORE, help=f"where the artifacts lie: in the claim (default: {STORE}), or s3://bucket/prefix")
    given = parser.parse_args(words)
    with process_boundary():
        config, root = load_params(given.params, overrides=given.set), Path.cwd()
        match given.verb:
            case "run":
                run(config, root=root)
            case "compile":
                compile_(config, root=root, out=given.out, store=given.store)
            case "submit":
                submit(config, root=root, host=given.host, namespace=given.namespace, store=given.store)


@contextlib.contextmanager
def _kfp_quiet(log: io.StringIO) -> Iterator[None]:
    """Kubeflow's local runner prints every task's output between lines of its own: keep all that in ``log``, for a crash."""
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(log):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _terminating_as_interrupted() -> Iterator[None]:
    """Within this context SIGTERM, which comes to this process alone, goes to the task of the moment too, as a terminal's Ctrl-C does."""

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() not in _SHELLS:  # they wait for the task that they have started
                    process.terminate()
        raise KeyboardInterrupt

    with handling_stops(stop, stops=(signal.SIGTERM,)):
        yield


def _wait_for_task() -> None:
    """Kubeflow gives an interrupted task a quarter of a second; it may take as long as it needs to save its state."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def _crash(error: RuntimeError, log: io.StringIO) -> JobError:
    lines = [line for line in log.getvalue().splitlines() if line.strip()]
    print("\n".join(lines[-_LOG_LINES_SHOWN:]), file=sys.stderr)
    return JobError(_COLOUR.sub("", str(error)), exit_code=1)


if __name__ == "__main__":
    main()
