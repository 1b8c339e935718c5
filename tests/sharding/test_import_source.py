"""``rglcd data use``: what a user has is never lost by it, and what goes wrong is said in a line."""

import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rglcd.cli import main
from rglcd.evaluation.prompt_sets import read_prompt_set
from rglcd.sharding.import_source import use
from rglcd.sharding.source import MAX_IMAGE_BYTES, parse_row, read_lines
from tests.faults.watched_process import run_forked
from tests.sharding.hostile_server import picture_bytes
from tests.sharding.test_third_party_tars import sample, write_tar

Line = Callable[..., tuple[int, str]]


@pytest.fixture
def data_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Line:
    """``rglcd data use`` in an empty folder: the exit code, and what it says on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        try:
            return main(["data", "use", *words]), capsys.readouterr().err
        except SystemExit as ended:
            return int(str(ended.code)), capsys.readouterr().err

    return call


def fill(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture_bytes(number))
        (folder / f"{number}.txt").write_text(f"caption {number}")


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what a user has is not lost -----------------------------------------------------------------


@pytest.mark.parametrize(
    "what", ["data/images", "data/images/", "data/images/more", "data", ".", "data/images/0.tar", "data/images/{0..0}.tar"]
)
def test_files_in_the_folder_that_is_made_anew_are_refused_and_kept(what: str, tmp_path: Path, data_use: Line) -> None:
    """They were taken, and removed: captions, pictures' other files, and tars that the listing then named."""
    fill(tmp_path / "data" / "images")
    fill(tmp_path / "data" / "images" / "more")
    if what.endswith(".tar"):
        write_tar(tmp_path / "data" / "images" / "0.tar", sample("a"))
    before = files_below(tmp_path)
    code, said = data_use(what)
    assert (code, files_below(tmp_path)) == (2, before)
    assert said == (
        f"rglcd: {what} and data/images overlap, and data/images is made anew of what is taken: "
        "move your files out of it, or name another --folder\n"
    )


@pytest.mark.parametrize("what", [".", "photos", "data/photos"])
def test_files_beside_it_are_taken(what: str, tmp_path: Path, data_use: Line) -> None:
    fill(tmp_path / ("data/photos" if what == "data/photos" else "photos"))
    assert data_use(what) == (0, "")
    assert len(list(read_lines(tmp_path / "data" / "index.tsv"))) == 3


def test_a_link_in_place_of_the_folder_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path: Path, data_use: Line) -> None:
    """It ended in NotADirectoryError."""
    fill(tmp_path / "photos")
    fill(tmp_path / "elsewhere", 1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images").symlink_to(tmp_path / "elsewhere")
    assert data_use("photos") == (0, "")
    assert not (tmp_path / "data" / "images").is_symlink()
    assert len(files_below(tmp_path / "data" / "images")) == 3
    assert len(files_below(tmp_path / "elsewhere")) == 2


def test_of_two_commands_at_once_the_second_is_refused_and_the_first_one_is_whole(tmp_path: Path, data_use: Line) -> None:
    """They shared a staging folder: both ended well, with hundreds of the pictures that the index named not there."""
    (tmp_path / "photos").mkdir()
    for number in range(2000):
        (tmp_path / "photos" / f"{number}.png").write_bytes(picture_bytes())
    fill(tmp_path / "others", 5)
    command = [sys.executable, "-m", "rglcd", "data", "use", "photos"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as first:
        try:
            while first.poll() is None and not list((tmp_path / "data").glob(".images*")):
                time.sleep(0.001)
            first.send_signal(signal.SIGSTOP)
            refused = data_use("others")
        finally:
            first.send_signal(signal.SIGCONT)
        said = first.communicate(timeout=60)[1]
    assert (first.returncode, said) == (0, "")
    assert refused == (75, "rglcd: another rglcd data command is making data; when it has ended, run the same command again\n")
    assert files_below(tmp_path / "data" / "images").keys() == {f"{number}.png" for number in range(2000)}
    assert [path.name for path in sorted((tmp_path / "data").iterdir())] == ["images", "index.tsv"]
    assert data_use("others") == (0, "")
    assert len(files_below(tmp_path / "data" / "images")) == 5


# --- what goes wrong is said in a line -----------------------------------------------------------


def test_a_place_that_cannot_be_listed_is_one_line(data_use: Line) -> None:
    code, said = data_use("http://127.0.0.1:9/cc12m")
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("rglcd: http://127.0.0.1:9/cc12m cannot be listed: ClientConnectorError")


def test_a_bucket_without_credentials_is_one_line(data_use: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    code, said = data_use("s3://bucket/cc12m")
    assert (code, said.count("\n")) == (2, 1)
    assert "cannot be listed: NoCredentialsError" in said


@pytest.mark.parametrize("what", ["photos", "index.tsv"])
def test_a_full_disk_asks_to_try_again_and_leaves_the_earlier_source(what: str, tmp_path: Path, data_use: Line) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "index.tsv").write_text("https://a/b.jpg\tearlier\n")
    fill(tmp_path / "photos", 200)
    (tmp_path / "index.tsv").write_text("".join(f"https://a/{number}.jpg\tcaption {number}\n" for number in range(200)))

    def with_small_files() -> tuple[int, str]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
        return data_use(what)

    code, said = run_forked(with_small_files).value
    assert (code, said.count("\n")) == (75, 1)
    assert said.startswith("rglcd: no disk space for data: it needs more, and a file may have 1,024 bytes here (ulimit -f)")
    assert files_below(tmp_path / "data") == {"index.tsv": b"https://a/b.jpg\tearlier\n"}


# --- rows that are held out ----------------------------------------------------------------------


def test_pictures_that_are_held_out_are_not_held_in_memory(tmp_path: Path) -> None:
    """Thirty thousand photographs are more than a machine has."""
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(41):
        Image.fromarray(rng.integers(0, 256, (600, 600, 3), dtype=np.uint8)).save(photos / f"{number}.png", compress_level=0)
        (photos / f"{number}.txt").write_text(f"caption {number}")
    use(str(photos), tmp_path / "first", reference=2)  # what is imported and cached once
    tracemalloc.start()
    use(str(photos), tmp_path / "source", reference=40)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = files_below(tmp_path / "source" / "reference" / "images")
    assert len(held) == 40
    assert peak_bytes < MAX_IMAGE_BYTES + sum(map(len, held.values())) / 4  # the largest that one may be is asked for, and a few copies


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0b", "\x0c", "\x1e"])
def test_a_caption_that_is_held_out_is_one_prompt_whatever_ends_of_lines_it_holds(end: str, tmp_path: Path) -> None:
    """The text of one row was two prompts, each half of it."""
    fill(tmp_path / "data" / "images", 5)
    rows = "".join(f"images/{number}.png\ta fox{end}in the snow {number}\n" for number in range(5))
    (tmp_path / "own.tsv").write_text(rows, encoding="utf-8", newline="")
    use(str(tmp_path / "own.tsv"), tmp_path / "data", reference=3)
    prompts = [prompt.text for prompt in read_prompt_set(tmp_path / "data" / "prompts" / "heldout.txt", "lines").prompts]
    held = [parse_row(line).caption for line in read_lines(tmp_path / "data" / "reference" / "index.tsv")]
    assert prompts == held
    assert all(prompt.startswith("a fox in the snow ") for prompt in prompts)
    assert len(list(read_lines(tmp_path / "data" / "index.tsv"))) == 2
