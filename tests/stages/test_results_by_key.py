"""Results live by key, seen through the command line: what is asked for again is put back, and nothing is removed but by `rglcd clean`."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rglcd.cli import main
from rglcd.config import dump
from rglcd.errors import InputError
from rglcd.store.artifacts import ArtifactLocation, at_key
from rglcd.store.manifest import read_manifest
from rglcd.store.places import Places, folder_of_links
from tests.tiny_line import (
    TINY_EVALUATION,
    tiny_config,
    write_published_models,
    write_tiny_evaluation_data,
    write_tiny_source,
)

DONE = "nothing to do"
ALL_DONE = dict.fromkeys(("shard", "prepare", "cache", "pretrain", "distill", "evaluate"), DONE)

MODELS = (
    "model.teacher.uri=./models/teacher",
    "preparation.scorers.expert.source.uri=./models/expert",
    "preparation.features.source.uri=./models/features",
)

Command = Callable[..., str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of which all is done; read it, do not write it."""
    root = tmp_path_factory.mktemp("project")
    write_tiny_source(root / "data")
    write_tiny_evaluation_data(root / "data")
    write_published_models(root / "models")
    (root / "params.yaml").write_text(dump(tiny_config(*MODELS, *TINY_EVALUATION)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["run", "all"]) == 0
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is where we are."""
    root = Path(shutil.copytree(finished, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def rglcd(project: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """``rglcd WORDS``: what it prints."""

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 0
        return capsys.readouterr().out

    return run


def run_all(rglcd: Command, *settings: str) -> dict[str, str]:
    """What each stage says of itself, its seconds left out."""
    said = rglcd("run", "all", *(word for setting in settings for word in ("--set", setting)))
    return {stage: re.sub(r" in .*", "", what) for stage, what in re.findall(r"^(\w+): (nothing to do|done in .*?);", said, re.MULTILINE)}


JUDGE = ("preparation.scorers.judge={kind: clip, source: {uri: ./models/expert}}", "evaluation.scorers=[expert,judge]")


class TestWhatIsMadeAgain:
    def test_a_judge_added_after_training_costs_one_evaluation(self, project: Path, rglcd: Command) -> None:
        student = read_manifest(project / "artifacts" / "student", made_by="distill")
        assert run_all(rglcd, *JUDGE) == ALL_DONE | {"prepare": "done", "evaluate": "done"}
        assert read_manifest(project / "artifacts" / "student", made_by="distill") == student
        header = (project / "artifacts" / "report" / "quality.csv").read_text().splitlines()[0]
        assert header.startswith("steps,teacher expert,teacher judge")

    def test_another_feature_network_costs_one_evaluation(self, project: Path, rglcd: Command) -> None:
        shutil.copytree(project / "models" / "features", project / "models" / "another")
        (project / "models" / "another" / "README.md").write_text("another")
        said = run_all(rglcd, "preparation.features.source.uri=./models/another")
        assert said == ALL_DONE | {"prepare": "done", "evaluate": "done"}

    def test_one_more_prompt_packs_no_shard(self, project: Path, rglcd: Command) -> None:
        with (project / "data" / "prompts" / "heldout.txt").open("a") as prompts:
            prompts.write("one more\n")
        assert run_all(rglcd) == ALL_DONE | {"evaluate": "done"}

    def test_the_rewards_weight_there_and_back_trains_once_and_measures_once(self, project: Path, rglcd: Command) -> None:
        before = read_manifest(project / "artifacts" / "report", made_by="evaluate")
        assert run_all(rglcd, "reward.weight=2.0") == ALL_DONE | {"distill": "done", "evaluate": "done"}
        assert run_all(rglcd) == ALL_DONE
        assert read_manifest(project / "artifacts" / "report", made_by="evaluate") == before
        assert run_all(rglcd, "reward.weight=2.0") == ALL_DONE, "and there again"


class TestWhatStays:
    def test_unfinished_work_survives_a_run_of_another_configuration(self, project: Path, rglcd: Command) -> None:
        key = read_manifest(project / "artifacts" / "student", made_by="distill").key
        work = Places(project / "artifacts" / "student").work(key)
        work.parent.mkdir(exist_ok=True)
        (project / "artifacts" / "student").rename(work)
        (work / "manifest.json").unlink()
        before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
        assert run_all(rglcd, "reward.weight=2.0")["distill"] == "done"
        assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before

    def test_an_artifacts_folder_of_before_goes_on_and_its_leftovers_are_listed(self, project: Path, rglcd: Command) -> None:
        for name in (".work", ".kept"):
            shutil.rmtree(project / "artifacts" / name, ignore_errors=True)
        old = project / "artifacts" / ".student.0123456789ab.staging"
        old.mkdir()
        (old / "half").write_bytes(bytes(1000))
        assert run_all(rglcd) == ALL_DONE
        assert re.search(r"^student +- +left over +1000 B  20[-0-9 :]{14}$", rglcd("runs"), re.MULTILINE)
        assert old.is_dir()
        rglcd("clean", "--yes")
        assert not old.exists()
        assert run_all(rglcd) == ALL_DONE


class TestRunsAndClean:
    def test_runs_says_what_differs_from_the_configuration_in_force(self, project: Path, rglcd: Command) -> None:
        run_all(rglcd, "reward.weight=2.0")
        lines = rglcd("runs").splitlines()
        (kept,) = [number for number, line in enumerate(lines) if line.startswith("student") and " kept " in line]
        (in_force,) = [number for number, line in enumerate(lines) if line.startswith("student") and " in force " in line]
        assert lines[in_force + 1].strip() == "reward.weight 2.0, now 1.0"
        assert not lines[kept + 1].startswith(" "), "that is the one of the configuration in force"

    def test_runs_says_that_a_model_was_another_under_the_same_name(self, project: Path, rglcd: Command) -> None:
        (project / "models" / "features" / "README.md").write_text("another")
        assert run_all(rglcd)["evaluate"] == "done"
        lines = rglcd("runs").splitlines()
        (kept,) = [number for number, line in enumerate(lines) if line.startswith("report") and " kept " in line]
        assert re.fullmatch(r" +prepared\.features [0-9a-f]{12}, in force [0-9a-f]{12}", lines[kept + 1])

    def test_clean_removes_what_is_kept_and_nothing_in_force(self, project: Path, rglcd: Command) -> None:
        run_all(rglcd, "reward.weight=2.0")
        said = rglcd("clean", "--yes")
        assert re.search(r"^ *\d+\.\d [KM]iB  artifacts/\.kept/student-[0-9a-f]{12}$", said, re.MULTILINE)
        assert not list((project / "artifacts" / ".kept").iterdir())
        assert run_all(rglcd, "reward.weight=2.0") == ALL_DONE
        assert rglcd("clean", "--yes") == "nothing to remove\n"

    def test_clean_asks_and_without_anybody_to_ask_removes_nothing(self, project: Path, rglcd: Command) -> None:
        run_all(rglcd, "reward.weight=2.0")
        with pytest.raises(SystemExit) as stopped:
            main(["clean"])
        assert stopped.value.code == 2
        assert list((project / "artifacts" / ".kept").iterdir())

    def test_clean_leaves_what_a_living_process_works_in(self, project: Path, rglcd: Command) -> None:
        places = Places(project / "artifacts" / "student")
        with places.working("0" * 64) as work:
            (work / "half").write_text("half")
            assert "being worked on" in rglcd("runs")
            assert rglcd("clean", "--yes") == "nothing to remove\n"
        assert work.is_dir()
        rglcd("clean", "--yes")
        assert not work.exists()

    def test_what_a_stage_reads_its_inputs_by_is_not_listed_as_work(self, project: Path, rglcd: Command) -> None:
        with folder_of_links(beside=project / "artifacts" / "student"):
            said = rglcd("runs")
            assert re.search(r"^student +- +being read +0 B  20[-0-9 :]{14}$", said, re.MULTILINE)
            assert "being worked on" not in said
            assert rglcd("clean", "--yes") == "nothing to remove\n"

    def test_clean_takes_keys_and_ages(self, project: Path, rglcd: Command) -> None:
        before = read_manifest(project / "artifacts" / "student", made_by="distill").key
        run_all(rglcd, "reward.weight=2.0")
        assert rglcd("clean", "--yes", "--older-than", "1") == "nothing to remove\n"
        rglcd("clean", "--yes", before[:8])
        assert {path.name.partition("-")[0] for path in (project / "artifacts" / ".kept").iterdir()} == {"report"}

    def test_clean_in_a_store_keeps_what_a_published_result_was_made_from(
        self, project: Path, rglcd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RGLCD_STORE", store := f"file://{tmp_path}/store")
        assert run_all(rglcd) == ALL_DONE, "what lies in folders moves to the store"
        with pytest.raises(SystemExit) as stopped:
            main(["clean", "--store", store, "--yes"])
        assert stopped.value.code == 2
        assert rglcd("clean", "--store", store, "--yes", "--older-than", "1") == "nothing to remove\n"
        said = rglcd("clean", "--store", store, "--yes", "--older-than", "0")
        assert re.findall(r"store/(\w+)/[0-9a-f]{64}: removed", said) == ["report"]
        assert len(re.findall(r"[0-9a-f]{64}: kept, for a published result was made from it", said)) == 5
        assert run_all(rglcd) == ALL_DONE | {"evaluate": "done"}

    def test_clean_refuses_what_is_no_key(self, project: Path, capsys) -> None:
        with pytest.raises(SystemExit):
            main(["clean", "student"])
        assert "'student' is no key: give its first digits" in capsys.readouterr().err


def test_a_stage_run_by_a_stale_dvc_file_says_how_to_write_it(project: Path, rglcd: Command, capsys) -> None:
    (project / "data.dvc").write_text("outs:\n- md5: 0123.dir\n  path: data\n")
    rglcd("dvc", "render")
    version = re.search(r"run cache --stage-version (\d+)", (project / "dvc.yaml").read_text())
    assert version is not None
    assert DONE in rglcd("run", "cache", "--stage-version", version[1])
    written = yaml.safe_load((project / "dvc.yaml").read_text())
    written["stages"]["cache"]["deps"].remove("artifacts/pretrained/scorers/expert")
    (project / "dvc.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(SystemExit) as stopped:
        main(["run", "cache", "--stage-version", version[1]])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("dvc.yaml is not what the configuration gives for cache; write it with: rglcd dvc render\n")


def test_a_result_that_is_gone_is_named_by_its_key(project: Path) -> None:
    with pytest.raises(InputError, match=r"artifacts/shards has no result 000000000000 any more; make it with: rglcd run shard"):
        ArtifactLocation.of("shards", at_key(project / "artifacts" / "shards", "0" * 64)).read(made_by="shard")
