"""Looks at a training: they change no bit and no key of the student, are what its export draws, and go on after a kill."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rglcd import progress
from rglcd.config import Config, NoReward, PanelMonitoring, PixelReward
from rglcd.core.consistency import BoundaryScalings
from rglcd.errors import InputError, TrainingHalted
from rglcd.evaluation.generation import as_png, seeded_noises, student_latents
from rglcd.evaluation.looks import read_record
from rglcd.latents.cache import LatentCache
from rglcd.models.codec import Codec
from rglcd.models.student import Student
from rglcd.models.text import TextEncoder
from rglcd.rewards.protocol import Reward
from rglcd.stages import monitoring
from rglcd.stages.assembly import Materials, make_distiller
from rglcd.stages.monitoring import Watching
from rglcd.stages.panel import PanelCost, counted_cost, held_out
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.step_cost import StepCosts
from rglcd.stages.student_export import Arm
from rglcd.store.manifest import read_manifest
from rglcd.training.distributed import World
from rglcd.training.loop import Run
from rglcd.training.operations import count_flops, flops_of_step
from tests.publishing import publish
from tests.tiny_line import TINY_EVALUATION, run, tiny_config, up_to_latents, write_tiny_evaluation_data, write_tiny_features
from tests.tiny_models import write_tiny_clip
from tests.training.test_distributed import launch

PANEL = (
    "monitoring={kind: panel, prompts: [picture 3, picture 5], teacher_steps: 3, guidance_scale: 3.0, every: 2, scorers: [judge], "
    "batch_size: 3}"
)
SHORT = ("reward={kind: pixel, weight: 1.0, chunk_size: 2}", "distillation.match_compute=false", "distillation.arms=[rg]")
JUDGED = ("preparation.scorers.judge={kind: clip, source: {uri: ./nowhere}}",)
CPU = {"dtype": torch.float32, "device": torch.device("cpu")}


def panel_config(*overrides: str) -> Config:
    return tiny_config(*JUDGED, *SHORT, PANEL, *overrides)


def make_line(root: Path, *, xl: bool) -> Path:
    """The tiny line with a second scorer, which no stage before evaluation reads, and a feature network."""
    up_to_latents(root, tiny_config(), xl=xl)
    pretrained = root / "pretrained"
    write_tiny_features(pretrained / "features")
    write_tiny_clip(pretrained / "scorers" / "judge", seed=1)
    shutil.copy(pretrained / "catalogue" / "expert.json", pretrained / "catalogue" / "judge.json")
    publish(pretrained, stage="prepare", sections={name: panel_config().section(name) for name in ("model", "preparation")})
    return root


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_line(tmp_path_factory.mktemp("line") / "line", xl=False)


def looks_of(student: Path) -> list[dict[str, object]]:
    return [json.loads(row) for row in (student / "rg" / "panel" / "looks.jsonl").read_text().splitlines()]


LORA = "distillation.student={kind: lora, rank: 2, alpha: 2, targets: [to_q]}"
BARE = ("distillation.target={kind: stop_gradient}", "distillation.dropout=0.3", "distillation.activations=recomputed")


@pytest.mark.parametrize("overrides", [(), BARE], ids=["average", "no-average-and-dropout"])
def test_a_student_that_is_looked_at_has_the_key_and_the_bits_of_one_that_is_not(own: Path, overrides: tuple[str, ...]) -> None:
    results = []
    for config in (panel_config("monitoring={kind: none}", *overrides), panel_config(*overrides)):
        torch.manual_seed(5)
        manifest = run(own, config, "distill").manifest
        results.append((manifest.key, manifest.digest, manifest.facts, torch.get_rng_state().tolist()))
        seen = {name for name in manifest.files if "/panel/" in name}
        shutil.move(own / "student", own / f"student-{config.monitoring.kind}")
    assert results[0] == results[1]
    assert seen == {f"rg/panel/{name}" for name in ("about.json", "looks.jsonl", "teacher.png", "00000002.png", "00000004.png")}
    assert [look["step"] for look in looks_of(own / "student-panel")] == [2, 4]
    assert not list((own / ".work").glob("student-*/.panel*"))


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "xl"), [((), True), ((LORA,), False)], ids=["sdxl", "adapter"])
def test_every_kind_of_student_may_be_looked_at(tmp_path: Path, overrides: tuple[str, ...], xl: bool) -> None:
    root = make_line(tmp_path / "line", xl=xl)
    plain = run(root, panel_config("monitoring={kind: none}", *overrides), "distill").manifest
    shutil.rmtree(root / "student")
    watched = run(root, panel_config(*overrides), "distill").manifest
    assert (watched.key, watched.digest) == (plain.key, plain.digest)
    assert len(looks_of(root / "student")) == 2
    write_tiny_evaluation_data(root / "data")
    run(root, panel_config(*overrides, *TINY_EVALUATION), "evaluate")
    assert "RG-LCM: 2 looks, one every 2 steps" in (root / "report" / "index.html").read_text()


@pytest.mark.slow
def test_of_two_processes_one_looks_and_both_train_as_if_nobody_did(line: Path, tmp_path: Path) -> None:
    digests = []
    for config in (panel_config("monitoring={kind: none}"), panel_config()):
        student = tmp_path / config.monitoring.kind / "student"
        ran = launch("distill", line, config, student, num_processes=2)
        assert ran.returncode == 0, ran.stderr[-3000:]
        digests.append(read_manifest(student, made_by="distill").digest)
    assert digests[0] == digests[1]
    assert [look["step"] for look in looks_of(student)] == [2, 4]


def test_what_is_looked_at_is_what_the_export_draws_and_the_record_says_so(own: Path) -> None:
    run(own, panel_config(*BARE), "distill")
    folder = own / "student" / "rg"
    record = read_record(folder / "panel")
    assert record is not None
    assert (record.about.trained_on, record.about.held_out, record.about.every) == ("expert", ("judge",), 2)
    assert record.about.teacher.teacher_distance == [0.0, 0.0]
    assert set(record.looks[0].figures.scores) == {"expert", "judge"}
    assert all(0 < value < 1 for look in record.looks for value in look.figures.teacher_distance)
    assert [len(look.figures.diversity or ()) for look in record.looks] == [2, 2]
    assert [look.images for look in record.looks] == [8, 16]
    student, codec, text = Student.load(folder, **CPU), Codec.load(folder, **CPU), TextEncoder.load(folder, **CPU)
    first = [0, 2]  # of each prompt
    noises = seeded_noises(first, codec.latent_shape(16), seed=0, count=2)
    cond = text.encode(text.tokenise(["picture 3", "picture 5"]))
    latents = student_latents(student, cond, noises, schedule=student.schedule, scalings=BoundaryScalings(), omega=2.0, original_steps=50)
    with torch.no_grad():
        drawn = as_png(codec.decode(latents)).permute(0, 2, 3, 1).numpy().astype(int)
    strip = np.asarray(Image.open(folder / "panel" / "00000004.png")).astype(int)
    # Batches differ in size, so sums in their order.
    assert np.abs(np.concatenate(list(drawn), axis=1) - strip).max() <= 1
    assert strip.std() > 1


class Killed(BaseException):
    pass


def test_a_killed_run_goes_on_with_the_looks_that_it_has_and_doubles_none(own: Path) -> None:
    config = panel_config(PANEL.replace("every: 2", "every: 1"), "distillation.checkpoint_every=2")
    whole = run(own, config, "distill").manifest
    rows = looks_of(own / "student")
    shutil.rmtree(own / "student")

    def kill(event: progress.Event) -> None:
        if event.done == 3 and "look_judge" in event.values:
            raise Killed

    with pytest.raises(Killed), progress.reporting_to(kill):
        run(own, config, "distill")
    (seen,) = (own / ".work").glob("student-*/.panel-*/rg/looks.jsonl")
    assert len(seen.read_text().splitlines()) == 3, "one more than was saved of the student"
    assert run(own, config, "distill").manifest.digest == whole.digest
    assert [row | {"seconds": 0} for row in looks_of(own / "student")] == [row | {"seconds": 0} for row in rows]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_a_suspected_run_stops_with_its_state_saved_and_goes_on_when_asked_to(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(own, panel_config("monitoring={kind: none}"), "distill").manifest.digest
    shutil.rmtree(own / "student")
    suspected = "reward hacking suspected: made up"
    monkeypatch.setattr(monitoring, "suspicion", lambda looks, **_: suspected if looks else None)
    stopping = panel_config("monitoring.when_suspected=stop")
    for _ in range(2):
        with pytest.raises(TrainingHalted, match=r"distill rg: stopped after 3 of 4 steps.*made up.*when_suspected=warn") as ended:
            run(own, stopping, "distill")
        assert ended.value.exit_code == 3
    assert run(own, panel_config(), "distill").manifest.digest == expected


def test_a_suspicion_is_a_warning_by_default(own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(monitoring, "suspicion", lambda looks, **_: "reward hacking suspected: made up" if looks else None)
    run(own, panel_config(), "distill")
    assert capsys.readouterr().err.count("rglcd: distill rg: reward hacking suspected: made up") == 1


@pytest.mark.parametrize(
    "error",
    [
        InputError("its process has gone"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_look_that_fails_is_said_and_ends_nothing(
    own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    opened, scorer = [], Pretrained.scorer

    def sometimes(self: Pretrained, name: str, **where: object) -> object:
        opened.append(name)
        if opened.count("judge") == 2 and name == "judge":  # at the first look; before it, the teacher's pictures are rated
            raise error
        return scorer(self, name, **where)

    monkeypatch.setattr(Pretrained, "scorer", sometimes)
    run(own, panel_config(), "distill")
    assert f"rglcd: distill rg: no look after step 2: {error}" in capsys.readouterr().err
    assert [look["step"] for look in looks_of(own / "student")] == [4]


def test_a_scorer_that_was_not_prepared_is_refused_before_any_step(own: Path) -> None:
    (own / "pretrained" / "catalogue" / "judge.json").unlink()
    publish(own / "pretrained", stage="prepare")
    with pytest.raises(InputError, match=r"pretrained has no catalogue/judge\.json; make it again: rglcd run prepare"):
        run(own, panel_config(), "distill")


class OfQuotes:
    """A scorer that has a score for captions with a quote alone."""

    def __init__(self, scorer: Reward) -> None:
        self.scorer = scorer

    def __getattr__(self, name: str) -> object:
        return getattr(self.scorer, name)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        quotes = torch.tensor([[float('"' in caption)] for caption in captions])
        return torch.cat([self.scorer.encode_text(captions), quotes], dim=1)

    def has_score(self, text: Tensor) -> Tensor:
        return text[:, -1] > 0

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        return self.scorer.score(pixels, text[:, :-1]) * text[:, -1]


def test_a_scorer_is_shown_for_the_prompts_that_it_has_a_score_for_and_needs_two(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Pretrained.scorer

    def of_quotes(self: Pretrained, name: str, **where: object) -> object:
        return OfQuotes(scorer(self, name, **where)) if name == "judge" else scorer(self, name, **where)

    monkeypatch.setattr(Pretrained, "scorer", of_quotes)
    some, one = ('monitoring.prompts=["a", "b \\"c\\"", "d \\"e\\""]', 'monitoring.prompts=["a", "b \\"c\\""]')
    with pytest.raises(InputError, match=r"the scorer 'judge' has a score for 1 of monitoring\.prompts and needs two"):
        run(own, panel_config(one), "distill")
    assert not (own / "student").exists()
    run(own, panel_config(some), "distill")
    record = read_record(own / "student" / "rg" / "panel")
    assert record is not None
    for figures in (record.about.teacher, *(look.figures for look in record.looks)):
        assert {name: len(values) for name, values in figures.scores.items()} == {"expert": 3, "judge": 2}
        assert len(figures.saturation) == 3


def test_what_the_reward_is_made_of_is_no_evidence_against_it(own: Path) -> None:
    config = panel_config()
    assert isinstance(config.monitoring, PanelMonitoring)
    assert held_out(config.monitoring, materials_of(own, config), config.reward) == ("judge",)
    assert held_out(config.monitoring, materials_of(own, config), NoReward()) == ("judge",)
    shutil.rmtree(own / "pretrained" / "scorers" / "judge")
    shutil.copytree(own / "pretrained" / "scorers" / "expert", own / "pretrained" / "scorers" / "judge")
    publish(own / "pretrained", stage="prepare")
    assert held_out(config.monitoring, materials_of(own, config), config.reward) == ()


# --- how often ------------------------------------------------------------------------------------


def materials_of(line: Path, config: Config) -> Materials:
    latents, world = line / "latents", World(0, 1, CPU["device"])
    return Materials(config.model, config.distillation, latents, Pretrained(line / "pretrained"), None, LatentCache.open(latents), world)


def test_a_look_costs_what_it_was_counted_to_cost(line: Path, tmp_path: Path) -> None:
    config = panel_config()
    materials, reward, settings = materials_of(line, config), config.reward, config.monitoring
    assert isinstance(reward, PixelReward)
    assert isinstance(settings, PanelMonitoring)
    distiller = make_distiller(materials, reward, num_steps=4, world=materials.world)
    watching = Watching(settings, reward, StepCosts(materials), tmp_path)
    monitor = watching.monitor(Arm("rg", materials, reward, 4, "key"), distiller, Run("distill rg", 4, 4, 2))
    assert isinstance(monitor, monitoring.PanelMonitor)
    costs = StepCosts(materials)
    counted = counted_cost(settings, costs, reward, monitor.open_scoring)
    for work, cost in ((lambda: monitor.look(2), counted.look), (monitor.panel.teachers, counted.teachers)):
        assert 0.97 * cost <= count_flops(work) <= cost, "captions are encoded once a batch, and counted for each picture"
    assert counted.step == flops_of_step(distiller)
    four = replace(costs, materials=replace(materials, world=World(0, 4, CPU["device"])))
    together = counted_cost(settings, four, reward, monitor.open_scoring)
    assert (together.step, together.look) == (counted.step / 4, counted.look), "three others wait for a look"


@pytest.mark.parametrize("num_steps", [40, 333, 10_000])
@pytest.mark.parametrize("share", [0.01, 0.02, 0.5])
def test_looks_take_no_more_of_a_run_than_their_share(num_steps: int, share: float) -> None:
    cost = PanelCost(step=100.0, look=30.0, teachers=200.0)
    every = cost.interval(share, num_steps=num_steps)
    looks = [done for done in range(1, num_steps + 1) if every and (num_steps - done) % every == 0]
    if every is None:
        assert share * num_steps * 100 < 200 + 4 * 30, "four looks would have been too many"
    else:
        assert 4 <= len(looks) <= 40
        assert (200 + len(looks) * 30) / (num_steps * 100) == pytest.approx(cost.share(every, num_steps=num_steps))
        assert cost.share(every, num_steps=num_steps) <= share


def test_a_run_too_short_for_its_share_is_not_looked_at_and_says_so(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(own, panel_config(PANEL.replace("every: 2, ", ""), "distillation.num_steps=1"), "distill")
    assert "rglcd: distill rg: nobody looks: 4 looks would take more than 1.0% of these 1 steps" in capsys.readouterr().err
    assert not (own / "student" / "rg" / "panel").exists()
