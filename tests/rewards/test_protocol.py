"""What a reward can do is asked in each step: of a reward on a GPU, that must not wait for it."""

import torch

from rglcd.rewards.protocol import TextReader, has_score, without_text
from rglcd.toy.checker import CheckerReward


class Watched(CheckerReward):
    """A reward whose properties are on a GPU: whoever reads one waits."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def _read(self, name: str) -> float:
        self.reads.append(name)
        return 1.0

    @property
    def logit_scale(self) -> float:
        return self._read("logit_scale")

    @property
    def range(self) -> tuple[float, float]:
        return 0.0, self._read("range")

    @property
    def text_width(self) -> int:
        return int(self._read("text_width"))


def test_asking_what_a_reward_can_do_reads_no_property() -> None:
    """Python 3.11 reads what a protocol names, in an order that differs from process to process."""
    reward = Watched()
    assert has_score(reward, torch.zeros(2, 1)) is None
    assert without_text(reward) is reward
    assert not isinstance(reward, TextReader)
    assert reward.reads == []
