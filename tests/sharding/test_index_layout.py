from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.sharding.import_source import use
from tests.stages.sharding_runs import run, write_source

SWAPPED = b"a very typical bus station\thttp://a.example/1.jpg\nPhoto: a stadium\thttp://a.example/2.jpg\n"
NO_INDEX = {
    "CC3M's order": (SWAPPED, "has the caption before the url.*awk"),
    "CC3M's order with a header": (b"caption\turl\n" + SWAPPED, "has the caption before the url.*awk"),
    "UTF-16": ("http://a.example/1.jpg\ta caption\n".encode("utf-16"), "is UTF-16.*iconv"),
}


@pytest.mark.parametrize("kind", NO_INDEX)
def test_an_index_of_which_no_row_can_be_read_is_refused_with_the_way_out(tmp_path: Path, kind: str) -> None:
    data, said = NO_INDEX[kind]
    (tmp_path / "theirs.tsv").write_bytes(data)
    with pytest.raises(InputError, match=rf"theirs\.tsv {said}"):
        use(str(tmp_path / "theirs.tsv"), tmp_path / "imported")
    assert not (tmp_path / "imported" / "index.tsv").exists()
    (tmp_path / "source").mkdir()
    (tmp_path / "theirs.tsv").rename(tmp_path / "source" / "index.tsv")
    with pytest.raises(InputError, match=rf"index\.tsv {said}"):
        run(tmp_path / "source", tmp_path / "shards")


@pytest.mark.parametrize(("header", "is_header"), [("url\tcaption", True), ("URL\tTEXT", True), ("images/a.png\tcaption", False)])
def test_a_header_is_mentioned_and_counts_as_a_row_without_an_image(tmp_path: Path, header: str, is_header: bool) -> None:
    source = write_source(tmp_path / "source", num_images=3)
    (tmp_path / "a.tsv").write_text(f"{header}\n" + (source / "index.tsv").read_text())
    said = " ".join(use(str(tmp_path / "a.tsv"), source))
    assert ("row 1 of" in said and "is a header by its looks" in said) is is_header
    facts = run(source, tmp_path / "shards")
    assert (facts["rows"], facts["samples"]) == (7, 3)


@pytest.mark.parametrize("rows", ["", "\n\n", "a\n", "http://a/1\thttp://a/caption\n", "images/a.png\thttp://a/caption\n", "word\tword\n"])
def test_an_index_in_the_order_that_is_asked_for_is_taken(tmp_path: Path, rows: str) -> None:
    (tmp_path / "a.tsv").write_text(rows)
    use(str(tmp_path / "a.tsv"), tmp_path / "source")
    assert (tmp_path / "source" / "index.tsv").read_text() == rows
