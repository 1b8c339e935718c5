"""Small studies, and raters for them."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rglcd.study.assignment import Task, tasks_of
from rglcd.study.ballots import Vote
from rglcd.study.build import Design, build
from rglcd.study.raters import Rater, read_raters, with_raters
from rglcd.study.records import Answer, Key, Question, Study, read_key
from rglcd.study.sources import Drawn
from rglcd.study.vote_log import open_log

ARMS = ("guided-arm", "teacher-arm", "plain-arm")


def picture(seed: int, side: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def drawn(num_prompts: int = 6, *, arms: Sequence[str] = ARMS[:2], prompts: Sequence[str] = ()) -> Drawn:
    texts = list(prompts) or [f"prompt number {row}" for row in range(num_prompts)]
    pictures = {arm: [picture(1000 * place + row).copy for row in range(len(texts))] for place, arm in enumerate(arms)}
    return Drawn(texts, pictures, [(text, picture(5000 + row).copy) for row, text in enumerate(texts)])


def design(**changes: Any) -> Design:
    usual: dict[str, Any] = {"questions": [Question.PREFERENCE], "seed": 1, "num_checks": 2}
    return Design(**(usual | {"num_prompts": None, "pairs_per_rater": None, "side": None} | changes))


def small_study(folder: Path, *, arms: Sequence[str] = ARMS[:2], num_prompts: int = 6, **changes: Any) -> Study:
    return build(folder, drawn(num_prompts, arms=arms), design(**changes))


def whole(task: Task, key: Key) -> Answer:
    """The right answer of an attention check."""
    return Answer.LEFT if task.left == task.pair.pictures[key.whole[task.pair.id]] else Answer.RIGHT


def for_arm(task: Task, key: Key, arm: str) -> Answer:
    """A vote for the picture of ``arm``."""
    first, second = key.drawn_by[task.pair.id]
    chosen = task.pair.pictures[(first, second).index(arm)]
    return Answer.LEFT if chosen == task.left else Answer.RIGHT


Votes = Callable[[Rater, Task, Key], Answer | None]


def cast(folder: Path, study: Study, num_raters: int, votes: Votes, *, simulated: bool = False) -> None:
    """Record what ``votes`` says of each rater's tasks; None is no vote."""
    raters, key = with_raters(folder, num_raters, simulated=simulated), read_key(folder)
    with open_log(folder, read_raters(folder)) as log:
        for rater in raters:
            for task in tasks_of(study, rater.number):
                answer = votes(rater, task, key)
                if answer is not None:
                    log.append(Vote(new_id(rater.number, task.id), rater.number, task.id, answer, 1500, "now"), simulated=simulated)


def new_id(*words: object) -> str:
    return f"{random.Random(repr(words)).getrandbits(128):032x}"


def is_check(task: Task, key: Key) -> bool:
    return task.pair.id in key.whole


def mostly(arm: str, *, every: int) -> Votes:
    """For ``arm`` but on each ``every``-th prompt, and right in every check."""

    def vote(rater: Rater, task: Task, key: Key) -> Answer:
        if is_check(task, key):
            return whole(task, key)
        other = next(name for name in key.drawn_by[task.pair.id] if name != arm)
        turn = int(task.pair.prompt.rpartition(" ")[2]) + rater.number
        return for_arm(task, key, other if turn % every == 0 else arm)

    return vote
