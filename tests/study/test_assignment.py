from collections import Counter
from dataclasses import replace
from pathlib import Path

from rglcd.study.assignment import every_task, tasks_of
from rglcd.study.records import Pair, Question, Study
from tests.study.studies import small_study

PAIRS = tuple(Pair(f"{number:032x}", f"prompt {number}", (f"a{number}", f"b{number}")) for number in range(100))
CHECKS = tuple(Pair(f"{number:032x}", f"prompt {number}", (f"a{number}", f"b{number}")) for number in range(900, 904))
STUDY = Study("s", 5, (Question.PREFERENCE, Question.APPEAL), PAIRS, CHECKS, 30)


def test_all_pairs_are_shown_equally_often_but_for_one_whatever_the_number_of_raters() -> None:
    for num_raters in (1, 3, 7, 10):
        shown = Counter(task.pair.id for rater in range(num_raters) for task in tasks_of(STUDY, rater) if task.pair not in CHECKS)
        counts = [shown[pair.id] for pair in PAIRS]
        assert max(counts) - min(counts) <= 2  # two questions a showing


def test_sides_are_balanced_within_two_percent_over_ten_thousand_tasks() -> None:
    tasks = [task for rater in range(10) for task in tasks_of(replace(STUDY, pairs=PAIRS * 10, pairs_per_rater=500), rater)]
    assert len(tasks) > 10_000
    share = sum(task.left == task.pair.pictures[0] for task in tasks) / len(tasks)
    assert abs(share - 0.5) < 0.02


def test_a_pair_stands_the_other_way_round_for_the_next_rater_who_sees_it() -> None:
    everything = replace(STUDY, pairs_per_rater=len(PAIRS))
    first, second = ({task.id: task.left for task in tasks_of(everything, rater) if task.pair not in CHECKS} for rater in (0, 1))
    assert first.keys() == second.keys()
    assert all(first[id_] != second[id_] for id_ in first)


def test_every_rater_gets_every_check_once_spread_out_and_never_first() -> None:
    for rater in range(20):
        tasks = tasks_of(STUDY, rater)
        places = [place for place, task in enumerate(tasks) if task.pair in CHECKS]
        assert sorted(tasks[place].pair.id for place in places) == sorted(check.id for check in CHECKS)
        assert 0 not in places
        assert places[-1] > len(tasks) // 2


def test_the_questions_of_a_pair_follow_each_other_with_the_same_sides() -> None:
    tasks = [task for task in tasks_of(STUDY, 0) if task.pair not in CHECKS]
    for first, second in zip(tasks[::2], tasks[1::2], strict=True):
        assert (first.pair, first.left) == (second.pair, second.left)
        assert (first.question, second.question) == STUDY.questions


def test_the_same_study_asks_the_same_rater_the_same_and_another_seed_asks_otherwise() -> None:
    assert tasks_of(STUDY, 3) == tasks_of(STUDY, 3)
    assert tasks_of(STUDY, 3) != tasks_of(replace(STUDY, seed=6), 3)


def test_a_check_looks_like_any_other_task(tmp_path: Path) -> None:
    study = small_study(tmp_path / "study")
    tasks = tasks_of(study, 0)
    assert {task.pair for task in tasks} >= set(study.checks)
    shapes = {(len(task.id), len(task.left), task.question) for task in tasks}
    assert len(shapes) == 1


def test_for_other_tools_each_question_of_each_pair_is_there_once() -> None:
    ids = [task.id for task in every_task(STUDY)]
    assert len(ids) == len(set(ids)) == 2 * len(PAIRS) + len(CHECKS)
