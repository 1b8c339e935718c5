from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rglcd.errors import InputError
from rglcd.toy.corpus import write_corpus
from rglcd.toy.scene import caption, split


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[list[str]]:
    return [line.split("\t") for line in (folder / "index.tsv").read_text().splitlines()]


def test_corpus_is_byte_identical_for_equal_seeds_only(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        write_corpus(tmp_path / name, num_images=40, num_reference=10, seed=seed)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one")["images/00000.png"] != contents(tmp_path / "other")["images/00000.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other", "two"]


def test_corpus_index_lists_every_picture_with_a_train_caption(tmp_path: Path) -> None:
    write_corpus(tmp_path / "data", num_images=400, num_reference=2)
    addresses, captions = zip(*rows(tmp_path / "data"), strict=True)
    assert sorted(addresses) == sorted(name for name in contents(tmp_path / "data") if name.startswith("images/"))
    assert set(captions) == {caption(scene) for scene in split().train}
    assert np.asarray(Image.open(tmp_path / "data" / addresses[0])).shape == (32, 32, 3)


def test_reference_shows_held_out_prompts_in_order_and_no_training_picture(tmp_path: Path) -> None:
    write_corpus(tmp_path / "data", num_images=40, num_reference=250)
    prompts = (tmp_path / "data" / "prompts" / "heldout.txt").read_text().splitlines()
    shown = [text for _, text in rows(tmp_path / "data" / "reference")]
    assert shown == [prompts[number % len(prompts)] for number in range(250)]
    pictures = contents(tmp_path / "data")
    training = {content for name, content in pictures.items() if name.startswith("images/")}
    assert not training & {content for name, content in pictures.items() if name.startswith("reference/images/")}


def test_prompt_sets_are_the_train_and_held_out_captions(tmp_path: Path) -> None:
    write_corpus(tmp_path / "data", num_images=1, num_reference=1)
    for name, scenes in (("heldout", split().held_out), ("train", split().train)):
        lines = (tmp_path / "data" / "prompts" / f"{name}.txt").read_text().splitlines()
        assert sorted(lines) == sorted(map(caption, scenes))


def test_existing_corpus_is_kept_and_one_of_other_settings_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_corpus(folder, num_images=3, num_reference=1)
    before = (folder / "index.tsv").stat().st_mtime_ns
    write_corpus(folder, num_images=3, num_reference=1)
    assert (folder / "index.tsv").stat().st_mtime_ns == before
    write_corpus(folder, num_images=2, num_reference=1)
    assert len(rows(folder)) == 2


def test_folder_that_is_no_corpus_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="other than a toy corpus"):
        write_corpus(tmp_path, num_images=1)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
