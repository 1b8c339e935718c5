"""Local copies of a store's files: bounded, the least recently used gone first, never what somebody holds."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rglcd.errors import InputError
from rglcd.store.files import cache_limit
from rglcd.store.local_cache import COMPLETE, held, make_room, passed_through

HOLDS = """
import sys, time
from pathlib import Path
from rglcd.store.local_cache import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

Limit = Callable[[int], None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Sets the limit, in bytes."""
    return lambda num_bytes: monkeypatch.setenv("RGLCD_CACHE_GIB", repr((num_bytes + 0.5) / 2**30))


def copy_of(cache: Path, name: str, *, num_bytes: int, last_use: int) -> Path:
    """A view of two files, one of them deep, as if last used at ``last_use``."""
    view = cache / name
    with held(view):
        (view / "deep").mkdir(parents=True)
        (view / "a").write_bytes(bytes(num_bytes // 2))
        (view / "deep" / "b").write_bytes(bytes(num_bytes - num_bytes // 2))
    os.utime(cache / f".{name}.lock", (last_use, last_use))
    return view


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_the_least_recently_used_goes_first_and_no_more_than_must(tmp_path: Path, limit: Limit) -> None:
    for name, last_use in (("middle", 2), ("old", 1), ("new", 3)):
        copy_of(tmp_path, name, num_bytes=100, last_use=last_use)
    limit(300)
    make_room(tmp_path, 0)
    assert {"old", "middle", "new"} <= names(tmp_path)
    make_room(tmp_path, 1)
    assert names(tmp_path) == {"middle", ".middle.lock", "new", ".new.lock"}
    make_room(tmp_path, 200)
    assert names(tmp_path) == {"new", ".new.lock"}


def test_to_hold_is_to_use(tmp_path: Path, limit: Limit) -> None:
    views = [copy_of(tmp_path, name, num_bytes=100, last_use=last_use) for last_use, name in enumerate("ab")]
    with held(views[0]):
        pass
    limit(100)
    make_room(tmp_path, 0)
    assert [view.exists() for view in views] == [True, False]


def test_what_is_held_stays_however_old_and_that_is_said_once(tmp_path: Path, limit: Limit, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (copy_of(tmp_path, name, num_bytes=100, last_use=last_use) for last_use, name in enumerate(("old", "new")))
    limit(50)
    with held(old), held(old):
        for _ in range(2):
            make_room(tmp_path, 0)
        assert (old / "deep" / "b").is_file()
        assert not new.exists()
    assert capsys.readouterr().err.count("RGLCD_CACHE_GIB allows") == 1
    make_room(tmp_path, 0)
    assert names(tmp_path) == set()


def test_another_process_holds_until_it_ends_however_it_ends(tmp_path: Path, limit: Limit) -> None:
    view = copy_of(tmp_path, "view", num_bytes=100, last_use=1)
    limit(1)
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(view)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        make_room(tmp_path, 0)
        assert view.exists()
        other.kill()
    make_room(tmp_path, 0)
    assert not view.exists()


def test_a_view_that_went_is_held_and_made_again(tmp_path: Path, limit: Limit) -> None:
    view = copy_of(tmp_path, "view", num_bytes=100, last_use=1)
    (tmp_path / f"view{COMPLETE}").touch()
    limit(1)
    make_room(tmp_path, 0)
    assert names(tmp_path) == set()
    again = copy_of(tmp_path, "view", num_bytes=100, last_use=1)
    with held(again):
        make_room(tmp_path, 0)
        assert view.exists()


def test_what_has_no_lock_beside_it_is_no_copy(tmp_path: Path, limit: Limit) -> None:
    """A stage's folder aside, and the manifest of an artifact that is named by URL, lie there too."""
    (tmp_path / ".latents-at-x.key.aside").mkdir()
    (tmp_path / "latents-at-x").mkdir()
    (tmp_path / "latents-at-x" / "manifest.json").write_text("{}")
    limit(1)
    make_room(tmp_path, 100)
    assert names(tmp_path) == {".latents-at-x.key.aside", "latents-at-x"}


@dataclass(frozen=True)
class Use:
    num_bytes: int
    is_held: bool


USES = st.lists(st.builds(Use, st.integers(2, 50), st.booleans()), max_size=6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uses=USES, allowed=st.integers(1, 200), wanted=st.integers(0, 60))
def test_of_any_copies_the_oldest_go_that_may_and_none_in_vain(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, uses: list[Use], allowed: int, wanted: int
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    views = [copy_of(cache, f"view{n}", num_bytes=use.num_bytes, last_use=n) for n, use in enumerate(uses)]
    monkeypatch.setenv("RGLCD_CACHE_GIB", repr((allowed + 0.5) / 2**30))
    with ExitStack() as stack:
        for n, (view, use) in enumerate(zip(views, uses, strict=True)):
            if use.is_held:
                stack.enter_context(held(view))
                os.utime(cache / f".view{n}.lock", (n, n))
        make_room(cache, wanted)
    gone = [n for n, view in enumerate(views) if not view.exists()]
    kept = [n for n, view in enumerate(views) if view.exists()]
    total = wanted + sum(uses[n].num_bytes for n in kept)
    assert not any(uses[n].is_held for n in gone)
    assert total <= allowed or all(uses[n].is_held for n in kept)
    assert all(uses[n].is_held or n > gone[-1] for n in kept if gone)
    assert not gone or total + uses[gone[-1]].num_bytes > allowed


def of_view(path: Path) -> tuple[Path, str]:
    """The view of ``path``, and its name there."""
    view = next(parent for parent in path.parents if parent.name == "view")
    return view, path.relative_to(view).as_posix()


class TestPassedThrough:
    @pytest.fixture
    def files(self, tmp_path: Path) -> Iterator[list[Path]]:
        """Three files of 100 bytes in a view that is held."""
        view = tmp_path / "view"
        with held(view):
            view.mkdir()
            paths = [view / name for name in ("deep/a", "deep/b", "c")]
            (view / "deep").mkdir()
            for path in paths:
                path.write_bytes(bytes(100))
            yield paths

    def test_a_file_goes_once_it_was_read_if_no_other_like_it_would_fit(self, files: list[Path], limit: Limit) -> None:
        limit(300)
        for path in files:
            with passed_through(*of_view(path)):
                assert path.is_file()
        assert [path.exists() for path in files] == [False, True, True]

    def test_it_stays_while_there_is_room(self, files: list[Path], limit: Limit) -> None:
        limit(400)
        with passed_through(*of_view(files[0])):
            pass
        assert files[0].exists()

    def test_it_stays_while_another_reads_it(self, files: list[Path], limit: Limit) -> None:
        limit(1)
        with passed_through(*of_view(files[0])):
            with passed_through(*of_view(files[0])):
                pass
            assert files[0].exists()
        assert not files[0].exists()


@pytest.mark.parametrize("word", ["0", "-1", "much", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("RGLCD_CACHE_GIB", word)
    with pytest.raises(InputError, match=f"RGLCD_CACHE_GIB is '{word}'"):
        cache_limit()


def test_the_limit_is_in_gib_and_a_hundred_unless_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RGLCD_CACHE_GIB", raising=False)
    assert cache_limit() == 100 * 2**30
    monkeypatch.setenv("RGLCD_CACHE_GIB", "0.5")
    assert cache_limit() == 2**29
