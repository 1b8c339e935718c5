"""Stage evaluate on less memory, in lower precision, in several processes, and killed: the same pictures and numbers."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rglcd.config import Config
from rglcd.errors import InputError
from rglcd.models.codec import Codec
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.rewards.clip import ClipReward
from rglcd.stages.table import SOURCE, inputs_of, stage_named
from rglcd.store.manifest import read_manifest
from tests.stages.evaluated_line import DRAWN, config, drawn_again, results
from tests.tiny_line import run


@pytest.fixture
def own(own_evaluated: Path) -> Path:
    """A line to write in."""
    return own_evaluated


# --- memory and precision ------------------------------------------------------------------------


def test_decoding_in_chunks_makes_the_same_pictures_and_numbers_but_for_rounding(own: Path) -> None:
    """A convolution's last bits depend on how many images it is given; a level of 255 more or less is all that comes of it."""
    sheets, metrics = pictures_of(own), metrics_of(own)
    assert drawn_again(own, "evaluation.decode_chunk=1") >= set(DRAWN)
    again = pictures_of(own)
    assert again.keys() == sheets.keys()
    for name, sheet in sheets.items():
        difference = np.abs(again[name] - sheet)
        assert difference.max() <= 1
        assert difference.mean() < 1e-2
    assert metrics_of(own) == approximately(metrics, within=1e-4)


@pytest.mark.parametrize(("network", "call"), [(Codec, "decode"), (Teacher, "__call__"), (Student, "__call__"), (ClipReward, "score")])
def test_out_of_memory_takes_fewer_images_at_once_and_makes_the_same_report(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], network: type, call: str
) -> None:
    """Real exceptions of torch's, raised where a GPU raises them."""
    pictures = {name: content for name, content in results(own / "report").items() if name.endswith("images.png")}
    metrics, works = metrics_of(own), getattr(network, call)
    shutil.rmtree(own / "report")
    most = 4 if network is Teacher else 2  # guidance calls the teacher with each image twice

    def limited(self: object, samples: torch.Tensor, *others: object) -> object:
        if len(samples) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return works(self, samples, *others)

    monkeypatch.setattr(network, call, limited)
    run(own, config(), "evaluate")
    assert set(capsys.readouterr().err.splitlines()) == {"rglcd: 4 samples at once do not fit in memory; going on with 2"}
    assert {name: content for name, content in results(own / "report").items() if name.endswith("images.png")} == pictures
    assert metrics_of(own) == approximately(metrics)


def test_bfloat16_draws_almost_the_same_pictures_and_rates_them_in_float32(own: Path) -> None:
    before = metrics_of(own)
    assert drawn_again(own, "evaluation.precision=bfloat16") >= set(DRAWN)
    after = metrics_of(own)
    assert after["real"] == before["real"]
    for who, steps in (("teacher", "3"), ("rg", "2"), ("lcm", "1")):
        assert after[who][steps] != before[who][steps]
        assert after[who][steps]["expert"]["mean"] == pytest.approx(before[who][steps]["expert"]["mean"], abs=0.02)
        assert after[who][steps]["saturation"] == pytest.approx(before[who][steps]["saturation"], abs=0.01)
    assert "bfloat16" in (own / "report" / "report.md").read_text()


def test_tf32_changes_nothing_on_a_cpu(own: Path) -> None:
    before = results(own / "report")
    assert drawn_again(own, "evaluation.precision=tf32") >= set(DRAWN)
    assert contents(own / "report") == {name: content for name, content in before.items() if not name.endswith(KEYED)}


def test_another_precision_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"evaluation\.precision.*float32.*tf32.*bfloat16"):
        config("evaluation.precision=float16")


def approximately(metrics: Any, *, within: float = 1.5e-6) -> Any:
    """To a millionth and a half: the numbers are rounded to six digits, and products of matrices depend on their rows' number."""
    if isinstance(metrics, dict):
        return {name: approximately(value, within=within) for name, value in metrics.items()}
    return pytest.approx(metrics, abs=within)


def pictures_of(root: Path) -> dict[str, NDArray[np.int16]]:
    """Each sampler's sheet of pictures, levels from 0 to 255."""
    found = (root / "report" / "draws").glob("*/images.png")
    return {path.parent.name: np.asarray(Image.open(path)).astype(np.int16) for path in found}


KEYED = "measurement.json"
"""Its key is another where the settings are."""


def contents(report: Path) -> dict[str, bytes]:
    return {name: content for name, content in results(report).items() if not name.endswith(KEYED)}


def metrics_of(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "report" / "metrics.json").read_text())
    return found


# --- several processes, and kills, through the command line ---------------------------------------

MANY = ("evaluation.num_images=22", "evaluation.batch_size=2")
"""Eleven batches of each sampler."""


