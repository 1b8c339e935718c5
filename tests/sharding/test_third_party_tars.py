import functools
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rglcd.errors import InputError, TryAgain
from rglcd.sharding.accounting import Reason
from rglcd.sharding.content_store import ContentStore
from rglcd.sharding.import_source import use
from rglcd.sharding.source import MAX_IMAGE_BYTES, Candidate, parse_row, read_lines
from rglcd.sharding.third_party_tars import LISTING, ReadyShards
from tests.sharding.hostile_server import picture_bytes

Member = tuple[str | tarfile.TarInfo, bytes]


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, body in members:
            header = tarfile.TarInfo(name) if isinstance(name, str) else name
            header.size = len(body)
            tar.addfile(header, io.BytesIO(body))
    return path


def sample(key: str, seed: int = 0, url: str | None = None) -> list[Member]:
    facts = [] if url is None else [(f"{key}.json", json.dumps({"url": url}).encode())]
    return [(f"{key}.jpg", picture_bytes(seed, image_format="JPEG")), (f"{key}.txt", f"caption {key}".encode()), *facts]


def candidates(source: Path, store: ContentStore | None = None) -> list[Candidate]:
    opened = ReadyShards.open(source / LISTING, store)
    return [candidate for number in range(opened.num_shards) for candidate in opened.candidates(number)]


