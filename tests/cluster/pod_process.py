"""A pod as a process of this machine: its folder, its environment, its ends, and what a kubelet reports of them (``node.py``)."""

import base64
import contextlib
import hashlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.client.rest import ApiException

from tests.cluster.rest import Rest

POLL_SECONDS = 0.3
_SHARED = frozenset({"/dev/shm"})
"""Mounts that are this machine's own."""


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
        self._was_asked = False

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
            if self._was_asked:
                return
            self._was_asked = True
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
        started = now()
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
        while not self._was_asked:
            time.sleep(POLL_SECONDS)
        self.is_done = True

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        self._process = process
        if self._was_asked:
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
        return {"exitCode": code, "reason": reason, "finishedAt": now(), "message": said}

    def _report(self, phase: str, container: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        entry = {"name": container["name"], "image": container["image"], "imageID": "", "ready": phase == "Running", "restartCount": 0}
        status: dict[str, Any] = {"phase": phase, "podIP": address_of(self.name), "hostIP": "127.0.0.1", "startTime": now()}
        status["containerStatuses"] = [entry | {"state": state}]
        if self._ending is not None and phase == "Failed":
            status |= {"reason": self._ending[0], "message": self._ending[1]}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
        with contextlib.suppress(ApiException):
            there = self._rest.get(path)
            if there is not None and there["metadata"]["uid"] == self._pod["metadata"]["uid"]:
                self._rest.patch(f"{path}/status", {"status": status})
        self.is_done = phase in ("Succeeded", "Failed")


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


def now() -> str:
    """The wall clock as Kubernetes writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
