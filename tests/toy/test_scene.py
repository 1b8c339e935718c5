from dataclasses import astuple

import pytest

from rglcd.errors import InputError
from rglcd.toy.scene import VALUES, all_scenes, caption, parse, scene_numbers, shuffled, split


def test_parsing_a_caption_gives_back_its_scene() -> None:
    assert len(set(map(caption, all_scenes()))) == 600
    assert all(parse(caption(scene)) == scene for scene in all_scenes())


@pytest.mark.parametrize(
    "text", ["", "a cat", "a small cat at the middle on a blue background", "a huge cat at the top on a blue background"]
)
def test_parsing_an_unknown_caption_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="not of the toy world"):
        parse(text)


def test_split_is_a_partition_with_a_quarter_held_out() -> None:
    train, held_out = set(split().train), set(split().held_out)
    assert train | held_out == set(all_scenes())
    assert not train & held_out
    assert len(held_out) == 150


def test_train_captions_have_every_pair_of_values_and_held_out_ones_every_value() -> None:
    def pairs(scenes: tuple) -> set:
        return {(i, j, a, b) for s in scenes for i, a in enumerate(astuple(s)) for j, b in enumerate(astuple(s))}

    assert pairs(split().train) == pairs(all_scenes())
    values = {(column, value) for scene in split().held_out for column, value in enumerate(astuple(scene))}
    assert values == {(column, value) for column, choices in enumerate(VALUES) for value in choices}


def test_shuffling_keeps_every_scene() -> None:
    assert shuffled(split().held_out, "a") != shuffled(split().held_out, "b")
    assert sorted(scene_numbers(shuffled(all_scenes(), "a"))) == list(range(600))
