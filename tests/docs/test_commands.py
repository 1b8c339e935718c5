"""The commands of README, CONTRIBUTING and docs: what is quick is run, what is not says why, and every word is known to its program."""

import argparse
import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import boto3
import pytest
import yaml
from PIL import Image

from rglcd.cli import _parser, main
from rglcd.config import load_preset, preset_names
from tests.docs.pages import ROOT, TUTORIAL, Block, blocks, pages, rows_after, text_of, without_blocks
from tests.docs.words import commands

OTHERS = {"break", "cat", "cd", "cp", "dvc", "echo", "head", "kubectl", "kustomize", "mkdir", "pip", "sed", "."}
"""Programs whose words nobody checks here."""

BLOCKS = [block for page in pages() for block in blocks(page)]
COMMANDS = [block for block in BLOCKS if block.language == "bash" and block.page != TUTORIAL]
SAID = {page: re.findall(r"`((?:rglcd|make|pytest|python -m \w[\w.]*) [^`\n]+)`", without_blocks(page)) for page in pages()}
"""Commands within sentences and tables."""


@pytest.mark.parametrize("page", pages())
def test_commands_are_fenced_and_say_who_runs_them(page: str) -> None:
    assert re.findall(r"^\n {4}\S.*", without_blocks(page), re.MULTILINE) == [], "an indented block: fence it"
    assert {block.language for block in blocks(page)} <= {"bash", "python", "text", "toml", "yaml"} | (
        {"sh"} if page == TUTORIAL else set()
    )
    for block in (block for block in COMMANDS if block.page == page):
        assert block.who is not None, f"{block}: no comment before it says who runs it"
        said = re.fullmatch(r"run(?: by (?P<file>\S+))?|not run: (?P<reason>\S.{9,})", block.who)
        assert said, f"{block}: <!-- {block.who} -->"
        assert said["file"] is None or (ROOT / said["file"]).is_file(), f"{block}: {said['file']} is not there"


# --- every word is one that its program knows ------------------------------------------------------


def choices_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def unknown_to_rglcd(words: list[str]) -> list[str]:
    """Verbs and options that ``rglcd`` does not have."""
    parser, rest = _parser(), list(words)
    while rest and (verbs := choices_of(parser)) and not rest[0].startswith("-"):
        if rest[0] not in verbs:
            return [rest[0]]
        parser = verbs[rest.pop(0)]
    return [word for word in rest if word.startswith("--") and word.split("=")[0] not in parser._option_string_actions]


def unknown(words: list[str]) -> list[str]:
    """What of a command its program does not know; of a program that is nobody's here, its name."""
    match words:
        case ["rglcd", *rest]:
            return unknown_to_rglcd(rest)
        case ["python", "-m", "pipelines", *rest]:
            source = (ROOT / "pipelines/__main__.py").read_text(encoding="utf-8")  # which imports kfp: two seconds to ask
            return [word for word in rest if (word.startswith("--") or word is rest[0]) and f'"{word}"' not in source]
        case ["python", "-m", module, *_]:
            path = ROOT / module.replace(".", "/")
            return [] if path.with_suffix(".py").is_file() or path.is_dir() or module in ("http.server", "pip", "venv") else [module]
        case ["make", *rest]:
            targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
            return [word for word in rest if "=" not in word and word not in targets]
        case ["pytest", *rest]:
            return [word for word in rest if word.startswith("tests/") and not (ROOT / word.split("::")[0]).exists()]
        case [program, *_]:
            return [] if program in OTHERS else [program]
        case _:
            return []


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_every_command_of_a_block_is_one_that_there_is(block: Block) -> None:
    faults = {" ".join(words): found for words in commands(block.text) if (found := unknown(words))}
    assert faults == {}


def verb_of(words: list[str]) -> str:
    """What a test that runs the command cannot do without: a verb of ours, or a target of make."""
    parser, verb = _parser(), words[1]
    for word in words[1:] if words[0] == "rglcd" else []:
        if word not in choices_of(parser):
            break
        parser, verb = choices_of(parser)[word], word
    return "submit" if "pipelines" in words else verb


@pytest.mark.parametrize("block", [block for block in COMMANDS if block.who and block.who.startswith("run by")], ids=str)
def test_the_file_that_is_said_to_run_a_block_has_its_verbs(block: Block) -> None:
    assert block.who is not None
    text = (ROOT / block.who.removeprefix("run by ")).read_text(encoding="utf-8")
    if Path(block.page).name in text and "partition(" in text:
        return  # it reads the page, and runs the lines that it finds
    verbs = {verb_of(words) for words in commands(block.text) if words[0] in ("rglcd", "make", "python")}
    assert [verb for verb in sorted(verbs) if not re.search(rf"(?<![\w-]){verb}(?![\w-])", text)] == []


@pytest.mark.parametrize("page", [page for page in pages() if SAID[page]])
def test_every_command_within_a_sentence_is_one_that_there_is(page: str) -> None:
    whole = [text for text in SAID[page] if not re.search(r"[\[\]…|]", text)]
    faults = {text: found for text in whole for words in commands(text) if (found := unknown(words))}
    assert faults == {}


