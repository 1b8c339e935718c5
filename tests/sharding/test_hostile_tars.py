"""Third-party tars as they are found: through ``rglcd data use`` and the stage ``shard``, every member is in a sample or in a reason."""

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rglcd.cli import main
from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason
from rglcd.sharding.import_source import use
from rglcd.sharding.shards import Sample
from rglcd.sharding.source import MAX_ROW_BYTES
from tests.sharding.hostile_server import picture_bytes
from tests.sharding.test_third_party_tars import Member, sample, write_tar
from tests.stages.sharding_runs import SHARDING, run, samples_of

BESIDE = sample("beside", 9)
"""A row that is as it should be: whatever the others do, it becomes a sample."""


def packed(what: Path, folder: Path) -> list[Mapping[str, Any]]:
    """The rows of the parquet file that the shard made of ``what`` has."""
    main(["data", "use", str(what), "--folder", str(folder / "source")])
    facts = run(folder / "source", folder / "shards", SHARDING.model_copy(update={"samples_per_shard": 100}))
    rows: list[Mapping[str, Any]] = pq.read_table(folder / "shards" / "00000.parquet").to_pylist()
    assert len(rows) == facts["rows"] == facts["samples"] + sum(facts["reasons"].values())
    return rows


def reasons(rows: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    return {row["url"]: row["error_message"] for row in rows}


def captions(folder: Path) -> list[str]:
    samples: list[Sample] = samples_of(folder / "shards")
    return [sample.caption for sample in samples]


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> Member:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header, b""


class TestNames:
    def test_a_name_that_is_not_utf8_becomes_a_sample(self, tmp_path: Path) -> None:
        members: list[Member] = [("caf\udce9.jpg", picture_bytes(image_format="JPEG")), ("caf\udce9.txt", b"a caption"), *BESIDE]
        rows = packed(write_tar(tmp_path / "0.tar", members), tmp_path)
        assert reasons(rows) == {"0.tar/beside": None, r"0.tar/caf\udce9": None}

    def test_half_of_a_surrogate_pair_in_a_json_url_becomes_a_sample(self, tmp_path: Path) -> None:
        facts: Member = ("a.json", rb'{"url": "http://x/\ud83d"}')
        rows = packed(write_tar(tmp_path / "0.tar", [*sample("a"), facts, *BESIDE]), tmp_path)
        assert reasons(rows) == {r"http://x/\ud83d": None, "0.tar/beside": None}

    def test_text_in_img2datasets_parquet_that_is_not_utf8_costs_no_other_row(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "out" / "0.tar", BESIDE)
        text = pa.array([b"beside", b"caf\xe9"], pa.binary()).view(pa.string())
        status = pa.array(["success", "failed_to_download"])
        pq.write_table(pa.table({"key": text, "url": text, "caption": text, "status": status}), tmp_path / "out" / "0.parquet")
        assert reasons(packed(tmp_path / "out", tmp_path)) == {"beside": None, r"caf\xe9": "failed_upstream"}

    def test_a_url_of_half_a_megabyte_is_cut(self, tmp_path: Path) -> None:
        facts: Member = ("a.json", json.dumps({"url": "http://x/" + "\ud83d" * (1 << 16)}).encode())
        (row, _) = packed(write_tar(tmp_path / "0.tar", [*sample("a"), facts, *BESIDE]), tmp_path)
        assert (row["status"], len(row["url"])) == ("success", MAX_ROW_BYTES)

    def test_facts_that_are_no_text_are_not_taken(self, tmp_path: Path) -> None:
        facts: Member = ("a.json", b'{"url": 7, "caption": ["a list"]}')
        rows = packed(write_tar(tmp_path / "0.tar", [*sample("a")[:1], facts, *BESIDE]), tmp_path)
        assert reasons(rows) == {"0.tar/a": "incomplete_sample", "0.tar/beside": None}


class TestTars:
    def test_all_members_of_tars_written_one_behind_the_other_are_read(self, tmp_path: Path) -> None:
        parts = [write_tar(tmp_path / f"part{number}", sample(f"{number}", number)) for number in range(3)]
        (tmp_path / "0.tar").write_bytes(b"".join(part.read_bytes() for part in parts))
        assert [row["error_message"] for row in packed(tmp_path / "0.tar", tmp_path)] == [None, None, None]
        assert captions(tmp_path) == ["caption 0", "caption 1", "caption 2"]

    @pytest.mark.parametrize(("tail", "said"), [(b"no tar" * 200, "that is no tar"), (None, "was cut: it has no end")])
    def test_what_follows_the_end_and_cannot_be_read_whole_is_refused_by_name(self, tmp_path: Path, tail: bytes | None, said: str) -> None:
        whole = write_tar(tmp_path / "part", sample("a")).read_bytes()
        (tmp_path / "0.tar").write_bytes(whole + (whole[:1536] if tail is None else tail))
        with pytest.raises(InputError, match=rf"0\.tar .*{said}"):
            packed(tmp_path / "0.tar", tmp_path)

    def test_tars_of_the_v7_format_are_read(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            for name, body in BESIDE:
                header = tarfile.TarInfo(str(name))
                header.type, header.size = tarfile.AREGTYPE, len(body)
                tar.addfile(header, io.BytesIO(body))
        assert reasons(packed(tmp_path / "0.tar", tmp_path)) == {"0.tar/beside": None}

    def test_a_hard_link_is_the_file_before_it_and_leads_nowhere_else(self, tmp_path: Path) -> None:
        members = [*BESIDE, link("a.jpg", "beside.jpg"), link("b.jpg", "./a.jpg")]
        members += [link("out.jpg", "/etc/passwd"), link("up.jpg", "../beside.jpg"), link("soft.jpg", "beside.jpg", tarfile.SYMTYPE)]
        names = ["a", "b", "out", "up", "soft"]
        rows = packed(write_tar(tmp_path / "0.tar", [*members, *((f"{name}.txt", name.encode()) for name in names)]), tmp_path)
        assert reasons(rows) == {f"0.tar/{name}": None for name in ("a", "b", "beside")} | {
            f"0.tar/{name}": "incomplete_sample" for name in ("out", "up", "soft")
        }
        assert len({sample.image for sample in samples_of(tmp_path / "shards")}) == 1

    def test_a_sample_of_links_alone_is_counted(self, tmp_path: Path) -> None:
        members = [link("a.jpg", "nowhere", tarfile.SYMTYPE), link("a.txt", "nowhere", tarfile.SYMTYPE), *BESIDE]
        assert reasons(packed(write_tar(tmp_path / "0.tar", members), tmp_path)) == {"0.tar/a": "incomplete_sample", "0.tar/beside": None}

    def test_a_label_of_the_tar_is_no_sample(self, tmp_path: Path) -> None:
        assert reasons(packed(write_tar(tmp_path / "0.tar", [link("photos 2024", "", b"V"), *BESIDE]), tmp_path)) == {"0.tar/beside": None}

    def test_a_member_that_is_there_three_times_is_three_rows_of_one_reason(self, tmp_path: Path) -> None:
        rows = packed(write_tar(tmp_path / "0.tar", [*sample("a", 1), *sample("a", 2), *sample("a", 3), *BESIDE]), tmp_path)
        assert [row["error_message"] for row in rows] == ["repeated_member", "repeated_member", "repeated_member", None]

    def test_a_size_beyond_any_file_is_a_tar_that_was_cut(self, tmp_path: Path) -> None:
        header = tarfile.TarInfo("a.jpg")
        header.pax_headers = {"size": "9" * 30}
        with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(header, io.BytesIO())
        with pytest.raises(InputError, match=r"0\.tar was cut"):
            packed(tmp_path / "0.tar", tmp_path)

    @pytest.mark.parametrize("records", [{"size": "-512"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, {"GNU.sparse.map": "x"}])
    def test_records_that_lead_tarfile_astray_are_a_refusal_by_name(self, tmp_path: Path, records: dict[str, str]) -> None:
        header = tarfile.TarInfo("a.jpg")
        header.pax_headers, header.size = records, 512
        with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(header, io.BytesIO(b"x" * 512))
        with pytest.raises(InputError, match=r"0\.tar is not a tar"):
            packed(tmp_path / "0.tar", tmp_path)


class TestExtensions:
    @pytest.mark.parametrize("extension", ["jfif", "jpe", "JPG", "JPG_large"])
    def test_what_browsers_call_a_jpeg_is_an_image(self, tmp_path: Path, extension: str) -> None:
        members: list[Member] = [(f"a.{extension}", picture_bytes(image_format="JPEG")), ("a.txt", b"a")]
        assert reasons(packed(write_tar(tmp_path / "0.tar", members), tmp_path)) == {"0.tar/a": None}

    def test_a_file_that_is_not_called_as_an_image_is_counted_by_its_name(self, tmp_path: Path) -> None:
        members: list[Member] = [("a.heic", b"x"), ("a.txt", b"a"), ("README", b"x"), *BESIDE]
        rows = packed(write_tar(tmp_path / "0.tar", members), tmp_path)
        assert reasons(rows) == {"0.tar/README": "unknown_extension", "0.tar/a.heic": "unknown_extension", "0.tar/beside": None}


class TestUpstreamRows:
    def test_a_sample_that_img2datasets_parquet_does_not_know_is_counted(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "out" / "0.tar", [*sample("a"), *BESIDE, ("alone.jpg", picture_bytes(image_format="JPEG"))])
        rows = [{"key": "a", "url": "http://x/a", "caption": "a", "status": "success"}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "out" / "0.parquet")
        expected = {"http://x/a": None, "0.tar/alone": "incomplete_sample", "0.tar/beside": None}
        assert reasons(packed(tmp_path / "out", tmp_path)) == expected

    def test_two_upstream_rows_of_one_key_are_two_rows(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "out" / "0.tar", sample("a"))
        rows = [{"key": "a", "url": f"http://x/{number}", "caption": "a", "status": "success"} for number in range(2)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "out" / "0.parquet")
        assert reasons(packed(tmp_path / "out", tmp_path)) == {"http://x/0": None, "http://x/1": "lost_upstream"}


CAPTIONS = {
    "UTF-8": ("a café".encode(), "a café"),
    "UTF-8 with its mark": (b"\xef\xbb\xbfa caf\xc3\xa9\r\n", "a café"),
    "UTF-16 with its mark": ("a café".encode("utf-16"), "a café"),
    "UTF-16 of the other order": (b"\xfe\xff" + "a café".encode("utf-16-be"), "a café"),
    "Windows-1252": ("a “café”".encode("cp1252"), "unreadable_caption: UnicodeDecodeError"),
    "UTF-16 without its mark": ("a cafe".encode("utf-16-le"), "unreadable_caption"),
    "UTF-32 with its mark": ("a café".encode("utf-32"), "a café"),
    "half of UTF-16": ("a café".encode("utf-16")[:-1], "unreadable_caption: UnicodeDecodeError"),
    "a mark alone": (b"\xef\xbb\xbf", "empty_caption"),
    "long": (b"x" * 20_000, "caption_too_long"),
    "very long": (b"x" * 200_000, "caption_too_long"),
}

LEGACY = {"Latin-1": ("latin-1", "a café"), "Chinese": ("gb18030", "红色的狐狸，黄昏"), "Japanese": ("cp932", "赤い狐と表の能力")}
"""Encodings and texts; the Japanese one has a backslash for a second byte."""


class TestCaptions:
    @pytest.mark.parametrize("kind", CAPTIONS)
    def test_a_caption_is_read_by_its_byte_order_mark_or_as_utf8_or_refused(self, tmp_path: Path, kind: str) -> None:
        data, expected = CAPTIONS[kind]
        members: list[Member] = [("a.jpg", picture_bytes(image_format="JPEG")), ("a.txt", data), *BESIDE]
        (row, _) = packed(write_tar(tmp_path / "0.tar", members), tmp_path)
        assert (row["error_message"] or row["caption"]) == expected

    @pytest.mark.parametrize(
        ("name", "data"),
        [("a.caption", b"fox"), ("a.json", b'{"caption": "fox"}'), ("a.json", json.dumps({"caption": "fox"}).encode("utf-16"))],
    )
    def test_a_caption_in_a_file_of_another_kind_is_read(self, tmp_path: Path, name: str, data: bytes) -> None:
        packed(write_tar(tmp_path / "0.tar", [("a.jpg", picture_bytes(image_format="JPEG")), (name, data)]), tmp_path)
        assert captions(tmp_path) == ["fox"]

    @pytest.mark.parametrize("kind", LEGACY)
    def test_a_caption_is_read_in_the_declared_encoding_if_it_is_not_utf8(self, tmp_path: Path, kind: str) -> None:
        name, text = LEGACY[kind]
        parts = {"a.txt": text.encode(name), "b.json": b'{"caption": "%s"}' % text.encode(name), "c.txt": text.encode()}
        pictures: list[Member] = [(f"{letter}.jpg", picture_bytes(image_format="JPEG")) for letter in "abc"]
        tar = write_tar(tmp_path / "0.tar", [*pictures, *parts.items()])
        assert {row["error_message"] for row in packed(tar, tmp_path) if row["caption"] != text} == {
            "unreadable_caption: UnicodeDecodeError"
        }
        sharding = SHARDING.model_copy(update={"caption_encoding": name})
        run(tmp_path / "source", tmp_path / "declared", sharding)
        assert [sample.caption for sample in samples_of(tmp_path / "declared")] == [text] * 3

    def test_tars_are_not_rewritten_so_the_encoding_is_the_configurations(self, tmp_path: Path) -> None:
        tar = write_tar(tmp_path / "0.tar", list(BESIDE))
        with pytest.raises(InputError, match=r"read as they are: .* rglcd config set sharding.caption_encoding=cp932"):
            use(str(tar), tmp_path / "source", caption_encoding="cp932")
        assert not (tmp_path / "source" / "shards.json").exists()

    def test_half_of_a_surrogate_pair_in_a_json_caption_is_refused(self, tmp_path: Path) -> None:
        members: list[Member] = [("a.jpg", picture_bytes(image_format="JPEG")), ("a.json", rb'{"caption": "\ud83d"}'), *BESIDE]
        rows = packed(write_tar(tmp_path / "0.tar", members), tmp_path)
        assert reasons(rows) == {"0.tar/a": "unreadable_caption: UnicodeEncodeError", "0.tar/beside": None}


_NAMES = st.binary(max_size=12).map(lambda name: os.fsdecode(name.replace(b"/", b"").replace(b"\0", b"")))
_TEXTS = st.binary(max_size=30) | st.text(max_size=30).map(lambda text: text.encode("utf-16", "surrogatepass"))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=9), lambda inner: st.lists(inner, max_size=3)
)
_FACTS = st.dictionaries(st.sampled_from(("caption", "url", "key")), _VALUES).map(lambda facts: json.dumps(facts).encode())
_OF_CAPTIONS = (Reason.EMPTY_CAPTION, Reason.CAPTION_TOO_LONG, Reason.UNREADABLE_CAPTION)
_CAPTIONS = st.tuples(st.sampled_from(("txt", "caption")), _TEXTS) | st.tuples(st.just("json"), _FACTS | _TEXTS)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(samples=st.lists(st.tuples(_NAMES, _CAPTIONS), max_size=10), encoding=st.sampled_from((None, "iso8859-1", "gb18030")))
def test_names_captions_and_json_in_any_bytes_are_samples_or_have_a_reason(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, tuple[str, bytes]]], encoding: str | None
) -> None:
    folder, members = tmp_path_factory.mktemp("any"), list(BESIDE)
    for number, (name, (kind, data)) in enumerate(samples):
        members += [(f"{number}{name}.jpg", picture_bytes(image_format="JPEG")), (f"{number}{name}.{kind}", data)]
    use(str(write_tar(folder / "0.tar", members)), folder / "source")
    facts = run(folder / "source", folder / "shards", SHARDING.model_copy(update={"caption_encoding": encoding}))
    assert facts["rows"] == len(samples) + 1 == facts["samples"] + sum(facts["reasons"].values())
    assert set(facts["reasons"]) <= {*_OF_CAPTIONS, Reason.UNKNOWN_EXTENSION, Reason.INCOMPLETE_SAMPLE}
