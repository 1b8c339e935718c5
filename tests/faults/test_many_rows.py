"""F19: sharding a million rows takes no more memory than a hundred thousand."""

from pathlib import Path

import pytest

from benchmarks.data import Cost, ours, write_many_rows
from rglcd.store.manifest import read_manifest
from tests.faults.rounds import Trial

_SIZES = ((2_000, 20_000), (10_000, 100_000), (100_000, 1_000_000))
_GROWTH = 1.1


@pytest.mark.slow
@pytest.mark.fault(
    "F19",
    fault="sharding an index of 20,000, 100,000 and 1,000,000 rows, beside one of a tenth",
    must="rows = samples + every reason; the peak of memory within 10 % of that of a tenth of the rows",
    unit="pairs",
    num_rounds=len(_SIZES),
    sample=range(1),
)
def test_ten_times_the_rows_are_sharded_in_the_same_memory(trial: Trial, tmp_path: Path) -> None:
    few, many = (_cost_of_sharding(tmp_path / f"{rows}", rows) for rows in _SIZES[trial.number])
    said = f"{few.peak_mib:.0f} MiB for {few.samples:,} rows, {many.peak_mib:.0f} for {many.samples:,}"
    assert many.peak_mib <= _GROWTH * few.peak_mib, said
    costs = [f"{cost.samples:,} rows: {cost.peak_mib:.0f} MiB at most, {cost.cpu_seconds:.0f} CPU s" for cost in (few, many)]
    trial.record(" and ".join(costs))


def _cost_of_sharding(folder: Path, num_rows: int) -> Cost:
    """What sharding so many rows costs, once every one of them is found to be accounted for."""
    folder.mkdir()
    cost = ours(
        write_many_rows(folder / "source", num_rows), folder, num_rows, resolution=64, samples_per_shard=10_000, image_format="jpeg"
    )
    facts = read_manifest(folder / "shards", made_by="shard").facts
    assert facts["rows"] == num_rows == facts["samples"] + sum(facts["reasons"].values()), f"{num_rows} rows became {facts}"
    return cost