class TestWebdataset:
    def test_samples_come_in_the_order_of_their_keys(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "wds" / "00001.tar", sample("b", 2) + sample("a", 1, url="https://example.com/1.jpg"))
        write_tar(tmp_path / "wds" / "00000.tar", sample("c", 3))
        use(str(tmp_path / "wds"), tmp_path / "source")
        assert candidates(tmp_path / "source") == [
            Candidate("00000.tar/c", "caption c", picture_bytes(3, image_format="JPEG")),
            Candidate("https://example.com/1.jpg", "caption a", picture_bytes(1, image_format="JPEG")),
            Candidate("00001.tar/b", "caption b", picture_bytes(2, image_format="JPEG")),
        ]

    def test_braces_name_several_tars(self, tmp_path: Path) -> None:
        for number in range(12):
            write_tar(tmp_path / f"cc12m-{number:04d}.tar", sample(f"{number}"))
        use(str(tmp_path / "cc12m-{0003..0010}.tar"), tmp_path / "source")
        assert [candidate.caption for candidate in candidates(tmp_path / "source")] == [f"caption {number}" for number in range(3, 11)]

    @pytest.mark.parametrize("cut", [512, 1024, 2048, -1024, -1536, -10240])
    def test_a_tar_without_its_end_is_refused(self, tmp_path: Path, cut: int) -> None:
        path = write_tar(tmp_path / "0.tar", [member for key in "abcd" for member in sample(key)])
        whole = path.read_bytes()
        end = whole.rindex(b"caption d") // 512 * 512 + 512
        path.write_bytes(whole[: end + cut] if cut < 0 else whole[:cut])
        use(str(path), tmp_path / "source")
        with pytest.raises(InputError, match=r"0\.tar (was cut|is not a tar)"):
            candidates(tmp_path / "source")

    def test_samples_of_one_name_in_two_folders_are_two(self, tmp_path: Path) -> None:
        members = [*sample("a/000", 1), *sample("b/000", 2), *sample("./000", 3)]
        use(str(write_tar(tmp_path / "0.tar", members)), tmp_path / "source")
        found = candidates(tmp_path / "source")
        assert [(candidate.url, candidate.caption) for candidate in found] == [
            ("0.tar/000", "caption ./000"),
            ("0.tar/a/000", "caption a/000"),
            ("0.tar/b/000", "caption b/000"),
        ]

    def test_a_tar_with_too_many_members_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rglcd.sharding.tar_index.MAX_MEMBERS", 5)
        use(str(write_tar(tmp_path / "0.tar", [member for key in "abc" for member in sample(key)])), tmp_path / "source")
        with pytest.raises(InputError, match=r"0\.tar holds more than 5 members, 'c\.txt' the first too many; split it"):
            candidates(tmp_path / "source")

    @pytest.mark.parametrize(("kind", "size"), [(tarfile.REGTYPE, -512), (tarfile.XHDTYPE, 1 << 30), (tarfile.GNUTYPE_LONGNAME, 1 << 30)])
    def test_a_header_of_negative_or_huge_size_is_refused(self, tmp_path: Path, kind: bytes, size: int) -> None:
        header = tarfile.TarInfo("a.jpg")
        header.type, header.size = kind, size
        (tmp_path / "0.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        use(str(tmp_path / "0.tar"), tmp_path / "source")
        with pytest.raises(InputError, match=rf"member 'a\.jpg' says that it has {size} bytes"):
            candidates(tmp_path / "source")

    def test_links_devices_and_escaping_names_are_never_followed(self, tmp_path: Path) -> None:
        link = tarfile.TarInfo("evil.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members: list[Member] = [(link, b""), ("evil.txt", b"a link"), ("../../up.jpg", picture_bytes(1)), ("../../up.txt", b"climbs")]
        members += [("code.pkl", b"pickle"), ("code.txt", b"a pickle"), ("alone.png", picture_bytes(2)), *sample("good")]
        use(str(write_tar(tmp_path / "0.tar", members)), tmp_path / "source")
        found = {candidate.url: candidate for candidate in candidates(tmp_path / "source")}
        assert {url: candidate.reason for url, candidate in found.items()} == {
            "0.tar/alone": Reason.INCOMPLETE_SAMPLE,
            "0.tar/code.pkl": Reason.UNKNOWN_EXTENSION,
            "0.tar/evil": Reason.INCOMPLETE_SAMPLE,
            "0.tar/good": None,
            "0.tar/../../up": None,  # a name is a label here, and nothing is ever written to it
        }
        assert not (tmp_path.parent / "up.jpg").exists()

    def test_oversized_images_and_blank_captions_have_their_reasons(self, tmp_path: Path) -> None:
        members: list[Member] = [
            ("big.jpg", bytes(MAX_IMAGE_BYTES + 1)),
            ("big.txt", b"x"),
            ("mute.jpg", picture_bytes()),
            ("mute.txt", b" "),
        ]
        use(str(write_tar(tmp_path / "0.tar", members)), tmp_path / "source")
        assert [candidate.reason for candidate in candidates(tmp_path / "source")] == [Reason.TOO_LARGE, Reason.EMPTY_CAPTION]

    def test_a_tar_changed_since_it_was_listed_is_refused(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "0.tar", sample("a"))
        use(str(path), tmp_path / "source")
        write_tar(path, sample("b"))
        with pytest.raises(InputError, match="has changed since it was listed"):
            candidates(tmp_path / "source")


class TestFromElsewhere:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        import fsspec

        filesystem = fsspec.filesystem("memory")
        path = write_tar(tmp_path / "0.tar", sample("a") + sample("b"))
        filesystem.pipe_file("/shards/0.tar", path.read_bytes())
        use("memory://shards", tmp_path / "source")
        return tmp_path / "source"

    def test_a_remote_tar_is_fetched_once(self, source: Path, tmp_path: Path) -> None:
        import fsspec

        store = ContentStore(tmp_path / "store")
        first = candidates(source, store)
        assert [candidate.caption for candidate in first] == ["caption a", "caption b"]
        fsspec.filesystem("memory").rm("/shards", recursive=True)
        assert candidates(source, store) == first

    def test_a_remote_tar_without_a_download_store_is_refused(self, source: Path) -> None:
        with pytest.raises(InputError, match=r"set sharding\.download\.kind=web"):
            candidates(source)

    def test_a_remote_tar_that_was_replaced_is_refused(self, source: Path, tmp_path: Path) -> None:
        import fsspec

        fsspec.filesystem("memory").pipe_file("/shards/0.tar", b"another")
        with pytest.raises(InputError, match=r"gave 7 bytes, not \d+"):
            candidates(source, ContentStore(tmp_path / "store"))


class TestImg2dataset:
    @pytest.fixture
    def output(self, tmp_path: Path) -> Path:
        """Four rows: one failed, one was lost when the tar was cut."""
        write_tar(tmp_path / "out" / "00000.tar", sample("000000002", 2) + sample("000000000", 0))
        rows = [
            {"key": f"{number:09d}", "url": f"https://a/{number}", "caption": f"row {number}", "status": status}
            for number, status in enumerate(["success", "failed_to_download", "success", "success"])
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "out" / "00000.parquet")
        return tmp_path / "out"

    def test_every_row_of_the_parquet_file_is_accounted_for(self, output: Path, tmp_path: Path) -> None:
        use(str(output), tmp_path / "source")
        found = candidates(tmp_path / "source")
        assert [candidate.reason for candidate in found] == [None, Reason.FAILED_UPSTREAM, None, Reason.LOST_UPSTREAM]
        assert [candidate.url for candidate in found] == [f"https://a/{number}" for number in range(4)]

    def test_a_broken_parquet_file_is_refused(self, output: Path, tmp_path: Path) -> None:
        (output / "00000.parquet").write_bytes(b"broken")
        use(str(output), tmp_path / "source")
        with pytest.raises(InputError, match=r"00000\.parquet is not img2dataset's"):
            candidates(tmp_path / "source")


class TestUse:
    def test_a_tsv_is_copied(self, tmp_path: Path) -> None:
        (tmp_path / "cc12m.tsv").write_bytes(b"https://a/b\tcaption\n")
        assert "20 bytes" in " ".join(use(str(tmp_path / "cc12m.tsv"), tmp_path / "source"))
        assert (tmp_path / "source" / "index.tsv").read_bytes() == b"https://a/b\tcaption\n"

    def test_a_folder_of_images_becomes_an_index_with_them(self, tmp_path: Path) -> None:
        photos = tmp_path / "photos"
        (photos / "more").mkdir(parents=True)
        (photos / "a.PNG").write_bytes(picture_bytes(1))
        (photos / "a.txt").write_text("first\n line\n")
        (photos / "more" / "b.jpg").write_bytes(picture_bytes(2, image_format="JPEG"))
        (photos / "notes.md").write_text("no image")
        use(str(photos), tmp_path / "source")
        assert list(read_lines(tmp_path / "source" / "index.tsv")) == [b"images/a.PNG\tfirst line", b"images/more/b.jpg\t"]
        row = parse_row(next(iter(read_lines(tmp_path / "source" / "index.tsv"))))
        assert (tmp_path / "source" / row.url).read_bytes() == picture_bytes(1)

    def test_a_new_source_replaces_one_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "a.tsv").write_bytes(b"https://a/b\tcaption\n")
        path = write_tar(tmp_path / "0.tar", sample("a"))
        (tmp_path / "source" / "prompts").mkdir(parents=True)
        for what, names in [("a.tsv", ["index.tsv", "prompts"]), (path.name, ["prompts", LISTING]), ("a.tsv", ["index.tsv", "prompts"])]:
            use(str(tmp_path / what), tmp_path / "source")
            assert sorted(entry.name for entry in (tmp_path / "source").iterdir()) == names

    @pytest.mark.parametrize("what", ["none.tsv", "none.tar", "nowhere", "empty", "nosuch://bucket/a", "memory://none"])
    def test_data_that_is_no_known_source_is_refused(self, tmp_path: Path, what: str) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError):
            use(what if "://" in what else str(tmp_path / what), tmp_path / "source")

    def test_the_toy_corpus_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "corpus.json").write_text("{}")
        with pytest.raises(InputError, match="holds the toy corpus"):
            use("a.tsv", tmp_path)


