"""Full disks are reported as such, whichever stage meets one."""

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
from rglcd.store.disk_space import disk_space_for, is_disk_full
from tests.faults.watched_process import run_forked
from tests.sharding.hostile_server import OPEN, HostileServer


def limit_files_to(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EFBIG, True), (errno.EIO, False), (errno.EACCES, False)]
)
def test_a_full_disk_is_recognised_by_its_error_number(number: int, expected: bool) -> None:
    assert is_disk_full(OSError(number, "said so")) is expected


def test_a_full_disk_is_recognised_in_the_words_of_safetensors(tmp_path: Path) -> None:
    def work() -> bool:
        limit_files_to(1000)
        try:
            save_file({"weight": torch.zeros(10_000)}, str(tmp_path / "a.safetensors"))
        except Exception as error:
            return is_disk_full(error)
        return False

    assert run_forked(work).value is True


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [(None, r"it needs more, and [\d,]+ bytes are free there"), (4096, r"it needs 4,096 bytes, and [\d,]+ bytes are free there")],
)
def test_a_full_disk_is_reported_with_what_is_needed_and_what_is_free(tmp_path: Path, num_bytes: int | None, said: str) -> None:
    with pytest.raises(TryAgain, match=said), disk_space_for(tmp_path / "not" / "yet", num_bytes):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_are_not_reported_as_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_space_for(tmp_path):
        raise FileNotFoundError("gone")


def test_a_full_disk_is_not_recorded_as_the_hosts_failure(tmp_path: Path) -> None:
    """Else the row would be lost, and remembered as unreachable, when there is space again."""
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
