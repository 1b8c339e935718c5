"""Stage evaluate: what the report holds, what is kept after a kill, what is reused, what is refused."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from rglcd import progress
from rglcd.cli import main
from rglcd.config import dump
from rglcd.errors import InputError
from rglcd.progress import Event
from rglcd.stages.pretrained import write_catalogue
from rglcd.store.manifest import read_manifest, results_digest, scan, sha256_of, write_manifest
from tests.evaluation.prompt_files import write_parti
from tests.publishing import publish
from tests.stages.evaluated_line import DRAWN, config, drawn_again, results
from tests.tiny_line import NUM_IMAGES, run


@pytest.fixture(scope="module")
def line(evaluated: Path) -> Path:
    """Two trained arms and their report, to read."""
    return evaluated


@pytest.fixture
def own(own_evaluated: Path) -> Path:
    """The same, to write in."""
    return own_evaluated


# --- what the report holds -----------------------------------------------------------------------


def test_report_holds_every_file_and_the_numbers_of_every_sampler(line: Path) -> None:
    report = line / "report"
    files = {"index.html", "report.md", "metrics.json", "quality.csv", "grid.png", "speed.json", "manifest.json", "timings.json"}
    assert {path.name for path in report.iterdir()} == files | {"metrics", "draws"}
    metrics = json.loads((report / "metrics.json").read_text())
    assert {who: list(steps) for who, steps in metrics.items() if who != "real"} == {"lcm": ["1", "2"], "rg": ["1", "2"], "teacher": ["3"]}
    assert {path.stem for path in (report / "metrics").iterdir()} == {"real", "teacher-3", "lcm-1", "lcm-2", "rg-1", "rg-2"}
    headlines = json.loads((report / "metrics" / "rg-2.json").read_text())
    assert headlines["expert"] == metrics["rg"]["2"]["expert"]["mean"]
    assert headlines["frechet"] == metrics["rg"]["2"]["frechet"]
    assert any(name.startswith("wins over lcm, ") for name in headlines)
    assert metrics["real"]["expert"]["mean"] == pytest.approx(sum(_scores(report, "real")) / 6, abs=1e-6)
    assert all(json.loads((report / "speed.json").read_text())[who] for who in ("teacher", "lcm", "rg"))


def test_page_shows_prompts_pictures_and_lineage(line: Path) -> None:
    page = (line / "report" / "index.html").read_text()
    assert "a &lt;b&gt;blue&lt;/b&gt; square" in page
    assert page.count("data:image/png") == 2 * len(DRAWN)
    for stage in ("shard", "cache", "pretrain", "distill", "evaluate"):
        assert f"rglcd run {stage}" in page


def test_hostile_arm_name_stays_text(own: Path) -> None:
    """An arm is named by its folder, which may be another person's."""
    hostile = 'x" onmouseover="alert(1)'
    (own / "student" / "rg").rename(own / "student" / hostile)
    files = scan(own / "student")
    manifest = read_manifest(own / "student", made_by="distill")
    write_manifest(own / "student", replace(manifest, files=files, digest=results_digest(files)))
    assert drawn_again(own) == {f"{hostile}-1", f"{hostile}-2"}
    page = (own / "report" / "index.html").read_text()
    assert 'onmouseover="' not in page
    assert "x&#34; onmouseover=&#34;alert(1)" in page


def test_prompts_are_drawn_in_turn_each_time_from_another_noise(line: Path) -> None:
    assert len(_scores(line / "report", "rg-2")) == 6
    with Image.open(line / "report" / "draws" / "rg-2" / "images.png") as sheet:
        assert sheet.size == (8 * 16, 16)
        pictures = [sheet.crop((16 * n, 0, 16 * n + 16, 16)).tobytes() for n in range(6)]
    # Prompts 0 and 3 are the same words with another noise.
    assert len(set(pictures)) == 6


