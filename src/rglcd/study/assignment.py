"""Which pairs a rater sees, in which order, and which picture stands on the left: a function of the study and the rater's number."""

import random
from dataclasses import dataclass
from functools import lru_cache

from rglcd.study.records import Pair, Question, Study


@dataclass(frozen=True)
class Task:
    """One question about one pair, with the pictures on their sides."""

    pair: Pair
    question: Question
    left: str
    right: str

    @property
    def id(self) -> str:
        """The same for every rater; it says nothing of arms, and a check's looks like any other."""
        return f"{self.pair.id}.{self.question}"


def tasks_of(study: Study, rater: int) -> list[Task]:
    """What the rater of that number (from 0) is asked, in order.

    Pairs are shuffled once and dealt out in turn, so that all have the same number of raters but for one, whatever the number of
    raters. Half of them stand the other way round, and each time a pair is dealt again, its sides change: a rater who likes the
    left favours no arm. All questions of a pair follow each other; a check asks the first.
    """
    dealt = _dealt(study, rater)
    rng = random.Random(f"{study.seed}/rater/{rater}")  # noqa: S311 (an order, no secret)
    rng.shuffle(dealt)
    shown = [[_task(pair, question, is_swapped) for question in study.questions] for pair, is_swapped in dealt]
    for place, check in _places(study, len(shown), rng):
        shown.insert(place, [_task(check, study.questions[0], rng.random() < 0.5)])
    return [task for tasks in shown for task in tasks]


def every_task(study: Study) -> list[Task]:
    """Each question about each pair once, checks first, in an order and on sides drawn from the seed: for other tools' projects."""
    rng = random.Random(f"{study.seed}/elsewhere")  # noqa: S311 (an order, no secret)
    checks = [_task(check, study.questions[0], rng.random() < 0.5) for check in study.checks]
    turns = [_turn(study, number) for number in range(len(study.pairs))]
    return [*checks, *(_task(pair, question, is_swapped) for pair, is_swapped in turns for question in study.questions)]


def _dealt(study: Study, rater: int) -> list[tuple[Pair, bool]]:
    first = rater * study.pairs_per_rater
    return [_turn(study, number) for number in range(first, first + study.pairs_per_rater)]


def _turn(study: Study, number: int) -> tuple[Pair, bool]:
    """The ``number``-th pair that is dealt, and whether its second picture stands on the left."""
    deck, swapped = _deck(study.seed, len(study.pairs))
    round_, place = divmod(number, len(deck))
    return study.pairs[deck[place]], swapped[place] ^ (round_ % 2 == 1)


@lru_cache(maxsize=4)
def _deck(seed: int, size: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The order in which pairs are dealt, and at each place whether the second picture stands on the left in the first round."""
    order, swapped = list(range(size)), [number % 2 == 1 for number in range(size)]
    random.Random(f"{seed}/deck").shuffle(order)  # noqa: S311 (an order, no secret)
    random.Random(f"{seed}/sides").shuffle(swapped)  # noqa: S311 (which side, no secret)
    return tuple(order), tuple(swapped)


def _places(study: Study, num_pairs: int, rng: random.Random) -> list[tuple[int, Pair]]:
    """Where each check is put among ``num_pairs`` pairs: one in each stretch of equal length, the last stretch's first."""
    checks = list(study.checks)
    rng.shuffle(checks)
    stretch = num_pairs / max(1, len(checks))
    places = [max(1, int((number + rng.random()) * stretch)) for number in range(len(checks))]  # nobody begins with a check
    return sorted(zip(places, checks, strict=True), key=lambda placed: placed[0], reverse=True)


def _task(pair: Pair, question: Question, is_swapped: bool) -> Task:
    first, second = pair.pictures
    return Task(pair, question, *((second, first) if is_swapped else (first, second)))
