"""What a new user meets first: own data, own values, a mistake, a package that is not there. Through the command line."""

import os
import shutil
import subprocess
import sys
from difflib import ndiff
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pipelines.__main__ import main as pipelines
from rglcd.cli import main
from rglcd.config import dump, load_params, load_preset
from rglcd.sharding.source import INDEX
from rglcd.sharding.third_party_tars import LISTING
from rglcd.stages import required_files
from tests.tiny_line import TINY_EVALUATION, tiny_config


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(elsewhere: Path) -> Path:
    """Twelve pictures with captions, one without, one broken, three files of no use."""
    folder = elsewhere / "photos"
    (folder / "more").mkdir(parents=True)
    for number in range(12):
        place = folder / "more" if number % 2 else folder
        Image.new("RGB", (20, 20), (20 * number, 100, 50)).save(place / f"{number:02d}.png")
        (place / f"{number:02d}.txt").write_text(f"picture {number}\n")
    Image.new("RGB", (20, 20)).save(folder / "uncaptioned.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (folder / "broken.txt").write_text("a broken picture")
    for name in ("a.heic", "b.HEIC", "c.tiff"):
        (folder / name).write_bytes(b"?")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: str, by=main) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        by(list(words))
    said = capsys.readouterr()
    assert ended.value.code == 2
    (line,) = said.err.splitlines()
    return line


def rows_of(index: Path) -> dict[str, str]:
    return dict(line.split("\t") for line in index.read_text().splitlines())


# --- data use ------------------------------------------------------------------------------------


def test_data_use_holds_out_pictures_and_captions_that_are_not_trained_on(photos: Path, capsys) -> None:
    assert main(["data", "use", str(photos), "--reference", "4"]) == 0
    said = capsys.readouterr().out
    trained, held = rows_of(Path("data/index.tsv")), rows_of(Path("data/reference/index.tsv"))
    assert len(held) == 4
    assert len(trained) == 10
    assert not set(held.values()) & set(trained.values())
    assert Path("data/prompts/heldout.txt").read_text().splitlines() == list(held.values())
    pixels = [Image.open(Path("data/reference") / url).tobytes() for url in held]
    assert not set(pixels) & {Image.open(Path("data") / url).tobytes() for url in trained if "broken" not in url}
    assert sum(path.is_file() for path in Path("data/images").rglob("*")) == 10
    assert "data/reference holds 4 pictures that are not in the index" in said
    assert "skipped: 2 .heic, 1 .tiff" in said
    assert "1 picture has no caption beside" in said


def test_the_same_rows_are_held_out_again(photos: Path) -> None:
    for folder in ("one", "other"):
        main(["data", "use", str(photos), "--reference", "3", "--folder", folder])
    assert {p.relative_to("one"): p.read_bytes() for p in Path("one").rglob("*") if p.is_file()} == {
        p.relative_to("other"): p.read_bytes() for p in Path("other").rglob("*") if p.is_file()
    }
    main(["data", "use", str(photos), "--reference", "3", "--folder", "one"])
    assert len(rows_of(Path("one/index.tsv"))) == 11


def test_data_use_holds_rows_of_an_index_out_and_takes_prompts_from_a_file(photos: Path) -> None:
    main(["data", "use", str(photos), "--folder", "whole"])
    shutil.copytree("whole/images", "data/images")
    Path("mine.txt").write_text("a house\n\na tree\n")
    assert main(["data", "use", "whole/index.tsv", "--reference", "2", "--prompts", "mine.txt"]) == 0
    assert len(rows_of(Path("data/reference/index.tsv"))) == 2
    assert len(rows_of(Path("data/index.tsv"))) == len(rows_of(Path("whole/index.tsv"))) - 2
    assert Path("data/prompts/heldout.txt").read_text() == "a house\na tree\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photos", "--reference", "13"], "only 12 rows have a picture below photos and a caption ("),
        (["photos", "--reference", "1"], "at least two real images"),
        (["photos", "--prompts", "none.txt"], "--prompts none.txt: there is no such file"),
        (["web.tsv", "--reference", "2"], "pictures on the web cannot be held out here"),
        (["x.tar", "--reference", "2"], "ready-made tars, which are read whole: leave one tar out"),
        (["mine.txt"], "mine.txt is neither a .tsv, nor .tar files, nor a folder"),
    ],
)
def test_what_is_refused_is_one_line_and_changes_nothing(photos: Path, capsys, words: list[str], said: str) -> None:
    Path("web.tsv").write_text("".join(f"https://example.org/{number}.jpg\tcaption {number}\n" for number in range(5)))
    Path("x.tar").write_bytes(b"tar")
    assert said in refused(capsys, "data", "use", *words)
    assert not Path("data").exists()


