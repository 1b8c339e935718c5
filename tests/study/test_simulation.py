"""The toy's panel votes through the server's own links, and is called simulated wherever it appears."""

from pathlib import Path

import pytest
from PIL import Image

from rglcd.cli import main
from rglcd.errors import InputError
from rglcd.study.raters import read_raters, with_raters
from rglcd.study.records import Answer
from rglcd.study.simulation import simulate
from rglcd.study.vote_log import VOTES
from rglcd.toy.flaws import Flaw
from rglcd.toy.measuring import held_out
from rglcd.toy.scene import caption
from rglcd.toy.web import Row, draw_pixels
from tests.study.studies import small_study


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that build a study of neat pictures and pale ones."""
    monkeypatch.chdir(tmp_path)
    scenes = held_out(6)
    for arm, flaw in (("neat", Flaw.NONE), ("pale", Flaw.PALE)):
        Path(arm).mkdir()
        for row, pixels in enumerate(draw_pixels([Row(scene, scene, flaw) for scene in scenes], first_seed=60_000_000)):
            Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy()).save(f"{arm}/{row}.png")
    Path("prompts.txt").write_text("".join(f"{caption(scene)}\n" for scene in scenes))
    return ["ab", "build", "study", "--arm", "neat=neat", "--arm", "pale=pale", "--prompts", "prompts.txt", "--checks", "2", "--seed", "1"]


def test_the_panel_votes_and_every_word_about_it_says_simulated(pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(pictures)
    main(["ab", "simulate", "study", "--raters", "3"])
    assert "24 simulated votes of 3 simulated raters; no person was asked" in capsys.readouterr().out
    lines = Path("study", VOTES).read_text().splitlines()
    assert len(lines) == 24
    assert all('"simulated":true' in line for line in lines)
    assert all(rater.simulated for rater in read_raters(Path("study")))
    main(["ab", "score", "study"])
    said = capsys.readouterr().out
    assert said.startswith("SIMULATED: programs that stand for raters voted; no person was asked")
    assert "neat over pale" in said
    main(["ab", "simulate", "study", "--raters", "3"])
    assert capsys.readouterr().out.startswith("0 simulated votes"), "asked again, it has nothing to add"


def test_a_program_does_not_vote_through_a_persons_link(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study")
    raters = with_raters(tmp_path / "study", 1, simulated=False)
    with pytest.raises(InputError, match="person's link"):
        simulate(tmp_path / "study", study, raters, voters=raters, judge=lambda _: Answer.TIE)
