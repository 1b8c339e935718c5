"""``rglcd compare`` on real reports: a run and itself, a run with other scores, and folders that are no runs."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from rglcd.cli import main
from rglcd.stages.compare_runs import compared
from rglcd.store.manifest import MANIFEST, FileEntry, read_manifest, results_digest, scan, sha256_of, write_manifest
from tests.stages.evaluated_line import drawn_again


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *words])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def kept_with_other_scores(evaluated: Path, folder: Path) -> Path:
    """A report, as it is kept, of a student whose pictures in two steps score one more; and of another learning rate and teacher."""
    report = Path(shutil.copytree(evaluated / "report", folder / "report-0123456789ab"))
    table = report / "draws/rg-2/scores.csv"
    header, *rows = csv.reader(table.read_text().splitlines())
    with table.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *([row[0], str(float(row[1]) + 1), *row[2:]] for row in rows)])
    found = read_manifest(report, made_by="evaluate")
    files = scan(report)
    assert files["draws/rg-2/scores.csv"] == FileEntry(sha256_of(table), table.stat().st_size)
    found.lineage["distill"]["sections"]["distillation"]["learning_rate"] = 0.5
    found.lineage["prepare"] = {"sections": {}, "facts": {"models": {"teacher": "ab" * 32}}}
    write_manifest(report, type(found)(**(vars(found) | {"files": files, "digest": results_digest(files)})))
    return report


def test_a_project_its_artifacts_and_its_report_are_one_run(evaluated: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "artifacts").symlink_to(evaluated)
    for folder in (project, project / "artifacts", project / "artifacts/report"):
        with compared(evaluated, folder) as found:
            assert found.verdict == "RG-LCM in 2 steps: A and B drew the same pictures"
            assert found.settings == ()
            assert [one.sampler.name for one in found.samplers] == ["teacher-3", "lcm-1", "lcm-2", "rg-1", "rg-2"]


def test_what_two_runs_differ_in_is_printed_and_drawn_as_a_page(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = kept_with_other_scores(evaluated, tmp_path / "artifacts/.kept")
    page = tmp_path / "pages/two.html"
    main(["compare", str(evaluated), str(kept), "--page", str(page)])
    said = capsys.readouterr().out
    assert "  distillation.learning_rate: 0.001 in A, 0.5 in B" in said
    assert "  prepared.teacher: absent in A, abababababab in B" in said
    (line,) = (line for line in said.partition("RG-LCM, 2 steps\n")[2].splitlines()[:1])
    assert "+1.000 (+1.000 to +1.000)" in line
    assert "100 % (44–100 %)" in line, "three prompts that agree: Wilson's interval"
    assert "3 prompts are few" in said
    assert str(page) in said
    html = page.read_text()
    assert "a &lt;b&gt;blue&lt;/b&gt; square" in html
    assert "<b>blue" not in html
    assert html.count("<img ") == 6 * 3 * 2, "six pairs by the teacher, and by the arm of the verdict in one step and two"


def test_pictures_on_the_page_are_those_of_the_reports(evaluated: Path) -> None:
    with compared(evaluated, evaluated) as found, Image.open(evaluated / "report/draws/rg-1/images.png") as sheet:
        shown = found.a.pictures(found.samplers[3].sampler)
        assert found.samplers[3].sampler.name == "rg-1"
        assert shown[2].tobytes() == sheet.convert("RGB").crop((32, 0, 48, 16)).tobytes()


def test_sheets_of_more_pixels_than_pillow_opens_are_shown_compared_and_studied(
    own_evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pillow refuses a file of twice its limit: four hundred pictures of 768 pixels are that, or these six where the limit is 1,000."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    root, study = str(own_evaluated), str(tmp_path / "study")
    assert drawn_again(own_evaluated, "evaluation.grid_prompts=3") == set(), "the pages alone are written again"
    assert "something else" in (own_evaluated / "report/index.html").read_text()
    assert main(["compare", root, root, "--page", str(tmp_path / "two.html")]) == 0
    assert main(["ab", "build", study, "--arm", "rg-2", "--arm", "lcm-2", "--report", f"{root}/report", "--checks", "1"]) == 0
    assert "6 pairs and 1 attention checks" in capsys.readouterr().out


def test_a_folder_without_a_report_is_one_line(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no report, and neither report nor artifacts/report in it is one" in refusal(capsys, str(evaluated), str(tmp_path))
    assert "is no report" in refusal(capsys, str(evaluated / "student"), str(evaluated))


def test_an_altered_or_older_report_is_one_line(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Path(shutil.copytree(evaluated / "report", tmp_path / "report"))
    record = report / "draws/rg-1/measurement.json"
    record.write_text("{}")
    assert "draws/rg-1/measurement.json has" in refusal(capsys, str(evaluated), str(report))
    found = read_manifest(report, made_by="evaluate")
    (report / MANIFEST).unlink()
    write_manifest(report, type(found)(**(vars(found) | {"files": scan(report)})))
    assert "draws/rg-1 was measured by another version of rglcd" in refusal(capsys, str(evaluated), str(report))
