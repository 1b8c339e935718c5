"""A full disk is told as what it is, whoever meets it."""

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rglcd.errors import TryAgain
from rglcd.sharding.accounting import Reason
from rglcd.sharding.addresses import AddressPolicy
from rglcd.sharding.content_store import ContentStore
from rglcd.sharding.download import Downloader, DownloadLimits
from rglcd.store.disk_space import is_no_room, room_for
from tests.faults.watched_process import run_forked
from tests.sharding.hostile_server import OPEN, HostileServer


def limit_files_to(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EFBIG, True), (errno.EIO, False), (errno.EACCES, False)]
)
def test_it_is_told_by_its_number(number: int, expected: bool) -> None:
    assert is_no_room(OSError(number, "said so")) is expected


def test_safetensors_says_it_in_words_alone(tmp_path: Path) -> None:
    def work() -> bool:
        limit_files_to(1000)
        try:
            save_file({"weight": torch.zeros(10_000)}, str(tmp_path / "a.safetensors"))
        except Exception as error:
            return is_no_room(error)
        return False

    assert run_forked(work).value is True


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [(None, r"it needs more, and [\d,]+ bytes are free there"), (4096, r"it needs 4,096 bytes, and [\d,]+ bytes are free there")],
)
def test_what_is_wanted_and_what_is_free_are_said(tmp_path: Path, num_bytes: int | None, said: str) -> None:
    with pytest.raises(TryAgain, match=said), room_for(tmp_path / "not" / "yet", num_bytes):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), room_for(tmp_path):
        raise FileNotFoundError("gone")


def test_a_full_disk_is_not_held_against_the_host(tmp_path: Path) -> None:
    """Else the row would be lost, and remembered as unreachable, when there is room again."""
    with HostileServer() as server:
        url = server.url("image/1")

        def fetch(limit: int) -> Reason | str | None:
            limit_files_to(limit)
            try:
                with Downloader(ContentStore(tmp_path), DownloadLimits(user_agent="x"), AddressPolicy.parse([f"{OPEN}/32"])) as downloader:
                    (fetched,) = downloader.fetch_in_order([url])
            except OSError as error:
                return f"errno {error.errno}"
            assert fetched is not None
            return fetched.reason

        assert run_forked(lambda: fetch(100)).value == f"errno {errno.EFBIG}"
        ended = run_forked(lambda: fetch(resource.RLIM_INFINITY))
        assert (ended.error, ended.value) == (None, None)
