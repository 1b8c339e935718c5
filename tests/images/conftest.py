"""Real images on this machine: a base of Debian's packages, a registry on loopback, and a release into it."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "docker-registry": "docker-registry",
}
NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--fork")
MOUNTS = "mount -t tmpfs none /mnt; cd /mnt; mkdir l u w m; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w none m"
"""What every container does first. Some machines for tests are containers that may not."""


@dataclass(frozen=True)
class Engine:
    """Container tools whose every state is in ``folder``: this machine's own images and settings are left alone."""

    folder: Path
    registry: str

    def environment(self) -> dict[str, str]:
        names = {"CONTAINERS_CONF": "containers.conf", "CONTAINERS_STORAGE_CONF": "storage.conf"}
        own = {name: str(self.folder / file) for name, file in names.items()}
        return {**os.environ, **own, "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf"), "TMPDIR": str(self.folder)}

    def call(self, *words: str, cwd: Path = ROOT, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program; raises ``AssertionError`` with the end of what it said when it fails and ``check`` holds."""
        env = self.environment() | environment
        done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def run(self, image: str, *words: str, mounts: dict[Path, str] | None = None, **kwargs: object) -> subprocess.CompletedProcess[str]:
        """Run ``words`` in ``image`` as a pod of the restricted standard would: no root, no capabilities, no writing but in mounts."""
        limits = [
            "--read-only",
            "--tmpfs",
            "/tmp:mode=1777",
            "--cap-drop",
            "all",
            "--security-opt",
            "no-new-privileges",
            "--network",
            "none",
        ]
        binds = [word for path, where in (mounts or {}).items() for word in ("--volume", f"{path}:{where}")]
        entry = ["--entrypoint", words[0]] if words else []
        environment = ["--env", "OMP_NUM_THREADS=1"]
        return self.call("podman", "run", "--rm", *limits, *environment, *binds, *entry, image, *words[1:], **kwargs)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Release:
    """A checkout in which ``images/release`` ran, and what its lock says since."""

    checkout: Path
    lock: dict[str, str]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    missing = sorted(package for program, package in TOOLS.items() if shutil.which(program) is None)
    if missing or os.getuid() != 0:
        pytest.exit(f"the image tests need root and Debian's packages: apt-get install {' '.join(missing)}", returncode=2)
    tried = subprocess.run(["unshare", *NAMESPACES, "sh", "-euc", MOUNTS], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"containers need namespaces and mounts, which this machine allows nobody: {tried.stderr.strip()}")
    folder = tmp_path_factory.mktemp("engine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        registry = f"127.0.0.1:{probe.getsockname()[1]}"
    # Containers in containers: no systemd, no user namespaces, limits that may be set here.
    (folder / "containers.conf").write_text(
        '[containers]\nnetns = "host"\ndefault_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
    )
    (folder / "storage.conf").write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n')
    (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": registry},
    }
    (folder / "registry.yml").write_text(yaml.safe_dump(config))
    server = subprocess.Popen(["docker-registry", "serve", str(folder / "registry.yml")], stderr=subprocess.DEVNULL)
    engine = Engine(folder, registry)
    try:
        _wait_for(registry)
        yield engine
    finally:
        server.terminate()
        server.wait(timeout=10)
        # Gigabytes that nobody looks at again; the storage driver mounts its folder on itself.
        engine.call("umount", "--lazy", str(folder / "storage" / "overlay"), check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str) -> None:
    host, port = address.split(":")
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"the registry at {address} does not answer")


@pytest.fixture(scope="session")
def base(engine: Engine) -> str:
    """Debian 12 with Python and a C compiler, published as any base is. The release's own base is out of reach here.

    It has no compiler, and the train image's build fetches one; here the build needs no archive of Debian's.
    """
    context = engine.folder / "base"
    context.mkdir()
    packages = "--include=python3,python3-venv,ca-certificates,gcc,libc6-dev"
    engine.call("mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", str(context / "root.tar"))
    (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
    reference = f"{engine.registry}/debian-python:3.11"
    engine.call("buildah", "build", "--isolation", "chroot", "-t", reference, str(context))
    engine.call("buildah", "push", "--disable-compression", reference)
    (context / "root.tar").unlink()
    # A release meets its base in a registry, not among its own images, where the same layers may have another digest.
    engine.call("buildah", "rmi", "--force", reference)
    return reference


@pytest.fixture(scope="session")
def release(engine: Engine, base: str) -> Release:
    checkout = engine.folder / "checkout"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "t"]):
        engine.call("git", *words, cwd=checkout)
    flags = " ".join(["--isolation chroot", *_pip_of_this_machine(engine.folder)])
    variables = {"BASE": base, "BUILDER": "buildah", "BUILD_FLAGS": flags, "PUSH_FLAGS": "--disable-compression"}
    engine.call("images/release", f"{engine.registry}/rg-lcd", cwd=checkout, **variables)
    return Release(checkout, yaml.safe_load((checkout / "images" / "lock.yaml").read_text()))


def _pip_of_this_machine(folder: Path) -> list[str]:
    """Words for the builder, so that pip in a build goes where pip here goes: its settings as a secret, local places mounted."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings = {name.rpartition(".")[2]: ast.literal_eval(value) for name, value in (line.split("=", 1) for line in listed.splitlines())}
    settings = {name: settings[name] for name in ("index-url", "extra-index-url", "find-links", "trusted-host", "cert") if name in settings}
    (folder / "pip.conf").write_text("\n".join(["[global]", *(f"{name} = {' '.join(value.split())}" for name, value in settings.items())]))
    local = re.findall(r"(?:^|\s)(?:file://)?(/\S+)", " ".join(settings.values()))
    # A simple index on disk links to files beside it.
    places = {str(Path(path).parent) if f"file://{path}" in " ".join(settings.values()) else path for path in local}
    return [f"--secret id=pip,src={folder / 'pip.conf'}", *(f"--volume {place}:{place}:ro" for place in sorted(places))]
