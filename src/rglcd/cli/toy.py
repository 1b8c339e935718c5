"""``rglcd toy``: the toy world's data and models."""

import argparse
import sys
from pathlib import Path
from typing import Any

from rglcd.cli.files import DATA


def add_verb(verbs: Any) -> None:
    """``rglcd toy data | build``."""
    toy = verbs.add_parser("toy", help="the toy world: draw its images, train its frozen models")
    actions = toy.add_subparsers(metavar="ACTION", required=True)
    data = actions.add_parser("data", help="draw the source index, its images and the prompt sets")
    data.add_argument("folder", nargs="?", type=Path, default=DATA, metavar="DIR", help="where to (default: data)")
    data.set_defaults(act=_toy_data)
    build = actions.add_parser("build", help="train the teacher, the expert, the judge and the feature network (70 minutes of CPU)")
    build.add_argument("folder", nargs="?", type=Path, default=Path("toy"), metavar="DIR", help="where to (default: toy)")
    build.add_argument(
        "--teacher",
        choices=("v", "flow"),
        default="v",
        help="flow: a second teacher too, DIR/flow-teacher, a small Stable Diffusion 3 (half an hour of CPU more); "
        "v, the default: the first alone",
    )
    build.set_defaults(act=_toy_build)


def _toy_data(options: argparse.Namespace) -> None:
    from rglcd.toy.corpus import write_corpus

    write_corpus(options.folder)
    print(f"{options.folder} holds the toy corpus")


def _toy_build(options: argparse.Namespace) -> None:
    from rglcd.launch.progress_display import drawing
    from rglcd.progress import reporting_to
    from rglcd.toy.build import BuildSettings, build
    from rglcd.toy.flow_networks import FlowTeacherSettings

    settings = BuildSettings(flow=FlowTeacherSettings() if options.teacher == "flow" else None)
    with drawing(sys.stderr) as sink, reporting_to(sink):
        build(options.folder, settings=settings)
