"""The kind ``ocr`` with the real models of rapidocr's wheel, on words that Pillow draws."""

import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rglcd.errors import InputError
from rglcd.evaluation.observation import ScoringPanel
from rglcd.extras import install_command
from rglcd.models.chunks import Chunks
from rglcd.rewards.mixture import mixture
from rglcd.rewards.ocr import OcrReward
from rglcd.rewards.protocol import DifferentiableReward, PartialReward, Reward, TextReader, has_score
from rglcd.rewards.registry import open_scorer
from rglcd.toy.drawing import draw_batch
from rglcd.toy.scene import all_scenes

CPU = torch.device("cpu")


def opened(**settings: object) -> Reward:
    catalogue = {"words": {"kind": "ocr", "logit_scale": 10.0} | settings}
    return open_scorer("words", catalogue, Path("nowhere"), dtype=torch.float32, device=CPU)


@pytest.fixture(scope="module")
def ocr() -> OcrReward:
    pytest.importorskip("rapidocr", reason="rapidocr is not installed: the extra ocr")
    reward = opened()
    assert isinstance(reward, OcrReward)
    return reward


def picture(*lines: str, side: int = 256) -> Tensor:
    """Dark words on a light ground, (3, side, side), in Pillow's own font."""
    image = Image.new("RGB", (side, side), (200, 220, 240))
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(size=side / 8)
    for number, line in enumerate(lines):
        canvas.text((side / 10, side / 6 + number * side / 4), line, font=font, fill=(10, 20, 60))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def scores(ocr: OcrReward, pictures: Sequence[Tensor], captions: Sequence[str]) -> tuple[list[float], list[float]]:
    found, unasked = ocr.score_and_unasked_text(torch.stack([*pictures]), ocr.encode_text(captions))
    return found.tolist(), unasked.tolist()


def test_it_is_a_reward_without_gradient_that_reads_and_has_no_score_for_some(ocr: OcrReward) -> None:
    assert isinstance(ocr, PartialReward)
    assert isinstance(ocr, TextReader)
    assert not ocr.differentiable
    assert not (isinstance(ocr, DifferentiableReward) and ocr.differentiable)
    pixels = picture("OPEN").requires_grad_()
    assert not ocr.score(pixels[None], ocr.encode_text(['"OPEN"'])).requires_grad
    assert len(ocr.weights_sha256()) == 64


def test_drawn_words_are_read_right_at_two_sizes(ocr: OcrReward) -> None:
    for side in (256, 512):
        lines = ocr.read(picture("OPEN 24", "Fresh bread", side=side)[None])[0]
        assert [line.text for line in lines] == ["open24", "freshbread"]
        assert min(line.confidence for line in lines) > 0.9


def test_scores_are_shares_of_the_quoted_characters_and_words_nobody_quoted_raise_the_alarm(ocr: OcrReward) -> None:
    pictures = [picture("OPEN 24"), picture("OPEN", "Fresh bread"), picture("HALLO", "BUY NOW"), picture(), picture("BUY NOW")]
    captions = ['a sign: "open 24"', "“Fresh Bread” and 'Open'", 'the word "HELLO"', 'a sign with "STOP"', "a cat"]
    found, unasked = scores(ocr, pictures, captions)
    assert found == pytest.approx([1.0, 1.0, 0.8, 0.0, 0.0])
    assert unasked == [0, 0, 1, 0, 1]
    assert ocr.has_score(ocr.encode_text(captions)).tolist() == [True, True, True, True, False]


def test_pictures_without_words_raise_no_alarm(ocr: OcrReward) -> None:
    """What the toy draws looks like letters here and there: a ring is read as 0."""
    scenes = list(all_scenes())[:: len(list(all_scenes())) // 5][:5]
    drawings = torch.from_numpy(draw_batch(scenes, range(5))).permute(0, 3, 1, 2).float() / 255
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, unasked = scores(ocr, [*drawings, noise[0]], ["a cat"] * 6)
    assert unasked == [0.0] * 6
    assert found == [0.0] * 6


def test_what_is_read_in_a_picture_depends_on_no_other(ocr: OcrReward) -> None:
    pictures = torch.stack([picture("OPEN 24"), picture("a longer line"), picture()])
    together = ocr.read(pictures)
    assert together == [ocr.read(one[None])[0] for one in pictures]
    assert together == ocr.read(pictures)


def test_a_quote_that_is_too_long_is_cut_at_a_whole_character(ocr: OcrReward) -> None:
    text = ocr.encode_text(["“" + "é" * 200 + "”", "“ab” “cd”"])
    assert text.shape == (2, ocr.text_width)
    assert ocr.has_score(text).all()
    assert torch.equal(text.float(), text)
    assert ocr.score(picture("abcd")[None].expand(2, -1, -1, -1), text).tolist() == pytest.approx([0.0, 1.0])


def test_nothing_is_fetched_and_no_thread_is_started(ocr: OcrReward, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("it asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    threads = Path("/proc/self/task")
    before = len(list(threads.iterdir()))
    other = opened()
    assert isinstance(other, OcrReward)
    assert [line.text for line in other.read(picture("OPEN")[None])[0]] == ["open"]
    assert len(list(threads.iterdir())) <= before


def test_panel_has_no_number_where_nothing_is_quoted(ocr: OcrReward) -> None:
    captions = ['a sign: "OPEN"', "a cat"]
    panel = ScoringPanel.of({"words": ocr}, captions, features={"auto": lambda p: p.flatten(1)[:, :3]}, device=CPU, at_once=Chunks("n", 2))
    png = (torch.stack([picture("OPEN"), picture("OPEN")]) * 255).to(torch.uint8)
    ratings = panel.ratings(png, captions)
    found = panel.scores(ratings)["words"]
    assert found[0] == 1
    assert found[1].isnan()
    assert ratings["unasked_text"].tolist() == [0, 1]
    assert panel.num_scored("words", captions) == 1


def test_a_mixture_with_it_has_no_score_either_where_nothing_is_quoted(ocr: OcrReward) -> None:
    both = mixture({"words": ocr, "again": ocr}, {"words": 1.0, "again": 0.5}, logit_scale=1.0)
    text = both.encode_text(['"OPEN"', "a cat"])
    known = has_score(both, text)
    assert known is not None
    assert known.tolist() == [True, False]
    assert both.score(torch.stack([picture("OPEN")] * 2), text).tolist() == pytest.approx([1.5, 0.0])


def test_another_package_than_the_one_prepared_is_refused(ocr: OcrReward) -> None:
    with pytest.raises(InputError, match=r"rapidocr .* was prepared; run: rglcd run prepare"):
        opened(code={"distribution": "rapidocr", "version": "3.9", "sha256": "0" * 64})


# --- without the package ---------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
def test_what_is_not_installed_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if package != "rapidocr":
        pytest.importorskip("rapidocr", reason="rapidocr is not installed: the extra ocr")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package}.*{re.escape(install_command('ocr'))}"):
        opened()
