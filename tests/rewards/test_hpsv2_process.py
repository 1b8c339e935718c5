"""The hpsv2 package in a process of its own: its scores when it is installed, and the errors when it is not.

The package needs an environment of its own (images/hpsv2), whose Python is ``hpsv2-python`` on the PATH.
"""

import gc
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from rglcd.errors import InputError
from rglcd.models.checkpoint_import import read_checkpoint
from rglcd.rewards.conversion import CONVERTERS
from rglcd.rewards.hpsv2_process import Hpsv2ProcessReward
from rglcd.rewards.registry import load_scorer
from tests.assets.rewards.published import CAPTIONS
from tests.rewards.published_models import CPU, FLOAT32, answers, converted, pixels_of_pictures, publish

INTERPRETER = "hpsv2-python"
needs_hpsv2 = pytest.mark.skipif(shutil.which(INTERPRETER) is None, reason=f"no {INTERPRETER} on the PATH (images/hpsv2 has one)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hpsv2-process")
    published = publish("hpsv2", root / "published")
    CONVERTERS["hpsv2-process"](read_checkpoint(published), root)
    return root


def start(folder: Path, interpreter: str = INTERPRETER) -> Hpsv2ProcessReward:
    return Hpsv2ProcessReward(folder, interpreter=interpreter, device=CPU)


def test_missing_hpsv2_interpreter_is_reported_with_what_to_do(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no command 'no-such-python'; make an environment from images/hpsv2/requirements-hpsv2\.txt"):
        start(folder, "no-such-python")


def test_interpreter_without_the_hpsv2_package_is_reported_with_its_own_error(folder: Path) -> None:
    with pytest.raises(InputError, match=r"the hpsv2 process ended \(exit code 1\); .*No module named 'hpsv2'") as refusal:
        start(folder, sys.executable)
    assert "\n" not in str(refusal.value)


HANGS = """#!{python}
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("loading the weights", file=sys.stderr, flush=True)
{answer}
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("answer", "when"),
    [
        ("", "start"),
        ('print(\'{{"logit_\', end="", flush=True)', "start"),
        ('print(\'{{"logit_scale": 100.0, "text_width": 4}}\', flush=True)', "request"),
    ],
    ids=["never answers", "stops within an answer", "answers once"],
)
def test_hung_process_is_killed_and_reported_with_what_to_do(folder: Path, tmp_path: Path, answer: str, when: str) -> None:
    interpreter = tmp_path / "hangs"
    interpreter.write_text(HANGS.format(python=sys.executable, answer=answer.replace("{{", "{").replace("}}", "}")))
    interpreter.chmod(0o755)
    seconds = 1.0 if when == "start" else 20.0  # a busy machine may start it slowly
    expected = rf"gave no answer in {seconds:g} s and was killed; its last message: .*; check '{interpreter}' .* use kind hpsv2"
    began = time.monotonic()
    if when == "start":
        with pytest.raises(InputError, match=expected):
            Hpsv2ProcessReward(folder, interpreter=str(interpreter), device=CPU, answer_seconds=seconds)
    else:
        process = Hpsv2ProcessReward(folder, interpreter=str(interpreter), device=CPU, answer_seconds=seconds)
        process._server.answer_seconds = 1.0
        with pytest.raises(InputError, match="gave no answer in 1 s and was killed; its last message: loading the weights; check"):
            # More captions than a pipe holds: writing them must not wait for a server that reads nothing.
            process.encode_text(["a caption of some length"] * 10_000)
        assert process._server.process.wait(5) == -signal.SIGKILL
    assert time.monotonic() - began < 60


@needs_hpsv2
def test_hpsv2_process_scores_equal_the_package_and_our_own_loader(folder: Path, tmp_path: Path) -> None:
    theirs, process = answers("hpsv2"), start(folder)
    own = load_scorer("hpsv2", converted("hpsv2", tmp_path / "own"), dtype=FLOAT32, device=CPU)
    text = process.encode_text(CAPTIONS)
    torch.testing.assert_close(text, theirs["text"], rtol=0, atol=1e-5)
    torch.testing.assert_close(text, own.encode_text(CAPTIONS), rtol=0, atol=1e-5)
    for number, picture in enumerate(pixels_of_pictures()):
        batch = picture.expand(len(CAPTIONS), -1, -1, -1)
        scores = process.score(batch, text)
        torch.testing.assert_close(scores, theirs["scores"][number], rtol=0, atol=1e-5)
        torch.testing.assert_close(scores, own.score(batch, text), rtol=0, atol=1e-5)
    assert process.logit_scale == pytest.approx(own.logit_scale, rel=1e-6)
    assert process.text_width == own.text_width
    assert not process.differentiable


@needs_hpsv2
def test_hpsv2_process_ends_with_its_reward(folder: Path) -> None:
    process = start(folder)
    server, tmpdir = process._server.process, process._server.folder
    assert server.poll() is None
    del process
    gc.collect()
    assert server.poll() is not None
    assert not tmpdir.exists()


@needs_hpsv2
def test_failing_hpsv2_request_is_reported_in_one_line(folder: Path) -> None:
    process = start(folder)
    with pytest.raises(InputError, match="the hpsv2 process ended"):
        process.score(torch.rand(2, 3, 28, 28), torch.zeros(2, 5))
