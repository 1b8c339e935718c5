"""``rglcd toy``: the toy world's data and models."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rglcd.cli.files import DATA
from rglcd.errors import InputError


def add_verb(verbs: Any) -> None:
    """``rglcd toy data | build``."""
    toy = verbs.add_parser("toy", help="the toy world: draw its images, train its frozen models")
    actions = toy.add_subparsers(metavar="ACTION", required=True)
    data = actions.add_parser("data", help="draw the source index, its images and the prompt sets")
    data.add_argument("folder", nargs="?", type=Path, default=DATA, metavar="DIR", help="where to (default: data)")
    _add_edition(data)
    data.set_defaults(act=_toy_data)
    build = actions.add_parser("build", help="train the teacher, the expert, the judge and the feature network (about an hour of CPU)")
    build.add_argument("folder", nargs="?", type=Path, default=Path("toy"), metavar="DIR", help="where to (default: toy)")
    _add_edition(build)
    build.set_defaults(act=_toy_build)


def _add_edition(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--edition",
        choices=("first", "second"),
        default="first",
        help="of the world: `first` is coloured shapes, what `toy/` and the demo have; `second` is web-like pictures of emoji",
    )


def _toy_data(options: argparse.Namespace) -> None:
    from rglcd.toy import corpus
    from rglcd.toy.world import corpus as second

    (corpus if options.edition == "first" else second).write_corpus(options.folder)
    print(f"{options.folder} holds the toy corpus")


def _toy_build(options: argparse.Namespace) -> None:
    from rglcd.launch.progress_display import drawing
    from rglcd.progress import reporting_to

    made = _edition_of(options.folder)
    if made not in {None, options.edition}:
        raise InputError(f"{options.folder} holds models of the world's {made} edition; name another folder for the {options.edition}")
    with drawing(sys.stderr) as sink, reporting_to(sink):
        if options.edition == "first":
            from rglcd.toy.build import build

            build(options.folder)
        else:
            from rglcd.toy.world.build import build as build_second

            build_second(options.folder)


def _edition_of(folder: Path) -> str | None:
    """Which edition's models a folder holds, if any: only the second's codec learns from flawed pictures."""
    ledger = folder / "build.json"
    if not ledger.is_file():
        return None
    return "second" if "percent_flawed" in json.loads(ledger.read_text()).get("codec", {}).get("settings", {}) else "first"
