"""The image with the package hpsv2: on the train image, in an environment of its own, and what it adds is checked."""

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "images" / "hpsv2"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()


def test_a_linter_of_dockerfiles_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_base_image_is_an_argument_and_the_last_stage_only_copies() -> None:
    assert re.findall(r"(?m)^FROM (\S+)", DOCKERFILE) == ["${BASE_IMAGE}"] * 2
    last = DOCKERFILE.rpartition("\nFROM")[2]
    assert "RUN" not in last
    assert last.rstrip().endswith("USER 10001:10001")


def test_every_package_is_pinned_and_conflicting_ones_are_left_out() -> None:
    lines = [line for line in (FOLDER / "requirements-hpsv2.txt").read_text().splitlines() if not line.startswith("#")]
    names = {name for name, _ in (line.split("==") for line in lines)}
    assert "hpsv2" in names
    assert not names & {"protobuf", "pytest", "torch", "torchvision"}
    assert re.findall(r"\b(torch\w*)==([\d.]+)", DOCKERFILE) == [("torch", "2.13.0"), ("torchvision", "0.28.0")]


def test_what_is_added_by_hand_is_checked_by_its_digest() -> None:
    checked = re.findall(r'echo "[0-9a-f]{64}  (\S+)" \| sha256sum --check', DOCKERFILE)
    assert checked == ["open_clip_torch-3.3.0-py3-none-any.whl", "open_clip/bpe_simple_vocab_16e6.txt.gz"]
