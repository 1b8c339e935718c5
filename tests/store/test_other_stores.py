"""Stores and buckets that differ from the one that the other tests have, as their documentation says that they may."""

import os
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from rglcd import progress
from rglcd.cli import main
from rglcd.config import dump
from rglcd.errors import InputError, TryAgain
from rglcd.store import files, transfers
from rglcd.store.artifact_store import ArtifactStore, check_before_work
from rglcd.store.connection import open_url, require_bucket, with_retries
from rglcd.store.listed_objects import damage_in
from rglcd.store.local_copies import fetch_source
from rglcd.store.manifest import read_manifest
from rglcd.store.model_folders import fetch_model_folder, fetch_named_files
from rglcd.store.object_store import create_object, read_object
from rglcd.store.shard_tasks import Part
from rglcd.store.stored_results import results_of
from tests.object_store import put_folder
from tests.other_stores import Difference, OtherStore
from tests.tiny_line import tiny_config, write_tiny_source

Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def rglcd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in a project with a source folder: the exit code, and the lines of stderr."""
    monkeypatch.chdir(tmp_path)
    write_tiny_source(tmp_path / "data")
    Path("params.yaml").write_text(dump(tiny_config("sharding.samples_per_shard=12")))

    def run(*words: str) -> tuple[int, list[str]]:
        code: object = 0
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
        lines = capsys.readouterr().err.splitlines()
        return int(str(code or 0)), [line for line in lines if line.startswith("rglcd: ")]

    return run


@pytest.fixture
def store_in_force(other_store: tuple[str, OtherStore], monkeypatch: pytest.MonkeyPatch) -> tuple[str, OtherStore]:
    """A bucket of another kind of store, in which runs keep their artifacts."""
    monkeypatch.setenv("RGLCD_STORE", f"{other_store[0]}/run")
    return other_store


def put(bucket: str, *keys: str, content: bytes = b"") -> None:
    client = boto3.client("s3")
    for key in keys:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=content)


def gets_of(store: OtherStore, name: str) -> int:
    return sum(count for asked, count in store.asked.items() if asked.startswith("GET") and asked.endswith(name))


# --- ETags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [set(), {Difference.NO_CHECKSUMS_GIVEN}])
def test_a_source_encrypted_with_a_key_of_its_own_is_read(given: set[Difference], other_store: tuple[str, OtherStore], rglcd: Run) -> None:
    bucket, store = other_store
    put_folder(Path("data"), f"{bucket}/src")
    assert rglcd("run", "shard") == (0, [])
    here = read_manifest(Path("artifacts/shards"), made_by="?").digest
    store.differences = {Difference.KMS_ETAGS} | given
    assert rglcd("run", "shard", "--artifact", f"source={bucket}/src") == (0, [])
    assert read_manifest(Path("artifacts/shards"), made_by="?").digest == here


def test_damage_of_an_encrypted_object_is_found_by_the_checksum_that_the_store_keeps(
    other_store: tuple[str, OtherStore], tmp_path: Path
) -> None:
    bucket, store = other_store
    put(bucket, "sd/model_index.json", content=b'{"a": 1}')
    store.differences = {Difference.KMS_ETAGS, Difference.DAMAGED}
    with pytest.raises(InputError, match=r"model_index\.json has ChecksumCRC32 .*: it is damaged there"):
        fetch_model_folder(f"{bucket}/sd", tmp_path / "fetched", revision=None)
    assert not [path for path in (tmp_path / "fetched").rglob("*") if path.is_file()]


def test_damage_that_can_be_believed_is_downloaded_twice_and_no_more(other_store: tuple[str, OtherStore], tmp_path: Path) -> None:
    bucket, store = other_store
    put(bucket, "sd/model_index.json", content=b'{"a": 1}')
    store.differences = {Difference.FALSE_ETAGS, Difference.NO_CHECKSUMS_GIVEN}
    with pytest.raises(InputError, match=r"model_index\.json has md5 .*, and the store lists .*: it is damaged there"):
        fetch_model_folder(f"{bucket}/sd", tmp_path / "fetched", revision=None)
    assert gets_of(store, "model_index.json") == 2


def test_a_checksum_that_agrees_is_believed_before_an_etag_that_does_not(other_store: tuple[str, OtherStore], tmp_path: Path) -> None:
    bucket, store = other_store
    put(bucket, "sd/model_index.json", content=b"{}")
    store.differences = {Difference.FALSE_ETAGS}
    fetch_model_folder(f"{bucket}/sd", tmp_path / "fetched", revision=None)
    assert (tmp_path / "fetched" / "model_index.json").read_bytes() == b"{}"


def test_an_object_replaced_while_its_folder_is_read_asks_to_try_again(bucket: str, tmp_path: Path) -> None:
    put(bucket, "sd/model_index.json", content=b"new")
    (tmp_path / "copy").write_bytes(b"new")
    filesystem, path = open_url(f"{bucket}/sd/model_index.json")
    with pytest.raises(TryAgain, match="changed while its folder was read"):
        damage_in(tmp_path / "copy", filesystem, path, etag="0" * 32)


# --- objects that stand for folders --------------------------------------------------------------


@pytest.mark.parametrize(
    "markers", [("src/",), ("src/images/",), ("src/", "src/images/", "src/empty/"), ("src/images",), ("src/images", "src/images/")]
)
def test_empty_objects_that_stand_for_folders_change_nothing_of_a_source(markers: tuple[str, ...], bucket: str, rglcd: Run) -> None:
    put_folder(Path("data"), f"{bucket}/src")
    put(bucket, *markers)
    assert rglcd("run", "shard", "--artifact", f"source={bucket}/src") == (0, [])
    assert len(read_manifest(Path("artifacts/shards"), made_by="?").files) > 2


def test_an_object_that_is_a_folder_too_is_one_line(bucket: str, rglcd: Run) -> None:
    put_folder(Path("data"), f"{bucket}/src")
    put(bucket, "src/images", content=b"no marker")
    code, (line,) = rglcd("run", "shard", "--artifact", f"source={bucket}/src")
    assert (code, line) == (2, f"rglcd: {bucket}/src holds images and objects below images/, which no disk can; rename one of them")


def test_empty_objects_that_stand_for_folders_are_left_out_of_models_results_and_records(bucket: str, tmp_path: Path) -> None:
    put(bucket, "sd/model_index.json", "sd/unet/config.json", content=b"{}")
    put(bucket, "sd/", "sd/unet/", "sd/looks-like.json/", f"run/shards/{'0' * 64}/parts/")
    fetch_model_folder(f"{bucket}/sd", tmp_path / "fetched", revision=None)
    found = {path.relative_to(tmp_path / "fetched").as_posix() for path in (tmp_path / "fetched").rglob("*") if path.is_file()}
    assert found == {"model_index.json", "unet/config.json"}
    assert results_of(f"{bucket}/run/shards") == []
    assert ArtifactStore(f"{bucket}/run/shards").finished_tasks("0" * 64) == {}


# --- buckets that do not exist -------------------------------------------------------------------


@pytest.mark.parametrize("what", ["store", "source"])
def test_a_bucket_that_does_not_exist_is_one_line_before_any_work(
    what: str, bucket: str, rglcd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--artifact", "source=s3://bucket-typo/src") if what == "source" else ()
    if what == "store":
        monkeypatch.setenv("RGLCD_STORE", "s3://bucket-typo/run")
    code, (line,) = rglcd("run", "shard", *words)
    assert code == 2
    assert line.endswith("there is no bucket bucket-typo; mend its name, or create it")
    assert not list(Path("artifacts").glob("**/*.tar"))


def test_a_model_folder_in_a_bucket_that_does_not_exist_is_refused_by_the_buckets_name(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no bucket bucket-typo"):
        fetch_model_folder("s3://bucket-typo/sd", tmp_path / "fetched", revision=None)
    with pytest.raises(InputError, match="there is no bucket bucket-typo"):
        fetch_named_files("s3://bucket-typo/sd", ("vocab.json",), tmp_path / "fetched", revision=None)


def test_data_use_says_that_the_bucket_does_not_exist(bucket: str, rglcd: Run) -> None:
    """Before: 'is neither a .tsv, nor .tar files, nor a folder of tars or images'."""
    code, (line,) = rglcd("data", "use", f"{bucket}-typo/x", "--folder", "other")
    assert code == 2
    assert "there is no bucket" in line


def test_only_a_bucket_of_an_object_store_is_required_to_exist(bucket: str) -> None:
    for there in (bucket, f"{bucket}/nothing/below", "https://host/x", "data", "/data"):
        require_bucket(there)
    for missing in ("s3://bucket-typo", "s3://bucket-typo/sh [1]/{0..3}.tar"):
        with pytest.raises(InputError, match="there is no bucket bucket-typo"):
            require_bucket(missing)


# --- stores that lack parts of S3 ----------------------------------------------------------------


@pytest.mark.parametrize("difference", [Difference.NO_CONDITIONAL_PUT, Difference.CONDITIONS_IGNORED])
def test_a_stage_run_whole_goes_on_without_conditional_put_and_says_so_once(
    difference: Difference, store_in_force: tuple[str, OtherStore], rglcd: Run
) -> None:
    bucket, store = store_in_force
    store.differences = {difference}
    code, (line,) = rglcd("run", "shard")
    assert code == 0
    assert line.endswith("the store has no conditional put (If-None-Match): one process at a time may write there, and no parts")
    made = read_manifest(Path("artifacts/shards"), made_by="?")
    assert ArtifactStore(f"{bucket}/run/shards").made(made.key) == made
    with pytest.raises(InputError, match=r"no conditional put .* 2 parts would write there; run the stage whole"):
        check_before_work(ArtifactStore(f"{bucket}/run/shards"), Part(0, 2))


def test_parts_are_refused_before_any_work_where_conditional_put_is_missing(store_in_force: tuple[str, OtherStore], rglcd: Run) -> None:
    _, store = store_in_force
    store.differences = {Difference.NO_CONDITIONAL_PUT}
    code, (_, line) = rglcd("run", "shard", "--set", "sharding.parts=2", "--part", "0")
    assert code == 2
    assert line.endswith("and 2 parts would write there; run the stage whole, in one process, or use a store that has it")
    assert not list(Path("artifacts").glob("**/*.tar"))


def test_without_conditional_put_what_is_there_is_not_replaced(other_store: tuple[str, OtherStore]) -> None:
    bucket, store = other_store
    store.differences = {Difference.NO_CONDITIONAL_PUT}
    created = [create_object(f"{bucket}/a/record", content, is_whole=lambda _: True) for content in (b"first", b"second")]
    assert created == [b"first", b"first"]


def test_a_store_that_takes_no_checksums_is_sent_none(store_in_force: tuple[str, OtherStore], rglcd: Run) -> None:
    _, store = store_in_force
    store.differences = {Difference.NO_CHECKSUMS_TAKEN}
    code, (line,) = rglcd("run", "shard")
    assert code == 0
    assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in line
    assert "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ


@pytest.mark.parametrize("difference", [Difference.REDIRECTED, Difference.READ_ONLY])
def test_what_a_store_refuses_for_good_is_one_line_and_no_reason_to_run_again(
    difference: Difference, store_in_force: tuple[str, OtherStore], rglcd: Run
) -> None:
    _, store = store_in_force
    store.differences = {difference}
    code, lines = rglcd("run", "shard")
    assert (code, len(lines)) == (2, 1)
    assert not list(Path("artifacts").glob("**/*.tar"))


def _answer(status: int, code: str) -> Exception:
    response = {"Error": {"Code": code, "Message": "?"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = translate_boto_error(ClientError(response, "PutObject"))  # type: ignore[arg-type]  # a response has more keys, which nobody reads
    return error


@pytest.mark.parametrize(
    ("status", "code", "num_attempts"),
    [
        (400, "InvalidArgument", 1),
        (403, "Unheard", 1),
        (405, "MethodNotAllowed", 1),
        (501, "NotImplemented", 1),
        (400, "RequestTimeout", 2),
        (400, "BadDigest", 2),
        (404, "NoSuchUpload", 2),
        (408, "Slow", 2),
        (409, "ConditionalRequestConflict", 2),
        (429, "TooManyRequests", 2),
        (500, "InternalError", 2),
        (503, "SlowDown", 2),
    ],
)
def test_only_what_may_pass_is_tried_again(status: int, code: str, num_attempts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rglcd.store.connection.NUM_ATTEMPTS", 2)
    attempts = []

    def act() -> None:
        attempts.append(1)
        raise _answer(status, code)

    with pytest.raises(InputError if num_attempts == 1 else TryAgain):
        with_retries(act, what="s3://bucket/object")
    assert len(attempts) == num_attempts


def test_a_refused_condition_is_an_object_that_is_there_already_however_a_store_words_it() -> None:
    def act() -> None:
        raise _answer(412, "PreconditionFailed")

    with pytest.raises(FileExistsError):
        with_retries(act, what="s3://bucket/object")


# --- many small objects --------------------------------------------------------------------------


def test_a_source_folder_is_fetched_several_objects_at_a_time_with_progress(other_store: tuple[str, OtherStore], tmp_path: Path) -> None:
    bucket, store = other_store
    put(bucket, *(f"sd/{number}.json" for number in range(24)), content=b"{}")
    store.seconds, events = 0.05, list[progress.Event]()
    with progress.reporting_to(events.append):
        fetch_model_folder(f"{bucket}/sd", tmp_path / "fetched", revision=None)
    assert store.most_at_once == 8
    assert (events[-1].task, events[-1].done, events[-1].total) == ("fetch", 24, 24)
    assert read_object(f"{bucket}/sd/0.json") == b"{}"


def test_a_name_as_long_as_a_disk_takes_is_fetched(bucket: str, tmp_path: Path) -> None:
    """It was staged under a longer one: File name too long."""
    name = f"{'é' * 120}{'a' * 10}.json"  # 255 bytes
    put(bucket, f"sd/{name}", content=b"{}")
    fetch_model_folder(f"{bucket}/sd", tmp_path / "fetched", revision=None)
    assert [path.name for path in (tmp_path / "fetched").iterdir()] == [name]


def test_a_source_whose_fetch_was_killed_goes_on_with_what_lacks(
    other_store: tuple[str, OtherStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it was fetched again, however near the end it had been."""
    bucket, store = other_store
    put(bucket, *(f"src/images/{number}.png" for number in range(6)), content=b"picture")
    copy, fetched = tmp_path / "copy", list[str]()
    rename = files.rename_flushed

    def killed_at_the_fourth(staging: Path, path: Path) -> None:
        if len(fetched) == 3:
            raise KeyboardInterrupt
        fetched.append(path.name)
        rename(staging, path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "rename_flushed", killed_at_the_fourth)
        patched.setattr(transfers, "_TRANSFERS", 1)
        with pytest.raises(KeyboardInterrupt):
            fetch_source(f"{bucket}/src", copy, wanted=lambda _: True)
    store.asked.clear()
    fetch_source(f"{bucket}/src", copy, wanted=lambda _: True)
    assert sorted(path.name for path in copy.rglob("*.png")) == [f"{number}.png" for number in range(6)]
    assert sum(gets_of(store, f"{number}.png") for number in range(6)) == 3
