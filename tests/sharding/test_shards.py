import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason, Tally
from rglcd.sharding.shards import (
    MAX_MEMBER_BYTES,
    Refusal,
    Sample,
    ShardEntry,
    finished_shard,
    read_shard,
    sample_key,
    shard_entries,
    write_shard,
)
from rglcd.store.manifest import FileEntry, Manifest, results_digest, scan, sha256_of, write_manifest


def sample(place: int, caption: str = "a red circle") -> Sample:
    key = sample_key(0, place, rows_per_shard=10_000)
    return Sample(key, b"image %d" % place * 50, caption, {"key": key, "url": f"images/{place}.png"})


def refusal(reason: Reason, place: int = 0) -> Refusal:
    return Refusal(sample_key(0, place, rows_per_shard=10_000), reason, "https://www.example.com/a", "caption")


def publish(folder: Path) -> list[ShardEntry]:
    """Write the manifest as a stage run does, and list what it names."""
    files = scan(folder)
    write_manifest(folder, Manifest("shards", "shard", 1, "key", results_digest(files), {}, {}, files))
    return shard_entries(folder)


def entry_of(path: Path, num_samples: int) -> ShardEntry:
    return ShardEntry(path.name, FileEntry(sha256_of(path), path.stat().st_size), num_samples)


def hand_made(path: Path, members: Iterable[tuple[tarfile.TarInfo | str, bytes]], num_samples: int = 1) -> ShardEntry:
    with tarfile.open(path, "w") as tar:
        for member, body in members:
            header = tarfile.TarInfo(member) if isinstance(member, str) else member
            header.size = len(body)
            tar.addfile(header, io.BytesIO(body))
    return entry_of(path, num_samples)


WHOLE = [("000.png", b"image"), ("000.txt", b"caption"), ("000.json", b"{}")]


class TestWriting:
    def test_a_written_shard_reads_back_its_samples(self, tmp_path: Path) -> None:
        samples = [sample(place, caption) for place, caption in enumerate(["one", "café ‮ \n two", "<script>"])]
        tally = write_shard(tmp_path, 0, samples, extension="jpg")
        (entry,) = publish(tmp_path)
        assert list(read_shard(tmp_path / entry.name, entry)) == samples
        assert tally == Tally(3, 3)

    @settings(deadline=None, max_examples=30)  # each waits for the disk
    @given(outcomes=st.lists(st.sampled_from(Reason) | st.just("sample"), max_size=12))
    def test_every_row_is_accounted_for(self, tmp_path_factory: pytest.TempPathFactory, outcomes: list[Reason | str]) -> None:
        folder = tmp_path_factory.mktemp("shards")
        rows = [refusal(outcome, place) if isinstance(outcome, Reason) else sample(place) for place, outcome in enumerate(outcomes)]
        tally = write_shard(folder, 3, rows, extension="png")
        assert tally.rows == len(outcomes)
        assert tally.samples == outcomes.count("sample")
        assert tally.reasons == {reason.value: outcomes.count(reason) for reason in sorted(Reason) if reason in outcomes}
        assert finished_shard(folder, 3) == tally
        stats = json.loads((folder / "00003_stats.json").read_text())
        assert stats["count"] == stats["successes"] + stats["failed_to_download"] + stats["failed_to_resize"]

    def test_the_parquet_file_has_img2datasets_line_for_every_row(self, tmp_path: Path) -> None:
        facts = {"url": "https://a/b.png", "sha256": "0" * 64, "width": 8, "height": 8, "original_width": 20, "original_height": 10}
        rows = [Sample("000000000", b"image", "one", facts), refusal(Reason.GONE, 1), refusal(Reason.UNDECODABLE, 2)]
        write_shard(tmp_path, 0, rows, extension="png")
        first, second, third = pq.read_table(tmp_path / "00000.parquet").to_pylist()
        assert first == facts | {"key": "000000000", "caption": "one", "status": "success", "error_message": None}
        assert (second["status"], second["error_message"]) == ("failed_to_download", "gone")
        assert (third["key"], third["status"], third["error_message"]) == ("000000002", "failed_to_resize", "undecodable")
        assert (second["url"], second["caption"], second["width"]) == ("https://www.example.com/a", "caption", None)

    def test_equal_samples_make_equal_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folders = [tmp_path / "a", tmp_path / "b"]
        for number, folder in enumerate(folders):
            folder.mkdir()
            monkeypatch.setattr("time.time", lambda number=number: 1e9 * (number + 1))
            write_shard(folder, 0, [sample(0), refusal(Reason.TOO_LARGE, 1), sample(2)], extension="png")
        names = sorted(path.name for path in folders[0].iterdir())
        assert names == ["00000.parquet", "00000.tar", "00000_stats.json"]
        for name in names:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()

    def test_tar_members_carry_no_user_and_no_time(self, tmp_path: Path) -> None:
        write_shard(tmp_path, 0, [sample(0)], extension="png")
        with tarfile.open(tmp_path / "00000.tar") as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode) == (0, 0, 0, "", "", 0o444)
                assert not member.pax_headers

    @pytest.mark.parametrize(
        ("shard", "place", "rows_per_shard", "key"),
        [(0, 0, 10_000, "000000000"), (12, 345, 10_000, "000120345"), (3, 7, 16, "0000307"), (1, 9, 10, "000019"), (1, 10, 11, "0000110")],
    )
    def test_sample_keys_are_those_of_img2dataset(self, shard: int, place: int, rows_per_shard: int, key: str) -> None:
        assert sample_key(shard, place, rows_per_shard=rows_per_shard) == key

    def test_plain_webdataset_reads_a_shard(self, tmp_path: Path) -> None:
        samples = [sample(place, f"caption {place}") for place in range(5)]
        write_shard(tmp_path, 0, samples, extension="png")
        dataset = webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False)
        read = [Sample(found["__key__"], found["png"], found["txt"].decode(), json.loads(found["json"])) for found in dataset]
        assert read == samples

    def test_a_shard_killed_before_its_stats_is_not_finished(self, tmp_path: Path) -> None:
        write_shard(tmp_path, 0, [sample(0)], extension="png")
        (tmp_path / "00000_stats.json").unlink()
        assert finished_shard(tmp_path, 0) is None


