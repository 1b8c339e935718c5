"""A Kubernetes control plane on this machine: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

The programs are found where the field's convention says: ``KUBEBUILDER_ASSETS`` names their directory (as
``setup-envtest use -p path`` prints it). Nothing here is a stand-in; what stands in for a kubelet and for Volcano's
controller is in ``node.py`` and ``volcano.py``.
"""

import datetime
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ASSETS = "KUBEBUILDER_ASSETS"
KUBECONFIG = "RGLCD_TEST_KUBECONFIG"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
OLDEST_KUBECTL = (1, 27)
TOKEN = "rglcd-test-admin"
CRDS = Path(__file__).parent / "crds"


class UnavailableError(Exception):
    """This machine lacks what the cluster tests need; the message says what, and how to get it."""


@dataclass(frozen=True)
class Cluster:
    """An API server to talk to as an administrator; ``audit_log`` is what it writes down of each change to a Volcano Job."""

    kubeconfig: Path
    audit_log: Path | None = None

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl with ``words``; raises :class:`AssertionError` with what it said when it fails and ``check`` holds."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig), *words], input=stdin, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr or done.stdout}"
        return done

    def get(self, *words: str) -> Any:
        """``kubectl get ... -o json``, parsed."""
        return json.loads(self.kubectl("get", *words, "-o", "json").stdout)

    def apply(self, manifest: Mapping[str, Any]) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifest))

    def client(self) -> Any:
        """A new ``kubernetes.client.ApiClient`` for this cluster."""
        from kubernetes import client, config

        configuration = client.Configuration()
        config.load_kube_config(str(self.kubeconfig), client_configuration=configuration)
        return client.ApiClient(configuration)

    def patient_client(self) -> Any:
        """A new client as the launcher has it."""
        from rglcd.launch.cluster_client import PatientClient

        return PatientClient(self.client().configuration)


def check_tools() -> None:
    """Raises :class:`UnavailableError` unless there is a kubectl that is new enough, and a control plane to start or to use."""
    found = shutil.which("kubectl")
    if found is None:
        raise UnavailableError("kubectl is missing; install version 1.27 or newer (https://kubernetes.io/docs/tasks/tools)")
    text = subprocess.run([found, "version", "--client", "--output=json"], capture_output=True, text=True, check=False).stdout
    match = re.search(r'"gitVersion": *"v(\d+)\.(\d+)', text)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_KUBECTL:
        raise UnavailableError(
            f"{found} is older than 1.27, which kustomize components and strict validation need; install a newer one beside it"
        )
    if KUBECONFIG in os.environ:
        return
    assets = os.environ.get(ASSETS)
    missing = [name for name in PROGRAMS if assets is None or not os.access(Path(assets) / name, os.X_OK)]
    if missing:
        raise UnavailableError(
            f"{ASSETS} names no folder with {', '.join(missing)}; get one with `setup-envtest use -p path` "
            f"(sigs.k8s.io/controller-runtime), or name a cluster of your own in {KUBECONFIG}"
        )


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """The cluster that ``RGLCD_TEST_KUBECONFIG`` names, or one started here and ended with the context; Volcano's CRDs loaded."""
    check_tools()
    if KUBECONFIG in os.environ:
        cluster = Cluster(Path(os.environ[KUBECONFIG]).resolve())
        load_crds(cluster)
        yield cluster
        return
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="rglcd-control-plane-")))
        cluster = _start(Path(os.environ[ASSETS]), folder, ending)
        load_crds(cluster)
        yield cluster


def load_crds(cluster: Cluster) -> None:
    """Volcano's definitions, as an API server of 1.20 can read them.

    It mis-reads ``default: ""`` as null: such defaults are dropped, and list-map keys that then lack one with them.
    """
    for path in sorted(CRDS.glob("*.yaml")):
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
        _drop_empty_defaults(definition)
        definition.pop("status", None)
        cluster.apply(definition)
    for path in sorted(CRDS.glob("*.yaml")):
        name = yaml.safe_load(path.read_text(encoding="utf-8"))["metadata"]["name"]
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")


def _drop_empty_defaults(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _drop_empty_defaults(item)
    elif isinstance(node, dict):
        if node.get("default") == "" and "type" in node:
            del node["default"]
        for child in node.values():
            _drop_empty_defaults(child)
        keys = node.get("x-kubernetes-list-map-keys")
        if keys:
            properties, required = node["items"]["properties"], node["items"].get("required", [])
            kept = [key for key in keys if key in required or "default" in properties[key]]
            if kept != keys:
                node["x-kubernetes-list-map-keys"] = kept
            if not kept:
                del node["x-kubernetes-list-map-keys"]
                node["x-kubernetes-list-type"] = "atomic"


AUDITED = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Request", "verbs": ["create", "delete"], "resources": [{"group": "batch.volcano.sh", "resources": ["jobs"]}]},
        {"level": "None"},
    ],
}
"""Who made and removed which job, in the API server's own words."""


