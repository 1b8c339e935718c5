"""A stand-in for a machine with its kubelet: a Node whose pods are processes of this machine.

What it does as a kubelet does: it registers and heartbeats the node; runs init containers, then the container, with the
environment (values, fields, ConfigMaps, Secrets, ``$(NAME)`` expansion), emptyDir and ConfigMap volumes in a folder of the pod's own;
reports phases, exit codes, reasons and termination messages; sends SIGTERM, and SIGKILL after the grace period; ends pods at
their active deadline; serves their logs to the API server. What it does not: images (a name with ``unpullable`` in it cannot
be pulled), isolation, limits (see :meth:`KubeletStandIn.kill_for_memory`), probes, and the network: a pod's address is one of
127.0.0.0/8 that follows from its name, and the host names that Volcano's svc plugin hands out are replaced by it.
"""

import base64
import contextlib
import hashlib
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes.client.rest import ApiException

from tests.cluster.control_plane import Cluster, write_key_pair
from tests.cluster.rest import Rest

ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 0.3
_SHARED = frozenset({"/dev/shm"})
"""Mounts that are this machine's own."""


@dataclass(frozen=True)
class Machine:
    """What a node says it is."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    capacity: Mapping[str, str] = field(default_factory=dict)


GPU_MACHINES = tuple(
    Machine(
        f"a100-{number}",
        labels={"nvidia.com/gpu.present": "true", "nvidia.com/gpu.family": "ampere", "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"},
        taints=({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},),
        capacity={"cpu": "96", "memory": "1024Gi", "ephemeral-storage": "2000Gi", "pods": "110", "nvidia.com/gpu": "8"},
    )
    for number in range(2)
)
CPU_MACHINE = Machine("cpu-0", capacity={"cpu": "16", "memory": "64Gi", "ephemeral-storage": "500Gi", "pods": "110"})


class KubeletStandIn:
    """Runs the pods bound to one machine until :meth:`stop`; ``environment`` is what its processes inherit beside the pod's own."""

    def __init__(self, cluster: Cluster, machine: Machine, folder: Path, *, environment: Mapping[str, str]) -> None:
        self.machine, self._folder, self._environment = machine, folder, dict(environment)
        self._rest = Rest(cluster.client())
        self._pods: dict[str, PodProcess] = {}
        self._ended = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._server = _log_server(folder, self._pods)
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._server.serve_forever, self._heartbeat, self._look_after_pods)
        ]

    def start(self) -> None:
        self._register()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for pod in list(self._pods.values()):
            pod.kill()
        self._server.shutdown()
        self._rest.delete(f"/api/v1/nodes/{self.machine.name}")

    def evict(self, namespace: str, name: str) -> None:
        """What a kubelet does when its node is short of something: the pod is ended and Failed, its reason Evicted."""
        self._process(namespace, name).end("Evicted", "The node was low on resource: ephemeral-storage.")

    def kill_for_memory(self, namespace: str, name: str) -> None:
        """What the kernel does to a container that is over its memory limit."""
        self._process(namespace, name).kill_for_memory()

    def process_of(self, pod: Mapping[str, Any]) -> int:
        """The process id of a running pod's container."""
        process = self._process(pod["metadata"]["namespace"], pod["metadata"]["name"])._process
        assert process is not None
        return process.pid

    def _process(self, namespace: str, name: str) -> "PodProcess":
        (found,) = (pod for pod in self._pods.values() if (pod.namespace, pod.name) == (namespace, name) and not pod.is_done)
        return found

    # --- the node ---

    def _register(self) -> None:
        machine = self.machine
        labels = {"kubernetes.io/hostname": machine.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", **machine.labels}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": machine.name, "labels": labels},
            "spec": {"taints": machine.taints},
        }
        self._rest.create("/api/v1/nodes", node)
        self._report()

    def _report(self) -> None:
        now = _now()
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now}
        status = {
            "capacity": self.machine.capacity,
            "allocatable": self.machine.capacity,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}},
        }
        self._rest.patch(f"/api/v1/nodes/{self.machine.name}/status", {"status": status})

    def _heartbeat(self) -> None:
        name = self.machine.name
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        while not self._ended.is_set():
            renewed = {
                "holderIdentity": name,
                "leaseDurationSeconds": 40,
                "renewTime": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            }
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": renewed}
            with contextlib.suppress(ApiException):
                if self._rest.create(path, lease) is None:
                    self._rest.patch(f"{path}/{name}", {"spec": renewed})
                # Taints that the node lifecycle controller put on while nobody reported yet are its own to take off.
                self._report()
            self._ended.wait(8)

    # --- the pods ---

    def _look_after_pods(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            with contextlib.suppress(ApiException):
                bound = self._rest.items("/api/v1/pods", fieldSelector=f"spec.nodeName={self.machine.name}")
                for pod in bound:
                    uid = pod["metadata"]["uid"]
                    if uid not in self._pods and pod["status"]["phase"] == "Pending":
                        folder = self._folder / f"{pod['metadata']['name']}-{uid[:6]}"
                        self._pods[uid] = PodProcess(pod, self._rest, folder, environment=self._environment)
                        self._pods[uid].start()
                    if "deletionTimestamp" in pod["metadata"]:
                        self._remove(pod)
                there = {pod["metadata"]["uid"] for pod in bound}
                for uid, process in self._pods.items():
                    if uid not in there and not process.is_done:
                        process.kill()

    def _remove(self, pod: dict[str, Any]) -> None:
        process = self._pods.get(pod["metadata"]["uid"])
        if process is not None and not process.is_done:
            process.begin_to_end(pod["metadata"].get("deletionGracePeriodSeconds", 30))
            return
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._rest.delete(path, gracePeriodSeconds=0, preconditions={"uid": metadata["uid"]})


class PodProcess:
    """One pod: its folder, its process, and what is reported of it."""

    def __init__(self, pod: dict[str, Any], rest: Rest, folder: Path, *, environment: Mapping[str, str]) -> None:
        self.namespace, self.name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self.log = folder / "log"
        self.is_done = False
        self._pod, self._rest, self._folder, self._environment = pod, rest, folder, dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ending: tuple[str, str] | None = None
        self._out_of_memory = False
        self._told = False

    def start(self) -> None:
        threading.Thread(target=self._try, daemon=True).start()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def kill_for_memory(self) -> None:
        self._out_of_memory = True
        self.kill()

    def end(self, reason: str, message: str) -> None:
        """End the pod for a reason of the node's; it is reported as failed."""
        self._ending = (reason, message)
        self.begin_to_end(self._pod["spec"].get("terminationGracePeriodSeconds", 30))

    def begin_to_end(self, grace_seconds: float) -> None:
        """SIGTERM to the container's first process, SIGKILL to all after the grace period."""
        with self._lock:
            if self._told:
                return
            self._told = True
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        timer = threading.Timer(grace_seconds, self.kill)
        timer.daemon = True
        timer.start()

    # --- running ---

    def _try(self) -> None:
        try:
            self._run()
        except LookupError as missing:  # its ConfigMap went with its job
            (container,) = self._pod["spec"]["containers"]
            self._report("Pending", container, {"waiting": {"reason": "CreateContainerConfigError", "message": str(missing)}})
        finally:
            self.is_done = True

    def _run(self) -> None:
        self._folder.mkdir(parents=True)
        self.log.touch()
        spec = self._pod["spec"]
        (container,) = spec["containers"]
        if any("unpullable" in each["image"] for each in (container, *spec.get("initContainers", []))):
            self._cannot_pull(container)
            return
        for first in spec.get("initContainers", []):
            code = self._wait(self._start(first, self._folder / f"log-{first['name']}"))
            if code != 0:
                self._report("Failed", container, {"terminated": self._terminated(first, code)})
                return
        started = _now()
        process = self._start(container, self.log)
        self._report("Running", container, {"running": {"startedAt": started}})
        if "activeDeadlineSeconds" in spec:
            timer = threading.Timer(
                spec["activeDeadlineSeconds"],
                self.end,
                ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"),
            )
            timer.daemon = True
            timer.start()
        code = self._wait(process)
        state = {"terminated": {"startedAt": started, **self._terminated(container, code)}}
        self._report("Succeeded" if code == 0 and self._ending is None else "Failed", container, state)

    def _cannot_pull(self, container: Mapping[str, Any]) -> None:
        for reason in ("ErrImagePull", "ImagePullBackOff"):
            message = f'Back-off pulling image "{container["image"]}"'
            self._report("Pending", container, {"waiting": {"reason": reason, "message": message}})
            time.sleep(0.5)
        while not self._told:
            time.sleep(_POLL_SECONDS)
        self.is_done = True

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        self._process = process
        if self._told:
            process.terminate()
        code = process.wait()
        return code if code >= 0 else 128 - code

    def _start(self, container: Mapping[str, Any], log: Path) -> subprocess.Popen[bytes]:
        mounts = self._mounts(container)
        path = container.get("terminationMessagePath", "/dev/termination-log")
        mounts[path] = self._folder / "termination-log"
        mounts[path].touch()
        values = self._variables(container)
        placed = {name: _placed(value, mounts) for name, value in values.items()}
        words = [_placed(expanded(word, values), mounts) for word in (*container.get("command", []), *container.get("args", []))]
        with log.open("ab") as stream:
            return subprocess.Popen(
                words,
                stdout=stream,
                stderr=stream,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                env=self._environment | placed,
                start_new_session=True,
            )

    def _mounts(self, container: Mapping[str, Any]) -> dict[str, Path]:
        volumes = {volume["name"]: volume for volume in self._pod["spec"].get("volumes", [])}
        mounts: dict[str, Path] = {}
        for mount in container.get("volumeMounts", []):
            volume, path = volumes[mount["name"]], mount["mountPath"]
            folder = self._folder / "volumes" / mount["name"]
            if "persistentVolumeClaim" in volume:
                folder = Path(path)  # the claim is a folder of this machine, mounted where it is
            elif "configMap" in volume:
                folder.mkdir(parents=True, exist_ok=True)
                for name, text in self._config_map(volume["configMap"]["name"]).items():
                    (folder / name).write_text(text)
            elif path in _SHARED:
                folder = Path(path)
            else:
                folder.mkdir(parents=True, exist_ok=True)
            mounts[path] = folder
        return mounts

    def _variables(self, container: Mapping[str, Any]) -> dict[str, str]:
        values: dict[str, str] = {}
        for source in container.get("envFrom", []):
            values |= self._variables_from(source)
        for entry in container.get("env", []):
            source = entry.get("valueFrom", {})
            if "fieldRef" in source:
                values[entry["name"]] = self._field(source["fieldRef"]["fieldPath"])
            elif "configMapKeyRef" in source:
                text = self._config_map(source["configMapKeyRef"]["name"])[source["configMapKeyRef"]["key"]]
                values[entry["name"]] = ",".join(_resolved(host) for host in text.split(","))
            else:
                values[entry["name"]] = expanded(entry.get("value", ""), values)
        return values

    def _field(self, path: str) -> str:
        if path == "status.podIP":
            return address_of(self.name)
        match = re.fullmatch(r"(metadata\.(?:labels|annotations))\['([^']+)'\]", path)
        node: Any = self._pod
        for key in (*match[1].split("."), match[2]) if match else path.split("."):
            node = node[key]
        return str(node)

    def _variables_from(self, source: Mapping[str, Any]) -> dict[str, str]:
        ((word, reference),) = source.items()
        try:
            if word == "configMapRef":
                return self._config_map(reference["name"])
            found = self._object("secrets", reference["name"])
            return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}
        except LookupError:
            if reference.get("optional"):
                return {}
            raise

    def _config_map(self, name: str) -> dict[str, str]:
        return dict(self._object("configmaps", name)["data"])

    def _object(self, kind: str, name: str) -> Any:
        found = self._rest.get(f"/api/v1/namespaces/{self.namespace}/{kind}/{name}")
        if found is None:
            raise LookupError(f'{kind.removesuffix("s")} "{name}" not found')
        return found

    # --- reporting ---

    def _terminated(self, container: Mapping[str, Any], code: int) -> dict[str, Any]:
        said = (self._folder / "termination-log").read_text(errors="replace")[:4096]
        if not said and code and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            said = self.log.read_text(errors="replace")[-2048:]
        reason = "OOMKilled" if self._out_of_memory else "Completed" if code == 0 else "Error"
        return {"exitCode": code, "reason": reason, "finishedAt": _now(), "message": said}

    def _report(self, phase: str, container: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        entry = {"name": container["name"], "image": container["image"], "imageID": "", "ready": phase == "Running", "restartCount": 0}
        status: dict[str, Any] = {"phase": phase, "podIP": address_of(self.name), "hostIP": "127.0.0.1", "startTime": _now()}
        status["containerStatuses"] = [entry | {"state": state}]
        if self._ending is not None and phase == "Failed":
            status |= {"reason": self._ending[0], "message": self._ending[1]}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        with contextlib.suppress(ApiException):
            there = self._rest.get(path)
            if there is not None and there["metadata"]["uid"] == self._pod["metadata"]["uid"]:
                self._rest.patch(f"{path}/status", {"status": status})
        self.is_done = phase in ("Succeeded", "Failed")


# --- small things --------------------------------------------------------------------------------


def address_of(pod: str) -> str:
    """A loopback address that follows from the pod's name."""
    first, second, third = hashlib.sha256(pod.encode()).digest()[:3]
    return f"127.{1 + first % 254}.{second}.{1 + third % 254}"


def _resolved(host: str) -> str:
    """``<pod>.<service>`` as that pod's address: what the cluster's DNS answers."""
    match = re.fullmatch(r"([a-z0-9-]+)\.[a-z0-9-]+", host)
    return address_of(match[1]) if match else host


def expanded(text: str, values: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced where NAME is known, as Kubernetes does; ``$$(NAME)`` stays as ``$(NAME)``."""
    return re.sub(r"\$(\$?)\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda m: m[0][1:] if m[1] else values.get(m[2], m[0]), text)


def _placed(text: str, mounts: Mapping[str, Path]) -> str:
    """``text`` with the paths of mounts replaced by where they are on this machine."""
    if not mounts:
        return text
    paths = "|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True))
    return re.sub(rf"(^|[=:,])({paths})(?=/|$)", lambda m: m[1] + str(mounts[m[2]]), text)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _log_server(folder: Path, pods: Mapping[str, PodProcess]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            split = urlsplit(self.path)
            _, kind, namespace, name, _ = split.path.split("/", 4)
            query = {key: values[-1] for key, values in parse_qs(split.query).items()}
            found = [pod for pod in pods.values() if (pod.namespace, pod.name) == (namespace, name)]
            if kind != "containerLogs" or not found:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                self._send(found[-1], query)

        def _send(self, pod: PodProcess, query: Mapping[str, str]) -> None:
            with pod.log.open("rb") as stream:
                if "tailLines" in query:
                    lines = stream.read().splitlines(keepends=True)
                    self.wfile.write(b"".join(lines[-int(query["tailLines"]) :]))
                while True:
                    is_last = pod.is_done
                    stamped = query.get("timestamps") == "true"
                    for line in stream.read().splitlines(keepends=True):
                        self.wfile.write((f"{_now()} ".encode() if stamped else b"") + line)
                    self.wfile.flush()
                    if is_last or query.get("follow") != "true":
                        return
                    time.sleep(0.1)

        def log_message(self, *_: Any) -> None:
            pass

    key, certificate = write_key_pair(folder / "kubelet", host="127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server


def process_environment(**extra: str) -> dict[str, str]:
    """What a pod's processes inherit here in place of an image: this interpreter, this checkout, one thread each."""
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    return {**paths, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "LANG": "C.UTF-8", **extra}