def test_a_command_that_there_is_not_is_found() -> None:
    text = "rglcd run all && rglcd ab bild study; make demos\nrglcd config set a.b=1 --kep | head  # rglcd nothing\npytest tests/none"
    assert [unknown(words) for words in commands(text)] == [[], ["bild"], ["demos"], ["--kep"], [], ["tests/none"]]
    assert [unknown(words) for words in commands("python -m pipelines submit --hosts x\nfrob it")] == [["--hosts"], ["frob"]]
    assert [unknown(words) for words in commands("python -m pipelines sumbit --resume x")] == [["sumbit"]]


def test_blocks_of_other_languages_can_be_read() -> None:
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), str(block)


# --- what is quick is run ---------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader stands in: a checkout with the toy's configuration and a file of prompts; `photos` adds pictures at home."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("toy", "manifests"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "my-prompts.txt").write_text("a quiet street after the rain\na cyclist passing\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def add_photos(page: str) -> None:
    """``~/photos``, each with a caption beside it: a few more than ``page`` holds out."""
    wanted = re.search(r"~/photos .*--reference (\d+)", text_of(page))
    folder = Path.home() / "photos"
    folder.mkdir(parents=True)
    Image.new("RGB", (16, 16), (200, 40, 90)).save(folder / "0.png")
    for number in range(int(wanted[1]) + 20 if wanted else 1):
        (folder / f"{number}.txt").write_text(f"picture {number}\n")
        if number:
            (folder / f"{number}.png").hardlink_to(folder / "0.png")


def run_blocks(page: str) -> None:
    """Run the blocks of ``page`` that say so, in turn: our own commands in this process, which is quick, and others by bash."""
    add_photos(page)
    for block in (block for block in blocks(page) if block.who == "run"):
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["rglcd"]:
                assert not {"|", "&&", ";", ">"} & {*words}, f"{block}: a command a line"
                assert main([word.replace("~/", f"{Path.home()}/") for word in words[1:]]) == 0, f"{block}: {line}"
            elif words:
                subprocess.run(["bash", "-euc", line], check=True)


QUICK = sorted({block.page for block in COMMANDS if block.who == "run"} - {"docs/how-to/object-store.md"})


@pytest.mark.parametrize("page", QUICK)
@pytest.mark.usefixtures("checkout")
def test_what_a_page_says_is_quick_runs_as_it_stands(page: str) -> None:
    run_blocks(page)


@pytest.mark.usefixtures("bucket")  # whose environment says where the store is
def test_the_commands_for_an_object_store_run_against_one(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boto3.client("s3").create_bucket(Bucket="team")
    run_blocks("docs/how-to/object-store.md")
    assert "shard: nothing to do" in capsys.readouterr().out
    assert json.loads((checkout / "artifacts/shards/manifest.json").read_text())["store"].startswith("s3://team/run/shards/")


# --- figures that stand in two places ---------------------------------------------------------------

CARDS = {"l4": "L4", "rtx-3090": "RTX 3090", "a100-40gb": "A100 40 GB", "l40s": "L40S 48 GB", "a100-80gb": "A100 80 GB"}
"""By memory, the smallest first."""


def test_the_readmes_smallest_cards_are_those_of_the_plan() -> None:
    for section in re.split(r"^## ", text_of("docs/plan.md"), flags=re.MULTILINE)[1:]:
        preset = section.split(" on ")[0]
        named = re.findall(r"=1: ([\w-]+)\.", section)
        assert len(named) == 3, preset
        (row,) = re.findall(rf"^\| `{re.escape(preset)}` \|.*$", text_of("README.md"), re.MULTILINE)
        assert row.split("|")[-2].strip() == CARDS[max(named, key=[*CARDS].index)], preset


def test_no_preset_loses_an_hour_of_training_by_the_hours_of_the_plan() -> None:
    """Which is also when the alert RglcdCheckpointOld fires."""
    for section in re.split(r"^## ", text_of("docs/plan.md"), flags=re.MULTILINE)[1:]:
        preset = section.split(" on ")[0]
        (hours,) = re.findall(r"training ([\d.]+) on 8", section)
        distillation = load_preset(preset).distillation
        assert float(hours) * distillation.checkpoint_every / distillation.num_steps < 1, preset


CLAIMS = {
    "two guided steps, against the teacher's fifty": "RG-LCM in 2 steps against the teacher's 50",
    "two guided steps, against two of a plain LCM of equal compute": "RG-LCM in 2 steps against an LCM of equal compute in 2",
    "four guided steps, against the teacher's fifty": "RG-LCM in 4 steps against the teacher's 50",
    "no reward, against a pixel reward followed too far (weight 10)": "but no reward against it: the reward is over-optimised",
    "the latent proxy, against the pixel reward, both at weight 10": "the proxy resists: latent against pixel reward, both at weight 10",
}
"""The README's rows, and what docs/results.md calls them."""


def test_the_readmes_wins_are_those_of_the_results() -> None:
    found = rows_after("| claim", text_of("docs/results.md"))
    measured = {claim: (*re.findall(r"(?:panel|judge) (\d+ % \[\d+, \d+\])", figures), seeds) for claim, _, figures, seeds, _ in found}
    said = {row[0]: (*(figure.replace("*", "") for figure in row[1:3]), row[3]) for row in rows_after("| who wins", text_of("README.md"))}
    assert said == {row: measured[claim] for row, claim in CLAIMS.items()}


def test_every_preset_is_in_the_readme() -> None:
    assert [name for name in preset_names() if f"`{name}`" not in text_of("README.md")] == []