# --- starting -------------------------------------------------------------------------------------


def _start(assets: Path, folder: Path, ending: ExitStack) -> Cluster:
    etcd, peer, api = (f"127.0.0.1:{free_port()}" for _ in range(3))
    key, _ = write_key_pair(folder / "service-accounts", host="127.0.0.1")
    (folder / "tokens.csv").write_text(f'{TOKEN},admin,1,"system:masters"\n')
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(_kubeconfig(f"https://{api}"))
    log = folder / "log"
    log.mkdir()
    (folder / "audit.yaml").write_text(yaml.safe_dump(AUDITED))
    audit_log = folder / "audit.jsonl"

    _run(ending, log, assets / "etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync", "--log-level=error", "--name=only",
         f"--listen-client-urls=http://{etcd}", f"--advertise-client-urls=http://{etcd}", f"--listen-peer-urls=http://{peer}",
         f"--initial-advertise-peer-urls=http://{peer}", f"--initial-cluster=only=http://{peer}")  # fmt: skip
    host, port = api.split(":")
    server = _run(ending, log, assets / "kube-apiserver", f"--etcd-servers=http://{etcd}",
         f"--bind-address={host}", f"--secure-port={port}",
         f"--cert-dir={folder / 'apiserver'}", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.0.0.0/24",
         f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC", "--allow-privileged",
         f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
         "--service-account-issuer=https://kubernetes.default.svc", "--kubelet-preferred-address-types=InternalIP",
         f"--audit-policy-file={folder / 'audit.yaml'}", f"--audit-log-path={audit_log}", "--audit-log-mode=blocking",
         "--enable-admission-plugins=Priority,ResourceQuota,LimitRanger", "--feature-gates=TTLAfterFinished=true")  # fmt: skip
    _wait_ready(f"https://{api}/readyz", server, log)
    _run(ending, log, assets / "kube-controller-manager", f"--kubeconfig={kubeconfig}", "--port=0", "--leader-elect=false",
         f"--service-account-private-key-file={key}", f"--root-ca-file={folder / 'apiserver' / 'apiserver.crt'}",
         "--controllers=*,-nodeipam,-route,-service,-cloud-node-lifecycle,-attachdetach,-persistentvolume-binder,ttl-after-finished",
         f"--cert-dir={folder / 'controller-manager'}", "--secure-port=0", "--feature-gates=TTLAfterFinished=true")  # fmt: skip
    profiles = [{"schedulerName": "default-scheduler"}, {"schedulerName": "volcano"}]
    head = {"apiVersion": "kubescheduler.config.k8s.io/v1beta1", "kind": "KubeSchedulerConfiguration"}
    scheduler = head | {
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "leaderElection": {"leaderElect": False},
        # Its default is a port of its own, which another control plane of this machine may have.
        **dict.fromkeys(("healthzBindAddress", "metricsBindAddress"), f"127.0.0.1:{free_port()}"),
        # A pod that could not be placed is tried again soon, so that tests need not wait for the usual minute.
        "podInitialBackoffSeconds": 1,
        "podMaxBackoffSeconds": 2,
        "profiles": profiles,
    }
    (folder / "scheduler.yaml").write_text(yaml.safe_dump(scheduler))
    _run(ending, log, assets / "kube-scheduler", f"--config={folder / 'scheduler.yaml'}", "--port=0", "--secure-port=0")
    cluster = Cluster(kubeconfig, audit_log)
    _wait_for_default_account(cluster)
    return cluster


def _run(ending: ExitStack, log: Path, program: Path, *arguments: Any) -> subprocess.Popen[bytes]:
    with (log / f"{program.name}.log").open("wb") as stream:
        process = subprocess.Popen([str(program), *map(str, arguments)], stdout=stream, stderr=stream)
    ending.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_ready(url: str, server: subprocess.Popen[bytes], log: Path, *, seconds: float = 120) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    context = ssl._create_unverified_context()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(request, context=context, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    tail = (log / "kube-apiserver.log").read_text(errors="replace")[-2000:]
    raise UnavailableError(f"the API server did not become ready: {tail}")


def _wait_for_default_account(cluster: Cluster) -> None:
    deadline = time.monotonic() + 60
    while cluster.kubectl("get", "serviceaccount", "default", check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise UnavailableError("the controller manager made no default ServiceAccount")
        time.sleep(0.2)


def _kubeconfig(server: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
    )


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_key_pair(stem: Path, *, host: str) -> tuple[Path, Path]:
    """An RSA key and a certificate that it signs for itself, as ``<stem>.key`` and ``<stem>.crt``."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rglcd-test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    key_file, certificate_file = stem.with_suffix(".key"), stem.with_suffix(".crt")
    key_file.write_bytes(private)
    certificate_file.write_bytes(certificate.public_bytes(encoding))
    return key_file, certificate_file
