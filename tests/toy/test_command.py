from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.toy.scene import parse


def test_toy_data_draws_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rglcd.toy.corpus.write_corpus.__kwdefaults__", {"num_images": 3, "num_reference": 1, "seed": 0})
    assert main(["toy", "data", str(tmp_path / "data")]) == 0
    lines = (tmp_path / "data" / "index.tsv").read_text().splitlines()
    assert len([parse(line.split("\t")[1]) for line in lines]) == 3
