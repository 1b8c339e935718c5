import hashlib
import os
import time
from pathlib import Path

import pytest

from rglcd.sharding.accounting import Reason
from rglcd.sharding.content_store import ContentStore, Fetched


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path / "store")


def taken_in(store: ContentStore, data: bytes) -> str:
    with store.incoming() as incoming:
        for start in range(0, len(data), 3):
            incoming.write(data[start : start + 3])
    return incoming.state.hexdigest()


def test_bytes_are_kept_once_under_their_digest(store: ContentStore) -> None:
    digests = {taken_in(store, b"some bytes") for _ in range(3)}
    assert digests == {hashlib.sha256(b"some bytes").hexdigest()}
    assert [path.read_bytes() for path in (store.folder / "objects").glob("*/*")] == [b"some bytes"]


def test_an_interrupted_download_leaves_no_object(store: ContentStore) -> None:
    def break_off() -> None:
        with store.incoming() as incoming:
            incoming.write(b"half")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        break_off()
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []


def test_an_address_is_recalled_as_it_was(store: ContentStore) -> None:
    assert store.recall("http://a/") is None
    whole = store.remember(Fetched("http://a/", taken_in(store, b"bytes")))
    failed = store.remember(Fetched("http://b/", None, Reason.GONE, 2))
    assert store.recall("http://a/") == whole
    assert store.recall("http://a/", round=9) == whole
    assert (store.recall("http://b/", round=2), store.recall("http://b/", round=3)) == (failed, None)


@pytest.mark.parametrize("damage", ["cut object", "no object", "cut record", "another address"])
def test_a_damaged_object_or_record_is_not_recalled(store: ContentStore, damage: str) -> None:
    fetched = store.remember(Fetched("http://a/", taken_in(store, b"bytes")))
    (record,) = (store.folder / "records").glob("*/*")
    assert fetched.sha256 is not None
    if damage == "cut object":
        store.path(fetched.sha256).write_bytes(b"byt")
    if damage == "no object":
        store.path(fetched.sha256).unlink()
    if damage == "cut record":
        record.write_bytes(record.read_bytes()[:-9])
    if damage == "another address":
        record.write_text(record.read_text().replace("http://a/", "http://b/"))
    assert store.recall("http://a/") is None


def test_sweeping_keeps_downloads_in_progress(store: ContentStore) -> None:
    with store.incoming() as incoming:
        incoming.write(b"fresh")
        stale = store.folder / "incoming" / ".stale.staging"
        stale.write_bytes(b"stale")
        os.utime(stale, (time.time() - 7200,) * 2)
        store.sweep()
        assert not stale.exists()
    assert store.read(incoming.state.hexdigest()) == b"fresh"
