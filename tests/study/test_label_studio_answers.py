"""Answers out of Label Studio: its JSON export, as published, becomes votes; what is no such thing is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rglcd.cli import main
from rglcd.study.assignment import every_task
from rglcd.study.label_studio import label_studio_tasks
from rglcd.study.records import Answer, Study, read_key
from tests.study.studies import ARMS, cast, for_arm, is_check, mostly, small_study, whole

URL = "https://pictures.example.org/"
Export = list[dict[str, Any]]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    return small_study(Path("s"), num_prompts=8)


def annotated(study: Study, *annotators: int, tie_every: int = 4) -> Export:
    """The export of a project of which each annotator chose the first arm, but for each fourth task, and was right in every check."""
    key, tasks = read_key(Path("s")), {task.id: task for task in every_task(study)}

    def answer(number: int, name: str) -> Answer:
        if is_check(tasks[name], key):
            return whole(tasks[name], key)
        return Answer.TIE if number % tie_every == 0 else for_arm(tasks[name], key, ARMS[0])

    return [
        {
            "id": 100 + number,
            **given,
            "annotations": [
                {
                    "id": 1000 * annotator + number,
                    "completed_by": annotator,
                    "result": [result(answer(number, given["data"]["task"]))],
                    "was_cancelled": False,
                    "ground_truth": False,
                    "lead_time": 4.25,
                    "created_at": "2026-03-09T22:16:08.728353Z",
                }
                for annotator in annotators
            ],
            "predictions": [{"result": [result(Answer.LEFT)]}],
        }
        for number, given in enumerate(label_studio_tasks(study, url=URL))
    ]


def result(answer: Answer) -> dict[str, Any]:
    if answer is Answer.TIE:
        return {"from_name": "tie", "to_name": "prompt", "type": "choices", "value": {"choices": ["no difference"]}, "origin": "manual"}
    return {"from_name": "choice", "to_name": ["left", "right"], "type": "pairwise", "value": {"selected": answer.value}}


def figures(capsys: pytest.CaptureFixture[str], *files: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["ab", "score", "s", *files, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_an_export_is_scored_by_the_sides_of_its_own_tasks(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    Path("export.json").write_text(json.dumps(annotated(study, 7, 12)))
    found = figures(capsys, "export.json")
    (comparison,) = found["asked"][0]["comparisons"]
    assert (comparison["won"], comparison["lost"], comparison["tied"]) == (12, 0, 4)
    assert found["annotators"] == {"1": 7, "2": 12}
    assert [(one["passed"], one["answered"]) for one in found["attention"]] == [(2, 2), (2, 2)]
    assert found["median_seconds"] == 4.25
    main(["ab", "score", "s", "export.json"])
    assert "from Label Studio: rater 1 is annotator 7, rater 2 is annotator 12" in capsys.readouterr().out


def test_annotators_stand_beside_raters_of_links_and_a_file_read_twice_counts_once(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    cast(Path("s"), study, 2, mostly(ARMS[0], every=100))
    Path("export.json").write_text("\ufeff" + json.dumps(annotated(study, 7), indent=1))
    Path("again.json").write_text(json.dumps(annotated(study, 7)))
    once, twice = figures(capsys, "export.json"), figures(capsys, "export.json", "again.json")
    assert once == twice
    assert once["num_raters"] == 3
    assert once["annotators"] == {"3": 7}


def test_skipped_tasks_and_tasks_without_answers_are_no_votes(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    export = annotated(study, 7)
    export[-1]["annotations"] = []
    export[-2]["annotations"][0] |= {"was_cancelled": True, "result": []}
    export[-3]["annotations"][0] |= {"completed_by": {"id": 7, "email": "<script>@example.org"}, "lead_time": float("nan")}
    Path("export.json").write_text(json.dumps(export))
    assert figures(capsys, "export.json")["num_votes"] == 8 - 2


def to_answer(**changes: Any) -> Callable[[Export], Any]:
    def change(export: Export) -> Export:
        export[3]["annotations"][0] |= changes
        return export

    return change


def to_data(**changes: Any) -> Callable[[Export], Any]:
    def change(export: Export) -> Export:
        export[3]["data"] |= changes
        return export

    return change


def doubled(export: Export) -> Export:
    export[3]["annotations"].append(export[3]["annotations"][0] | {"id": 5})
    return export


def swapped(export: Export) -> Export:
    data = export[3]["data"]
    data["left"], data["right"] = data["right"], data["left"]
    return export


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (doubled, "task 4: annotator 7 answered it twice; delete one answer in Label Studio and export again"),
        (swapped, "is this another study's export?"),
        (to_data(task="p0001.preference<script>"), "task 4: it is no task of this study"),
        (to_data(task=["p"]), "task 4: it is no task of this study"),
        (to_data(left=None), "task 4: it is no task of this study"),
        (to_answer(result=[result(Answer.LEFT), result(Answer.TIE)]), "task 4: an annotation gives several answers at once"),
        (to_answer(result=[]), "task 4: an annotation gives no answer"),
        (to_answer(result=[{"type": "pairwise", "value": {"selected": "both"}}]), "neither left, right nor 'no difference'"),
        (to_answer(result=[{"type": "choices", "value": {"choices": ["no difference", "left"]}}]), "neither left, right nor"),
        (to_answer(result="left"), "no list of choices"),
        (to_answer(result=[{"value": "left"}]), "no list of choices"),
        (to_answer(completed_by=None), "completed_by does not say who answered"),
        (to_answer(completed_by=True), "completed_by does not say who answered"),
        (to_answer(completed_by="../../raters"), "completed_by does not say who answered"),
        (lambda export: [task["data"] for task in export], "export the project as JSON, not JSON-MIN or CSV"),
        (lambda export: [*export, 3], "export the project as JSON"),
        (lambda export: [*export[:1], {"data": {}, "annotations": [None]}], "task 2: it is no task of this study"),
    ],
)
def test_what_no_project_of_this_study_exported_is_one_line(
    study: Study, capsys: pytest.CaptureFixture[str], change: Callable[[Export], Any], said: str
) -> None:
    Path("export.json").write_text(json.dumps(change(annotated(study, 7))))
    with pytest.raises(SystemExit) as ended:
        main(["ab", "score", "s", "export.json"])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, 2", "[\ud800]".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_what_is_no_json_is_one_line_too(study: Study, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("export.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SystemExit):
        main(["ab", "score", "s", "export.json"])
    assert "is no JSON that Label Studio exports" in capsys.readouterr().err
