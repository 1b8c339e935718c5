from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.toy.corpus import write_corpus
from rglcd.toy.scene import parse, split


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "data"
    write_corpus(folder, num_images=60, num_reference=20)
    return folder


def rows(index: Path) -> list[tuple[str, str]]:
    return [(address, text) for address, text in (line.split("\t") for line in index.read_text().splitlines())]


def test_index_names_pictures_with_captions_of_the_training_set(corpus: Path) -> None:
    listed = rows(corpus / "index.tsv")
    assert len(listed) == 60
    assert all((corpus / address).is_file() for address, _ in listed)
    assert {parse(text) for _, text in listed} <= set(split().train)


def test_reference_and_held_out_prompts_go_together(corpus: Path) -> None:
    prompts = (corpus / "prompts" / "heldout.txt").read_text().splitlines()
    assert sorted(map(parse, prompts)) == sorted(split().held_out)
    assert [text for _, text in rows(corpus / "reference" / "index.tsv")] == prompts[:20]


def test_second_writing_keeps_what_is_there_and_other_settings_replace_it(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_corpus(folder, num_images=4, num_reference=1)
    before = (folder / "index.tsv").stat().st_mtime_ns
    write_corpus(folder, num_images=4, num_reference=1)
    assert (folder / "index.tsv").stat().st_mtime_ns == before
    write_corpus(folder, num_images=3, num_reference=1)
    assert len(rows(folder / "index.tsv")) == 3


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="something other than a toy corpus"):
        write_corpus(tmp_path, num_images=1, num_reference=1)
    assert (tmp_path / "letter.txt").read_text() == "dear"