class TestVerifiedReading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_shard(tmp_path, 0, [sample(place) for place in range(6)], extension="png")
        return tmp_path

    def test_a_missing_shard_is_refused(self, folder: Path) -> None:
        (entry,) = publish(folder)
        (folder / entry.name).unlink()
        with pytest.raises(InputError, match=r"00000\.tar is missing"):
            read_shard(folder / entry.name, entry)

    @pytest.mark.parametrize(("claimed", "message"), [(7, "holds 6 samples, not 7"), (5, "holds more than 5 samples")])
    def test_a_shard_with_another_number_of_samples_is_refused(self, folder: Path, claimed: int, message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_shard(folder / "00000.tar", entry_of(folder / "00000.tar", claimed))

    def test_altered_stats_are_refused(self, folder: Path) -> None:
        publish(folder)
        path = folder / "00000_stats.json"
        path.write_text(path.read_text().replace('"successes": 6', '"successes": 5'))
        with pytest.raises(InputError, match=r"00000_stats\.json has sha256"):
            shard_entries(folder)

    def test_an_unpublished_folder_is_refused(self, folder: Path) -> None:
        with pytest.raises(InputError, match="missing or unfinished; make it with: rglcd run shard"):
            shard_entries(folder)

    def test_shards_without_a_sample_are_not_listed(self, folder: Path) -> None:
        write_shard(folder, 1, [refusal(Reason.MISSING_FILE)], extension="png")
        write_shard(folder, 2, [sample(0)], extension="png")
        assert [entry.name for entry in publish(folder)] == ["00000.tar", "00002.tar"]


class TestUnsafeMembers:
    """A tar whose digest is right and whose content is hostile: made by someone else."""

    def test_an_unharmed_shard_is_read(self, tmp_path: Path) -> None:
        entry = hand_made(tmp_path / "0.tar", WHOLE)
        assert list(read_shard(tmp_path / "0.tar", entry)) == [Sample("000", b"image", "caption", {})]

    @pytest.mark.parametrize(
        "name",
        [
            "../000.png",
            "/000.png",
            "a/000.png",
            "000.pkl",
            "000.pyd",
            "000.pth",
            "000.PNG",
            "000",
            ".png",
            "000.a.png",
            "0 0.png",
            "g" * 9,
            "-.txt/",
        ],
    )
    def test_names_that_are_not_flat_keys_are_refused(self, tmp_path: Path, name: str) -> None:
        entry = hand_made(tmp_path / "0.tar", [(name, b"x"), *WHOLE[1:]])
        with pytest.raises(InputError, match=r"0\.tar: member .* is not"):
            read_shard(tmp_path / "0.tar", entry)

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
    def test_links_and_devices_are_refused(self, tmp_path: Path, kind: bytes) -> None:
        header = tarfile.TarInfo("000.png")
        header.type, header.linkname = kind, "/etc/passwd"
        entry = hand_made(tmp_path / "0.tar", [(header, b""), *WHOLE[1:]])
        with pytest.raises(InputError, match="is not a regular file"):
            read_shard(tmp_path / "0.tar", entry)

    def test_two_members_of_one_part_are_refused(self, tmp_path: Path) -> None:
        entry = hand_made(tmp_path / "0.tar", [*WHOLE, ("000.jpg", b"another image")], num_samples=2)
        with pytest.raises(InputError, match="000 has two of image"):
            read_shard(tmp_path / "0.tar", entry)

    def test_a_sample_without_a_part_is_refused(self, tmp_path: Path) -> None:
        entry = hand_made(tmp_path / "0.tar", WHOLE[:2])
        with pytest.raises(InputError, match="000 is made of image, txt, not image, json and txt"):
            read_shard(tmp_path / "0.tar", entry)

    def test_a_member_too_large_is_refused(self, tmp_path: Path) -> None:
        entry = hand_made(tmp_path / "0.tar", [("000.png", bytes(MAX_MEMBER_BYTES + 1)), *WHOLE[1:]])
        with pytest.raises(InputError, match="has 33554433 bytes, more than"):
            read_shard(tmp_path / "0.tar", entry)

    def test_many_members_are_refused_at_the_first_too_many(self, tmp_path: Path) -> None:
        entry = hand_made(tmp_path / "0.tar", [(f"{number:06d}.txt", b"") for number in range(2000)], num_samples=2)
        with pytest.raises(InputError, match="holds more than 2 samples"):
            read_shard(tmp_path / "0.tar", entry)

    @pytest.mark.parametrize(("place", "body"), [(1, b"\xff"), (2, b"{")])
    def test_parts_that_cannot_be_read_are_refused_by_key(self, tmp_path: Path, place: int, body: bytes) -> None:
        members = [(name, body if number == place else old) for number, (name, old) in enumerate(WHOLE)]
        entry = hand_made(tmp_path / "0.tar", members)
        with pytest.raises(InputError, match="caption or facts of 000"):
            list(read_shard(tmp_path / "0.tar", entry))

    def test_a_file_that_is_no_tar_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "0.tar").write_bytes(b"not a tar" * 1000)
        with pytest.raises(InputError, match="is not a tar"):
            read_shard(tmp_path / "0.tar", entry_of(tmp_path / "0.tar", 1))
