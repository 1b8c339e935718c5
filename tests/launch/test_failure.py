"""A failure that crosses a process boundary arrives as what it was."""

from pathlib import Path

import pytest

from rglcd.errors import InputError, TrainingDiverged, TryAgain
from rglcd.launch.failure import Failure, JobError, exception_of, read_failure, write_failure


@pytest.mark.parametrize("kind", [InputError, TrainingDiverged, TryAgain])
def test_failure_survives_the_error_file(tmp_path: Path, kind: type) -> None:
    path = tmp_path / "made" / "error.json"
    write_failure(path, Failure("what, where, what to do: «ü»", kind.exit_code))
    failure = read_failure(path.read_text(encoding="utf-8"))
    assert failure is not None
    error = exception_of(failure)
    assert type(error) is kind
    assert str(error) == "what, where, what to do: «ü»"


def test_unknown_exit_code_is_kept() -> None:
    error = exception_of(Failure("killed", 137))
    assert isinstance(error, JobError)
    assert error.exit_code == 137


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"message": "plain"}', '{"message": {"message": "no code"}}', "torn {"])
def test_error_file_of_another_format_is_ignored(text: str) -> None:
    assert read_failure(text) is None