class TestBrackets:
    @pytest.mark.parametrize("name", ["tars [2024]", "tars {x", "what*ever", "tars {a,b}"])
    def test_a_folder_with_brackets_in_its_name_is_that_folder(self, tmp_path: Path, name: str) -> None:
        write_tar(tmp_path / name / "0.tar", sample("a"))
        use(str(tmp_path / name), tmp_path / "source")
        assert [candidate.caption for candidate in candidates(tmp_path / "source")] == ["caption a"]

    @pytest.mark.parametrize("name", ["[1].tar", "{x.tar", "x}.tar", "{a,b}.tar", "{0..3}.tar"])
    def test_a_tar_with_brackets_in_its_name_is_that_tar(self, tmp_path: Path, name: str) -> None:
        use(str(write_tar(tmp_path / name, sample("a"))), tmp_path / "source")
        assert [candidate.caption for candidate in candidates(tmp_path / "source")] == ["caption a"]

    def test_a_prefix_with_brackets_in_an_object_store_is_that_prefix(self, tmp_path: Path) -> None:
        import fsspec

        whole = write_tar(tmp_path / "0.tar", sample("a")).read_bytes()
        fsspec.filesystem("memory").pipe_file("/brackets/sh [1]/{x/0.tar", whole)
        for what in ("memory://brackets/sh [1]/{x", "memory://brackets/sh [1]/{x/0.tar"):
            use(what, tmp_path / "source")
            assert [candidate.caption for candidate in candidates(tmp_path / "source", ContentStore(tmp_path / "store"))] == ["caption a"]

    def test_folders_that_a_pattern_stands_for_are_still_found(self, tmp_path: Path) -> None:
        for number in range(2):
            write_tar(tmp_path / f"part{number}" / f"{number}.tar", sample(f"{number}"))
        use(str(tmp_path / "part[01]"), tmp_path / "source")
        assert [candidate.caption for candidate in candidates(tmp_path / "source")] == ["caption 0", "caption 1"]

    @pytest.mark.parametrize("name", ["{x.tar", "x}{.tar", "{1..3..0}.tar"])
    def test_braces_that_stand_for_nothing_are_a_clear_error(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InputError, match=r"\.tar"):
            use(str(tmp_path / name), tmp_path / "source")