def command(line: Path, report: Path, configuration: Config, *, num_processes: int = 1) -> list[str]:
    """``rglcd run evaluate``, under torchrun where several processes run it."""
    stage = stage_named("evaluate")
    sections = {section: configuration.section(section).model_dump(mode="json") for section in stage.sections}
    places = {name: line / ("data" if name == SOURCE else name) for name in inputs_of(stage, configuration)} | {"report": report}
    gang = ["rglcd.launch.process_group", "--standalone", "--nproc-per-node", str(num_processes), "-m"] if num_processes > 1 else []
    words = [sys.executable, "-m", *gang, "rglcd", "run", "evaluate", "--sections", json.dumps(sections)]
    return words + [word for name, place in places.items() for word in ("--artifact", f"{name}={place}")]


def batches_drawn(line: Path, *, of: str = "") -> list[Path]:
    """The finished batches of the sampler that is under way; none while its folder is being removed."""
    with suppress(FileNotFoundError):
        return list(line.glob(f".work/report-*/draws/.{of}*.batches/*_stats.json"))
    return []


def started(line: Path, words: list[str], *, until: str = "", **variables: str) -> subprocess.Popen[str]:
    """The command, running in ``line``, once a batch (of the sampler ``until``) has been drawn."""
    shutil.rmtree(line / "report")
    process = subprocess.Popen(words, env=environment(**variables), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not batches_drawn(line, of=until) and process.poll() is None:
        time.sleep(0.002)
    return process


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **variables}


@pytest.mark.slow
def test_a_report_has_the_same_digest_however_many_processes_draw_it(evaluated: Path, tmp_path: Path) -> None:
    made: dict[int, Path] = {}
    for number in (1, 2, 4):
        made[number] = tmp_path / str(number) / "report"
        words = command(evaluated, made[number], config(*MANY), num_processes=number)
        ran = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=600)
        assert ran.returncode == 0, ran.stderr[-3000:]
        assert not list(made[number].parent.glob(".work/*/")), "no work is left"
    alone = results(made[1])
    assert len(alone) > 20
    for number in (2, 4):
        assert results(made[number]) == alone
        assert read_manifest(made[number], made_by="evaluate").digest == read_manifest(made[1], made_by="evaluate").digest
        assert f"{number} processes" in (made[number] / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_processes_go_on_with_the_batches_that_lack_and_end_in_the_same_bytes(own: Path, tmp_path: Path, num_processes: int) -> None:
    words = command(own, tmp_path / "unbroken" / "report", config(*MANY))
    assert subprocess.run(words, env=environment(), check=False, timeout=600).returncode == 0
    shutil.rmtree(own / "report")
    words = command(own, own / "report", config(*MANY), num_processes=num_processes)
    for most in (3, 5):  # batches of one sampler
        process = subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(batches_drawn(own)) < most and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, "it was done before it was killed"
        for each in (*psutil.Process(process.pid).children(recursive=True), process):  # as a machine that loses its power
            each.kill()
        process.wait()
    kept = {path.parent.name.partition("-")[0] for path in batches_drawn(own)}
    log = tmp_path / "progress.jsonl"
    assert subprocess.run(words, env=environment(RGLCD_PROGRESS=str(log)), check=False, timeout=600).returncode == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    first = {event["task"]: event["done"] for event in reversed(events)}
    assert kept, "there was a batch when it was killed"
    assert max(first.values()) >= 4, "what was drawn was not drawn again"
    assert results(own / "report") == results(tmp_path / "unbroken" / "report")
    assert not list((own / "report").rglob(".*"))


@pytest.mark.slow
def test_of_two_runs_at_once_the_second_waits_and_all_its_ranks_find_nothing_to_do(own: Path) -> None:
    """Only the first rank waits for the other run: its peers, which went ahead, waited for it in their first collective operation."""
    words = command(own, own / "report", config(*MANY), num_processes=2)
    first = started(own, words)
    stopped = psutil.Process(first.pid).children(recursive=True)
    for rank in stopped:
        rank.suspend()
    second = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert any("this one waits for it" in line for line in second.stderr)
    time.sleep(1)  # for its other rank to come as far as it would
    for rank in stopped:
        rank.resume()
    out, err = second.communicate(timeout=300)
    _, err_of_first = first.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (0, 0), err_of_first + err
    assert "evaluate: nothing to do" in out


@pytest.mark.slow
def test_ranks_end_when_what_started_them_is_killed(own: Path) -> None:
    """As the kernel kills for want of memory. They have sessions of their own, so they went on, and the next run waited for them."""
    process = started(own, command(own, own / "report", config(*MANY), num_processes=2))
    ranks = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks) >= 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
    assert not (own / "report").exists()


@pytest.mark.slow
def test_a_rank_with_more_to_draw_than_the_others_is_waited_for_longer_than_in_a_step_of_training(own: Path) -> None:
    words = command(own, own / "report", config(*MANY, "evaluation.teacher_steps=50"), num_processes=2)
    process = started(own, words, until="teacher-50", RGLCD_COLLECTIVE_TIMEOUT="5")
    (late,) = [rank for rank in psutil.Process(process.pid).children() if rank.environ().get("RANK") == "1"]
    late.suspend()
    time.sleep(8)
    late.resume()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
