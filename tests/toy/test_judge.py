from pathlib import Path

import pytest
import torch

from rglcd.errors import InputError
from rglcd.rewards.protocol import DifferentiableReward
from rglcd.toy.judge import JudgeShape, ToyJudge
from rglcd.toy.scene import VALUES
from rglcd.toy.scorers import _claims

WORDS = ("a", "circle", "red", "square")


@pytest.fixture
def judge() -> ToyJudge:
    torch.manual_seed(0)
    return ToyJudge(WORDS, JudgeShape(width=8, text_width=8, groups=4))


def test_the_judge_is_a_differentiable_reward(judge: ToyJudge) -> None:
    assert isinstance(judge, DifferentiableReward)
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    scores = judge.score(pixels, judge.encode_text(["a red circle", "a square"]))
    assert scores.shape == (2,)
    assert bool(((scores > 0) & (scores < 1)).all())
    torch.autograd.backward(scores.sum())
    assert pixels.grad is not None
    assert bool(pixels.grad.abs().amax() > 0)


def test_a_saved_judge_scores_the_same(judge: ToyJudge, tmp_path: Path) -> None:
    judge.save_pretrained(tmp_path)
    again = ToyJudge.from_pretrained(tmp_path)
    pixels, captions = torch.rand(2, 3, 32, 32), ["a red circle", "a square"]
    assert torch.equal(again.encode_text(captions), judge.encode_text(captions))
    assert torch.equal(again.score(pixels, again.encode_text(captions)), judge.score(pixels, judge.encode_text(captions)))


def test_judge_encodes_unknown_words_alike_and_pads_captions_with_zeros(judge: ToyJudge) -> None:
    rows = judge.encode_text(["a red circle", "A dog", "one cat"])
    assert rows.shape == (3, 16)
    assert rows[0, :4].tolist() == [2, 4, 3, 0]
    assert rows[1, 1] == rows[2, 0] == rows[2, 1] == 1


def test_folder_without_a_judge_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no judge there"):
        ToyJudge.from_pretrained(tmp_path)


def test_judge_training_captions_are_half_true_and_a_quarter_wrong_in_one_value() -> None:
    draws = torch.Generator().manual_seed(0)
    counts = torch.tensor([len(values) for values in VALUES])
    truth = (torch.rand(8000, len(VALUES), generator=draws) * counts).long()
    wrong = (_claims(truth, draws) != truth).sum(1)
    assert bool((_claims(truth, draws) < counts).all())
    assert 0.47 < (wrong == 0).float().mean() < 0.53
    assert 0.23 < (wrong == 1).float().mean() < 0.29
