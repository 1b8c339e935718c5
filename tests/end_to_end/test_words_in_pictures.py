"""The real reader through the whole line: it teaches by the latent proxy, scores what prompts quote, and raises the alarm on the page."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.config import dump
from rglcd.extras import install_command
from tests.tiny_line import (
    NUM_IMAGES,
    TINY_EVALUATION,
    published_model_settings,
    tiny_config,
    write_published_models,
    write_tiny_evaluation_data,
    write_tiny_source,
)

READER = ["preparation.scorers.words={kind: ocr}", "caching.scorers=[words,expert]", "evaluation.scorers=[expert,words]"]
TAUGHT = ["reward.expert=words", "reward.tuning.labels={kind: hard}", "distillation.num_steps=2", "distillation.batch_size=2"]
SMALL = ["evaluation.num_steps=[2]", "evaluation.num_images=4", "pretraining.num_steps=2", "distillation.checkpoint_every=1"]
QUOTING = 8
"""Of the training's captions; the last four quote nothing."""

Project = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A tiny project whose reward reads, of which nothing is made yet."""

    def made(*overrides: str, prompts: str = 'a sign that says "OPEN"\na cat\n') -> Path:
        monkeypatch.chdir(tmp_path)
        write_tiny_source(Path("data"))
        captions = [f'a sign "{chr(ord("A") + number) * 4}"' if number < QUOTING else f"a cat {number}" for number in range(NUM_IMAGES)]
        rows = [f"images/{number:05d}.png\t{caption}\n" for number, caption in enumerate(captions)]
        Path("data/index.tsv").write_text("".join(rows))
        write_tiny_evaluation_data(Path("data"))
        Path("data/prompts/heldout.txt").write_text(prompts)
        write_published_models(Path("models"))
        settings = [*published_model_settings(tmp_path / "models"), *TINY_EVALUATION, *READER, *TAUGHT, *SMALL, *overrides]
        Path("params.yaml").write_text(dump(tiny_config(*settings)))
        return tmp_path

    return made


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that ends with 2 says last."""
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_reader_teaches_by_the_latent_proxy_scores_what_is_quoted_and_watches_for_words(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rapidocr", reason="rapidocr is not installed: the extra ocr")
    root = project()
    main(["run", "all"])
    rows = [json.loads(row) for row in (root / "artifacts/student/rg/curves.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(0 <= row.get("expert_reward", 0) <= 1 for row in rows)
    manifest = json.loads((root / "artifacts/pretrained/manifest.json").read_text())
    assert manifest["facts"]["rewards"]["words"]["package"] == "rapidocr"
    assert manifest["facts"]["rewards"]["words"]["code"]["version"]
    metrics = json.loads((root / "artifacts/report/metrics.json").read_text())
    for numbers in (metrics["rg"]["2"], metrics["lcm"]["2"], metrics["teacher"]["3"]):
        assert numbers["words"]["images"] == 2  # of four: every second prompt quotes nothing
        assert 0 <= numbers["unasked_text"]["value"] <= 1
    assert "images" not in metrics["rg"]["2"]["expert"]
    assert "unasked text" in (root / "artifacts/report/index.html").read_text()
    capsys.readouterr()
    main(["run", "all"])
    assert capsys.readouterr().out.count("nothing to do") == 6
    said = refusal(capsys, "run", "distill", "--set", "reward={kind: pixel, expert: words}")
    assert "reward.expert 'words' has no gradient: use reward.kind latent, whose proxy learns from it" in said
    Path("data/prompts/heldout.txt").write_text("a cat\na dog\n")
    said = refusal(capsys, "run", "evaluate", "--set", "evaluation.scorers=[words]")
    assert "no scorer of evaluation.scorers (words) has a score for any of the prompts, which quote no text" in said


def test_without_the_package_the_first_stage_that_needs_it_names_the_extra(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project()
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    said = refusal(capsys, "run", "prepare")
    assert f"kind ocr reads with rapidocr, which is not installed: {install_command('ocr')}" in said
