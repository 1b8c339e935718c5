"""The images as they are written: what they are built on, what they install, and as whom they run."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rglcd.config import dump
from tests.tiny_line import tiny_config

ROOT = Path(__file__).parents[2]
IMAGES = ("step", "train")
# What the wheel of torch itself brings is torch's to choose: CUDA libraries, or none of them.
FROM_TORCHS_WHEEL = ("torch", "triton", "nvidia-", "cuda-", "setuptools")


def instructions(image: str) -> Iterator[tuple[str, str]]:
    text = (ROOT / "images" / image / "Dockerfile").read_text()
    code = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    for line in filter(None, (line.strip() for line in code.splitlines())):
        word, _, rest = line.partition(" ")
        yield word, rest


def pins(path: Path) -> dict[str, str]:
    return dict(line.split("==") for line in path.read_text().split())


@pytest.mark.parametrize("image", IMAGES)
def test_a_linter_of_dockerfiles_finds_nothing(image: str) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "images" / image / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_base_image_is_an_argument_without_a_default(image: str) -> None:
    """So nothing is built on a tag by accident: a release hands in the digest that the lock names."""
    written = list(instructions(image))
    assert written[0] == ("ARG", "BASE_IMAGE")
    stages = [rest for word, rest in written if word == "FROM"]
    assert len(stages) > 1
    assert all(rest.split()[0] == "${BASE_IMAGE}" for rest in stages)


@pytest.mark.parametrize("image", IMAGES)
def test_image_runs_without_root(image: str) -> None:
    users = [rest for word, rest in instructions(image) if word == "USER"]
    user, group = (int(number) for number in users[-1].split(":"))
    assert min(user, group) >= 10001
    last_stage = last_stage_of(image)
    assert "--mount" not in last_stage, "no secret can stay in what runs"
    assert last_stage.count("RUN ") == (1 if image == "train" else 0), "the last stage only copies, but for the compiler that Triton calls"


def last_stage_of(image: str) -> str:
    return "\n".join(f"{word} {rest}" for word, rest in instructions(image)).rpartition("\nFROM")[2]


def test_the_train_image_has_the_c_compiler_that_triton_calls_and_leaves_no_package_lists() -> None:
    (installation,) = re.findall(r"(?m)^RUN (.*)$", last_stage_of("train"))
    packages = dict(re.findall(r"'([a-z0-9-]+)=([^']+)'", installation))
    assert packages.keys() == {"gcc", "libc6-dev"}
    assert all(version[0].isdigit() for version in packages.values()), "pinned"
    assert installation.startswith("command -v gcc"), "a base that has one keeps it"
    assert "--no-install-recommends" in installation
    assert "rm -rf /var/lib/apt/lists/*" in installation


@pytest.mark.parametrize("image", IMAGES)
def test_image_has_the_labels_of_the_oci_standard(image: str) -> None:
    labels = " ".join(rest for word, rest in instructions(image) if word == "LABEL")
    for label in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in labels


@pytest.mark.parametrize("image", IMAGES)
def test_installed_packages_are_those_of_the_lock_and_complete(image: str) -> None:
    """Every pin is the lock's, and every requirement of what is installed is installed: images install without resolving."""
    installed, locked = pins(ROOT / "images" / image / "requirements.txt"), pins(ROOT / "requirements.lock")
    assert installed.items() <= locked.items()
    missing = {
        f"{name} needs {requirement}"
        for name in installed
        for requirement in map(Requirement, requires(name) or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if canonicalize_name(requirement.name) not in installed
        if not canonicalize_name(requirement.name).startswith(FROM_TORCHS_WHEEL)
        # Within a component's pod kfp runs without anything that it needs to compile one.
        if not (image == "train" and name == "kfp")
    }
    assert missing == set(), "make image-requirements writes them anew"


def test_each_image_installs_what_the_project_says_it_needs() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"step": ("kfp", "torchx"), "train": ("train",)}
    for image, names in extras.items():
        asked = [*project["dependencies"], *(one for name in names for one in project["optional-dependencies"][name])]
        wanted = {canonicalize_name(Requirement(one).name) for one in asked} - {"torch"}
        assert wanted <= pins(ROOT / "images" / image / "requirements.txt").keys(), "make image-requirements writes them anew"


def test_the_step_image_is_light() -> None:
    installed = pins(ROOT / "images" / "step" / "requirements.txt").keys()
    assert not [
        name for name in installed if name.startswith(("torch", "nvidia", "transformers", "diffusers")) and name != "torchx-nightly"
    ]


WITHOUT = """
import runpy, sys
absent = set(sys.argv.pop(1).split(","))
class Finder:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder)
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "words",
    [
        *("pipelines compile", "pipelines submit", "rglcd launch distill --dry-run", "rglcd launch --show-settings"),
        *("rglcd config show", "rglcd --help"),
    ],
)
def test_the_step_image_has_all_that_its_commands_import(words: str, tmp_path: Path) -> None:
    """As in the image: what it does not install cannot be imported. (tests/images/test_release.py builds it, which takes minutes.)"""
    installed = pins(ROOT / "images" / "step" / "requirements.txt").keys()
    absent = {
        module
        for module, distributions in packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & {*installed, "rg-lcd"}
    }
    assert {"torch", "psutil", "numpy"} <= absent
    (tmp_path / "params.yaml").write_text(dump(tiny_config()))
    (tmp_path / "data.dvc").write_text(f"outs:\n- md5: {'0' * 32}.dir\n  path: data\n")
    command = [sys.executable, "-c", WITHOUT, ",".join(absent), *words.split()]
    image = yaml.safe_load((ROOT / "images" / "lock.yaml").read_text())["train"]
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"image": image}))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    without_a_host = words == "pipelines submit"
    assert (done.returncode, "--host" in done.stderr) == ((2, True) if without_a_host else (0, False)), done.stderr


def test_the_lock_names_every_image_by_digest() -> None:
    lock = yaml.safe_load((ROOT / "images" / "lock.yaml").read_text())
    assert lock.keys() >= {"base", *IMAGES}
    assert all(re.fullmatch(r"[a-z0-9./:_-]+@sha256:[0-9a-f]{64}", reference) for reference in lock.values())


def test_no_other_file_names_an_image() -> None:
    """An image named twice is an image that is one day named differently."""
    tracked = subprocess.run(["git", "ls-files", "manifests", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = [name for name in tracked if re.search(r"@sha256:|\bimage: \S+[:@]", (ROOT / name).read_text(errors="replace"))]
    assert named == []
