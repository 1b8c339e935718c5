import json
from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.toy.world.scene import parse


def test_toy_data_draws_the_second_edition_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rglcd.toy.world.corpus.write_corpus.__kwdefaults__", {"num_images": 3, "num_reference": 1, "seed": 0})
    assert main(["toy", "data", str(tmp_path / "data"), "--edition", "second"]) == 0
    lines = (tmp_path / "data" / "index.tsv").read_text().splitlines()
    assert len([parse(line.split("\t")[1]) for line in lines]) == 3


@pytest.mark.parametrize(
    ("settings", "asked", "made"), [({"seed": 11}, "second", "first"), ({"seed": 11, "percent_flawed": 50}, "first", "second")]
)
def test_toy_build_does_not_replace_models_of_the_other_edition(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, int], asked: str, made: str
) -> None:
    (tmp_path / "build.json").write_text(json.dumps({"codec": {"settings": settings}}))
    with pytest.raises(SystemExit) as ended:
        main(["toy", "build", str(tmp_path), "--edition", asked])
    assert ended.value.code == 2
    assert f"holds models of the world's {made} edition" in capsys.readouterr().err
