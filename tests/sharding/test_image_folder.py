"""A folder of images as people have it: ``rglcd data use`` names every image, and says what it leaves out."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rglcd.cli import main
from rglcd.extras import install_command
from rglcd.sharding import heic
from rglcd.sharding.import_source import use
from tests.sharding.hostile_server import picture_bytes
from tests.sharding.test_hostile_tars import CAPTIONS, LEGACY
from tests.sharding.test_third_party_tars import sample, write_tar
from tests.stages.sharding_runs import run

PICTURE = picture_bytes()


def fill(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def packed(what: Path, folder: Path, *options: str) -> list[Mapping[str, Any]]:
    """The rows of the parquet files that the shards made of ``what`` have."""
    main(["data", "use", str(what), "--folder", str(folder / "source"), *options])
    facts = run(folder / "source", folder / "shards")
    rows: list[Mapping[str, Any]] = pa.concat_tables(map(pq.read_table, sorted((folder / "shards").glob("*.parquet")))).to_pylist()
    assert len(rows) == facts["rows"] == facts["samples"] + sum(facts["reasons"].values())
    return rows


class TestNames:
    @pytest.mark.parametrize(
        ("name", "held"),
        [
            ("caf\udce9.png", "caf%E9.png"),
            ("a\tb.png", "a%09b.png"),
            ("a\nb\r.png", "a%0Ab%0D.png"),
            ("a\\b.png", "a%5Cb.png"),
            ("d\udce9/a.png", "d%E9/a.png"),
            ("café 100%.png", "café 100%.png"),
        ],
    )
    def test_a_name_that_an_index_cannot_hold_is_written_with_percent_signs(self, tmp_path: Path, name: str, held: str) -> None:
        photos = fill(tmp_path / "photos", {name: PICTURE, name.replace(".png", ".txt"): b"fox"})
        assert [(row["url"], row["caption"], row["status"]) for row in packed(photos, tmp_path)] == [(f"images/{held}", "fox", "success")]

    def test_two_names_never_become_one(self, tmp_path: Path) -> None:
        names = ["caf\udce9", "caf%E9", "a\tb", "a%09b", "\udce9" * 200]
        photos = fill(tmp_path / "photos", {f"{name}.png": PICTURE for name in names})
        fill(photos, {f"{name}.txt": str(number).encode() for number, name in enumerate(names)})
        rows = packed(photos, tmp_path)
        assert sorted(row["caption"] for row in rows) == ["0", "1", "2", "3", "4"]
        assert len({row["url"] for row in rows}) == 5

    def test_what_is_said_of_a_folder_whose_name_is_not_utf8_can_be_printed(self, tmp_path: Path) -> None:
        photos = fill(tmp_path / "caf\udce9", {"a.png": PICTURE, "a.\udce9": b""})
        assert all(line.encode() for line in use(str(photos), tmp_path / "source"))


class TestLinks:
    def test_links_within_the_folder_are_followed(self, tmp_path: Path) -> None:
        photos = fill(tmp_path / "photos", {"store/1": PICTURE, "store/2": b"fox"})
        (photos / "a.png").symlink_to("store/1")
        (photos / "a.txt").symlink_to("store/2")
        assert [(row["url"], row["caption"]) for row in packed(photos, tmp_path)] == [("images/a.png", "fox")]
        assert not (tmp_path / "source" / "images" / "a.png").is_symlink()

    def test_links_that_lead_elsewhere_are_counted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        photos = fill(tmp_path / "photos", {"a.png": PICTURE, "a.txt": b"fox", "more/b.md": b""})
        fill(tmp_path, {"outside.png": PICTURE})
        for name, target in [("out.png", "../outside.png"), ("gone.png", "none"), ("circle.png", "circle.png"), ("folder", "more")]:
            (photos / name).symlink_to(target)
        assert [row["url"] for row in packed(photos, tmp_path)] == ["images/a.png"]
        assert f"left out: 4 links that lead out of {photos}, to a folder or nowhere" in capsys.readouterr().out

    def test_a_folder_of_links_alone_says_what_it_is(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fill(tmp_path, {"outside.png": PICTURE, "photos/notes.md": b""})
        (tmp_path / "photos" / "a.png").symlink_to("../outside.png")
        with pytest.raises(SystemExit):
            main(["data", "use", str(tmp_path / "photos"), "--folder", str(tmp_path / "source")])
        assert "left out: 1 links that lead out" in capsys.readouterr().err

    def test_a_revision_in_the_hubs_cache_is_the_files_it_links_to(self, tmp_path: Path) -> None:
        repository = fill(tmp_path / "datasets--a--b", {"blobs/1": PICTURE, "blobs/2": b"fox"})
        revision = repository / "snapshots" / "abc"
        revision.mkdir(parents=True)
        for name, blob in [("a.png", "1"), ("a.txt", "2")]:
            (revision / name).symlink_to(f"../../blobs/{blob}")
        assert [(row["url"], row["caption"]) for row in packed(revision, tmp_path)] == [("images/a.png", "fox")]


class TestFiles:
    def test_what_browsers_call_a_jpeg_is_an_image_and_the_rest_is_counted_by_suffix(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(heic, "is_readable", lambda: False)
        names = ["a.jfif", "b.jpe", "c.JPG", "d.JPG_large", "e.heic", "f.heic", "g", "a.txt", "orphan.txt"]
        photos = fill(tmp_path / "photos", dict.fromkeys(names, PICTURE))
        fill(photos, {"a.txt": b"fox"})
        main(["data", "use", str(photos), "--folder", str(tmp_path / "source")])
        said = capsys.readouterr().out
        assert "names 4 images" in said
        assert "skipped: 2 .heic, 1 .txt, 1 without a suffix (images are .apng" in said
        assert f"HEIC is read once its decoder is there: {install_command('heic')}" in said

    def test_images_beside_tars_are_said_to_be_left_out(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        photos = fill(tmp_path / "photos", {"a.png": PICTURE, "more/b.png": PICTURE})
        write_tar(photos / "backup.tar", sample("a"))
        main(["data", "use", str(photos), "--folder", str(tmp_path / "source")])
        assert "left out: 2 images beside the tars of" in capsys.readouterr().out

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_caption_that_may_not_be_read_is_a_row_without(self, tmp_path: Path) -> None:
        photos = fill(tmp_path / "photos", {"a.png": PICTURE, "a.txt": b"fox", "b.png": PICTURE, "b.txt": b"fox"})
        (photos / "a.txt").chmod(0)
        assert [row["error_message"] for row in packed(photos, tmp_path)] == ["unreadable_caption", None]


class TestCaptions:
    @pytest.mark.parametrize("kind", CAPTIONS)
    def test_a_caption_is_what_it_is_in_a_tar(self, tmp_path: Path, kind: str) -> None:
        data, expected = CAPTIONS[kind]
        photos = fill(tmp_path / "photos", {"a.png": PICTURE, "a.txt": data, "b.png": PICTURE, "b.txt": b"fox"})
        rows = packed(photos, tmp_path)
        assert [row["url"] for row in rows] == ["images/a.png", "images/b.png"]
        assert [row["error_message"] or row["caption"] for row in rows] == [expected, "fox"]

    @pytest.mark.parametrize(
        ("name", "data", "expected"),
        [
            ("a.caption", b"fox", "fox"),
            ("a.TXT", b"fox", "fox"),
            ("a.json", b'{"caption": "fox"}', "fox"),
            ("a.json", b'{"caption": 7}', "empty_caption"),
            ("a.json", b"no json", "empty_caption"),
            ("a.json", rb'{"caption": "\ud83d"}', "unreadable_caption: UnicodeDecodeError"),
        ],
    )
    def test_a_caption_in_a_file_of_another_kind_is_read(self, tmp_path: Path, name: str, data: bytes, expected: str) -> None:
        photos = fill(tmp_path / "photos", {"a.png": PICTURE, name: data, "b.png": PICTURE, "b.txt": b"fox"})
        assert [row["error_message"] or row["caption"] for row in packed(photos, tmp_path)] == [expected, "fox"]

    @pytest.mark.parametrize("kind", LEGACY)
    def test_one_in_a_declared_encoding_becomes_utf8_and_what_is_utf8_or_marked_stays(self, tmp_path: Path, kind: str) -> None:
        name, text = LEGACY[kind]
        photos = fill(tmp_path / "photos", {f"{letter}.png": PICTURE for letter in "abcd"})
        fill(photos, {"a.txt": text.encode(name), "b.txt": text.encode(), "c.txt": text.encode("utf-16")})
        fill(photos, {"d.json": b'{"caption": "%s"}' % text.encode(name)})
        rows = packed(photos, tmp_path, "--caption-encoding", name)
        assert [row["error_message"] or row["caption"] for row in rows] == [text] * 4
        assert (tmp_path / "source" / "index.tsv").read_text(encoding="utf-8").count(text) == 4

    def test_what_is_not_even_in_the_declared_encoding_is_refused(self, tmp_path: Path) -> None:
        files = {"a.txt": b"\xff\xff", "b.json": b'{"caption": "\xff"}', "c.txt": b"fox", "d.txt": "é".encode("utf-16")[:-1]}
        photos = fill(tmp_path / "photos", {f"{letter}.png": PICTURE for letter in "abcd"} | files)
        refused = "unreadable_caption: UnicodeDecodeError"
        rows = packed(photos, tmp_path, "--caption-encoding", "gb18030")
        assert [row["error_message"] or row["caption"] for row in rows] == [refused, refused, "fox", refused]

    def test_rows_held_out_are_chosen_among_those_that_can_be_read(self, tmp_path: Path) -> None:
        files = {f"{number}.png": picture_bytes(number) for number in range(6)} | {
            f"{number}.txt": b"fox %d" % number for number in range(6)
        }
        photos = fill(tmp_path / "photos", files | {"0.txt": b"caf\xe9", "1.txt": "UTF-16".encode("utf-16")})
        use(str(photos), tmp_path / "source", reference=4)
        prompts = (tmp_path / "source" / "prompts" / "heldout.txt").read_text(encoding="utf-8").splitlines()
        assert len(prompts) == 4
        assert set(prompts) <= {"UTF-16", "fox 2", "fox 3", "fox 4", "fox 5"}


@pytest.mark.slow
def test_heic_is_taken_where_its_decoder_is_installed(tmp_path: Path) -> None:
    """The tests of ``test_heic.py``, with the package that the lock leaves out: in the folder that a variable names, or fetched now."""
    folder = Path(os.environ.get("RGLCD_TEST_PILLOW_HEIF", tmp_path / "package"))
    if not folder.is_dir():
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "pip", "install", "-q", "--python", sys.executable, "--target", folder, "--no-deps", "pillow-heif"], check=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(folder)]))}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "tests/sharding/test_heic.py"]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "skipped" not in ran.stdout, ran.stdout
