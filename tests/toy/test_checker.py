import pytest
import torch

from rglcd.errors import InputError
from rglcd.rewards.protocol import Reward
from rglcd.toy.checker import UNDECIDED, CheckerReward, check, measure
from rglcd.toy.flaws import EACH, Flaw
from rglcd.toy.measuring import FLAWED, checker_figures, held_out, real_pictures
from rglcd.toy.scene import ATTRIBUTES, SUBJECTS, Scene, caption
from rglcd.toy.web import Row, draw_pixels, web_rows


def test_checker_reads_real_neat_pictures_right() -> None:
    assert checker_figures(count=150)["right"] >= 0.99


@pytest.mark.parametrize("flaw", EACH)
def test_a_flaw_makes_a_picture_untidy_and_leaves_what_it_shows(flaw: Flaw) -> None:
    scenes = held_out(40)
    neat, flawed = (
        measure(draw_pixels([Row(scene, scene, flaws) for scene in scenes], first_seed=50_000_000)) for flaws in (Flaw.NONE, flaw)
    )
    truth = torch.tensor([scene.indices for scene in scenes])
    assert (flawed.values == truth).all(1).float().mean() >= 0.9
    assert flawed.untidiness.quantile(0.05) > neat.untidiness.max()


def test_softness_counts_as_other_flaws_do_and_sharpness_beyond_the_ideal_buys_nothing() -> None:
    scenes = held_out(40)
    neat, pale, blurred = (
        draw_pixels([Row(scene, scene, flaw) for scene in scenes], first_seed=50_000_000) for flaw in (Flaw.NONE, Flaw.PALE, Flaw.BLUR)
    )
    assert measure(blurred).untidiness.median() == pytest.approx(measure(pale).untidiness.median().item(), rel=0.3)
    half = measure((neat + blurred) / 2).untidiness
    assert (half > measure(neat).untidiness).all()
    sharper = (neat + (neat - blurred)).clamp(0, 1)
    assert (measure(sharper).untidiness > measure(neat).untidiness).all()


def test_checker_is_wrong_about_one_attribute_where_the_caption_is() -> None:
    scene = Scene("large", "cat", "left", "blue")
    pixels = draw_pixels([Row(scene, scene, Flaw.NONE)] * 4, first_seed=0)
    changed = [
        Scene("small", "cat", "left", "blue"),
        Scene("large", "frog", "left", "blue"),
        Scene("large", "cat", "right", "blue"),
        Scene("large", "cat", "left", "pink"),
    ]
    right = check(pixels, [caption(other) for other in changed])
    assert torch.equal(right, ~torch.eye(len(ATTRIBUTES), dtype=torch.bool))


@pytest.mark.parametrize("pixels", [torch.full((1, 3, 32, 32), 0.5), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))])
def test_a_picture_of_nothing_shows_no_subject_and_is_untidy(pixels: torch.Tensor) -> None:
    seen = measure(pixels)
    assert seen.values[0, 1] == UNDECIDED
    assert not check(pixels, [caption(Scene("small", subject, "top", "white")) for subject in SUBJECTS[:1]])[0, 1]
    assert seen.untidiness > 2


def test_untidiness_tells_flawed_pictures_from_neat_ones_whatever_they_show() -> None:
    rows = web_rows(held_out(150), range(90_000_000, 90_000_150), FLAWED)
    flawed = measure(draw_pixels(rows, first_seed=90_000_000)).untidiness
    neat = measure(real_pictures(150, FLAWED.__class__(0, 0))).untidiness
    assert (flawed > neat.max()).float().mean() >= 0.99


def test_checker_refuses_captions_of_another_world() -> None:
    with pytest.raises(InputError, match="not of the toy world"):
        check(torch.zeros(1, 3, 32, 32), ["a small red circle at the top on a dark background"])


def test_checker_as_a_reward_counts_what_holds_of_attributes_and_neatness() -> None:
    scene = Scene("large", "cat", "left", "blue")
    neat, pale = (draw_pixels([Row(scene, scene, flaw)], first_seed=0) for flaw in (Flaw.NONE, Flaw.PALE))
    reward = CheckerReward()
    assert isinstance(reward, Reward)
    text = reward.encode_text([caption(scene), caption(Scene("small", "cat", "left", "pink"))])
    assert reward.score(torch.cat([neat, neat]), text).tolist() == pytest.approx([1.0, 0.6])
    assert reward.score(torch.cat([pale, pale]), text).tolist() == pytest.approx([0.8, 0.4])
