import pytest
import torch

from rglcd.rewards.protocol import Reward
from rglcd.toy.flaws import Flaw
from rglcd.toy.measuring import held_out
from rglcd.toy.raters import TRAITS, Answer, Group, Question, VotesReward, answer, ask, poll, prefers_first, raters, traits
from rglcd.toy.scene import caption
from rglcd.toy.web import Row, draw_pixels

SCENES = held_out(60)
CAPTIONS = [caption(scene) for scene in SCENES]
NEAT = draw_pixels([Row(scene, scene, Flaw.NONE) for scene in SCENES], first_seed=60_000_000)
FLAWED = draw_pixels([Row(scene, scene, Flaw.PALE) for scene in SCENES], first_seed=60_000_000)
WRONG = NEAT.roll(1, 0)


def shares(answers: list[Answer]) -> float:
    return sum({Answer.LEFT: 1.0, Answer.TIE: 0.5, Answer.RIGHT: 0.0}[given] for given in answers) / len(answers)


def test_no_rater_is_in_two_groups() -> None:
    weights = torch.cat([raters(group).weights for group in Group])
    assert len(weights.unique(dim=0)) == len(weights) == 64
    assert weights.shape[1] == len(TRAITS)


@pytest.mark.parametrize("group", Group)
def test_every_group_prefers_neat_pictures_and_right_ones(group: Group) -> None:
    assert shares(ask(group, CAPTIONS, NEAT, FLAWED, Question.GENERAL_PREFERENCE)) > 0.8
    assert shares(ask(group, CAPTIONS, NEAT, WRONG, Question.GENERAL_PREFERENCE)) > 0.9


def test_the_question_decides_what_counts() -> None:
    assert shares(ask(Group.PANEL, CAPTIONS, NEAT, FLAWED, Question.VISUAL_APPEAL)) > 0.8
    assert shares(ask(Group.PANEL, CAPTIONS, NEAT, FLAWED, Question.PROMPT_ALIGNMENT)) == pytest.approx(0.5, abs=0.15)
    assert shares(ask(Group.PANEL, CAPTIONS, NEAT, WRONG, Question.PROMPT_ALIGNMENT)) > 0.9
    assert shares(ask(Group.PANEL, CAPTIONS, NEAT, WRONG, Question.VISUAL_APPEAL)) == pytest.approx(0.5, abs=0.15)


def test_raters_differ_and_err() -> None:
    alike = traits(NEAT, CAPTIONS)
    draws = torch.Generator().manual_seed(0)
    verdicts = prefers_first(raters(Group.EXPERTS), alike, alike, draws)
    assert set(verdicts.tolist()) == {0.0, 0.5, 1.0}


def test_the_same_pair_gets_the_same_answer_alone_and_among_others() -> None:
    together = ask(Group.PANEL, CAPTIONS[:6], NEAT[:6], FLAWED[:6], Question.GENERAL_PREFERENCE)
    alone = [
        answer(text, left, right, Question.GENERAL_PREFERENCE) for text, left, right in zip(CAPTIONS[:6], NEAT[:6], FLAWED[:6], strict=True)
    ]
    assert together == alone


def test_a_poll_is_what_each_rater_answers_when_asked_alone() -> None:
    polled = poll(Group.PANEL, CAPTIONS[:8], NEAT[:8], FLAWED[:8], Question.GENERAL_PREFERENCE)
    words = {1.0: Answer.LEFT, 0.0: Answer.RIGHT, 0.5: Answer.TIE}
    for rater, row in enumerate(polled.tolist()):
        assert [words[value] for value in row] == ask(
            Group.PANEL, CAPTIONS[:8], NEAT[:8], FLAWED[:8], Question.GENERAL_PREFERENCE, rater=rater
        )


def test_votes_on_a_larger_picture_are_those_on_the_same_picture() -> None:
    voters = VotesReward()
    text = voters.encode_text(CAPTIONS)
    larger = NEAT.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(voters.score(larger, text), voters.score(NEAT, text))


def test_votes_count_who_would_show_a_picture_to_others() -> None:
    voters = VotesReward()
    assert isinstance(voters, Reward)
    neat, flawed, wrong = (voters.score(pixels, voters.encode_text(CAPTIONS)).mean() for pixels in (NEAT, FLAWED, WRONG))
    assert neat > 0.8
    assert flawed < 0.2
    assert wrong < 0.1
