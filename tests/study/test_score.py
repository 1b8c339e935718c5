"""From votes to figures, exports included."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rglcd.errors import InputError
from rglcd.study.assignment import Task, tasks_of
from rglcd.study.label_studio import CONFIG, export_label_studio
from rglcd.study.raters import Rater, read_raters, with_raters
from rglcd.study.records import Answer, Key, Question, Study, read_key
from rglcd.study.score import Score, score
from rglcd.study.static_export import export_static
from rglcd.study.wording import SIMULATED, as_json, as_text
from tests.study.studies import ARMS, cast, for_arm, is_check, mostly, new_id, small_study, whole

QUESTIONS = [Question.PREFERENCE, Question.ALIGNMENT]


def scored(folder: Path, *files: Path) -> Score:
    return score(folder, files, half_width=0.05, seed=0)


def test_votes_are_counted_by_arm_whatever_the_sides(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study", num_prompts=20, questions=QUESTIONS)
    cast(tmp_path / "study", study, 4, mostly(ARMS[0], every=5))
    found = scored(tmp_path / "study")
    assert (found.num_votes, found.num_raters, found.simulated) == (160, 4, False)
    for asked in found.asked:
        (one,) = asked.comparisons
        assert (one.first, one.second, one.won, one.lost, one.tied) == (ARMS[0], ARMS[1], 64, 16, 0)
        assert one.win_rate.low < one.win_rate.value == 0.8 < one.win_rate.high
        assert (one.num_prompts, one.num_raters) == (20, 4)
        assert one.sign_test.first == 20
        assert asked.num_rated_twice == 20
    assert found.left_share == pytest.approx(0.5, abs=0.15)
    assert found.median_seconds == 1.5


def test_of_three_arms_each_pair_has_its_rate_and_each_arm_its_strength(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study", arms=ARMS, num_prompts=12)

    def vote(rater: Rater, task: Task, key: Key) -> Answer:
        if is_check(task, key):
            return whole(task, key)
        best = min(key.drawn_by[task.pair.id], key=ARMS.index)
        worst = max(key.drawn_by[task.pair.id], key=ARMS.index)
        return for_arm(task, key, worst if int(task.pair.prompt.split()[-1]) % 4 == 0 else best)

    cast(tmp_path / "study", study, 3, vote)
    (asked,) = scored(tmp_path / "study").asked
    assert [(one.first, one.second, one.win_rate.value) for one in asked.comparisons] == [
        (ARMS[0], ARMS[1], 0.75),
        (ARMS[0], ARMS[2], 0.75),
        (ARMS[1], ARMS[2], 0.75),
    ]
    assert asked.strengths is not None
    strengths = [asked.strengths[arm].value for arm in ARMS]
    assert strengths == sorted(strengths, reverse=True)
    assert asked.alpha == pytest.approx(1)


def test_a_rater_who_fails_the_checks_is_left_out_by_the_written_rule_and_named(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study", num_prompts=10, num_checks=5)
    honest = mostly(ARMS[0], every=100)

    def vote(rater: Rater, task: Task, key: Key) -> Answer | None:
        if is_check(task, key):
            if rater.number == 1:  # fails two of five, one by a tie
                failed = [check.id for check in study.checks].index(task.pair.id)
                return (
                    (Answer.TIE, {"left": Answer.RIGHT, "right": Answer.LEFT}[whole(task, key)])[failed] if failed < 2 else whole(task, key)
                )
            if rater.number == 2:  # fails one of five
                return Answer.TIE if task.pair.id == study.checks[0].id else whole(task, key)
            return None if rater.number == 3 else whole(task, key)  # the last answers none
        return Answer.LEFT if rater.number == 1 else honest(rater, task, key)

    cast(tmp_path / "study", study, 4, vote)
    found = scored(tmp_path / "study")
    assert [(one.rater, one.passed, one.answered) for one in found.attention] == [(1, 5, 5), (2, 3, 5), (3, 4, 5), (4, 0, 0)]
    assert [one.rater for one in found.excluded] == [2]
    assert (found.num_raters, found.num_votes) == (3, 30)
    text = as_text(found)
    assert "2 failed a check, 1 left out: rater 2 (3 of 5)" in text
    assert "fewer than 80% of the attention checks" in text
    assert "1 answered no check and are kept" in text
    assert as_json(found)["excluded"] == [2]


def test_simulated_votes_are_called_so_and_do_not_count_beside_peoples(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study", num_prompts=8)
    cast(tmp_path / "study", study, 2, mostly(ARMS[0], every=100), simulated=True)
    alone = scored(tmp_path / "study")
    assert alone.simulated
    assert as_json(alone)["simulated"] is True
    assert as_text(alone).startswith(SIMULATED)
    assert "preference (simulated)" in as_text(alone)
    cast(tmp_path / "study", study, 2, mostly(ARMS[1], every=100))
    both = scored(tmp_path / "study")
    assert (both.simulated, both.num_simulated_left_out, both.asked[0].comparisons[0].won) == (False, 2 * 10, 0)
    assert "20 votes of simulated raters are left out" in as_text(both)


def test_one_rater_alone_is_said_to_say_nothing_of_others(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study", num_prompts=8)
    cast(tmp_path / "study", study, 1, mostly(ARMS[0], every=4))
    found = scored(tmp_path / "study")
    assert found.asked[0].alpha is None
    assert "One rater: the intervals are about this rater" in as_text(found)
    cast(tmp_path / "study", study, 3, mostly(ARMS[0], every=4))
    assert "3 raters are few: the intervals are somewhat too narrow" in as_text(scored(tmp_path / "study"))


@pytest.mark.parametrize(
    ("num_prompts", "said"), [(1, "One prompt: the intervals are about this prompt"), (3, "3 prompts are few"), (6, "")]
)
def test_few_prompts_are_said_to_make_intervals_too_narrow(tmp_path: Path, num_prompts: int, said: str) -> None:
    cast(tmp_path / "study", small_study(tmp_path / "study", num_prompts=num_prompts), 6, mostly(ARMS[0], every=4))
    text = as_text(scored(tmp_path / "study"))
    assert said in text
    assert ("prompts are few" in text or "One prompt" in text) == bool(said)


def test_every_figure_is_in_the_json(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study", arms=ARMS, num_prompts=6)
    cast(tmp_path / "study", study, 2, _for_the_first)
    figures = json.loads(json.dumps(as_json(scored(tmp_path / "study"))))
    (asked,) = figures["asked"]
    assert asked["question"] == "preference"
    assert asked["comparisons"][0]["win_rate"].keys() == {"value", "low", "high"}
    assert asked["strengths"].keys() == set(ARMS)
    assert figures["rule"].startswith("a rater is left out who")


def _for_the_first(rater: Rater, task: Task, key: Key) -> Answer:
    return whole(task, key) if is_check(task, key) else for_arm(task, key, key.drawn_by[task.pair.id][0])


def test_a_study_without_votes_is_one_line(tmp_path: Path) -> None:
    small_study(tmp_path / "study")
    with pytest.raises(InputError, match="nobody has voted"):
        scored(tmp_path / "study")


# --- a static study ------------------------------------------------------------------------------


def answers(folder: Path, study: Study, rater: Rater, path: Path, *, arm: str = ARMS[0]) -> Path:
    """The file that a rater downloads from a static page."""
    key = read_key(folder)
    lines: list[dict[str, object]] = [{"kind": "rater", "study": study.id, "rater": rater.token}]
    for task in tasks_of(study, rater.number):
        answer = whole(task, key) if is_check(task, key) else for_arm(task, key, arm)
        lines.append({"kind": "vote", "id": new_id(path.name, task.id), "task": task.id, "answer": answer, "milliseconds": 800})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def static(tmp_path: Path) -> tuple[Path, Study, list[Rater]]:
    study = small_study(tmp_path / "study", num_prompts=5)
    return tmp_path / "study", study, with_raters(tmp_path / "study", 2, simulated=False)


def test_files_that_raters_send_back_count_each_once(static: tuple[Path, Study, list[Rater]], tmp_path: Path) -> None:
    folder, study, raters = static
    files = [answers(folder, study, rater, tmp_path / f"{rater.number}.jsonl") for rater in raters]
    once, twice = scored(folder, *files), scored(folder, *files, *files)
    assert (once.num_votes, once.num_contradicting) == (10, 0)
    assert twice == once


def test_a_second_opinion_of_the_same_rater_does_not_count_and_is_said(static: tuple[Path, Study, list[Rater]], tmp_path: Path) -> None:
    folder, study, raters = static
    first = answers(folder, study, raters[0], tmp_path / "first.jsonl")
    second = answers(folder, study, raters[0], tmp_path / "second.jsonl", arm=ARMS[1])
    found = scored(folder, first, second)
    assert (found.num_votes, found.num_contradicting, found.asked[0].comparisons[0].won) == (5, 7, 5)
    assert "7 entries contradicted earlier ones" in as_text(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"study": "', '"study": "0'), "another study"),
        (lambda text: text.replace('"rater": "', '"rater": "0'), "nobody who was given this study"),
        (lambda text: text.replace("left", "middle").replace("right", "middle"), r"line \d+: answer is left"),
        (lambda text: text + "{}\n", r"line 9: kind is vote or undo"),
        (lambda text: text + "x" * 3000 + "\n", r"line 9 is longer than any answer"),
        (lambda text: re.sub(r'"task": "\w+', '"task": "' + "0" * 32, text, count=1), "which is no task of that rater"),
        (lambda text: "", "does not begin as a file of answers does"),
        (lambda text: "[" * 100_000, "does not begin as a file of answers does"),
    ],
)
def test_a_file_that_no_page_of_this_study_wrote_is_one_line(
    static: tuple[Path, Study, list[Rater]], tmp_path: Path, change: object, said: str
) -> None:
    folder, study, raters = static
    path = answers(folder, study, raters[0], tmp_path / "returned.jsonl")
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(InputError, match=said):
        scored(folder, path)


def test_a_static_study_holds_a_page_a_rater_and_no_word_of_the_arms(static: tuple[Path, Study, list[Rater]], tmp_path: Path) -> None:
    folder, study, raters = static
    pages = export_static(folder, study, raters, tmp_path / "static")
    assert [page.stem for page in pages] == [rater.token for rater in raters]
    files = [path for path in (tmp_path / "static").rglob("*") if path.is_file()]
    assert {path.name for path in files if path.suffix in (".css", ".js")} == {"page.css", "page.js", *(f"{r.token}.js" for r in raters)}
    for path in files:
        assert not [arm for arm in ARMS if arm.encode() in path.read_bytes()]
        assert path.suffix != ".png" or path.stat().st_mtime < 1e9
    given = json.loads((tmp_path / f"static/{raters[1].token}.js").read_text().removeprefix("window.RGLCD_STUDY = ").removesuffix(";\n"))
    assert [task["id"] for task in given["tasks"]] == [task.id for task in tasks_of(study, 1)]
    assert "http-equiv" in pages[0].read_text()
    with pytest.raises(InputError, match="exists already"):
        export_static(folder, study, raters, tmp_path / "static")


# --- Label Studio --------------------------------------------------------------------------------


def test_label_studio_gets_tasks_that_fill_its_template_and_no_word_of_the_arms(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study", num_prompts=4, questions=QUESTIONS)
    export_label_studio(tmp_path / "study", study, tmp_path / "project", url="/data/local-files/?d=pictures/")
    tasks = json.loads((tmp_path / "project/tasks.json").read_text())
    assert len(tasks) == 4 * 2 + 2
    config = ElementTree.fromstring((tmp_path / "project/config.xml").read_text())
    wanted = {value[1:] for element in config.iter() for value in element.attrib.values() if value.startswith("$")}
    named = {element.attrib["name"] for element in config.iter() if element.tag in ("Image", "Text")}
    assert wanted == {"question", "prompt", "left", "right"}
    assert {name for element in config.iter("Pairwise") for name in element.attrib["toName"].split(",")} <= named
    for task in tasks:
        assert task.keys() == {"data"}
        assert wanted <= task["data"].keys()
        for side in ("left", "right"):
            assert (tmp_path / "project/pictures" / task["data"][side].removeprefix("/data/local-files/?d=pictures/")).is_file()
    for path in (tmp_path / "project").rglob("*"):
        assert path.is_dir() or not [arm for arm in ARMS if arm.encode() in path.read_bytes()]
    assert CONFIG.count("<Pairwise") == 1


def test_a_rater_who_is_asked_for_again_keeps_the_number(static: tuple[Path, Study, list[Rater]]) -> None:
    folder, _, raters = static
    assert with_raters(folder, 1, simulated=False) == raters[:1]
    assert read_raters(folder) == raters
