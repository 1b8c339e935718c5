import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rglcd import progress
from rglcd.errors import InputError, TryAgain
from rglcd.sharding.accounting import Reason
from rglcd.sharding.decoding import decode
from rglcd.sharding.source import MAX_ROW_BYTES
from rglcd.sharding.texts import MAX_CAPTION_BYTES
from rglcd.stages.run import Output, run_stage
from rglcd.stages.shard import shard
from rglcd.store.manifest import sha256_of
from rglcd.store.shard_tasks import Part
from tests.sharding.hostile_server import picture_bytes
from tests.stages.sharding_runs import SHARDING, files_after_run, files_of, run, run_until_killed, samples_of, write_source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("data") / "source", num_images=17)


@pytest.fixture(scope="module")
def unbroken(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nothing disturbed."""
    return files_after_run(source, tmp_path_factory.mktemp("unbroken"))


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

    def test_max_rows_packs_the_first_rows_only(self, source: Path, tmp_path: Path) -> None:
        facts = run(source, tmp_path, SHARDING.model_copy(update={"max_rows": 6}))
        assert (facts["rows"], facts["samples"], facts["shards"]) == (6, 3, 2)

    @pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
    def test_images_have_the_resolution_and_format_asked_for(self, source: Path, tmp_path: Path, image_format: str) -> None:
        sharding = SHARDING.model_copy(update={"resolution": 5, "image_format": image_format})
        run(source, tmp_path, sharding)
        assert {decode(sample.image).size for sample in samples_of(tmp_path)} == {(5, 5)}

    def test_an_index_without_a_single_sample_is_an_error_with_the_reasons(self, tmp_path: Path) -> None:
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
    [
        b"images/good.png",
        b"images/broken.png",
        b"index.tsv",
        b"http://x/y",
        b"file:///etc/passwd",
        b"../secret.png",
        b"/etc/passwd",
        b"images/none.png",
        b".",
    ]
)
ROWS = st.one_of(
    st.binary(max_size=30),
    st.builds(lambda url, caption: url + b"\t" + caption, URLS, st.binary(max_size=30) | st.just(b"a caption")),
).map(lambda row: row.replace(b"\n", b" "))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(ROWS, max_size=12), rows_per_shard=st.integers(2, 9))
def test_hostile_rows_never_crash_and_are_all_counted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], rows_per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    source = folder / "source"
    images = source / "images"
    images.mkdir(parents=True)
    Image.new("RGB", (9, 7), "red").save(images / "good.png")
    (images / "broken.png").write_bytes((images / "good.png").read_bytes()[:50])
    (folder / "secret.png").write_bytes((images / "good.png").read_bytes())
    (source / "index.tsv").write_bytes(b"".join(row + b"\n" for row in [b"images/good.png\tfirst", *rows]))
    facts = run(source, folder / "shards", SHARDING.model_copy(update={"samples_per_shard": rows_per_shard}))
    assert facts["rows"] == len(rows) + 1 == facts["samples"] + sum(facts["reasons"].values())
    assert set(facts["reasons"]) <= {reason.value for reason in Reason}
    assert {sample.facts["url"].removeprefix("./") for sample in samples_of(folder / "shards")} == {"images/good.png"}


class TestByteIdentity:
    def test_a_run_in_another_folder_makes_the_same_bytes(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
        assert files_after_run(source, tmp_path) == unbroken

    def test_a_second_run_in_the_same_folder_changes_no_byte(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path) -> None:
        run(source, tmp_path)
        assert files_after_run(source, tmp_path) == unbroken

    @pytest.mark.parametrize("parts", [2, 3, 7])
    def test_parts_change_no_byte(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path, parts: int) -> None:
        assert files_after_run(source, tmp_path, SHARDING.model_copy(update={"parts": parts})) == unbroken

    @pytest.mark.parametrize("count", [2, 5, 9])
    def test_the_parts_together_make_all_shards(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path, count: int) -> None:
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
        "state", ["no stats", "cut tar", "altered tar", "half a staged tar", "half staged stats", "cut stats", "no parquet"]
    )
    def test_a_kill_changes_no_byte(self, source: Path, unbroken: dict[str, bytes], tmp_path: Path, num_finished: int, state: str) -> None:
        """Each state that a kill (or a disk) can leave, at each shard."""
        names = sorted(unbroken)[: 3 * num_finished + 3]
        for name in names:
            (tmp_path / name).write_bytes(unbroken[name])
        parquet, tar, stats = (tmp_path / name for name in names[-3:])
        whole = tar.read_bytes()
        if state in ("no stats", "half a staged tar", "half staged stats"):
            stats.unlink()
        if state == "half a staged tar":
            tar.unlink()
            (tmp_path / f".{tar.name}.staging").write_bytes(whole[: len(whole) // 2])
        if state == "half staged stats":
            (tmp_path / f".{stats.name}.4711.staging").write_text("{")
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


def test_a_stage_killed_repeatedly_ends_byte_identical(tmp_path: Path) -> None:
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
    assert {name for name in files if files[name] != expected[name]} <= {"manifest.json", "timings.json"}


class TestRowsByTheirReasons:
    def test_a_row_refused_for_its_caption_keeps_its_url_in_the_parquet_file(self, tmp_path: Path) -> None:
        rows = {"a": b" ", "b": b"caf\xe9", "c": b"x" * (MAX_CAPTION_BYTES + 1), "d": b"x" * (2 * MAX_ROW_BYTES), "e": b"good"}
        source = write_source(tmp_path / "source", num_images=3)
        (source / "images" / "00000.png").rename(source / "images" / "e.png")
        (source / "index.tsv").write_bytes(b"".join(b"images/%s.png\t%s\n" % (name.encode(), text) for name, text in rows.items()))
        run(source, tmp_path / "shards")
        table = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "shards").glob("*.parquet")))
        assert [(row["url"], row["error_message"]) for row in table.to_pylist()] == [
            ("images/a.png", "empty_caption"),
            ("images/b.png", "unreadable_caption: UnicodeDecodeError"),
            ("images/c.png", "caption_too_long"),
            ("images/d.png", "caption_too_long"),
            ("images/e.png", None),
        ]

    def test_what_a_decoder_raised_is_in_the_rows_line_and_in_the_log(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        source = write_source(tmp_path / "source", num_images=1)
        whole = (source / "images" / "00000.png").read_bytes()
        for number in range(7):
            (source / "images" / f"cut{number}.png").write_bytes(whole[: len(whole) // 2 + number])
        (source / "images" / "page.png").write_bytes(b"<html>")
        cut = [f"images/cut{number}.png\tcut" for number in range(7)]
        rows = ["images/00000.png\tgood", *cut, "images/page.png\ta page", "images/none.png\tnowhere", "images/00000.png\t "]
        (source / "index.tsv").write_text("\n".join(rows), encoding="utf-8")
        facts = run(source, tmp_path / "shards", SHARDING.model_copy(update={"samples_per_shard": 20}))
        assert facts["reasons"] == {"empty_caption": 1, "missing_file": 1, "undecodable": 7, "unknown_format": 1}
        said = pq.read_table(tmp_path / "shards" / "00000.parquet").column("error_message").to_pylist()
        others = ["unknown_format: PIL.UnidentifiedImageError", "missing_file: FileNotFoundError", "empty_caption"]
        assert said == [None, *["undecodable: OSError"] * 7, *others]
        lines = [record.getMessage() for record in caplog.records]
        assert [line.partition(": ")[0] for line in lines[:3]] == [f"000000{number} images/cut{number - 1}.png" for number in (1, 2, 3)]
        assert lines[0].startswith("0000001 images/cut0.png: undecodable: OSError: ")
        assert lines[-1] == "undecodable: OSError: and 4 more"
        assert len(lines) == 3 + 1 + 1 + 1, (
            "three of a kind and their number; a page; a file that is not there; an empty caption is no error"
        )


@pytest.mark.parametrize("changed", ["index.tsv", "images/00016.png"])
def test_a_source_that_is_changed_while_it_is_read_is_not_stored_under_its_old_key(tmp_path: Path, changed: str) -> None:
    """It was: the shards of the new rows or images under the key of the old ones, which no later run made again."""
    source = write_source(tmp_path / "source", num_images=17)
    sections, artifacts = {"sharding": SHARDING}, {"source": source, "shards": tmp_path / "artifacts" / "shards"}

    def change(event: progress.Event) -> None:
        if event.done == 4:
            new = (source / changed).read_bytes().replace(b"caption 9", b"caption x") if changed == "index.tsv" else picture_bytes()
            (source / changed).write_bytes(new)

    with progress.reporting_to(change), pytest.raises(TryAgain, match=r"source changed while shard read it; .* run the same command again"):
        run_stage("shard", sections, artifacts)
    assert not artifacts["shards"].exists()
    made = run_stage("shard", sections, artifacts).manifest
    assert made.digest == run_stage("shard", sections, artifacts | {"shards": tmp_path / "anew" / "shards"}).manifest.digest
