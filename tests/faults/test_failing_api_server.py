"""F17: the launcher before an API server that fails; killed, cancelled, its pods evicted. By the API server's own audit log.

API server, scheduler and garbage collector are real; kubelet and Volcano's controller are stand-ins (``tests/cluster``).
"""

import json
import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rglcd.launch.placement import EarlierAttempts, Placement
from tests.cluster.control_plane import Cluster, UnavailableError, check_tools
from tests.cluster.failing_proxy import FailingProxy, Fate, Outage, Schedule
from tests.cluster.rest import Rest
from tests.faults.launched import launched
from tests.faults.rounds import Trial

_JOBS = "/apis/batch.volcano.sh/v1alpha1/namespaces/rglcd/jobs"
_PODS = "/api/v1/namespaces/rglcd/pods"
_SECONDS = 120.0

SAVES = """
import pathlib, signal, sys, time
marker = pathlib.Path({marker!r})
if marker.exists():
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: (marker.touch(), sys.exit(75)))
print("works", flush=True)
time.sleep({seconds})
"""


@pytest.fixture(scope="session")
def control_plane() -> None:
    """`make faults` goes on without this row where a machine has no control plane."""
    try:
        check_tools()
    except UnavailableError as missing:
        pytest.skip(str(missing))


pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("control_plane", "namespace", "nodes", "volcano")]


@dataclass(frozen=True)
class Case:
    """What happens beside the failing server: the pod's program, what is done to it or to the launcher, and how all of it must end."""

    name: str
    code: int
    num_jobs: int
    body: str = "print('done')"
    failures: int = 0
    earlier: EarlierAttempts = EarlierAttempts.FORGOTTEN


CASES = (
    Case("the job completes", 0, 1),
    Case("the input is bad", 2, 1, "raise SystemExit(2)"),
    Case("the program crashes twice", 9, 2, "raise SystemExit(9)", failures=1),
    Case("the launcher is cancelled", 75, 1, SAVES),
    # As Kubeflow starts its tasks again: what has ended meanwhile is what they find.
    Case("the launcher is killed", 0, 1, SAVES, earlier=EarlierAttempts.COUNTED),
    Case("the pod is evicted", 0, 1, SAVES),
)


def schedule_of(rng: random.Random, seed: str) -> Schedule:
    """One request in ten to one in three ends badly, in two to five ways; an outage, in half of the rounds."""
    fates = rng.sample([Fate.ERROR, Fate.BUSY, Fate.UNKNOWN, Fate.RESET, Fate.LOST, Fate.HALF, Fate.SILENT], rng.randint(2, 5))
    whole = rng.uniform(0.1, 0.33)
    rates = {fate: (0.02 if fate is Fate.SILENT else whole / len(fates)) for fate in fates}
    outage = Outage(rng.uniform(0.2, 3), rng.uniform(0.5, 4), rng.choice([Fate.RESET, Fate.ERROR, Fate.BUSY]))
    outages = (outage,) if rng.random() < 0.5 else ()
    return Schedule(seed, rates, outages, stream_seconds=rng.uniform(0.1, 1), silent_seconds=1.5)


