"""The pages that people read, and their blocks of commands.

A block of commands is fenced as ``bash``, and the comment before it says who runs it:

    <!-- run -->                      tests/docs/test_commands.py, after the page's blocks before it
    <!-- run by tests/x/test_y.py -->  that file, which is there
    <!-- not run: REASON -->          nobody, and why

Decisions are records of their day, and three pages are written by programs: they are left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TUTORIAL = "docs/tutorial.md"
"""Whose blocks tests/end_to_end/test_tutorial.py runs, one and all."""

_WRITTEN_BY_PROGRAMS = {"docs/results.md", "docs/reliability.md", "docs/plan.md"}
_FENCED = re.compile(r"(?:^<!-- (?P<who>[^\n]*?) -->\n\n?)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and what the comment before it says."""

    page: str
    line: int
    language: str
    text: str
    who: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Paths from the root of the checkout."""
    inside = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "decisions"}
    return ["README.md", "CONTRIBUTING.md", *sorted(inside - _WRITTEN_BY_PROGRAMS)]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[Block]:
    """Every fenced block of ``page``, of any language."""
    text = text_of(page)
    for found in _FENCED.finditer(text):
        yield Block(page, text[: found.start("language")].count("\n") + 1, found["language"], found["text"], found["who"])


def without_blocks(page: str) -> str:
    """What is left of ``page``: prose and tables."""
    return _FENCED.sub("", text_of(page))


def rows_after(head: str, text: str) -> list[list[str]]:
    """Cells of the table whose first line begins with ``head``."""
    table = text[text.index(f"\n{head}") + 1 :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