class _CutsFirst(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; the first ``faults`` answers to GET end in the middle, or in 503."""

    faults: ClassVar[list[str]]

    def do_GET(self) -> None:
        fault = self.faults.pop() if self.faults else ""
        if fault == "busy":
            self.send_error(503)
            return
        whole = Path(self.translate_path(self.path)).read_bytes() if Path(self.translate_path(self.path)).is_file() else None
        if whole is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[: len(whole) // 2] if fault == "cut" else whole)
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class TestOverHttp:
    @pytest.fixture
    def server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
        """Its address, and the faults of the requests to come."""
        write_tar(tmp_path / "served" / "0.tar", sample("a"))
        faults: list[str] = []
        handler = type("Handler", (_CutsFirst,), {"faults": faults})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path / "served"))) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}", faults
            server.shutdown()

    @pytest.mark.parametrize("fault", ["cut", "busy"])
    def test_a_fault_that_passes_costs_no_run(self, server: tuple[str, list[str]], fault: str, tmp_path: Path) -> None:
        """One of two thousand tars that broke off ended the stage, and as bad input: exit code 2, never tried again."""
        address, faults = server
        use(f"{address}/0.tar", tmp_path / "source")
        faults += [fault, fault]
        store = ContentStore(tmp_path / "store")
        assert [candidate.caption for candidate in candidates(tmp_path / "source", store)] == ["caption a"]
        assert len(list((store.folder / "objects").glob("*/*"))) == 1

    def test_one_that_lasts_asks_to_try_again(self, server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        address, faults = server
        use(f"{address}/0.tar", tmp_path / "source")
        monkeypatch.setattr("rglcd.store.connection.NUM_ATTEMPTS", 2)
        faults += ["busy"] * 20
        with pytest.raises(TryAgain, match=r"0\.tar cannot be reached \(2 attempts"):
            candidates(tmp_path / "source", ContentStore(tmp_path / "store"))

    def test_a_tar_that_is_there_no_more_is_bad_input(self, server: tuple[str, list[str]], tmp_path: Path) -> None:
        use(f"{server[0]}/0.tar", tmp_path / "source")
        (tmp_path / "served" / "0.tar").unlink()
        with pytest.raises(InputError, match=r"0\.tar is missing; if it was moved: rglcd data use"):
            candidates(tmp_path / "source", ContentStore(tmp_path / "store"))
