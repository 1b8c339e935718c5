"""A release, really made: built, published, pinned by digest, and a stage run inside as Kubeflow would run it.

On a base of Debian's packages. What only a base for GPUs would show (CUDA, NCCL) is not shown here.
"""

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from rglcd import __version__
from rglcd.config import Config, dump
from rglcd.store.manifest import read_manifest
from tests.images.conftest import Engine, Release
from tests.tiny_line import run, tiny_config, up_to_latents

pytestmark = pytest.mark.debian
NOBODY = 10001
MANIFESTS = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


def test_the_train_image_compiles_a_library_as_triton_does(engine: Engine, release: Release) -> None:
    source = "#include <stdlib.h>\nint half(int n) { return abs(n) / 2; }"
    command = f"printf '{source}' >/tmp/half.c && gcc -O3 -shared -fPIC /tmp/half.c -o /tmp/half.so && test -s /tmp/half.so"
    engine.run(release.lock["train"], "sh", "-c", command.replace("\n", "\\n"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    """The tiny line up to its latents, made on this machine."""
    root, config = tmp_path_factory.mktemp("here"), tiny_config()
    up_to_latents(root, config)
    _open_to_nobody(root)
    return root, config


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A folder that a container may write to."""
    store = tmp_path / "store"
    store.mkdir()
    os.chown(store, NOBODY, NOBODY)
    return store


def _open_to_nobody(root: Path) -> None:
    """pytest's folders are their user's alone; containers run as another."""
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def inspected(engine: Engine, reference: str) -> dict[str, Any]:
    engine.call("podman", "pull", "--quiet", reference)
    (image,) = json.loads(engine.call("podman", "image", "inspect", reference).stdout)
    return image


@pytest.mark.parametrize(("name", "tag"), [("base", "3.11"), ("train", __version__), ("step", __version__)])
def test_the_lock_names_what_the_registry_has(release: Release, name: str, tag: str) -> None:
    """Asked of the registry itself: the builder's own copy of what it built may have another digest."""
    reference, _, digest = release.lock[name].partition("@")
    registry, _, repository = reference.partition("/")
    asked = urllib.request.Request(f"http://{registry}/v2/{repository}/manifests/{tag}", headers={"Accept": MANIFESTS}, method="HEAD")
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert answer.headers["Docker-Content-Digest"] == digest


@pytest.mark.parametrize("name", ["step", "train"])
def test_image_has_its_labels_and_runs_without_root(engine: Engine, release: Release, name: str) -> None:
    config = inspected(engine, release.lock[name])["Config"]
    revision = engine.call("git", "rev-parse", "HEAD", cwd=release.checkout).stdout.strip()
    assert config["User"] == f"{NOBODY}:{NOBODY}"
    assert config["Labels"]["org.opencontainers.image.revision"] == revision
    assert config["Labels"]["org.opencontainers.image.base.name"] == release.lock["base"]
    assert engine.run(release.lock[name], "id", "-u").stdout.strip() == str(NOBODY)
    assert engine.run(release.lock[name], "touch", "/opt/x", check=False).returncode != 0
    assert engine.run(release.lock[name]).stdout.startswith("usage: rglcd")


def test_the_step_image_has_no_torch_and_compiles_the_pipeline_for_the_image_beside_it(
    engine: Engine, release: Release, tmp_path: Path
) -> None:
    step = release.lock["step"]
    assert engine.run(step, "python", "-c", "import torch", check=False).returncode != 0
    (tmp_path / "params.yaml").write_text(dump(tiny_config()))
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {'0' * 32}.dir\n  path: data\n")
    _open_to_nobody(tmp_path)
    compiled = engine.run(step, "sh", "-c", "cd /here && python -m pipelines compile", mounts={tmp_path: "/here:ro"}).stdout
    pipeline, _ = yaml.safe_load_all(compiled)
    images = {executor["container"]["image"] for executor in pipeline["deploymentSpec"]["executors"].values()}
    assert release.lock["train"] in images
    assert all("@sha256:" in image for image in images)


def test_a_stage_gives_the_same_digest_inside(engine: Engine, release: Release, here: tuple[Path, Config], there: Path) -> None:
    """VAE and text encoder by torch and diffusers, in the image as on this machine."""
    root, config = here
    sections = {name: config.section(name).model_dump(mode="json") for name in ("model", "caching")}
    places = {"shards": "/in/shards", "pretrained": "/in/pretrained", "latents": "/store/latents"}
    artifacts = [word for name, place in places.items() for word in ("--artifact", f"{name}={place}")]
    command = ["rglcd", "run", "cache", "--sections", json.dumps(sections), *artifacts]
    engine.run(release.lock["train"], *command, mounts={root: "/in:ro", there: "/store"})
    inside, outside = (read_manifest(folder / "latents", made_by="cache") for folder in (there, root))
    assert inside.digest == outside.digest
    assert inside.key == outside.key


def test_a_task_of_kubeflow_runs_in_the_image(engine: Engine, release: Release, here: tuple[Path, Config], there: Path) -> None:
    """The very command of the compiled pipeline, given what Kubeflow's launcher would give it."""
    from pipelines.rg_lcd import compile_pipeline
    from rglcd.launch.settings import load_settings

    root, config = here
    compile_pipeline(config, there.parent / "ir.yaml", source="/in/data@0", cluster=load_settings())
    pipeline, _ = yaml.safe_load_all((there.parent / "ir.yaml").read_text())
    container = pipeline["deploymentSpec"]["executors"]["exec-shard"]["container"]
    parameters = {
        "source": f"/in/data@{'0' * 32}",
        "store": "/store",
        "sharding": config.sharding.model_dump(mode="json", exclude_none=True),
    }
    artifact = {"name": "shards", "type": {"schemaTitle": "system.Dataset"}, "uri": "/store/kfp/shards", "metadata": {}}
    executor_input = {
        "inputs": {"parameterValues": parameters},
        "outputs": {"artifacts": {"shards": {"artifacts": [artifact]}}, "outputFile": "/store/kfp/executor_output.json"},
    }
    words = [*container["command"], *(json.dumps(executor_input) if word == "{{$}}" else word for word in container["args"])]
    engine.run(release.lock["train"], *words, mounts={root: "/in:ro", there: "/store"})
    inside, outside = (read_manifest(folder / "shards", made_by="shard") for folder in (there, root))
    assert inside.digest == outside.digest
    assert json.loads((there / "kfp" / "executor_output.json").read_text())["artifacts"]["shards"]["artifacts"][0]["metadata"]["digest"]


def test_the_tiny_line_is_what_the_images_are_compared_with(here: tuple[Path, Config]) -> None:
    root, config = here
    assert run(root, config, "cache").was_done