def _scores(report: Path, sampler: str) -> list[float]:
    with (report / "draws" / sampler / "scores.csv").open(newline="") as table:
        return [float(row["expert"]) for row in csv.DictReader(table)]


# --- what is done once ---------------------------------------------------------------------------


def test_second_run_of_the_same_command_does_nothing(own: Path) -> None:
    assert run(own, config(), "evaluate").was_done


def test_same_inputs_give_the_same_bytes(own: Path) -> None:
    before = results(own / "report")
    shutil.rmtree(own / "report")
    assert drawn_again(own) == {"score the real images", *DRAWN}
    after = results(own / "report")
    assert [name for name in before if before[name] != after.get(name)] == []
    assert before.keys() == after.keys()


def test_measurements_of_a_killed_run_give_the_same_tables(own: Path) -> None:
    """With scorers that are not in alphabetical order, as JSON is."""
    shutil.copytree(own / "pretrained" / "scorers" / "expert", own / "pretrained" / "scorers" / "another")
    write_catalogue(own / "pretrained", {"another": {"kind": "clip"}}, features={"kind": "auto"})
    scorer = "{kind: clip, source: {uri: ./nowhere}}"
    two = ("evaluation.scorers=[expert,another]", f"preparation.scorers={{expert: {scorer}, another: {scorer}}}")
    publish(own / "pretrained", stage="prepare", sections={"preparation": config(*two).preparation})
    key = run(own, config(*two), "evaluate").manifest.key
    before = results(own / "report")
    assert before["quality.csv"].startswith(b"steps,teacher expert,teacher another")
    (own / "report").rename(own / ".work" / f"report-{key[:12]}")
    (own / ".work" / f"report-{key[:12]}" / "manifest.json").unlink()
    assert drawn_again(own, *two) == set()
    assert results(own / "report") == before


def test_another_number_of_teacher_steps_measures_every_arm_again(own: Path) -> None:
    assert drawn_again(own, "evaluation.teacher_steps=2") == {"teacher-2", *DRAWN} - {"teacher-3"}
    reused = results(own / "report")
    shutil.rmtree(own / "report")
    drawn_again(own, "evaluation.teacher_steps=2")
    assert results(own / "report")["metrics.json"] == reused["metrics.json"]


class KilledError(Exception):
    pass


def test_a_second_number_of_teacher_steps_is_drawn_beside_the_first_and_changes_nothing_else(own: Path) -> None:
    before = results(own / "report")
    assert drawn_again(own, "evaluation.teacher_steps=[3, 2]") == {"teacher-2"}
    after = results(own / "report")
    assert all(after[name] == content for name, content in before.items() if name.startswith(("draws/", "quality.csv", "metrics/")))
    metrics = json.loads((own / "report" / "metrics.json").read_text())
    assert list(metrics["teacher"]) == ["2", "3"]
    assert "win_rate_teacher" in metrics["teacher"]["2"]["expert"]
    assert "win_rate_teacher" not in metrics["teacher"]["3"]["expert"]
    assert set(json.loads((own / "report" / "speed.json").read_text())["teacher"]) == {"2", "3"}
    assert "| Teacher | 2 |" in (own / "report" / "report.md").read_text()


@pytest.mark.parametrize(("task", "again"), [("score the real images", 6), ("draw teacher-3", 5), ("draw rg-1", 2)])
def test_killed_run_resumes_and_ends_in_the_same_bytes(own: Path, task: str, again: int) -> None:
    before = results(own / "report")
    shutil.rmtree(own / "report")

    def kill_in_the_middle(event: Event) -> None:
        if event.task == task and event.done == 4:
            raise KilledError

    with pytest.raises(KilledError), progress.reporting_to(kill_in_the_middle):
        run(own, config(), "evaluate")
    # Four of the six images were drawn: they are not drawn again.
    first: dict[str, int] = {}

    def note(event: Event) -> None:
        first.setdefault(event.task, event.done)

    (staging,) = own.glob(".work/report-*/")
    (staging / "draws" / ".rg-1.1234.staging").mkdir(parents=True)
    (staging / "draws" / ".rg-1.1234.staging" / "scores.csv").write_text("half of")
    (staging / ".metrics.json.1234.staging").write_text("half of")

    with progress.reporting_to(note):
        run(own, config(), "evaluate")
    assert len(first) == again
    assert {name: done for name, done in first.items() if done} == {task: 4}
    assert results(own / "report") == before
    assert not list((own / "report").rglob(".*"))


