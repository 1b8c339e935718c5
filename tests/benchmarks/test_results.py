"""`python -m benchmarks.results`, whose runs take hours: that it begins, and what it asks for."""

import sys

import pytest

from benchmarks import results


def test_the_command_teaches_its_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.results", "--help"])
    with pytest.raises(SystemExit, match="0"):
        results.main()
    said = capsys.readouterr().out
    assert "--seeds" in said
    assert "--processes" in said