def test_data_use_without_holding_out_says_what_evaluate_lacks(photos: Path, capsys) -> None:
    main(["data", "use", str(photos)])
    said = capsys.readouterr().out
    assert "evaluate reads data/prompts/heldout.txt and data/reference/index.tsv too: --reference N" in said


# --- files of every stage ------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("run", "all"), ("run", "evaluate"), ("launch", "evaluate", "--dry-run")])
def test_files_of_every_stage_are_looked_for_before_the_first_starts(photos: Path, capsys, words: tuple[str, ...]) -> None:
    Path("params.yaml").write_text(dump(tiny_config(*TINY_EVALUATION)))
    Path("nowhere").mkdir()
    main(["data", "use", str(photos)])
    line = refused(capsys, *words)
    assert line.startswith("rglcd: data/prompts/heldout.txt is missing: evaluate reads the prompts to draw, one a line; `rglcd data use")
    Path("data/prompts").mkdir()
    Path("data/prompts/heldout.txt").write_text("a house\n")
    line = refused(capsys, *words)
    assert line.startswith("rglcd: data/reference/index.tsv is missing: evaluate reads the real images to compare with, one row a line")
    assert not Path("artifacts").exists()


@pytest.mark.parametrize("words", [("submit", "--host", "http://127.0.0.1:9", "--no-plan"), ("run",)])
def test_kubeflows_ways_in_look_for_the_files_too(photos: Path, capsys, monkeypatch, words: tuple[str, ...]) -> None:
    Path("params.yaml").write_text(dump(tiny_config(*TINY_EVALUATION)))
    Path("nowhere").mkdir()
    main(["data", "use", str(photos)])
    monkeypatch.setenv("RGLCD_IMAGE", "rg-lcd@sha256:" + 64 * "1")
    assert "data/prompts/heldout.txt is missing: evaluate reads" in refused(capsys, *words, by=pipelines)


def test_a_toy_preset_outside_of_the_checkout_says_where_the_toy_is(capsys) -> None:
    main(["config", "use", "toy"])
    line = refused(capsys, "run", "prepare")
    assert "toy/teacher is missing: prepare reads the model folder of model.teacher" in line
    assert "the toy's models lie in the checkout of rg-lcd, `rglcd toy build` trains them anew" in line


def test_the_names_of_the_sources_files_are_those_that_shard_reads() -> None:
    assert (required_files.INDEX, required_files.LISTING) == (INDEX, LISTING)