def test_another_reward_draws_only_the_guided_arm_again(own: Path) -> None:
    before = results(own / "report")
    run(own, config("reward.weight=50.0"), "distill")
    assert drawn_again(own, "reward.weight=50.0") == {"rg-1", "rg-2"}
    after = results(own / "report")
    changed = {name.split("/")[1] for name in before if before[name] != after[name] and name.startswith("draws/")}
    assert changed == {"rg-1", "rg-2"}


def test_another_number_of_student_steps_draws_only_the_new_ones(own: Path) -> None:
    assert drawn_again(own, "evaluation.num_steps=[1,4]") == {"lcm-4", "rg-4"}
    assert not (own / "report" / "draws" / "rg-2").exists()


@pytest.mark.parametrize("setting", ["seed=1", "guidance_scale=4.0", "num_images=5"])
def test_other_sampling_settings_draw_everything_again(own: Path, setting: str) -> None:
    assert drawn_again(own, f"evaluation.{setting}") >= set(DRAWN)


def test_other_prompts_draw_everything_again(own: Path) -> None:
    (own / "data" / "prompts" / "heldout.txt").write_text("a red circle\nwords of another kind\n")
    assert drawn_again(own) >= set(DRAWN)


def test_altered_measurement_is_not_reused(own: Path) -> None:
    before = results(own / "report")
    path = own / "report" / "draws" / "teacher-3" / "scores.csv"
    path.write_text(path.read_text().replace("\n0,", "\n0,1.0"))
    # The report does not stand any more, for the length of the file has changed.
    assert drawn_again(own) == {"teacher-3"}
    assert results(own / "report") == before


# --- prompts of a published set ------------------------------------------------------------------


def test_a_published_sets_groups_are_in_the_metrics_and_on_the_page(own: Path) -> None:
    path = write_parti(own / "data" / "prompts")
    pinned = f"sha256: {sha256_of(path)}, per_prompt: 1"
    asked = f"evaluation.prompts={{kind: parti, source: prompts/PartiPrompts.tsv, {pinned}}}"
    assert drawn_again(own, asked) >= set(DRAWN)
    groups = json.loads((own / "report" / "metrics.json").read_text())["rg"]["2"]["groups"]
    assert groups["challenge"]["by_group"]["Basic"]["images"] == 2
    said = (own / "report" / "report.md").read_text()
    assert "By challenge, expert:" in said
    assert f"kind parti, 6 prompts, sha256 {sha256_of(path)[:16]}" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("per_prompt: 4", "evaluation.num_images is 6, and 6 prompts of .*, 4 images of each, are 24: set evaluation.num_images=24"),
        (f"sha256: {64 * 'a'}", f"has digest [0-9a-f]+, and evaluation.prompts.sha256 pins {64 * 'a'}: it is not the set meant"),
    ],
)
def test_a_set_that_is_not_the_one_meant_is_refused(own: Path, settings: str, said: str) -> None:
    write_parti(own / "data" / "prompts")
    with pytest.raises(InputError, match=said):
        run(own, config(f"evaluation.prompts={{kind: parti, source: prompts/PartiPrompts.tsv, {settings}}}"), "evaluate")


# --- what is refused -----------------------------------------------------------------------------


def _without_student(root: Path) -> None:
    for arm in ("lcm", "rg"):
        shutil.rmtree(root / "student" / arm)


