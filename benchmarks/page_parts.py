"""What the sections of docs/results.md are made of: figures over seeds, plots and pictures written beside the page."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.claim_pictures import rows_of, sheet

PAGE = Path("docs/results.md")
HEADS = {
    "frechet": "Fréchet distance",
    "frechet_to_teacher": "the same, to teacher",
    "high_frequency": "fine detail",
    "whole": "right and neat",
}


def seeds_in_words(seeds: Sequence[int]) -> str:
    """`seeds 0, 1, 2` or `one seed (0)`."""
    return f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"one seed ({seeds[0]})"


def write_picture(name: str, seeds: Sequence[int]) -> None:
    """The pictures beside a claim, of the first seed that is done, written beside the page."""
    sheet(rows_of(name), seeds[0]).save(PAGE.parent / "images" / f"claim-{name}.png", optimize=True)


def not_run_yet(title: str) -> str:
    """The section of what has no run that is done."""
    return f"## {title}\n\nNot run yet: `make results` goes on here."


def written(name: str, title: str, svg: str) -> str:
    """The Markdown of a plot that is written beside the page."""
    path = PAGE.parent / "images" / f"{name}.svg"
    path.write_text(svg, encoding="utf-8")
    return f"![{title}]({path.relative_to(PAGE.parent)})"


def value(cell: dict[str, Any], column: str) -> float:
    """``whole`` is the checker's share of full marks; any other word a scorer's mean, or a figure of its own."""
    if column == "whole":
        return float(cell["checker"]["full_marks"])
    found = cell[column]
    return float(found["mean"] if isinstance(found, dict) else found)


def figure(of: Sequence[dict[str, Any]], column: str) -> str:
    """Of one cell by seed: mean and standard deviation."""
    if any(column != "whole" and column not in cell for cell in of):
        return "–"
    values = [value(cell, column) for cell in of]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def gaps(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], column: str) -> str:
    """How much more we have of a column, seed by seed."""
    return ", ".join(f"{value(one, column) - value(other, column):+.3f}" for one, other in zip(ours, theirs, strict=True))


def head(column: str) -> str:
    """Of a table's column."""
    return HEADS.get(column, column)
