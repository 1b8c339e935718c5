"""The page of every ``rglcd`` command, as its ``--help`` says it."""

import argparse
import os
from collections.abc import Iterator

from rglcd.cli import _parser


def command_page() -> str:
    """One block for each command, in the order of ``rglcd --help``."""
    os.environ["COLUMNS"] = "84"
    parts = ["# Commands\n\nWhat `--help` says of each. The exit codes are on a [page of their own](exit-codes.md).\n"]
    for parser in _with_children(_parser()):
        level = "##" if parser.prog.count(" ") < 2 else "###"
        parts.append(f"{level} {parser.prog}\n\n```text\n{parser.format_help().strip()}\n```\n")
    return "\n".join(parts)


def _with_children(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _with_children(child)
