"""F25: whatever a row is, it becomes a sample or has a reason, and ends nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rglcd.sharding import image_folder, source
from tests.faults.any_rows import KINDS, SAMPLE, Result, run_kind
from tests.faults.rounds import Trial
from tests.faults.scripted_server import ScriptedServer
from tests.faults.watched_process import Ended, run_forked

_CASES = 50
"""In each source, beside a good row or two."""
_NUM_ROUNDS = 400
_SECONDS = 300.0

CRASHED = 70
"""What ``rglcd`` ends with after an error that nobody expected."""


@pytest.mark.fault(
    "F25",
    fault="20,000 rows, 50 in a source: names in any bytes, captions in any encoding, JSON, tars, images of each decoder, urls and answers",
    must="the stage ends well; each row is a sample or one reason of those its class allows; rows = samples + reasons; "
    "half of each class and more come to the parser or decoder that they are meant for",
    unit="sources",
    num_rounds=_NUM_ROUNDS,
    sample=range(len(KINDS)),
)
def test_any_row_is_a_sample_or_has_a_reason(trial: Trial, tmp_path: Path) -> None:
    name = list(KINDS)[trial.number % len(KINDS)]
    ended = _run(trial, tmp_path)
    assert ended.error is None, f"{name}: ended with {ended.error!r}"
    assert ended.exit_code == 0, f"{name}: ended with exit code {ended.exit_code}"
    result: Result = ended.value
    assert result.outcomes.total() == result.num_rows, f"{name}: {result.num_rows} rows became {dict(result.outcomes)}"
    others = sorted(set(result.outcomes) - KINDS[name].allowed)
    assert not others, f"{name}: became {', '.join(others)}"
    reached = result.reached[KINDS[name].parser]
    assert 2 * reached >= _CASES, f"{name}: {reached} came to the {KINDS[name].parser}"
    parsers = {f"given to {parser}": count for parser, count in sorted(result.reached.items())}
    counts = {"rows": result.num_rows, **dict(sorted(result.outcomes.items())), **parsers}
    trial.record(f"{name}: {result.outcomes[SAMPLE]} of {result.num_rows} rows became samples", counts={name: counts})


def _run(trial: Trial, root: Path) -> Ended:
    kind = list(KINDS.values())[trial.number % len(KINDS)]

    def run() -> Result:
        with ScriptedServer() as server:  # here, where its answers are made
            return run_kind(kind, root, _CASES, trial.rng(), server)

    return run_forked(run, timeout=_SECONDS)


def _as_it_is(value: Any, *_: Any) -> Any:
    return value


PUT_BACK: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "text that UTF-8 cannot hold reaches the writer of parquet": (lambda patch: patch.setattr(source, "storable", _as_it_is), "tars"),
    "any name is written to an index": (lambda patch: patch.setattr(image_folder, "name_in_index", _as_it_is), "names and captions"),
    "a caption's JSON may be anything": (
        lambda patch: patch.setattr(image_folder, "facts_in", lambda data, _: json.loads(data)),
        "names and captions",
    ),
}


@pytest.mark.parametrize("fault", PUT_BACK)
def test_a_fault_of_earlier_versions_is_found_by_the_sample(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_back, name = PUT_BACK[fault]
    put_back(monkeypatch)
    ended = _run(Trial(list(KINDS).index(name), 1, {}), tmp_path)
    assert ended.error is not None or ended.exit_code == CRASHED
