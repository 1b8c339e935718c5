from itertools import cycle, islice

import pytest
import torch
from torch import Tensor

from rglcd.errors import InputError
from rglcd.toy.checker import UNDECIDED, CheckerReward, check, measure
from rglcd.toy.expert import changed
from rglcd.toy.scene import ATTRIBUTES, VALUES, Scene, all_scenes, caption
from rglcd.toy.training import draw_pixels

COUNT = 2 * 432


def pictures(scenes: list[Scene], *, first_seed: int = 0) -> Tensor:
    return draw_pixels(scenes, count=len(scenes), first_seed=first_seed)


def scenes() -> list[Scene]:
    return list(islice(cycle(all_scenes()), COUNT))


@pytest.fixture(scope="module")
def real() -> Tensor:
    return pictures(scenes())


def test_checker_finds_every_attribute_of_a_drawn_picture(real: Tensor) -> None:
    assert check(real, list(map(caption, scenes()))).all(1).float().mean() >= 0.99


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_one_wrong_attribute_fails_its_own_column_only(real: Tensor, attribute: str) -> None:
    column = ATTRIBUTES.index(attribute)
    wrong = [changed(scene, attribute, 1 + k % (len(VALUES[column]) - 1)) for k, scene in enumerate(scenes())]
    right = check(real, list(map(caption, wrong)))
    expected = torch.ones(len(ATTRIBUTES), dtype=torch.bool)
    expected[column] = False
    assert (right == expected).all(1).float().mean() >= 0.99


def test_checker_is_robust_to_noise_of_decoder_size(real: Tensor) -> None:
    noisy = real + 0.04 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    assert check(noisy, list(map(caption, scenes()))).all(1).float().mean() >= 0.99


def test_empty_picture_has_a_background_and_no_other_attribute() -> None:
    assert measure(torch.full((1, 3, 32, 32), 0.5)).tolist() == [[UNDECIDED] * 4 + [1]]


def test_two_objects_count_as_no_shape() -> None:
    left, right = (
        pictures([Scene("small", "red", "circle", position, "gray")], first_seed=seed) for position, seed in (("left", 3), ("right", 3))
    )
    both = torch.where((left - 0.5).abs() > 0.2, left, right)
    assert measure(both)[0, ATTRIBUTES.index("shape")] == UNDECIDED


def test_checker_reward_is_the_share_of_correct_attributes(real: Tensor) -> None:
    reward = CheckerReward()
    shown = scenes()[:64]
    assert reward.score(real[:64], reward.encode_text(list(map(caption, shown)))).tolist() == [1.0] * 64
    other = [changed(changed(scene, "colour", 2), "background", 1) for scene in shown]
    torch.testing.assert_close(reward.score(real[:64], reward.encode_text(list(map(caption, other)))), torch.full((64,), 0.6))


def test_checking_an_unknown_caption_is_an_input_error() -> None:
    with pytest.raises(InputError, match="not of the toy world"):
        CheckerReward().encode_text(["a cat"])
