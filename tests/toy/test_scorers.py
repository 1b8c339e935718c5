import pytest
import torch

from rglcd.toy.codec import CodecSettings, reconstruction_loss
from rglcd.toy.flaws import Flaw
from rglcd.toy.scene import GROUNDS, Scene
from rglcd.toy.scorers import TrainingPictures, draw_pairs, paired
from rglcd.toy.teacher import build_tokenizer
from rglcd.toy.web import Row, draw_pixels

EMPTY = TrainingPictures(torch.empty(0), torch.empty(0), torch.zeros(3 * 600, 1), torch.empty(0))


def test_raters_compare_two_different_pictures_of_one_caption() -> None:
    first, second = draw_pairs(EMPTY, 5000, torch.Generator().manual_seed(0))
    assert torch.equal(first % 600, second % 600)
    assert (first != second).all()
    assert len(torch.stack([first // 600, second // 600], 1).unique(dim=0)) == 6


def test_an_undecided_rater_pulls_two_pictures_together() -> None:
    difference = torch.tensor([2.0, 2.0], requires_grad=True)
    loss, figures = paired(difference, torch.tensor([1.0, 0.5]))
    loss.backward()
    assert difference.grad is not None
    assert difference.grad[1] > 0 > difference.grad[0]
    assert figures["preferred"] == 1


@pytest.mark.parametrize("ground", GROUNDS)
def test_the_codecs_loss_weighs_the_subject_and_not_the_ground(ground: str) -> None:
    scene = Scene("small", "penguin", "left", ground)
    images = draw_pixels([Row(scene, scene, Flaw.NONE)], first_seed=0) * 2 - 1
    settings = CodecSettings()

    def cost(column: int) -> float:
        wrong = images.clone()
        wrong[:, :, 14:18, column : column + 4] += 0.1
        return reconstruction_loss(wrong, images, settings, progress=1.0).item()

    assert cost(5) == pytest.approx(settings.foreground_weight * cost(26), rel=1e-3)


def test_each_word_of_a_caption_is_one_token() -> None:
    caption = "a small octopus at the bottom on a pink background"
    tokens = build_tokenizer().tokenize(caption)
    assert " ".join(token.removesuffix("</w>") for token in tokens) == caption
