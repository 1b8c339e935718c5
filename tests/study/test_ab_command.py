"""``rglcd ab``: what it says, and what it refuses in one line."""

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from rglcd.cli import main
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.manifest import read_manifest, write_manifest
from rglcd.study.raters import read_raters
from tests.study.studies import ARMS, cast, mostly, small_study
from tests.study.test_build import folders, report

SAYS_LINK = re.compile(r"rater \d+: (http://127\.0\.0\.1:\d+/r/[\w-]+/)")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("build s --arm a", "report is missing or unfinished"),
        ("build s --arm a=a --arm b=b", "need --prompts FILE"),
        ("build s --arm a=a --arm b --prompts p.txt", "all arms are of the report, or all are folders"),
        ("build s --arm a --arm b --prompts p.txt", "--prompts goes with folders"),
        ("build s --arm a=a --arm a=b --prompts p.txt", "names the same arm twice"),
        ("build s --arm a=a --arm b=b --prompts p.txt", "a is no folder of pictures"),
        ("build s --arm a=a --arm b=b --prompts p.txt --questions beauty", "--questions takes some of preference, appeal, alignment"),
        ("build s --arm a=a --arm b=b --prompts p.txt --questions appeal,appeal", "each once"),
        ("build s --arm a=a --arm b=b --checks -1", "'-1' is no whole number from 0 on"),
        ("serve s", "s is no study; make one with: rglcd ab build s --arm A --arm B"),
        ("serve s --raters 0", "'0' is no whole number from 1 on"),
        ("export s t --static", "s is no study"),
        ("export s t", "one of the arguments --static --label-studio is required"),
        ("score s", "s is no study"),
        ("score s --half-width 2", "'2' is no number between 0 and 0.5"),
        ("simulate s --raters 17", "the panel has 16 simulated raters"),
        ("simulate s", "s is no study"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ab", *words.split()])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert list(Path().iterdir()) == []


def test_build_says_how_much_is_asked_and_where_the_key_is(capsys: pytest.CaptureFixture[str]) -> None:
    folders(Path(), a=["1.png", "2.png"], b=["1.png", "2.png"])
    Path("prompts.txt").write_text("one\ntwo\n")
    words = "build s --arm rg=a --arm teacher=b --prompts prompts.txt --questions preference,alignment --checks 1"
    assert main(["ab", *words.split()]) == 0
    said = capsys.readouterr().out
    assert "s: 2 pairs and 1 attention checks; each rater answers 5 times" in said
    assert "±5 % takes 385 votes" in said
    assert "s/key.json: give it to nobody who votes" in said


def test_build_reads_a_report_whose_pictures_lie_in_a_store(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There ``artifacts/report`` keeps the page and the tables alone."""
    monkeypatch.setenv("RGLCD_STORE", f"{bucket}/run")
    made = report(Path("made"), rg_2=["one", "two"], teacher_50=["one", "two"], lcm_2=["one", "two"], real=["real"])
    standing = ArtifactStore(f"{bucket}/run/report").publish(made, read_manifest(made, made_by="evaluate"))
    Path("artifacts/report").mkdir(parents=True)
    write_manifest(Path("artifacts/report"), standing)
    assert main(["ab", "build", "s", "--arm", "rg-2", "--arm", "teacher-50", "--checks", "1"]) == 0
    assert "s: 2 pairs and 1 attention checks" in capsys.readouterr().out
    assert not list(Path().glob("**/lcm-2/images.png"))[1:], "what is not shown is not fetched"


def test_the_panel_refuses_prompts_of_another_world(capsys: pytest.CaptureFixture[str]) -> None:
    small_study(Path("s"))
    with pytest.raises(SystemExit):
        main(["ab", "simulate", "s"])
    assert "is not of the toy world" in capsys.readouterr().err


def test_exports_say_what_to_do_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    small_study(Path("s"))
    main(["ab", "export", "s", "static", "--static", "--raters", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line).is_file() for line in lines] == [True, True, False]
    assert "rglcd ab score s FILE..." in lines[2]
    main(["ab", "export", "s", "project", "--label-studio", "--picture-url", "https://pictures.example.org/"])
    assert "import tasks.json" in capsys.readouterr().out
    assert "https://pictures.example.org/" in Path("project/tasks.json").read_text()


def test_score_prints_a_table_or_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    cast(Path("s"), small_study(Path("s"), num_prompts=8), 2, mostly(ARMS[0], every=4))
    main(["ab", "score", "s"])
    assert f"{ARMS[0]} over {ARMS[1]}: 75.0 %" in capsys.readouterr().out
    main(["ab", "score", "s", "--json", "--half-width", "0.02"])
    assert '"half_width": 0.02' in capsys.readouterr().out


def test_serving_and_scoring_need_no_torch() -> None:
    cast(Path("s"), small_study(Path("s")), 1, mostly(ARMS[0], every=4))
    hidden = "import sys; [sys.modules.__setitem__(name, None) for name in ('torch', 'safetensors', 'simplejpeg', 'fsspec', 'psutil')]; "
    code = (
        hidden
        + "import rglcd.study.server; from rglcd.cli import main; main(['ab', 'export', 's', 't', '--static']); main(['ab', 'score', 's'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"{ARMS[0]} over {ARMS[1]}" in ran.stdout


def test_serve_prints_a_link_a_rater_serves_it_and_ends_well_when_asked_to() -> None:
    small_study(Path("s"))
    command = [sys.executable, "-m", "rglcd", "ab", "serve", "s", "--raters", "2", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    lines = [server.stdout.readline() for _ in range(3)]
    links = SAYS_LINK.findall("".join(lines))
    assert len(set(links)) == 2
    with urllib.request.urlopen(links[0]) as response:
        assert b"Which picture?" in response.read()
    refused = subprocess.run([*command[:-1], links[0].split(":")[2].split("/")[0]], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "cannot listen on 127.0.0.1 port" in refused.stderr
    server.send_signal(signal.SIGINT)
    assert server.communicate(timeout=20)[1] == ""
    assert server.returncode == 0
    assert len(read_raters(Path("s"))) == 2
