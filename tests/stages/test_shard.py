import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rglcd import progress
from rglcd.config import Sharding, WebDownload
from rglcd.errors import InputError
from rglcd.sharding.accounting import Reason
from rglcd.sharding.decoding import decode
from rglcd.sharding.import_source import use
from rglcd.sharding.shards import Sample, read_shard, shard_entries
from rglcd.stages.run import Output, run_stage
from rglcd.stages.shard import shard
from rglcd.store.manifest import Manifest, results_digest, scan, sha256_of, write_manifest
from rglcd.store.work_unit import Part
from tests.sharding.hostile_server import FORBIDDEN, OPEN, HostileServer, picture_bytes
from tests.sharding.test_third_party_tars import sample as ready_sample
from tests.sharding.test_third_party_tars import write_tar

SHARDING = Sharding(resolution=8, image_format="png", samples_per_shard=4)


def write_source(folder: Path, *, num_images: int) -> Path:
    """A source folder of ``num_images`` drawings, one row of each of three faults after the second."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(num_images):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:05d}.png")
        rows.append(f"images/{number:05d}.png\tcaption {number}")
    rows[2:2] = ["https://example.com/a.jpg\tfar away", "images/none.png\tnowhere", "images/00000.png\t "]
    (folder / "index.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("data") / "source", num_images=17)


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    return files_after_run(source, tmp_path_factory.mktemp("unbroken"))


def run(source: Path, folder: Path, sharding: Sharding = SHARDING) -> Mapping[str, Any]:
    folder.mkdir(exist_ok=True)
    return shard(sharding, source=source, shards=Output(folder, None))


def files_after_run(source: Path, folder: Path, sharding: Sharding = SHARDING) -> dict[str, bytes]:
    run(source, folder, sharding)
    return files_of(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples_of(folder: Path) -> list[Sample]:
    files = scan(folder)
    write_manifest(folder, Manifest("shards", "shard", 1, "key", results_digest(files), {}, {}, files))
    return [sample for entry in shard_entries(folder) for sample in read_shard(folder / entry.name, entry)]


class TestContent:
    def test_facts_account_for_every_row(self, source: Path, tmp_path: Path) -> None:
        facts = run(source, tmp_path)
        reasons = {"empty_caption": 1, "missing_file": 1, "not_downloaded": 1}
        assert facts == {"rows": 20, "samples": 17, "shards": 5, "reasons": reasons}
        assert facts["rows"] == facts["samples"] + sum(facts["reasons"].values())

    def test_samples_are_the_rows_with_their_pixels(self, source: Path, tmp_path: Path) -> None:
        run(source, tmp_path)
        samples = samples_of(tmp_path)
        assert [sample.caption for sample in samples] == [f"caption {number}" for number in range(17)]
        assert [sample.key for sample in samples[:4]] == ["000000", "000001", "000011", "000012"]
        for number, sample in enumerate(samples):
            with Image.open(source / "images" / f"{number:05d}.png") as original:
                assert np.array_equal(np.asarray(decode(sample.image)), np.asarray(original))
        assert samples[0].facts == {
            "key": "000000",
            "url": "images/00000.png",
            "caption": "caption 0",
            "status": "success",
            "error_message": None,
            "sha256": sha256_of(source / "images" / "00000.png"),
            "width": 8,
            "height": 8,
            "original_width": 8,
            "original_height": 8,
        }

    def test_max_rows(self, source: Path, tmp_path: Path) -> None:
        facts = run(source, tmp_path, SHARDING.model_copy(update={"max_rows": 6}))
        assert (facts["rows"], facts["samples"], facts["shards"]) == (6, 3, 2)

    @pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
    def test_images_have_the_resolution_and_format_asked_for(self, source: Path, tmp_path: Path, image_format: str) -> None:
        sharding = SHARDING.model_copy(update={"resolution": 5, "image_format": image_format})
        run(source, tmp_path, sharding)
        assert {decode(sample.image).size for sample in samples_of(tmp_path)} == {(5, 5)}

    def test_no_sample_at_all_is_an_error_with_the_reasons(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "index.tsv").write_text("http://a/b\tfar\nfile:/etc/passwd\tnear\n")
        with pytest.raises(InputError, match=r"no row became a sample \(2 rows, 0 samples, forbidden_scheme 1, not_downloaded 1\)"):
            run(tmp_path / "source", tmp_path / "shards")

    def test_progress_counts_rows_to_the_end(self, source: Path, tmp_path: Path) -> None:
        events: list[progress.Event] = []
        with progress.reporting_to(events.append):
            run(source, tmp_path)
        assert [event.done for event in events] == sorted(event.done for event in events)
        assert (events[0].done, events[-1].done, events[-1].total) == (0, 20, 20)


URLS = st.sampled_from(
    [b"good.png", b"broken.png", b"http://x/y", b"file:///etc/passwd", b"../secret.png", b"/etc/passwd", b"none.png", b"."]
)
ROWS = st.one_of(
    st.binary(max_size=30),
    st.builds(lambda url, caption: url + b"\t" + caption, URLS, st.binary(max_size=30) | st.just(b"a caption")),
).map(lambda row: row.replace(b"\n", b" "))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(ROWS, max_size=12), rows_per_shard=st.integers(2, 9))
def test_hostile_rows_never_crash_and_always_add_up(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], rows_per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    source = folder / "source"
    source.mkdir()
    Image.new("RGB", (9, 7), "red").save(source / "good.png")
    (source / "broken.png").write_bytes((source / "good.png").read_bytes()[:50])
    (folder / "secret.png").write_bytes((source / "good.png").read_bytes())
    (source / "index.tsv").write_bytes(b"".join(row + b"\n" for row in [b"good.png\tfirst", *rows]))
    facts = run(source, folder / "shards", SHARDING.model_copy(update={"samples_per_shard": rows_per_shard}))
    assert facts["rows"] == len(rows) + 1 == facts["samples"] + sum(facts["reasons"].values())
    assert set(facts["reasons"]) <= {reason.value for reason in Reason}
    assert {sample.facts["url"].removeprefix("./") for sample in samples_of(folder / "shards")} == {"good.png"}


class TestByteIdentity:
    def test_again_elsewhere(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
        assert files_after_run(source, tmp_path) == unbroken

    def test_on_top_of_itself(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
        run(source, tmp_path)
        assert files_after_run(source, tmp_path) == unbroken

    @pytest.mark.parametrize("parts", [2, 3, 7])
    def test_parts_change_no_byte(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path, parts: int) -> None:
        assert files_after_run(source, tmp_path, SHARDING.model_copy(update={"parts": parts})) == unbroken

    @pytest.mark.parametrize("count", [2, 5, 9])
    def test_parts_of_the_work_make_the_whole(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path, count: int) -> None:
        for index in reversed(range(count)):
            shard(SHARDING, source=source, shards=Output(tmp_path, None, Part(index, count)))
        made = {name: data for name, data in unbroken.items() if name[0] == "0"}
        assert files_of(tmp_path) == made
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        assert files_after_run(source, tmp_path) == unbroken
        assert {name: (tmp_path / name).stat().st_mtime_ns for name in made} == before

    def test_a_shard_depends_on_its_rows_alone(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
        changed = shutil.copytree(source, tmp_path / "source")
        lines = (source / "index.tsv").read_text().splitlines()
        (changed / "index.tsv").write_text("\n".join([*lines[:4], "images/00009.png\tother", *lines[5:]]) + "\n")
        files = files_after_run(changed, tmp_path / "shards")
        assert {name for name, data in files.items() if data != unbroken[name]} == {
            "00001.parquet",
            "00001.tar",
            "00001_stats.json",
            "survival.json",
            "index.html",
        }

    @pytest.mark.parametrize("num_finished", range(5))
    @pytest.mark.parametrize(
        "state", ["no stats", "cut tar", "altered tar", "half a tar aside", "half stats aside", "cut stats", "no parquet"]
    )
    def test_after_a_kill(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path, num_finished: int, state: str) -> None:
        """Each state that a kill (or a disk) can leave, at each shard."""
        names = sorted(unbroken)[: 3 * num_finished + 3]
        for name in names:
            (tmp_path / name).write_bytes(unbroken[name])
        parquet, tar, stats = (tmp_path / name for name in names[-3:])
        whole = tar.read_bytes()
        if state in ("no stats", "half a tar aside", "half stats aside"):
            stats.unlink()
        if state == "half a tar aside":
            tar.unlink()
            (tmp_path / f".{tar.name}.aside").write_bytes(whole[: len(whole) // 2])
        if state == "half stats aside":
            (tmp_path / f".{stats.name}.4711.aside").write_text("{")
        if state == "no parquet":
            parquet.unlink()
        if state == "cut tar":
            tar.write_bytes(whole[: len(whole) // 2])
        if state == "altered tar":
            tar.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
        if state == "cut stats":
            stats.write_bytes(stats.read_bytes()[:-9])
        assert files_after_run(source, tmp_path) == unbroken

    def test_a_finished_shard_is_taken_over_not_made_again(self, source: Path, tmp_path: Path) -> None:
        run(source, tmp_path)
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        (tmp_path / "00002_stats.json").unlink()
        run(source, tmp_path)
        after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        assert {name for name in after if after[name] != before[name] and name.startswith("0")} == {
            "00002.parquet",
            "00002.tar",
            "00002_stats.json",
        }


def run_until_killed(sections: dict[str, Sharding], artifacts: dict[str, Path], *, rows_before_kill: int) -> int:
    """Run the stage in a process of its own, SIGKILL it when it has reported so many rows, and return its exit code."""
    reports, at_child = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        with progress.reporting_to(lambda event: at_child.send(event.done)):
            run_stage("shard", sections, artifacts)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    at_child.close()
    try:
        while reports.recv() < rows_before_kill:
            pass
    except EOFError:
        raise AssertionError("the stage ended before it was killed") from None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode or 0


def test_killed_by_sigkill_again_and_again_it_ends_byte_identical(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", num_images=120)
    sections = {"sharding": SHARDING.model_copy(update={"samples_per_shard": 3})}
    artifacts = {"source": source, "shards": tmp_path / "killed" / "shards"}
    run_stage("shard", sections, artifacts | {"shards": tmp_path / "unbroken" / "shards"})

    for rows_before_kill in (1, 3, 15, 31, 60, 61, 90, 102):
        assert run_until_killed(sections, artifacts, rows_before_kill=rows_before_kill) == -signal.SIGKILL
        assert not (artifacts["shards"] / "manifest.json").exists()

    outcome = run_stage("shard", sections, artifacts)
    files = files_of(artifacts["shards"])
    expected = files_of(tmp_path / "unbroken" / "shards")
    assert outcome.manifest.digest == json.loads(expected["manifest.json"])["digest"]
    assert files.keys() == expected.keys()
    assert [name for name in files if files[name] != expected[name]] in ([], ["manifest.json", "timings.json"])


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

    def test_killed_while_downloading_it_ends_byte_identical(self, hostile: Path, tmp_path: Path) -> None:
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
    def test_they_become_ours(self, tmp_path: Path) -> None:
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

    def test_max_rows_does_not_go_with_them(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "0.tar", ready_sample("a"))
        use(str(tmp_path / "0.tar"), tmp_path / "source")
        with pytest.raises(InputError, match="set it to null"):
            run(tmp_path / "source", tmp_path / "shards", WEB.model_copy(update={"max_rows": 3}))


class TestDuplicates:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        """Six rows: two files of the same bytes, and one of the same pixels in another format."""
        folder = tmp_path / "source"
        folder.mkdir()
        for name, seed, image_format in [
            ("a", 1, "PNG"),
            ("b", 2, "PNG"),
            ("c", 1, "PNG"),
            ("d", 3, "PNG"),
            ("e", 2, "BMP"),
            ("f", 1, "PNG"),
        ]:
            (folder / f"{name}.png").write_bytes(picture_bytes(seed, image_format=image_format))
        (folder / "index.tsv").write_text("".join(f"{name}.png\tcaption {name}\n" for name in "abcdef"))
        return folder

    @pytest.mark.parametrize(("kind", "kept"), [("none", "abcdef"), ("exact", "abde"), ("perceptual", "abd")])
    def test_the_first_of_equal_images_is_kept_across_shards(self, source: Path, tmp_path: Path, kind: str, kept: str) -> None:
        sharding = SHARDING.model_copy(update={"deduplication": kind, "samples_per_shard": 2})
        facts = run(source, tmp_path / "shards", sharding)
        assert "".join(sample.caption[-1] for sample in samples_of(tmp_path / "shards")) == kept
        assert facts["reasons"].get("duplicate", 0) == 6 - len(kept)

    def test_after_a_kill_too(self, source: Path, tmp_path: Path) -> None:
        sharding = SHARDING.model_copy(update={"deduplication": "exact", "samples_per_shard": 2})
        unbroken = files_after_run(source, tmp_path / "unbroken", sharding)
        run(source, tmp_path / "killed", sharding)
        for name in ("00001_stats.json", "00002_stats.json"):
            (tmp_path / "killed" / name).unlink()
        assert files_after_run(source, tmp_path / "killed", sharding) == unbroken
