import hashlib
import io
from dataclasses import astuple

import numpy as np
import pytest
from PIL import Image

from rglcd.errors import InputError
from rglcd.toy.scene import VALUES, all_scenes, caption, draw, draw_batch, encode_png, parse, shuffled, split

FIRST_64 = "a5f8ed5bbb08dd9e56c0aec27a521940410b4b00ae2c0a03c24be818d04a4310"


def test_parsing_a_caption_gives_back_its_scene() -> None:
    assert len(set(map(caption, all_scenes()))) == 432
    assert all(parse(caption(scene)) == scene for scene in all_scenes())


@pytest.mark.parametrize("text", ["", "a cat", "a small red circle at the top on a dark background.", "a huge red circle"])
def test_parsing_an_unknown_caption_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="not of the toy world"):
        parse(text)


def test_split_is_a_partition_with_a_quarter_held_out() -> None:
    train, held_out = set(split().train), set(split().held_out)
    assert train | held_out == set(all_scenes())
    assert not train & held_out
    assert len(held_out) == 108


def test_train_and_held_out_captions_both_have_every_pair_of_values() -> None:
    def pairs(scenes: tuple) -> set:
        return {(i, j, a, b) for s in scenes for i, a in enumerate(astuple(s)) for j, b in enumerate(astuple(s))}

    assert pairs(split().train) == pairs(all_scenes())
    values = {(column, value) for scene in split().held_out for column, value in enumerate(astuple(scene))}
    assert values == {(column, value) for column, choices in enumerate(VALUES) for value in choices}


def test_drawing_depends_on_scene_and_seed_only() -> None:
    scenes, seeds = list(all_scenes()), list(range(len(all_scenes())))
    together = draw_batch(scenes, seeds)
    assert all(np.array_equal(draw(scenes[k], seeds[k]), together[k]) for k in (0, 127, 128, 431))
    assert not np.array_equal(draw(scenes[0], 0), draw(scenes[0], 1))


def test_drawings_have_the_recorded_digest() -> None:
    scenes = [all_scenes()[7 * number % 432] for number in range(64)]
    assert hashlib.sha256(draw_batch(scenes, list(range(64))).tobytes()).hexdigest() == FIRST_64


def test_pil_reads_the_written_png() -> None:
    pixels = draw(all_scenes()[100], 5)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)


def test_shuffled_is_a_permutation_that_depends_on_the_salt() -> None:
    once = shuffled(split().held_out, "0")
    assert sorted(once) == sorted(split().held_out)
    assert once == shuffled(split().held_out, "0")
    assert once != shuffled(split().held_out, "1")
