"""Local copies of a store's files: bounded, the least recently used gone first, never what somebody holds."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.environment import cache_limit
from rglcd.store.local_cache import COMPLETE, make_space, pinned, read_once, reserve
from rglcd.store.local_copies import fetch_files, local_file
from rglcd.store.manifest import Manifest, scan

PINS = """
import sys, time
from pathlib import Path
from rglcd.store.local_cache import pinned
with pinned(Path(sys.argv[1])):
    print("pinned", flush=True)
    time.sleep(60)
"""

FETCHES = """
import sys
from pathlib import Path
from rglcd.store.local_cache import reserve
copy, num_bytes = Path(sys.argv[1]), int(sys.argv[2])
reserve(copy, num_bytes)
copy.mkdir()
(copy / "file").write_bytes(bytes(num_bytes))
"""

Limit = Callable[[int], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Sets the limit, in bytes."""
    return lambda num_bytes: monkeypatch.setenv("RGLCD_CACHE_GIB", repr((num_bytes + 0.5) / 2**30))


def copy_of(cache: Path, name: str, *, num_bytes: int, last_use: int) -> Path:
    """A copy of two files, one of them deep, as if last used at ``last_use``."""
    copy = cache / name
    with pinned(copy):
        (copy / "deep").mkdir(parents=True)
        (copy / "a").write_bytes(bytes(num_bytes // 2))
        (copy / "deep" / "b").write_bytes(bytes(num_bytes - num_bytes // 2))
    os.utime(cache / f".{name}.lock", (last_use, last_use))
    return copy


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {".sizes"}


def test_the_least_recently_used_copies_are_removed_and_no_more_than_needed(tmp_path: Path, limit: Limit) -> None:
    for name, last_use in (("middle", 2), ("old", 1), ("new", 3)):
        copy_of(tmp_path, name, num_bytes=100, last_use=last_use)
    limit(300)
    make_space(tmp_path, 0)
    assert {"old", "middle", "new"} <= names(tmp_path)
    make_space(tmp_path, 1)
    assert names(tmp_path) == {"middle", ".middle.lock", "new", ".new.lock"}
    make_space(tmp_path, 200)
    assert names(tmp_path) == {"new", ".new.lock"}


def test_pinning_a_copy_makes_it_recently_used(tmp_path: Path, limit: Limit) -> None:
    copies = [copy_of(tmp_path, name, num_bytes=100, last_use=last_use) for last_use, name in enumerate("ab")]
    with pinned(copies[0]):
        pass
    limit(100)
    make_space(tmp_path, 0)
    assert [copy.exists() for copy in copies] == [True, False]


def test_a_pinned_copy_is_kept_beyond_the_limit_and_that_is_said_once(
    tmp_path: Path, limit: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (copy_of(tmp_path, name, num_bytes=100, last_use=last_use) for last_use, name in enumerate(("old", "new")))
    limit(50)
    with pinned(old), pinned(old):
        for _ in range(2):
            make_space(tmp_path, 0)
        assert (old / "deep" / "b").is_file()
        assert not new.exists()
    assert capsys.readouterr().err.count("RGLCD_CACHE_GIB allows") == 1
    make_space(tmp_path, 0)
    assert names(tmp_path) == set()


def test_a_copy_is_pinned_by_another_process_until_that_is_killed(tmp_path: Path, limit: Limit) -> None:
    copy = copy_of(tmp_path, "copy", num_bytes=100, last_use=1)
    limit(1)
    with subprocess.Popen([sys.executable, "-c", PINS, str(copy)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"pinned\n"
        make_space(tmp_path, 0)
        assert copy.exists()
        other.kill()
    make_space(tmp_path, 0)
    assert not copy.exists()


def test_a_removed_copy_can_be_made_and_pinned_again(tmp_path: Path, limit: Limit) -> None:
    copy = copy_of(tmp_path, "copy", num_bytes=100, last_use=1)
    (tmp_path / f"copy{COMPLETE}").touch()
    limit(1)
    make_space(tmp_path, 0)
    assert names(tmp_path) == set()
    again = copy_of(tmp_path, "copy", num_bytes=100, last_use=1)
    with pinned(again):
        make_space(tmp_path, 0)
        assert copy.exists()


def test_folders_without_a_lock_are_not_removed(tmp_path: Path, limit: Limit) -> None:
    """A staging folder, and the manifest of an artifact that is named by URL, lie there too."""
    (tmp_path / ".latents-at-x.key.staging").mkdir()
    (tmp_path / "latents-at-x").mkdir()
    (tmp_path / "latents-at-x" / "manifest.json").write_text("{}")
    limit(1)
    make_space(tmp_path, 100)
    assert names(tmp_path) == {".latents-at-x.key.staging", "latents-at-x"}


class TestSizes:
    """What a copy has is known without a walk through its files, whoever adds to it."""

    @pytest.fixture
    def stats(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Every path whose status is asked for."""
        asked: list[Path] = []
        stat = os.stat

        def noting(path: Any, *args: Any, **named: Any) -> os.stat_result:
            asked.append(Path(str(path)))
            return stat(path, *args, **named)

        monkeypatch.setattr(os, "stat", noting)
        return asked

    @pytest.mark.parametrize("num_files", [10, 300])
    def test_fetching_a_file_looks_at_no_other_cached_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stats: list[Path], num_files: int
    ) -> None:
        made = tmp_path / "made"
        made.mkdir()
        for number in range(num_files):
            (made / f"{number}.bin").write_bytes(number.to_bytes(2, "big"))
        files = scan(made)
        manifest = ArtifactStore(f"file://{tmp_path}/store").publish(made, Manifest("a", "s", 1, "key", "digest", {}, {}, files))
        copies = [tmp_path / "cache" / name for name in ("one", "other")]
        with pinned(copies[0]), pinned(copies[1]):
            fetch_files(copies[0], manifest, wanted=lambda _: True)
            fetch_files(copies[1], manifest, wanted=lambda name: name != "0.bin")
            stats.clear()
            local_file(copies[1], manifest, "0.bin")
            cached = [path for path in stats if path.suffix == ".bin" and path.parent in copies and path.name != "0.bin"]
        assert cached == []
        assert (copies[0] / f"{num_files - 1}.bin").is_file()

    def test_what_other_processes_fetch_counts_towards_the_limit(self, tmp_path: Path, limit: Limit) -> None:
        old, copy = copy_of(tmp_path, "old", num_bytes=100, last_use=1), tmp_path / "copy"
        limit(250)
        with pinned(copy):
            subprocess.run([sys.executable, "-c", FETCHES, str(copy), "100"], check=True)
            assert old.exists()
            reserve(copy, 50)
            assert old.exists()
            reserve(copy, 1)
            assert not old.exists()

    def test_a_wrong_size_left_by_a_killed_process_is_corrected_at_the_next_pin(self, tmp_path: Path, limit: Limit) -> None:
        copy = copy_of(tmp_path, "copy", num_bytes=100, last_use=1)
        (tmp_path / ".copy.lock").write_text("90000")
        limit(250)
        with pinned(copy):
            pass
        make_space(tmp_path, 150)
        assert copy.exists()

    @pytest.mark.parametrize("noted", ["", "1e"])
    def test_a_copy_without_a_readable_size_is_counted_by_its_files(self, tmp_path: Path, limit: Limit, noted: str) -> None:
        copy = copy_of(tmp_path, "copy", num_bytes=100, last_use=1)
        (tmp_path / ".copy.lock").write_text(noted)
        limit(250)
        make_space(tmp_path, 150)
        assert copy.exists()
        make_space(tmp_path, 151)
        assert not copy.exists()


@dataclass(frozen=True)
class Use:
    num_bytes: int
    is_pinned: bool


USES = st.lists(st.builds(Use, st.integers(2, 50), st.booleans()), max_size=6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uses=USES, allowed=st.integers(1, 200), wanted=st.integers(0, 60))
def test_eviction_removes_the_oldest_unpinned_copies_and_none_in_vain(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, uses: list[Use], allowed: int, wanted: int
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    copies = [copy_of(cache, f"copy{n}", num_bytes=use.num_bytes, last_use=n) for n, use in enumerate(uses)]
    monkeypatch.setenv("RGLCD_CACHE_GIB", repr((allowed + 0.5) / 2**30))
    with ExitStack() as stack:
        for n, (copy, use) in enumerate(zip(copies, uses, strict=True)):
            if use.is_pinned:
                stack.enter_context(pinned(copy))
                os.utime(cache / f".copy{n}.lock", (n, n))
        make_space(cache, wanted)
    gone = [n for n, copy in enumerate(copies) if not copy.exists()]
    kept = [n for n, copy in enumerate(copies) if copy.exists()]
    total = wanted + sum(uses[n].num_bytes for n in kept)
    assert not any(uses[n].is_pinned for n in gone)
    assert total <= allowed or all(uses[n].is_pinned for n in kept)
    assert all(uses[n].is_pinned or n > gone[-1] for n in kept if gone)
    assert not gone or total + uses[gone[-1]].num_bytes > allowed


def of_copy(path: Path) -> tuple[Path, str]:
    """The copy of ``path``, and its name there."""
    copy = next(parent for parent in path.parents if parent.name == "copy")
    return copy, path.relative_to(copy).as_posix()


class TestPassedThrough:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Iterator[list[Path]]:
        """Three files of 100 bytes in a copy that is pinned."""
        copy = tmp_path / "copy"
        paths = [copy / name for name in ("deep/a", "deep/b", "c")]
        (copy / "deep").mkdir(parents=True)
        for path in paths:
            path.write_bytes(bytes(100))
        with pinned(copy):
            yield paths

    def test_a_file_read_once_is_removed_if_no_other_of_its_size_would_fit(self, files: list[Path], limit: Limit) -> None:
        limit(300)
        for path in files:
            with read_once(*of_copy(path)):
                assert path.is_file()
        assert [path.exists() for path in files] == [False, True, True]

    def test_a_file_read_once_is_kept_while_there_is_space(self, files: list[Path], limit: Limit) -> None:
        limit(400)
        with read_once(*of_copy(files[0])):
            pass
        assert files[0].exists()

    def test_a_file_read_once_is_kept_while_another_reads_it(self, files: list[Path], limit: Limit) -> None:
        limit(1)
        with read_once(*of_copy(files[0])):
            with read_once(*of_copy(files[0])):
                pass
            assert files[0].exists()
        assert not files[0].exists()


@pytest.mark.parametrize("word", ["0", "-1", "much", "nan", "inf"])
def test_a_cache_limit_that_is_no_positive_number_is_refused(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("RGLCD_CACHE_GIB", word)
    with pytest.raises(InputError, match=f"RGLCD_CACHE_GIB is '{word}'"):
        cache_limit()


def test_the_cache_limit_is_in_gib_and_100_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RGLCD_CACHE_GIB", raising=False)
    assert cache_limit() == 100 * 2**30
    monkeypatch.setenv("RGLCD_CACHE_GIB", "0.5")
    assert cache_limit() == 2**29