@dataclass
class Round:
    """A run of its own in the cluster, which is asked directly, and the launcher's side of it through the proxy."""

    run: str
    case: Case
    rest: Rest
    proxy: FailingProxy
    folder: Path
    rng: random.Random

    @property
    def said(self) -> Path:
        return self.folder / "said.txt"

    def launch(self) -> Any:
        seconds = 60 if self.case.name != "the launcher is killed" else 2
        body = self.case.body.format(marker=str(self.folder / "saved"), seconds=seconds) if self.case.body is SAVES else self.case.body
        image = "rg-lcd/train@sha256:" + "0" * 64
        ends = {"num_failures": self.case.failures, "earlier_attempts": self.case.earlier}
        placement = Placement(run=self.run, image=image, grace_seconds=10, **ends)
        kubeconfig = self.proxy.kubeconfig(self.folder / "kubeconfig")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.launched"])
        process = context.Process(target=launched, args=(str(kubeconfig), placement, body, str(self.said)))
        process.start()
        return process

    def play(self) -> int | None:
        """The launcher's exit code: of the last one, where it is killed."""
        launcher = self.launch()
        try:
            match self.case.name:
                case "the launcher is cancelled":
                    self.until(self.running, "the pod runs")
                    launcher.terminate()
                case "the pod is evicted":
                    (pod,) = self.until(self.running, "the pod runs")
                    time.sleep(0.5)  # until Python has its handler in place
                    self.rest.delete(f"{_PODS}/{pod['metadata']['name']}")
                case "the launcher is killed":
                    for _ in range(self.rng.randint(1, 3)):
                        launcher.join(self.rng.uniform(0.1, 2))
                        launcher.kill()
                        launcher.join()
                        launcher = self.launch()
            launcher.join(_SECONDS)
            assert launcher.exitcode is not None, f"{self.case.name}: the launcher does not end: {self.words()[-600:]}"
            code: int | None = launcher.exitcode
            return code
        finally:
            launcher.kill()
            launcher.join()

    def words(self) -> str:
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def jobs(self) -> list[dict[str, Any]]:
        return self.rest.items(_JOBS, labelSelector=f"rg-lcd/run={self.run}")

    def pods(self) -> list[dict[str, Any]]:
        return self.rest.items(_PODS, labelSelector=f"rg-lcd/run={self.run}")

    def running(self) -> list[dict[str, Any]]:
        return [pod for pod in self.pods() if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]]

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + _SECONDS
        while not (value := holds()):
            assert time.monotonic() < deadline, f"{self.case.name}: not within {_SECONDS:.0f} s: {what}; {self.words()[-600:]}"
            time.sleep(0.1)
        return value

    def clean_up(self) -> None:
        for job in self.jobs():
            self.rest.delete(f"{_JOBS}/{job['metadata']['name']}", propagationPolicy="Background")
        self.until(lambda: not self.pods(), "the pods of deleted jobs are gone")


@pytest.fixture
def round_(trial: Trial, cluster: Cluster, tmp_path: Path) -> Iterator[Round]:
    if cluster.audit_log is None:
        pytest.skip("a cluster of one's own has no audit log here")
    rng, run = trial.rng(), f"f17-{trial.seed}-{trial.number}"
    proxy = FailingProxy(cluster, schedule_of(rng, run))
    played = Round(run, CASES[trial.number % len(CASES)], Rest(cluster.client()), proxy, tmp_path, rng)
    yield played
    played.clean_up()
    proxy.close()


@pytest.mark.fault(
    "F17",
    fault="a tenth to a third of the calls to the API server end in 500, 429, 401, a reset, half an answer, a lost answer or silence, with "
    "outages and cut logs, while a job completes, fails, is evicted, its launcher killed one to three times, or cancelled",
    must="by the audit log each job is made once, and as many as the failures allow; after a cancellation there is no job and no pod; the "
    "launcher ends with the code of its table, without a traceback",
    unit="schedules",
    num_rounds=200,
    sample=range(len(CASES)),
)
def test_a_failing_api_server_neither_doubles_nor_loses_a_job(trial: Trial, round_: Round, cluster: Cluster) -> None:
    case, code = round_.case, round_.play()
    faults = {fate: count for fate, count in sorted(round_.proxy.seen.items()) if fate != Fate.PASSED}
    what = f"{case.name}; faults {json.dumps(faults)}"
    assert code == case.code, f"{what}: ended with {code}: {round_.words()[-600:]}"
    assert "Traceback" not in round_.words(), f"{what}: {round_.words()[-600:]}"
    made = _made(cluster.audit_log, round_.run)
    assert sorted(made) == sorted(f"rglcd-distill-{round_.run}-{number + 1}" for number in range(case.num_jobs)), f"{what}: made {made}"
    if case.name == "the launcher is cancelled":
        assert round_.jobs() == [], f"{what}: a job is left"
        round_.until(lambda: not round_.pods(), "the pods are gone")
    trial.record(f"{what}: {len(made)} made, ended with {code}")


def _made(audit_log: Path | None, run: str) -> list[str]:
    """The jobs of ``run`` that the API server says were made."""
    assert audit_log is not None
    names = []
    for line in audit_log.read_text().splitlines():
        event = json.loads(line)
        if event["verb"] != "create" or event.get("responseStatus", {}).get("code") != 201:
            continue
        metadata = event["requestObject"]["metadata"]
        # Other tests of the same control plane make jobs without labels.
        if metadata.get("labels", {}).get("rg-lcd/run") == run:
            names.append(metadata["name"])
    return names
