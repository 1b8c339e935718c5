"""``rglcd export-images``: the pictures that evaluate draws, in files, and a killed export goes on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rglcd.cli import main
from rglcd.config import dump
from tests.evaluation.prompt_files import write_dpg_csv, write_hpsv2
from tests.stages.evaluated_line import config


@pytest.fixture
def own(own_evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (own_evaluated / "params.yaml").write_text(dump(config()))
    monkeypatch.chdir(own_evaluated)
    return own_evaluated


def export(root: Path, *words: str) -> int:
    artifacts = [f"--artifact={name}={root / name}" for name in ("pretrained", "student", "reward_model", "report")]
    return main(["export-images", f"--artifact=source={root / 'data'}", *artifacts, *words])


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_exported_pictures_are_those_of_the_report_and_come_back_after_a_kill(own: Path, capsys) -> None:
    assert export(own, "--layout", "flat", "--sampler", "rg-2", "--count", "2", "--out", "out") == 0
    said = capsys.readouterr().out
    assert "out holds 6 files for flat, 6 images drawn now; prompts: kind lines, 3 prompts, sha256" in said
    sheet = pixels(own / "report" / "draws" / "rg-2" / "images.png")
    side = pixels(own / "out" / "00000.png").shape[0]
    assert all(
        np.array_equal(pixels(own / "out" / f"{number:05d}.png"), sheet[:side, number * side : (number + 1) * side]) for number in range(6)
    )
    before = {path.name: path.read_bytes() for path in (own / "out").iterdir()}
    (own / "out" / "00004.png").unlink()
    (own / "out" / ".00004.png.12345678.staging").write_text("half of")
    assert export(own, "--layout", "flat", "--sampler", "rg-2", "--count", "2", "--out", "out") == 0
    assert "1 images drawn now" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (own / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("sampler", "setting"), [("rg-1", "evaluation.batch_size=4"), ("lcm-2", "evaluation.batch_size=4"), ("rg-2", "evaluation.seed=7")]
)
def test_an_export_does_not_go_on_with_the_pictures_of_another(own: Path, capsys, sampler: str, setting: str) -> None:
    """Half of a benchmark's pictures would be one student's, half another's; or all a student's of before."""
    assert export(own, "--layout", "flat", "--sampler", "rg-2", "--out", "out") == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        export(own, "--layout", "flat", "--sampler", sampler, "--set", setting, "--out", "out")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out/00000.png was drawn by another sampler or student, or with other prompts or settings: name an empty folder" in line


def test_jpegs_for_hpsv2_are_found_again(own: Path, capsys) -> None:
    write_hpsv2(own / "data" / "prompts", each=1)
    words = ("--layout", "hpsv2", "--sampler", "rg-2", "--out", "out", "--set", "evaluation.prompts={kind: hpsv2, source: prompts}")
    assert export(own, *words) == 0
    (own / "out/photo/00000.jpg").unlink()
    assert export(own, *words, "--set", "evaluation.num_images=4", "--set", "evaluation.num_steps=[2]") == 0, "these draw no other picture"
    assert "1 images drawn now" in capsys.readouterr().out


def test_four_pictures_lie_in_dpgs_grid_as_its_script_cuts_them_out(own: Path) -> None:
    """compute_dpg_bench.py: (0, 0), (resolution, 0), (0, resolution), (resolution, resolution)."""
    write_dpg_csv(own / "data" / "prompts")
    asked = "evaluation.prompts={kind: dpg, source: prompts/dpg_bench.csv}"
    assert export(own, "--layout", "dpg", "--sampler", "lcm-1", "--out", "grids", "--set", asked) == 0
    # Flat would refuse nothing: the same images by number.
    assert export(own, "--layout", "flat", "--sampler", "lcm-1", "--count", "4", "--out", "single", "--set", asked) == 0
    grid = pixels(own / "grids" / "partiprompts1.png")
    side = grid.shape[0] // 2
    for number, (left, top) in zip((1, 4, 7, 10), ((0, 0), (side, 0), (0, side), (side, side)), strict=True):
        assert np.array_equal(grid[top : top + side, left : left + side], pixels(own / "single" / f"{number:05d}.png"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--layout", "flat", "--sampler", "rg-3"), "--sampler rg-3: the configuration draws teacher-3, lcm-1, lcm-2, rg-1, rg-2"),
        (("--layout", "hpsv2", "--sampler", "rg-2"), "--layout hpsv2 wants prompts of kind hpsv2"),
        (("--layout", "flat", "--sampler", "rg-2", "--count", "0"), "--count: '0' is no whole number from 1 on"),
        (("--layout", "flat", "--sampler", "rg-2", "--out", "full"), "full holds notes.txt, which is not of this export"),
    ],
)
def test_what_cannot_be_exported_is_one_line(own: Path, capsys, words: tuple[str, ...], said: str) -> None:
    (own / "full").mkdir()
    (own / "full" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        export(own, "--out", "out", *words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