def test_shard_says_how_many_rows_were_lost_and_why(photos: Path, capsys) -> None:
    Path("params.yaml").write_text(dump(tiny_config()))
    main(["data", "use", str(photos)])
    for _ in range(2):
        capsys.readouterr()
        assert main(["run", "shard"]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("shard: 12 of 14 rows became samples; 2 lost: 1 empty_caption, 1 undecodable; each is in artifacts/shards/")


# --- params.yaml ---------------------------------------------------------------------------------


def test_config_set_changes_one_value_and_keeps_the_rest_and_its_comments(capsys) -> None:
    main(["config", "use", "micro"])
    text = Path("params.yaml").read_text().replace("\n  weight: 1.0\n", "\n  # mine\n  weight: 1.0  # strong\n")
    Path("params.yaml").write_text(text)
    before = Path("dvc.yaml").read_text()
    assert main(["config", "set", "reward.weight=0.5", "evaluation.scorers=[judge]"]) == 0
    changed = Path("params.yaml").read_text()
    assert "\n  # mine\n  weight: 0.5  # strong\n" in changed
    assert load_params(Path("params.yaml")) == load_preset("micro", overrides=["reward.weight=0.5", "evaluation.scorers=[judge]"])
    assert [line for line in text.splitlines() if line not in changed.splitlines() and not line.startswith("  - ")] == [
        "  weight: 1.0  # strong"
    ]
    assert Path("dvc.yaml").read_text() != before  # its plots name the scorers


def test_config_set_writes_a_source_and_a_list_as_the_configuration_holds_them() -> None:
    main(["config", "use", "micro"])
    main(["config", "set", "model.teacher=../models/sd15", "evaluation.num_steps=3", "distillation.target={kind: stop_gradient}"])
    values = yaml.safe_load(Path("params.yaml").read_text())
    assert values["model"]["teacher"] == {"uri": "../models/sd15", "revision": None, "sha256": None}
    assert values["evaluation"]["num_steps"] == [3]
    assert values == load_params(Path("params.yaml")).model_dump(mode="json")


def test_config_set_adds_an_entry_as_lines_of_its_own() -> None:
    """Not the whole of what it is added to, on one line: people read what `git diff` shows."""
    main(["config", "use", "toy"])
    before = Path("params.yaml").read_text().splitlines()
    main(
        ["config", "set", "preparation.scorers.another={kind: clip, source: ../models/clip}", "evaluation.scorers=[expert, judge, another]"]
    )
    added = [line for line in ndiff(before, Path("params.yaml").read_text().splitlines()) if line[0] in "+-"]
    assert added == [
        *("+     another:", "+       kind: clip", "+       source:"),
        *("+         uri: ../models/clip", "+         revision: null", "+         sha256: null"),
        *("-   - checker", "+   - another"),
    ]


@pytest.mark.parametrize(
    "value", ["reward.wieght=2", "reward.weight=-1", "reward.weight=[", "nonsense", "rewrad.weight=1", "reward.weight.x=1"]
)
def test_config_set_refuses_what_is_wrong_and_leaves_the_file(capsys, value: str) -> None:
    main(["config", "use", "micro"])
    before = Path("params.yaml").read_bytes()
    refused(capsys, "config", "set", "distillation.seed=3", value)
    assert Path("params.yaml").read_bytes() == before


def test_config_set_takes_a_file_written_by_hand() -> None:
    own = "preset: mine  # of my own\n" + "".join(dump(load_preset("micro")).partition("preset: micro\n")[2])
    own = own.replace("reward:\n", "# the reward\nreward:\n").replace("  seed: 0\nevaluation", "evaluation")
    Path("params.yaml").write_text(own)
    assert main(["config", "set", "distillation.seed=3"]) == 0
    assert load_params(Path("params.yaml")).distillation.seed == 3
    assert Path("params.yaml").read_text().startswith("preset: mine  # of my own\n")
    assert not Path("dvc.yaml").exists()


def test_config_use_never_overwrites_edits_unasked(capsys) -> None:
    main(["config", "use", "micro", "--set", "reward.weight=3.0"])
    main(["config", "use", "micro", "--set", "reward.weight=2.0"])  # written by the command alone: nothing is lost
    main(["config", "set", "distillation.seed=5"])
    edited = Path("params.yaml").read_bytes()
    line = refused(capsys, "config", "use", "toy")
    assert "params.yaml was edited, and would lose: distillation.seed is 5, was 0." in line
    assert "--force" in line
    assert Path("params.yaml").read_bytes() == edited
    assert main(["config", "use", "toy", "--force"]) == 0
    assert load_params(Path("params.yaml")) == load_preset("toy")


@pytest.mark.parametrize(("text", "said"), [("- a\n", "it cannot be read"), ("{", "it cannot be read"), ("preset: mine\n", "of no preset")])
def test_config_use_does_not_overwrite_a_file_that_it_does_not_understand(capsys, text: str, said: str) -> None:
    Path("params.yaml").write_text(text)
    assert said in refused(capsys, "config", "use", "toy")
    Path("params.yaml").write_text(dump(load_preset("toy")) + "# my own note\n")
    assert "would lose: its comments." in refused(capsys, "config", "use", "micro")


def test_a_file_of_an_earlier_version_that_lacks_a_key_was_not_edited() -> None:
    Path("params.yaml").write_text(dump(load_preset("toy")).replace("  all_reduce: float32\n", ""))
    assert main(["config", "use", "micro"]) == 0
    assert load_params(Path("params.yaml")) == load_preset("micro")


def test_an_override_of_a_section_that_the_stage_does_not_read_is_refused(capsys) -> None:
    main(["config", "use", "micro"])
    for words in (["run", "distill"], ["launch", "distill", "--dry-run"]):
        line = refused(capsys, *words, "--set", "preparation.scorers.judge.source=./toy/other", "--set", "evaluation.num_images=3")
        assert "distill does not read" in line
    line = refused(capsys, "run", "distill", "--set", "evaluation.num_images=3")
    assert line.endswith(
        "--set evaluation.num_images=3: distill does not read evaluation, so this would change nothing; it is read by evaluate"
    )


def test_an_override_that_the_others_need_is_taken(photos: Path) -> None:
    Path("params.yaml").write_text(dump(tiny_config()))
    main(["data", "use", str(photos)])
    assert main(["run", "shard", "--set", "sharding.resolution=18", "--set", "model.resolution=18"]) == 0


# --- what is not there ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [
        ("torchx", ["launch", "distill", "--dry-run"], "torchx"),
        ("dvc", ["adopt"], "dvc"),
        ("aiohttp", ["run", "shard"], "train"),
        ("torch", ["plan"], "train"),
        ("aiohttp", ["ab", "serve", "."], "study"),
        ("numpy", ["ab", "score", "."], "study"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_command(elsewhere: Path, package: str, words: list[str], extra: str) -> None:
    main(["config", "use", "sd15"] if words == ["plan"] else ["config", "use", "micro"])
    Path("data").mkdir()
    Path("data/index.tsv").write_text("a.png\ta\n")
    code = f"import sys; sys.modules[{package!r}] = None\nfrom rglcd.cli import main\nmain(sys.argv[1:])"
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    (line,) = ran.stderr.splitlines()
    assert ran.returncode == 2, ran.stderr
    assert f"{package}" in line
    assert f"[{extra}]'" in line
    assert "pip install '" in line


def test_adopt_outside_of_dvc_is_one_line(capsys) -> None:
    main(["config", "use", "micro"])
    line = refused(capsys, "adopt")
    assert "is no DVC repository: make it one with `git init && dvc init`" in line


def test_a_reader_that_goes_away_is_quiet(elsewhere: Path) -> None:
    main(["config", "use", "micro"])
    Path("show.sh").write_text(f'set -o pipefail; "{sys.executable}" -m rglcd config show | head -1')
    ran = subprocess.run(["bash", "show.sh"], capture_output=True, text=True, check=False, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert len(ran.stdout.splitlines()) == 1
    assert ran.stderr == ""


@pytest.mark.parametrize(("teacher", "is_seen"), [("./models/teacher", False), ("../teacher", False), ("/store/models/teacher", True)])
def test_a_model_folder_that_no_pod_sees_is_named_when_its_job_is_made(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, teacher: str, is_seen: bool
) -> None:
    monkeypatch.setenv("RGLCD_IMAGE", f"mine@sha256:{'1' * 64}")
    Path("params.yaml").write_text(dump(tiny_config(f"model.teacher.uri={teacher}", *TINY_EVALUATION)))
    assert main(["launch", "prepare", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert (f"model.teacher is {teacher}" in said) is not is_seen
    assert main(["launch", "cache", "--dry-run"]) == 0
    assert "no pod sees it" not in capsys.readouterr().err, "it reads what was prepared"


@pytest.mark.parametrize(("store", "is_kept"), [("downloads", False), ("./downloads", False), ("/store/downloads", True)])
def test_a_download_store_that_goes_with_its_pod_is_named_when_its_job_is_made(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, store: str, is_kept: bool
) -> None:
    """Images begin in /tmp, of which a pod has 50 GiB: a crawl outgrew it, and lost it with the pod."""
    monkeypatch.setenv("RGLCD_IMAGE", f"mine@sha256:{'1' * 64}")
    download = f"sharding.download={{kind: web, store: {store}}}"
    Path("params.yaml").write_text(dump(tiny_config("model.teacher.uri=/store/t", download, *TINY_EVALUATION)))
    assert main(["launch", "shard", "--dry-run"]) == 0
    assert (f"sharding.download.store is {store}" in capsys.readouterr().err) is not is_kept
    assert main(["launch", "prepare", "--dry-run"]) == 0
    assert "sharding.download.store" not in capsys.readouterr().err
