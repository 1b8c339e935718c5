"""A reward in a process of another environment: by a stand-in, which says that it is one. No real model was tried this way but hpsv2's."""

import gc
import math
import sys
from pathlib import Path

import pytest
import torch

from rglcd.errors import InputError
from rglcd.rewards.process import CAPTION_BYTES, ProcessReward
from rglcd.rewards.registry import open_scorer
from tests.rewards.published_models import CPU, FLOAT32

STAND_IN = Path(__file__).parents[1] / "assets" / "rewards" / "stand_in.py"


def start(mode: str = "well", *, version: str = "1") -> ProcessReward:
    return ProcessReward(None, program=sys.executable, version=version, arguments=[str(STAND_IN), mode], device=CPU)


def test_a_program_scores_pictures_for_their_captions_in_batches_and_on_cached_text() -> None:
    reward = start()
    assert (reward.name, reward.logit_scale, reward.range) == ("stand-in", 2.0, (-math.inf, math.inf))
    pixels = torch.linspace(0, 1, 3).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    captions = ["", "a café", "x" * 5000]
    text = reward.encode_text(captions)
    assert text.shape == (3, CAPTION_BYTES)
    levels = (torch.linspace(0, 1, 3) * 255).round() / 255
    expected = levels + torch.tensor([0.0, 6.0, float(CAPTION_BYTES)])
    torch.testing.assert_close(reward.score(pixels, text), expected)
    torch.testing.assert_close(reward.score(pixels[1:2], text[1:2].half().float()), expected[1:2])


def test_it_opens_by_its_settings_and_has_weights_if_it_names_a_source() -> None:
    settings = {"kind": "process", "program": sys.executable, "version": "1", "arguments": [str(STAND_IN), "well"], "has_weights": False}
    reward = open_scorer("other", {"other": settings}, Path("nowhere"), dtype=FLOAT32, device=CPU)
    assert reward.weights_sha256() is None
    assert not reward.differentiable


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("old", r"lacks protocol 1 in its first line"),
        ("in-words", r"gives 'two' in logit_scale or range, which is no number"),
        ("talks", r"said b'loading\\n', which is no JSON object on a line: what it prints goes to stderr"),
        ("fails", r"failed: no such layer"),
        ("wrong-shape", r"wrote scores of shape \(1,\), not \(2,\)"),
        ("silent", r"gave no answer in 1 s and was killed"),
    ],
)
def test_a_program_that_does_not_keep_to_the_protocol_is_one_line(mode: str, said: str) -> None:
    def use() -> None:
        reward = start(mode)
        reward._server.answer_seconds = 1.0 if mode == "silent" else 60.0
        reward.score(torch.rand(2, 3, 8, 8), reward.encode_text(["a", "b"]))

    with pytest.raises(InputError, match=said) as refusal:
        use()
    assert "\n" not in str(refusal.value)


def test_another_version_than_the_configurations_is_refused() -> None:
    with pytest.raises(InputError, match="is stand-in 1, and the configuration says version 2"):
        start(version="2")
    with pytest.raises(InputError, match="process: no command 'no-such-program'; install it, or name another `program`"):
        ProcessReward(None, program="no-such-program", version="1", device=CPU)


def test_the_process_ends_with_its_reward() -> None:
    reward = start()
    process, folder = reward._server.process, reward._server.folder
    assert process.poll() is None
    del reward
    gc.collect()
    assert process.poll() is not None
    assert not folder.exists()