def _without_prompts(root: Path) -> None:
    (root / "data" / "prompts" / "heldout.txt").write_text("\n\n")


def _prompts_in_another_encoding(root: Path) -> None:
    (root / "data" / "prompts" / "heldout.txt").write_bytes("caf\xe9".encode("latin-1"))


def _with_a_damaged_reference(root: Path) -> None:
    (root / "data" / "reference" / "images" / "00002.png").write_bytes(b"no picture")


def _with_one_reference(root: Path) -> None:
    (root / "data" / "reference" / "index.tsv").write_text("images/00000.png\ta\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_student, "rglcd run distill"),
        (_without_prompts, "holds no prompt"),
        (_prompts_in_another_encoding, "not UTF-8"),
        (_with_a_damaged_reference, "line 3: unknown_format"),
        (_with_one_reference, "at least two"),
    ],
)
def test_unusable_inputs_are_refused_with_a_one_line_message(own: Path, spoil, message: str) -> None:
    spoil(own)
    with pytest.raises(InputError, match=message) as refusal:
        run(own, config("evaluation.seed=9"), "evaluate")
    assert "\n" not in str(refusal.value)


def test_more_steps_than_the_ddim_grid_has_are_refused(own: Path) -> None:
    with pytest.raises(InputError, match="60 steps of a grid of 50"):
        run(own, config("evaluation.num_steps=[60]"), "evaluate")


def test_reference_images_are_limited_to_the_number_drawn(line: Path) -> None:
    assert NUM_IMAGES > 6
    assert len(_scores(line / "report", "real")) == 6


# --- adapters ------------------------------------------------------------------------------------


def test_adapter_is_sampled_on_its_teacher(own: Path) -> None:
    adapter = ["distillation.arms=[lcm]", "distillation.student={kind: lora, rank: 2, alpha: 4, targets: [to_q, conv1]}"]
    run(own, config(*adapter), "distill")
    assert drawn_again(own, *adapter, "evaluation.num_steps=[1]") == {"lcm-1"}
    metrics = json.loads((own / "report" / "metrics.json").read_text())
    assert set(metrics) == {"real", "teacher", "lcm"}
    weights = own / "student" / "lcm" / "pytorch_lora_weights.safetensors"
    assert weights.stat().st_size < (own / "pretrained" / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size / 4


# --- what the report may claim -------------------------------------------------------------------


def test_a_mixture_that_holds_the_training_reward_is_no_judge_and_six_pictures_decide_nothing(own: Path, monkeypatch, capsys) -> None:
    """Through the command: `expert` guided the student, `both` is made of it."""
    both = {"kind": "mixture", "weights": {"expert": 1.0}, "logit_scale": 1.0}
    (own / "pretrained" / "catalogue" / "both.json").write_text(json.dumps(both))
    settings = config(f"preparation.scorers.both={json.dumps(both)}", "evaluation.scorers=[expert, both]")
    publish(own / "pretrained", stage="prepare", sections={name: settings.section(name) for name in ("model", "preparation")})
    monkeypatch.chdir(own)
    (own / "params.yaml").write_text(dump(settings))
    words = [f"--artifact={name}={own / ('data' if name == 'source' else name)}" for name in ("source", "pretrained", "student", "report")]
    assert main(["run", "evaluate", *words, f"--artifact=reward_model={own / 'reward_model'}"]) == 0
    said = (own / "report" / "report.md").read_text()
    assert said.startswith("**6 pictures are too few to tell two steps of RG-LCM from the teacher’s three; about 200 would do.**")
    assert "No scorer is held out: each of expert and both is the training reward, expert, or has weights or parts of it" in said
    assert "both (akin to it)" in said
    assert "The Fréchet distances mean nothing here: 6 pictures and 6 real images have features of 12 numbers each" in said
    page = (own / "report" / "index.html").read_text()
    assert "never seen in training" not in page
    assert "has weights or parts of the reward it was trained on" in page
    assert "not meaningful: too few images" in page
