"""The rows, in the order of their cost: the cheapest first."""

from benchmarks.faults.damage import CUTS, FLIPS, MEMBERS
from benchmarks.faults.failing_store import FAILING_STORE
from benchmarks.faults.full_disk import FULL_DISK
from benchmarks.faults.hostile_web import HOSTILE_WEB
from benchmarks.faults.kills import KILLS
from benchmarks.faults.malformed import MALFORMED
from benchmarks.faults.many_rows import MANY_ROWS
from benchmarks.faults.ranks import RANKS
from benchmarks.faults.row import Row
from benchmarks.faults.stale_cache import STALE_CACHE
from benchmarks.faults.surroundings import SURROUNDINGS
from benchmarks.faults.workers import WORKERS

MATRIX: tuple[Row, ...] = (
    *(CUTS, FLIPS, STALE_CACHE, MALFORMED, MEMBERS, HOSTILE_WEB, FULL_DISK, MANY_ROWS),
    *(WORKERS, FAILING_STORE, RANKS, SURROUNDINGS, KILLS),
)
"""Cheapest first."""


def row_named(name: str) -> Row:
    """The row called ``name``; ``KeyError`` for another word."""
    return {row.name: row for row in MATRIX}[name]
