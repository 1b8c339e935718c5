"""``rglcd doctor``: what a cluster or a store lacks is said with what to do, before a job is submitted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rglcd.cli import main
from rglcd.config import dump, load_preset
from tests.launch.conftest import IMAGE, Ended
from tests.launch.scripted_api import Answer, ScriptedApi, ScriptedClock, event, pod, refusal
from tests.other_stores import Difference, OtherStore


class Parts:
    """What the cluster has, by the end of its path; a test takes away or changes what it is about."""

    def __init__(self) -> None:
        self.may = True
        node = {"status": {"allocatable": {"nvidia.com/gpu": "8"}}, "metadata": {"name": "n"}}
        hard = {"requests.cpu": "320", "requests.memory": "2Ti", "requests.nvidia.com/gpu": "24"}
        self.at: dict[str, Any] = {
            "/version": {
                "major": "1",
                "minor": "31+",
                "gitVersion": "v1.31.2",
                "gitCommit": "",
                "gitTreeState": "",
                "buildDate": "",
                "goVersion": "",
                "compiler": "",
                "platform": "",
            },
            "/queues/rglcd": {"kind": "Queue"},
            "/serviceaccounts/rglcd-stage": {"kind": "ServiceAccount"},
            "/priorityclasses/rglcd-training": {"kind": "PriorityClass", "value": 1000},
            "/priorityclasses/rglcd-evaluation": {"kind": "PriorityClass", "value": 2000},
            "/persistentvolumeclaims/rglcd-store": {"kind": "PersistentVolumeClaim", "status": {"phase": "Bound"}},
            "/nodes": {"kind": "NodeList", "items": [node]},
            "/limitranges": {
                "items": [{"metadata": {"name": "containers"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "96"}}]}}]
            },
            "/resourcequotas": {"items": [{"metadata": {"name": "rglcd"}, "spec": {"hard": hard}}]},
            "/jobs": {"items": []},
        }

    def answer(self, method: str, path: str) -> Answer:
        if path.endswith("/selfsubjectaccessreviews"):
            return 201, {"spec": {"resourceAttributes": {}}, "status": {"allowed": self.may}}, {}
        found = next((value for end, value in self.at.items() if path.partition("?")[0].rstrip("/").endswith(end)), None)
        if isinstance(found, tuple):
            return found
        return refusal(404, "not found") if found is None else (200, found, {})


@pytest.fixture
def parts(api: ScriptedApi) -> Parts:
    made = Parts()
    api.faults.append(made.answer)
    return made


@pytest.fixture
def doctor(api: ScriptedApi, tmp_path: Path, monkeypatch, capsys) -> Callable[..., Ended]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    Path("params.yaml").write_text(dump(load_preset("micro")))

    def run(*words: str, **settings: Any) -> Ended:
        Path("cluster.yaml").write_text(yaml.safe_dump({"image": IMAGE, **settings}))
        code = 0
        try:
            code = main(["doctor", "--cluster", *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Ended(code, (said.out + said.err).splitlines())

    return run


def test_a_cluster_that_has_everything_is_well_and_nothing_is_created(parts: Parts, doctor, api: ScriptedApi) -> None:
    ended = doctor()
    assert ended.code == 0, ended.lines
    assert all(line.startswith("ok ") for line in ended.lines[:-1]), ended.lines
    assert {path.rpartition("/")[2] for method, path, _, _ in api.calls if method != "GET"} == {"selfsubjectaccessreviews"}


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("/jobs", "MISSING  Volcano's jobs in namespace rglcd; install Volcano 1.10"),
        ("/queues/rglcd", "MISSING  queue rglcd; kubectl apply -k manifests/overlays/a100"),
        ("/serviceaccounts/rglcd-stage", "MISSING  service account rglcd-stage; kubectl apply -k"),
        ("/priorityclasses/rglcd-evaluation", "MISSING  priority class rglcd-evaluation; kubectl apply -k"),
        ("/persistentvolumeclaims/rglcd-store", "MISSING  claim rglcd-store; kubectl apply -k"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(gone: str, words: str, parts: Parts, doctor) -> None:
    parts.at[gone] = refusal(404, "not found")
    ended = doctor()
    assert ended.code == 2
    assert ended.has(words), ended.lines
    assert "1 thing is missing in the cluster" in ended.last


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"major": "", "minor": "", "gitVersion": "v1.30.4-own"}, "ok       Kubernetes v1.30.4-own"),
        ({"major": "", "minor": "", "gitVersion": "v0.0.0-master+$Format:%H$"}, "unknown  Kubernetes v0.0.0-master+$Format:%H$; 1.27"),
    ],
)
def test_an_api_server_that_somebody_built_themselves_may_not_know_its_version(said: dict[str, str], words: str, parts, doctor) -> None:
    parts.at["/version"] |= said
    assert doctor().has(words)


def test_old_kubernetes_and_missing_rights_are_said(parts: Parts, doctor) -> None:
    parts.may = False
    parts.at["/version"] |= {"minor": "20", "gitVersion": "v1.20.2"}
    ended = doctor()
    assert ended.code == 2
    assert ended.has("MISSING  Kubernetes v1.20.2; 1.27 or later is needed")
    for right in ("create jobs", "delete jobs", "list pods", "get pods/log", "list events"):
        assert ended.has(f"MISSING  you may {right} in rglcd; the Role rglcd-launcher"), right


def test_stages_are_held_against_limit_range_and_quota(parts: Parts, doctor) -> None:
    parts.at["/limitranges"]["items"][0]["spec"]["limits"][0]["max"] = {"cpu": "16", "memory": "64Gi"}
    ended = doctor(num_nodes=4)
    assert ended.code == 2
    assert ended.has("distill: cpu 64 is more than LimitRange containers admits (16); memory 512Gi is more than LimitRange containers")
    assert ended.has("nvidia.com/gpu 8 on 4 nodes is more than ResourceQuota rglcd admits (24)")
    assert ended.has("ok       shard fits")
    fits = doctor(gpus=1, cpus=16, memory_gib=64)
    assert fits.code == 0, fits.lines


@pytest.mark.parametrize("hard", [{"limits.cpu": "32", "limits.memory": "2Ti"}, {"cpu": "32", "memory": "2Ti"}], ids=["limits", "plain"])
def test_a_quota_counts_by_whichever_name_it_has(hard: dict[str, str], parts: Parts, doctor) -> None:
    parts.at["/resourcequotas"]["items"][0]["spec"]["hard"] = {**hard, "pods": "1", "count/jobs.batch.volcano.sh": "1"}
    ended = doctor()
    assert ended.code == 2
    assert ended.has("MISSING  distill: cpu 64 is more than ResourceQuota rglcd admits (32); ask for less")


def test_a_limit_for_a_whole_pod_is_held_against_it(parts: Parts, doctor) -> None:
    parts.at["/limitranges"]["items"][0]["spec"]["limits"][0] = {"type": "Pod", "max": {"cpu": "16"}}
    assert doctor().has("distill: cpu 64 is more than LimitRange containers admits (16)")


def test_gpus_that_no_node_has_are_said(parts: Parts, doctor) -> None:
    assert doctor(gpu_resource="nvidia.com/mig-3g.40gb").has(
        "MISSING  nodes with nvidia.com/gpu.family=ampere and 8 nvidia.com/mig-3g.40gb: 0"
    )
    assert not doctor(gpus=0).has("nodes with")


@pytest.mark.parametrize(
    "state",
    [
        {"spec": {"unschedulable": True}},
        {"status": {"allocatable": {"nvidia.com/gpu": "8"}, "conditions": [{"type": "Ready", "status": "Unknown"}]}},
    ],
    ids=["cordoned", "not ready"],
)
def test_a_node_that_takes_no_pods_is_no_node_to_run_on(parts: Parts, doctor, state: dict[str, Any]) -> None:
    nodes = parts.at["/nodes"]["items"]
    nodes.append(nodes[0] | state)
    assert doctor().has("ok       nodes with nvidia.com/gpu.family=ampere and 8 nvidia.com/gpu: 1")
    del nodes[0]
    assert doctor().has("MISSING  nodes with nvidia.com/gpu.family=ampere and 8 nvidia.com/gpu: 0; 1 would do, but take no pods now")


def test_a_node_that_has_not_said_yet_what_it_has_is_no_error(parts: Parts, doctor) -> None:
    parts.at["/nodes"]["items"][0]["status"] = {}
    assert doctor().has("MISSING  nodes with nvidia.com/gpu.family=ampere and 8 nvidia.com/gpu: 0")


def test_gpus_of_another_family_are_named_as_they_are(parts: Parts, doctor, api: ScriptedApi) -> None:
    labels = {"nvidia.com/gpu.family": "hopper", "nvidia.com/gpu.present": "true"}
    node = {"status": {"allocatable": {"nvidia.com/gpu": "1", "cpu": "32"}}, "metadata": {"name": "n", "labels": labels}}
    nodes = {"kind": "NodeList", "items": [node]}
    empty = {"kind": "NodeList", "items": []}
    api.faults.insert(0, lambda _method, path: (200, empty if "ampere" in path else nodes, {}) if "/nodes?" in path else None)
    there = "there is nvidia.com/gpu.family=hopper with 1 nvidia.com/gpu: gpu_label, gpus"
    assert doctor().has(f"MISSING  nodes with nvidia.com/gpu.family=ampere and 8 nvidia.com/gpu: 0; {there}")
    assert doctor(gpus=1, gpu_label="nvidia.com/gpu.family=hopper").has(
        "ok       nodes with nvidia.com/gpu.family=hopper and 1 nvidia.com/gpu: 1"
    )


def test_an_image_that_nobody_has_published_is_said(parts: Parts, doctor) -> None:
    ended = doctor(image="rg-lcd/train@sha256:" + "0" * 64)
    assert ended.code == 2
    assert ended.has("a digest of zeros, nobody has published it: make images first")


# --- Kubeflow ------------------------------------------------------------------------------------

HEALTH = "/services/ml-pipeline:8888/proxy/apis/v2beta1/healthz"


def with_kubeflow(parts: Parts, *kinds: str, multi_user: Any = None, labels: dict[str, str] | None = None) -> None:
    """``multi_user``: what its API says of itself, or the answer in its place."""
    parts.at["/apis/kubeflow.org"] = {"kind": "APIGroup", "versions": [{"groupVersion": "kubeflow.org/v1beta1"}]}
    parts.at["/apis/kubeflow.org/v1beta1"] = {"kind": "APIResourceList", "resources": [{"name": kind} for kind in kinds]}
    parts.at[HEALTH] = {"tag_name": "2.17.0", "multi_user": multi_user} if isinstance(multi_user, bool) else multi_user
    parts.at["/namespaces/rglcd"] = {"kind": "Namespace", "metadata": {"name": "rglcd", "labels": labels or {}}}
    parts.at["/namespaces/kubeflow"] = {"kind": "Namespace", "metadata": {"name": "kubeflow", "labels": {}}}


AWAY = refusal(503, "no endpoints available for service")
FORBIDDEN = refusal(403, 'services "ml-pipeline:8888" is forbidden: User "x" cannot get resource "services/proxy"')


@pytest.mark.parametrize(
    ("kinds", "multi_user", "labels", "words"),
    [
        ((), AWAY, {}, "ok       no Kubeflow Pipelines, which `python -m pipelines submit` alone needs"),
        (("tfjobs", "profiles"), AWAY, {}, "ok       no Kubeflow Pipelines"),
        (
            ("scheduledworkflows",),
            False,
            {},
            "note     Kubeflow Pipelines for one user (by its own word), which starts every run in its own",
        ),
        (
            ("scheduledworkflows", "profiles"),
            False,
            {},
            "not in rglcd: for `submit`, apply manifests/ to kubeflow and say --namespace kubeflow",
        ),
        (
            ("scheduledworkflows",),
            AWAY,
            {},
            "note     Kubeflow Pipelines for one user (as it has no Profiles; its own word was not to be had)",
        ),
        (
            ("scheduledworkflows", "profiles"),
            FORBIDDEN,
            {},
            "note     Kubeflow Pipelines for several users (as it has Profiles; its own word",
        ),
        (
            ("scheduledworkflows", "profiles"),
            True,
            {},
            "rglcd is no Profile's, so `submit` may not start runs there: make a Profile of that name",
        ),
        (
            ("scheduledworkflows", "profiles"),
            True,
            {"app.kubernetes.io/part-of": "kubeflow-profile"},
            "ok       Kubeflow Pipelines for several users (by its own word), with rglcd a Profile's",
        ),
    ],
)
def test_a_kubeflow_is_said_to_be_for_one_user_or_for_several(
    kinds: tuple[str, ...], multi_user: Any, labels: dict[str, str], words: str, parts: Parts, doctor, clock: ScriptedClock
) -> None:
    with_kubeflow(parts, *kinds, multi_user=multi_user, labels=labels)
    ended = doctor()
    assert ended.code == 0, ended.lines
    assert ended.has(words), ended.lines
    assert clock.seconds < 30, "a Pipelines API that the proxy does not reach is not waited for"


def test_a_kubeflow_for_one_user_takes_runs_in_its_own_namespace(parts: Parts, doctor) -> None:
    with_kubeflow(parts, "scheduledworkflows", multi_user=False)
    assert doctor(namespace="kubeflow").has("ok       Kubeflow Pipelines for one user (by its own word)")


def test_what_one_may_not_look_at_is_unknown_and_no_fault(parts: Parts, doctor, api: ScriptedApi) -> None:
    for end in ("/nodes", "/resourcequotas", "/queues/rglcd"):
        parts.at[end] = refusal(403, f'forbidden: User "x" cannot list resource "{end[1:]}" in API group ""')
    ended = doctor()
    assert ended.code == 0, ended.lines
    assert sum(line.startswith("unknown ") for line in ended.lines) == 3


# --- object stores -------------------------------------------------------------------------------


@pytest.fixture
def look_at_store(tmp_path: Path, monkeypatch, capsys) -> Callable[..., Ended]:
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Ended:
        code = 0
        try:
            code = main(["doctor", "--store", *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Ended(code, (said.out + said.err).splitlines())

    return run


def test_a_store_that_has_everything_is_well_and_nothing_is_left_in_it(other_store: tuple[str, OtherStore], look_at_store) -> None:
    bucket, store = other_store
    ended = look_at_store(f"{bucket}/run")
    assert ended.code == 0, ended.lines
    assert all(line.startswith("ok ") for line in ended.lines), ended.lines
    put, deleted = ({path.split()[1] for path in store.asked if path.startswith(method)} for method in ("PUT", "DELETE"))
    assert len(put) == 1
    assert put == deleted


@pytest.mark.parametrize("difference", [Difference.NO_CONDITIONAL_PUT, Difference.CONDITIONS_IGNORED])
def test_a_store_without_conditional_put_is_said_to_be_for_one_process(
    difference: Difference, other_store: tuple[str, OtherStore], look_at_store, monkeypatch
) -> None:
    bucket, store = other_store
    store.differences = {difference}
    monkeypatch.setenv("RGLCD_STORE", f"{bucket}/run")
    ended = look_at_store()
    assert ended.code == 2
    assert ended.has("MISSING  conditional put (If-None-Match)"), ended.lines
    assert ended.has("one process at a time may write there, and no parts")


def test_a_store_that_refuses_checksums_or_deletion_is_noted_and_no_fault(other_store: tuple[str, OtherStore], look_at_store) -> None:
    bucket, store = other_store
    store.differences = {Difference.NO_CHECKSUMS_TAKEN, Difference.DELETES_NOTHING}
    ended = look_at_store(bucket)
    assert ended.code == 0, ended.lines
    assert ended.has("note     checksums with what is sent (x-amz-checksum-*) are refused")
    assert ended.has("AWS_REQUEST_CHECKSUM_CALCULATION=when_required")
    assert ended.has("note     no deleting, which `rglcd clean --store` needs")


@pytest.mark.parametrize(
    ("difference", "words"),
    [(Difference.READ_ONLY, "may not be touched with these credentials"), (Difference.REDIRECTED, "set AWS_DEFAULT_REGION")],
)
def test_a_store_that_refuses_every_write_is_one_line(
    difference: Difference, words: str, other_store: tuple[str, OtherStore], look_at_store
) -> None:
    bucket, store = other_store
    store.differences = {difference}
    ended = look_at_store(f"{bucket}/run")
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert words in ended.last


def test_a_missing_bucket_and_a_store_that_nobody_named_are_one_line(bucket: str, look_at_store) -> None:
    missing, unnamed = look_at_store("s3://bucket-typo/run"), look_at_store()
    assert (missing.code, unnamed.code) == (2, 2)
    assert "there is no bucket bucket-typo" in missing.last
    assert "set RGLCD_STORE" in unnamed.last


# --- a pod that looks ------------------------------------------------------------------------------


class Pod:
    """The pod that is made, and what becomes of it."""

    def __init__(self, api: ScriptedApi, clock: ScriptedClock, **ended: Any) -> None:
        self.is_made = False
        self.deleted: list[str] = []
        self.ended = ended
        clock.step = 10
        api.faults.insert(0, self.answer)

    def answer(self, method: str, path: str) -> Answer | None:
        name = path.partition("?")[0].rpartition("/")[2]
        if method == "POST" and name == "pods":
            self.is_made = True
            return 201, {"kind": "Pod", "metadata": {"name": "made"}}, {}
        if not name.startswith("rglcd-doctor-"):
            return None
        if method == "DELETE":
            self.deleted.append(name)
            return 200, {"kind": "Pod"}, {}
        return 200, {"kind": "Pod", **pod(**self.ended)}, {}


SEES = {"names": None, "store": None}


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ({"phase": "Succeeded", "code": 0, "said": json.dumps(SEES)}, None),
        (
            {"phase": "Succeeded", "code": 0, "said": json.dumps({**SEES, "names": "[Errno -3] Temporary failure in name resolution"})},
            "MISSING  names are found in a pod ([Errno -3] Temporary failure in name resolution); a component of manifests/ opens the way",
        ),
        (
            {"phase": "Succeeded", "code": 0, "said": json.dumps({**SEES, "store": "[Errno 13] Permission denied"})},
            "MISSING  the claim is writable for user 10001 ([Errno 13] Permission denied); the Job of manifests/fresh-claim gives it to",
        ),
        ({"phase": "Pending", "waiting": ("ErrImagePull", "unauthorized")}, "does not start: ErrImagePull: unauthorized; check image"),
        (
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]},
            "has not run within 5 min: 0/1 nodes are available; kubectl describe pod",
        ),
        ({"phase": "Failed", "code": 1, "said": "no python"}, "has not run within"),
    ],
    ids=["well", "names", "claim", "image", "no node", "another image"],
)
def test_a_pod_looks_at_what_only_a_pod_sees_and_is_deleted(
    ended: dict[str, Any], words: str | None, parts: Parts, doctor, api: ScriptedApi, clock: ScriptedClock
) -> None:
    seen = Pod(api, clock, **ended)
    done = doctor("--pod", store_claim="rglcd-store=/store")
    assert done.code == (0 if words is None else 2), done.lines
    assert words is None or done.has(words), done.lines
    assert seen.is_made
    assert len(seen.deleted) == 1


def test_a_claim_that_a_pod_cannot_mount_is_said_in_the_nodes_words(parts: Parts, doctor, api: ScriptedApi, clock: ScriptedClock) -> None:
    """It was: has not run within 5 min."""
    Pod(api, clock, phase="Pending", waiting=("ContainerCreating", ""))
    parts.at["/events"] = {"kind": "EventList", "items": [event("FailedMount", "mount.nfs: Connection timed out", of="p")]}
    done = doctor("--pod", store_claim="rglcd-store=/store")
    assert done.code == 2
    assert done.has("does not start: FailedMount: mount.nfs: Connection timed out; look at the claim (kubectl describe pvc)"), done.lines
    assert clock.seconds < 200


def test_a_pod_that_is_refused_or_that_one_may_not_create_is_said(parts: Parts, doctor, api: ScriptedApi) -> None:
    said = 'pods "p" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot'
    api.faults.insert(0, lambda method, path: refusal(403, said) if method == "POST" and path.endswith("/pods") else None)
    assert doctor("--pod").has("runAsNonRoot; the namespace admits no such pods")
    said = 'pods is forbidden: User "x" cannot create resource "pods" in API group "" in the namespace "rglcd"'
    done = doctor("--pod")
    assert done.code == 0
    assert done.has("unknown  a pod of")


def test_a_pod_that_loses_a_race_for_the_quota_is_made_again(parts: Parts, doctor, api: ScriptedApi, clock: ScriptedClock) -> None:
    Pod(api, clock, phase="Succeeded", code=0, said=json.dumps(SEES))
    lost = refusal(409, 'Operation cannot be fulfilled on resourcequotas "rglcd": the object has been modified', reason="Conflict")
    tries: list[str] = []

    def first(method: str, path: str) -> Answer | None:
        if method != "POST" or not path.endswith("/pods"):
            return None
        tries.append(path)
        return lost if len(tries) == 1 else None

    api.faults.insert(0, first)
    assert doctor("--pod", store_claim="rglcd-store=/store").code == 0
    assert len(tries) == 2
