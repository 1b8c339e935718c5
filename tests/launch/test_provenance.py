"""What a job says of where it comes from, and that an image which nobody has published is not submitted."""

import hashlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main as pipelines
from rglcd.cli import main
from rglcd.config import dump, load_preset
from tests.launch.conftest import IMAGE
from tests.launch.scripted_api import ScriptedApi

ZEROS = "rg-lcd/python-train@sha256:" + "0" * 64
LABEL = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(dump(load_preset("micro")))
    Path("data.dvc").write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: data\n")
    Path("dvc.lock").write_text("schema: '2.0'\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "m"]):
        subprocess.run(["git", *words], check=True, cwd=tmp_path)
    return tmp_path


def metadata(capsys, *words: str) -> dict[str, Any]:
    assert main(["launch", "distill", "--dry-run", "--image", IMAGE, *words]) == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["metadata"]
    return found


def test_commit_lock_and_image_are_on_a_job_without_being_asked_for(checkout: Path, capsys) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    found = metadata(capsys)
    assert found["labels"]["rg-lcd/git-commit"] == found["annotations"]["rg-lcd/git-commit"] == commit
    assert found["annotations"]["rg-lcd/dvc-lock"] == hashlib.sha256(b"schema: '2.0'\n").hexdigest()
    assert found["annotations"]["rg-lcd/image"] == "sha256:" + "a" * 64
    Path("params.yaml").write_text(dump(load_preset("micro")) + "# changed\n")
    assert metadata(capsys)["labels"]["rg-lcd/git-commit"] == f"{commit}-dirty"


def test_what_a_label_cannot_hold_is_whole_in_the_annotation(checkout: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RGLCD_GIT_COMMIT", "v1.0+local/" + "x" * 80 + "-")
    found = metadata(capsys)
    assert found["annotations"]["rg-lcd/git-commit"] == "v1.0+local/" + "x" * 80 + "-"
    assert all(LABEL.fullmatch(value) for value in found["labels"].values())


def test_outside_of_a_checkout_nothing_is_made_up(checkout: Path, capsys, monkeypatch) -> None:
    elsewhere = checkout / ".git" / ".." / ".." / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    Path("params.yaml").write_text(dump(load_preset("micro")))
    assert not {"rg-lcd/git-commit", "rg-lcd/dvc-lock"} & metadata(capsys)["labels"].keys()


def test_a_compiled_pipeline_hands_commit_and_lock_to_the_tasks_that_launch(checkout: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RGLCD_IMAGE", IMAGE)
    pipelines(["compile"])
    ir, _ = yaml.safe_load_all(capsys.readouterr().out)
    told = {entry["name"]: entry["value"] for entry in ir["deploymentSpec"]["executors"]["exec-distill"]["container"]["env"]}
    assert len(told["RGLCD_GIT_COMMIT"]) == 40
    assert len(told["RGLCD_DVC_LOCK"]) == 64


# --- digests of zeros ----------------------------------------------------------------------------


def test_an_image_that_nobody_has_published_is_not_launched(api: ScriptedApi, launch) -> None:
    ended = launch(image=ZEROS)
    assert (ended.code, len(ended.lines)) == (2, 1)
    assert "rg-lcd/python-train has a digest of zeros, nobody has published it: make images first" in ended.last
    assert api.calls == []


@pytest.mark.parametrize(
    "act", [lambda: main(["launch", "distill", "--dry-run"]), lambda: pipelines(["compile"])], ids=["dry run", "compile"]
)
def test_what_only_prints_says_it_and_goes_on(act, checkout: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RGLCD_IMAGE", ZEROS)
    act()
    said = capsys.readouterr()
    assert "make images first" in said.err
    # The toy's models are folders of this machine, which is said in a line of its own.
    assert len([line for line in said.err.splitlines() if "no pod sees it" not in line]) == 1
    assert yaml.safe_load_all(said.out)
    assert ZEROS in said.out
