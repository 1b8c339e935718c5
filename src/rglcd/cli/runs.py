"""``rglcd runs`` and ``rglcd clean``: what there is, by key; and the removal of what nobody needs any more."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rglcd.cli.files import ARTIFACTS, add_params_option
from rglcd.errors import InputError


def add_runs(verbs: Any) -> None:
    """``rglcd runs``."""
    runs = verbs.add_parser("runs", help="list results by key: in force, kept, under way, left over; when and with what they were made")
    _add_artifacts_option(runs)
    add_params_option(runs)
    runs.set_defaults(act=_runs)


def add_clean(verbs: Any) -> None:
    """``rglcd clean``."""
    clean = verbs.add_parser(
        "clean",
        help="remove earlier results and unfinished work, which nothing else does; says what and how large, and asks",
        description="Remove kept results and unfinished work. What is in force and what a living process of this machine holds stays. "
        "In a store: the results of KEYs, or those older than --older-than, but for what a published result was made from.",
    )
    clean.add_argument(
        "keys", nargs="*", metavar="KEY", help="only these, by the first digits of their keys (default: all; see: rglcd runs)"
    )
    clean.add_argument("--older-than", type=float, metavar="DAYS", help="only what nobody has changed for so many days")
    clean.add_argument("--store", metavar="URL", help="clean a store (s3://bucket/prefix) instead")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    _add_artifacts_option(clean)
    clean.set_defaults(act=_clean)


def _add_artifacts_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--artifacts", type=Path, default=ARTIFACTS, metavar="DIR", help="where the artifacts are (default: artifacts)")


def _runs(options: argparse.Namespace) -> None:
    from rglcd.config import load_params
    from rglcd.stages.results import State, differences, results_in

    config = load_params(options.params)
    in_force = {}
    for found in results_in(options.artifacts):
        if found.state is State.IN_FORCE:
            in_force[found.artifact] = found
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.last_change))
        print(f"{found.artifact:14}{found.key or '-':14}{found.in_words:17}{in_words(found.num_bytes):>9}  {changed}")
        for line in differences(found, config, in_force.get(found.artifact)):
            print(f"{'':14}{line}")


def _clean(options: argparse.Namespace) -> None:
    keys: tuple[str, ...] = tuple(options.keys)
    if short := [key for key in keys if len(key) < 4 or set(key) - set("0123456789abcdef")]:
        raise InputError(f"{short[0]!r} is no key: give its first digits, four at least (see: rglcd runs)")
    if options.store is not None:
        _clean_store(options.store.rstrip("/"), keys, options)
        return
    from rglcd.stages.results import removable, remove, results_in

    found = [one for one in results_in(options.artifacts) if removable(one, keys=keys, older_than_days=options.older_than)]
    if _agreed([(str(one.folder), one.num_bytes) for one in found], asks=not options.yes):
        for one in found:
            print(f"{one.folder}: {'removed' if remove(one) else 'kept, for a process has begun to use it'}")


def _clean_store(store: str, keys: tuple[str, ...], options: argparse.Namespace) -> None:
    from rglcd.stages.table import STAGES
    from rglcd.store.stored_results import remove_result, results_of

    if not keys and options.older_than is None:
        raise InputError("a store may be others' too: name the keys to remove, or --older-than DAYS")
    results = [one for stage in STAGES for output in stage.outputs for one in results_of(f"{store}/{output}")]
    needed = {key for one in results for key in one.made_from}
    asked = [one for one in results if one.is_asked_for(keys, older_than_days=options.older_than)]
    for one in asked:
        if one.key in needed:
            print(f"{one.uri}: kept, for a published result was made from it")
    found = [one for one in asked if one.key not in needed]
    if _agreed([(one.uri, one.num_bytes) for one in found], asks=not options.yes):
        for one in found:
            remove_result(one.uri)
            print(f"{one.uri}: removed")


def _agreed(listed: Sequence[tuple[str, int]], *, asks: bool) -> bool:
    """Say what would go and how large it is; whether it may."""
    for name, num_bytes in listed:
        print(f"{in_words(num_bytes):>9}  {name}")
    if not listed:
        print("nothing to remove")
        return False
    print(f"{in_words(sum(num_bytes for _, num_bytes in listed)):>9}  in all")
    if not asks:
        return True
    if not sys.stdin.isatty():
        raise InputError("nobody is there to be asked: add --yes to remove all of it")
    return input("remove all of it? [y/N] ").strip().lower() in ("y", "yes")


def in_words(num_bytes: int) -> str:
    """A number of bytes as people say it."""
    size, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
