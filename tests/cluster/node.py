"""A stand-in for a machine with its kubelet: a Node whose pods are processes of this machine.

What it does as a kubelet does: it registers and heartbeats the node; runs init containers, then the container, with the
environment (values, fields, ConfigMaps, Secrets, ``$(NAME)`` expansion), emptyDir and ConfigMap volumes in a folder of the pod's own;
reports phases, exit codes, reasons and termination messages; sends SIGTERM, and SIGKILL after the grace period; ends pods at
their active deadline; serves their logs to the API server. What it does not: images (a name with ``unpullable`` in it cannot
be pulled), isolation, limits (see :meth:`KubeletStandIn.kill_for_memory`), probes, and the network: a pod's address is one of
127.0.0.0/8 that follows from its name, and the host names that Volcano's svc plugin hands out are replaced by it.
"""

import contextlib
import os
import ssl
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
from tests.cluster.pod_process import POLL_SECONDS, PodProcess, now
from tests.cluster.rest import Rest

ROOT = Path(__file__).parents[2]


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

    def _process(self, namespace: str, name: str) -> PodProcess:
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
        at = now()
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": at, "lastTransitionTime": at}
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
        while not self._ended.wait(POLL_SECONDS):
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
                        self.wfile.write((f"{now()} ".encode() if stamped else b"") + line)
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
