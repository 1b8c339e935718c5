"""Stage ``shard``: pack the source index's images and captions into verified webdataset tars."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rglcd import progress
from rglcd.config import Sharding
from rglcd.data.accounting import Reason, RowRejectedError, Tally, total_of
from rglcd.data.images import EXTENSIONS, decode, encode, square
from rglcd.data.shards import Sample, finished_shard, sample_key, write_shard
from rglcd.data.source import INDEX, RowRange, parse_row, read_image, read_lines, split_rows
from rglcd.data.work_unit import sweep_aside
from rglcd.errors import InputError
from rglcd.stages.run import Output

_ROWS_BETWEEN_REPORTS = 64


def shard(sharding: Sharding, *, source: Path, shards: Output) -> Mapping[str, Any]:
    """Shard k holds what became samples of rows [k S, (k + 1) S) of the index, S = ``samples_per_shard``.

    So each is a pure function of its rows: a finished one that a killed run left is taken over, and
    ``sharding.parts``, which says how many workers may share the ranges out, cannot change a byte.
    Raises :class:`InputError` when no row becomes a sample, with the reasons.
    """
    index, folder = source / INDEX, shards.folder
    ranges = split_rows(index, sharding.samples_per_shard, max_rows=sharding.max_rows)
    num_rows = sum(rows.num_rows for rows in ranges)
    sweep_aside(folder)

    tallies: list[Tally] = []
    for number, rows in enumerate(ranges):
        done = sum(tally.rows for tally in tallies)
        progress.report("pack shards", done=done, total=num_rows, unit="rows", shards=number)
        tally = finished_shard(folder, number)
        if tally is None:
            outcomes = _reported(_outcomes(sharding, index, number, rows), done=done, total=num_rows, shards=number)
            tally = write_shard(folder, number, outcomes, extension=EXTENSIONS[sharding.image_format])
        assert tally.rows == rows.num_rows, f"shard {number} accounts for {tally.rows} of {rows.num_rows} rows"
        tallies.append(tally)

    total = total_of(tallies)
    if not total.samples:
        raise InputError(f"{index}: no row became a sample ({total})")
    progress.report("pack shards", done=num_rows, total=num_rows, unit="rows", shards=len(ranges))
    return {"rows": total.rows, "samples": total.samples, "shards": len(ranges), "reasons": dict(total.reasons)}


def _outcomes(sharding: Sharding, index: Path, number: int, rows: RowRange) -> Iterator[Sample | Reason]:
    for place, line in enumerate(read_lines(index, rows)):
        key = sample_key(number, place, rows_per_shard=sharding.samples_per_shard)
        yield _outcome(sharding, line, key, index.parent)


def _outcome(sharding: Sharding, line: bytes, key: str, folder: Path) -> Sample | Reason:
    try:
        row = parse_row(line)
        original = decode(read_image(row.url, folder))
    except RowRejectedError as rejected:
        return rejected.reason
    side = sharding.resolution
    sizes = {"width": side, "height": side, "original_width": original.width, "original_height": original.height}
    # img2dataset's field names, so that what reads its shards reads ours.
    facts = {"key": key, "url": row.url, "caption": row.caption, "status": "success", "error_message": None} | sizes
    return Sample(key, encode(square(original, side), sharding.image_format), row.caption, facts)


def _reported(outcomes: Iterator[Sample | Reason], *, done: int, total: int, shards: int) -> Iterator[Sample | Reason]:
    for count, outcome in enumerate(outcomes):
        if count % _ROWS_BETWEEN_REPORTS == 0:
            progress.report("pack shards", done=done + count, total=total, unit="rows", shards=shards)
        yield outcome
