"""F4: tars that were cut."""

import random
from pathlib import Path

import pytest

from rglcd.sharding.shards import Sample, ShardEntry, read_shard, sample_key, shard_entries, write_shard
from tests.faults.refusals import read_third_party_tar, refusal_of
from tests.faults.rounds import Trial, evenly
from tests.publishing import publish

_BLOCK = 512
_NUM_BLOCKS, _NUM_PLACES = 3000, 200
_NUM_SAMPLES = 115
"""Of 26 blocks each, which with the tar's end are 3,000."""


@pytest.fixture(scope="module")
def shard(fault_seed: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardEntry, bytes]:
    """A whole shard of 3,000 blocks."""
    folder, rng = tmp_path_factory.mktemp("shards"), random.Random(fault_seed)
    keys = [sample_key(0, place, rows_per_shard=1000) for place in range(_NUM_SAMPLES)]
    write_shard(folder, 0, [Sample(key, rng.randbytes(21 * _BLOCK), f"caption {key}", {"key": key}) for key in keys], extension="png")
    (entry,) = shard_entries(publish(folder, stage="shard"))
    whole = (folder / entry.name).read_bytes()
    assert len(whole) == _NUM_BLOCKS * _BLOCK, f"the tar has {len(whole) / _BLOCK} blocks, not {_NUM_BLOCKS}"
    return entry, whole


@pytest.mark.fault(
    "F4",
    fault="a tar cut at every 512-byte block and at 200 random bytes",
    must="refused before its first sample, by shard and offset; a third-party tar refused, or all of it read",
    unit="cuts",
    num_rounds=_NUM_BLOCKS + _NUM_PLACES,
    sample=evenly(40, of=_NUM_BLOCKS + _NUM_PLACES),
)
def test_cut_tar_is_refused_before_its_first_sample(trial: Trial, shard: tuple[ShardEntry, bytes], tmp_path: Path) -> None:
    (entry, whole), path = shard, tmp_path / "cut.tar"
    at = trial.number * _BLOCK if trial.number < _NUM_BLOCKS else trial.rng().randrange(len(whole))
    path.write_bytes(whole[:at])
    refusal = refusal_of(lambda: read_shard(path, entry))
    assert refusal is not None, f"cut at byte {at}, it was read"
    assert f"{path} has {at} bytes, not {len(whole)}" in refusal, f"cut at byte {at}: {refusal}"
    third_party = read_third_party_tar(path, tmp_path / "source")
    if isinstance(third_party, list):
        assert len(third_party) >= _NUM_SAMPLES, f"cut at byte {at}, it was read as a third-party tar with {len(third_party)} samples"
    theirs = "refused too" if isinstance(third_party, str) else "whole, only its padding was cut"
    trial.record(f"cut at byte {at}: ours refused by shard and length before its first sample; as a third-party tar {theirs}")
