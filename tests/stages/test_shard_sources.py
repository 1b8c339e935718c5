"""The stage ``shard`` on sources that a plain index is not: the web, ready-made shards, images that occur twice."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rglcd.config import Sharding, WebDownload
from rglcd.errors import InputError
from rglcd.sharding.decoding import decode
from rglcd.sharding.import_source import use
from rglcd.stages.run import run_stage
from tests.sharding.hostile_server import FORBIDDEN, OPEN, HostileServer, picture_bytes
from tests.sharding.test_third_party_tars import sample as ready_sample
from tests.sharding.test_third_party_tars import write_tar
from tests.stages.sharding_runs import SHARDING, files_after_run, files_of, run, run_until_killed, samples_of

WEB = SHARDING.model_copy(update={"image_format": "jpeg", "resolution": 16})


def web(store: Path, **changes: Any) -> Sharding:
    """Downloading from the test's server, and nothing that takes a test's patience."""
    limits = {"total_seconds": 4.5, "min_bytes_per_second": 10_000, "max_bytes": 200_000, "num_retries": 1}
    download = WebDownload(store=str(store), allowed_networks=(f"{OPEN}/32",), **(limits | changes))
    return WEB.model_copy(update={"download": download})


def write_hostile_source(folder: Path, server: HostileServer) -> Path:
    """Ten good rows among every kind of bad one."""
    inside = f"http://{FORBIDDEN}:{server.forbidden_port}/secret"
    bad = ["status/404", "status/403", "status/500", "drip", "endless", "announced-giant", "page", "gzip", "tag/noai", "redirect/9"]
    urls = [server.url(path) for path in bad] + [f"http://{OPEN}:{server.raw_port}/{path}" for path in ("truncated", "garbage", "reset")]
    urls += [
        inside,
        inside.replace(FORBIDDEN, "localhost"),
        inside.replace(FORBIDDEN, "2130706433"),
        server.url(f"redirect-to?url={inside}"),
    ]
    urls += ["file:///etc/passwd", "ftp://a/b", "http://nowhere.invalid/", "../index.tsv", "/etc/passwd"]
    urls += [server.url(f"image/{seed}") for seed in range(10)]
    rows = [f"{url}\tcaption {number}" for number, url in enumerate(urls)] + ["no tab", f"{server.url('image/0')}\t "]
    folder.mkdir(parents=True)
    (folder / "index.tsv").write_text("\n".join(rows) + "\n")
    return folder


class TestTheOpenWeb:
    @pytest.fixture(scope="class")
    def server(self) -> Iterator[HostileServer]:
        with HostileServer() as server:
            yield server

    @pytest.fixture(scope="class")
    def hostile(self, server: HostileServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_hostile_source(tmp_path_factory.mktemp("web") / "source", server)

    def test_every_row_of_a_hostile_server_is_accounted_for_and_nothing_forbidden_reached(
        self, server: HostileServer, hostile: Path, tmp_path: Path
    ) -> None:
        facts = run(hostile, tmp_path / "shards", web(tmp_path / "store"))
        reasons = facts["reasons"]
        assert (facts["rows"], facts["samples"]) == (34, 10)
        assert reasons == {
            "cut_short": 1,
            "empty_caption": 1,
            "forbidden_address": 3,
            "forbidden_path": 2,
            "forbidden_scheme": 2,
            "gone": 1,
            "malformed_row": 1,
            "malformed_url": 1,  # 2130706433 is 127.0.0.1 to a resolver, and no address to the client
            "opted_out": 1,
            "refused": 1,
            "server_error": 1,
            "timed_out": 1,
            "too_large": 2,
            "too_many_redirects": 1,
            "unknown_format": 2,
            "unreachable": 2,
            "unresolved": 1,
        }
        assert server.intrusions == 0

    def test_the_second_run_packs_the_same_bytes_without_the_network(self, hostile: Path, server: HostileServer, tmp_path: Path) -> None:
        first = files_after_run(hostile, tmp_path / "first", web(tmp_path / "store"))
        asked = server.requests.copy()
        assert files_after_run(hostile, tmp_path / "second", web(tmp_path / "store")) == first
        assert server.requests == asked
        (tmp_path / "store" / "records").rename(tmp_path / "forgotten")
        third = files_after_run(hostile, tmp_path / "third", web(tmp_path / "store"))
        assert server.requests != asked
        assert {name: data for name, data in third.items() if name.endswith(".tar")} == {
            name: data for name, data in first.items() if name.endswith(".tar")
        }

    def test_a_stage_killed_while_downloading_ends_byte_identical(self, hostile: Path, tmp_path: Path) -> None:
        sections = {"sharding": web(tmp_path / "store")}
        artifacts = {"source": hostile, "shards": tmp_path / "killed" / "shards"}
        for rows_before_kill in (1, 9, 21):
            assert run_until_killed(sections, artifacts, rows_before_kill=rows_before_kill) == -signal.SIGKILL
        run_stage("shard", sections, artifacts)
        unbroken = web(tmp_path / "store")
        run_stage("shard", {"sharding": unbroken}, artifacts | {"shards": tmp_path / "unbroken" / "shards"})
        expected, files = files_of(tmp_path / "unbroken" / "shards"), files_of(artifacts["shards"])
        assert {name: data for name, data in files.items() if name not in ("manifest.json", "timings.json")} == {
            name: data for name, data in expected.items() if name not in ("manifest.json", "timings.json")
        }


class TestReadyMadeShards:
    def test_ready_made_shards_become_shards_of_ours(self, tmp_path: Path) -> None:
        members = {
            number: [member for seed in range(3) for member in ready_sample(f"{number}{seed}", 10 * number + seed)] for number in range(2)
        }
        for number, parts in members.items():
            write_tar(tmp_path / "wds" / f"{number:05d}.tar", [*parts, ("x.jpg", b"no image"), ("x.txt", b"x")])
        use(str(tmp_path / "wds"), tmp_path / "source")
        facts = run(tmp_path / "source", tmp_path / "shards", WEB)
        assert facts == {"rows": 8, "samples": 6, "shards": 2, "reasons": {"unknown_format": 2}}
        samples = samples_of(tmp_path / "shards")
        assert [sample.caption for sample in samples] == [f"caption {number}{seed}" for number in range(2) for seed in range(3)]
        assert {decode(sample.image).size for sample in samples} == {(16, 16)}

    def test_max_rows_is_refused_for_ready_made_shards(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "0.tar", ready_sample("a"))
        use(str(tmp_path / "0.tar"), tmp_path / "source")
        with pytest.raises(InputError, match="set it to null"):
            run(tmp_path / "source", tmp_path / "shards", WEB.model_copy(update={"max_rows": 3}))


class TestDuplicates:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """Six rows: two files of the same bytes, and one of the same pixels in another format."""
        folder = tmp_path / "source"
        (folder / "images").mkdir(parents=True)
        for name, seed, image_format in [
            ("a", 1, "PNG"),
            ("b", 2, "PNG"),
            ("c", 1, "PNG"),
            ("d", 3, "PNG"),
            ("e", 2, "BMP"),
            ("f", 1, "PNG"),
        ]:
            (folder / "images" / f"{name}.png").write_bytes(picture_bytes(seed, image_format=image_format))
        (folder / "index.tsv").write_text("".join(f"images/{name}.png\tcaption {name}\n" for name in "abcdef"))
        return folder

    @pytest.mark.parametrize(("kind", "kept"), [("none", "abcdef"), ("exact", "abde"), ("perceptual", "abd")])
    def test_the_first_of_equal_images_is_kept_across_shards(self, source: Path, tmp_path: Path, kind: str, kept: str) -> None:
        sharding = SHARDING.model_copy(update={"deduplication": kind, "samples_per_shard": 2})
        facts = run(source, tmp_path / "shards", sharding)
        assert "".join(sample.caption[-1] for sample in samples_of(tmp_path / "shards")) == kept
        assert facts["reasons"].get("duplicate", 0) == 6 - len(kept)

    def test_deduplication_after_a_kill_keeps_the_same_images(self, source: Path, tmp_path: Path) -> None:
        sharding = SHARDING.model_copy(update={"deduplication": "exact", "samples_per_shard": 2})
        unbroken = files_after_run(source, tmp_path / "unbroken", sharding)
        run(source, tmp_path / "killed", sharding)
        for name in ("00001_stats.json", "00002_stats.json"):
            (tmp_path / "killed" / name).unlink()
        assert files_after_run(source, tmp_path / "killed", sharding) == unbroken


class TestADeclaredEncoding:
    @pytest.fixture
    def index(self, tmp_path: Path) -> Path:
        """Captions in Latin-1, in UTF-8, in nothing, and of two columns."""
        (tmp_path / "source" / "images").mkdir(parents=True)
        (tmp_path / "source" / "images" / "a.png").write_bytes(picture_bytes())
        rows = [b"a caf\xe9\r", "a café".encode(), b"a \x81", b"caf\xe9\tcaf\xe9"]
        (tmp_path / "theirs.tsv").write_bytes(b"".join(b"images/a.png\t%s\n" % row for row in rows))
        return tmp_path / "theirs.tsv"

    def test_an_index_is_rewritten_in_utf8_before_rows_are_held_out(self, index: Path, tmp_path: Path) -> None:
        said = use(str(index), tmp_path / "source", caption_encoding="cp1252")
        rows = (tmp_path / "source" / "index.tsv").read_bytes().splitlines()
        assert rows[0] == rows[1] == "images/a.png\ta café".encode()
        assert rows[2] == b"images/a.png\ta \x81", "no letter of cp1252: for shard to count"
        assert said[0].endswith(f"{sum(map(len, rows)) + 4} bytes")
        facts = run(tmp_path / "source", tmp_path / "shards")
        assert facts["reasons"] == {"malformed_row": 1, "unreadable_caption": 1}
        assert [one.caption for one in samples_of(tmp_path / "shards")] == ["a café", "a café"]

    def test_an_index_as_it_is_is_read_so_by_the_stage(self, index: Path, tmp_path: Path) -> None:
        use(str(index), tmp_path / "source")
        artifacts = {"source": tmp_path / "source", "shards": tmp_path / "shards"}
        kept = run_stage("shard", {"sharding": SHARDING}, artifacts).manifest
        read = run_stage("shard", {"sharding": SHARDING.model_copy(update={"caption_encoding": "cp1252"})}, artifacts).manifest
        assert [made.facts["reasons"]["unreadable_caption"] for made in (kept, read)] == [2, 1]
        assert kept.key != read.key, "another encoding is another computation"
