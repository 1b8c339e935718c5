"""F19: a million rows cost no more memory than a hundred thousand."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.data import Cost, ours, write_many_rows
from benchmarks.faults.row import Row, Suite, Trial, require
from rglcd.store.manifest import read_manifest

_SIZES = ((2_000, 20_000), (10_000, 100_000), (100_000, 1_000_000))
_GROWTH = 1.1


@contextmanager
def _many_rows(scratch: Path, seed: int) -> Iterator[Trial]:
    def trial(number: int) -> str:
        few, many = (_accounted(scratch / f"{number}-{rows}", rows) for rows in _SIZES[number])
        require(
            many.peak_mib <= _GROWTH * few.peak_mib,
            f"{few.peak_mib:.0f} MiB for {few.samples:,} rows, {many.peak_mib:.0f} for {many.samples:,}",
        )
        return " and ".join(f"{cost.samples:,} rows: {cost.peak_mib:.0f} MiB at most, {cost.cpu_seconds:.0f} CPU s" for cost in (few, many))

    yield trial


def _accounted(folder: Path, num_rows: int) -> Cost:
    """What sharding so many rows costs, once every one of them is found to be accounted for."""
    folder.mkdir()
    cost = ours(
        write_many_rows(folder / "source", num_rows), folder, num_rows, resolution=64, samples_per_shard=10_000, image_format="jpeg"
    )
    facts = read_manifest(folder / "shards", made_by="shard").facts
    require(facts["rows"] == num_rows == facts["samples"] + sum(facts["reasons"].values()), f"{num_rows} rows became {facts}")
    return cost


MANY_ROWS = Row(
    name="F19",
    fault="sharding an index of 20,000, 100,000 and 1,000,000 rows, beside one of a tenth",
    must="rows = samples + every reason; the peak of memory within 10 % of that of a tenth of the rows",
    unit="pairs",
    num_rounds=len(_SIZES),
    sample=range(1),
    open=_many_rows,
    suite=Suite.SLOW,
)
