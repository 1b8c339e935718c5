"""Distances by several networks: their names, their order, and the refusal to compare what was measured differently."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rglcd.errors import InputError
from rglcd.evaluation.comparison import compare
from rglcd.evaluation.distances import Distances, FeatureRecord, load_records, refuse_other_basis, save_records
from rglcd.evaluation.frechet import FeatureMoments, frechet_distance
from tests.evaluation.fixtures import BASIS, constant, measurements

CAPTIONS = [f"caption {number}" for number in range(40)]


def records(seed: int, *, shift: float = 0.0) -> dict[str, FeatureRecord]:
    draws = torch.Generator().manual_seed(seed)
    return {kind: FeatureRecord.of(torch.randn(40, 5, generator=draws) + shift, CAPTIONS) for kind in ("inception", "clip", "dinov2")}


def test_each_network_gives_the_distances_that_bear_its_name() -> None:
    real, ours = records(0), records(1, shift=1.0)
    found = Distances.between(ours, real)
    assert list(found.frechet) == ["fid", "fd_dinov2"]
    assert list(found.kernel) == ["kid", "cmmd", "kd_dinov2"]
    assert found.frechet["fid"] == frechet_distance(real["inception"].moments, ours["inception"].moments)
    assert all(estimate.low < estimate.value < estimate.high for estimate in found.kernel.values())
    assert list(found.in_order_of(["dinov2", "inception", "clip"]).frechet) == ["fd_dinov2", "fid"]


def test_records_are_read_back_to_the_last_bit(tmp_path: Path) -> None:
    kept = records(0)
    save_records(tmp_path, kept)
    assert Distances.between(load_records(tmp_path), records(1)) == Distances.between(kept, records(1)).in_order_of(
        list(load_records(tmp_path))
    )


def test_sums_cover_all_images_and_kernels_the_first_few_thousand() -> None:
    features = torch.randn(5100, 2, generator=torch.Generator().manual_seed(0))
    record = FeatureRecord.of(features, [str(number) for number in range(5100)])
    assert record.moments.count == FeatureMoments.of(features).count == 5100
    assert record.first.shape == (5000, 2)


@pytest.mark.parametrize("name", ["images", "reference", "features (auto)"])
def test_numbers_that_were_measured_differently_are_not_compared(name: str) -> None:
    with pytest.raises(InputError, match=f"cannot be compared, for they were measured differently .*{name[:6]}"):
        refuse_other_basis(BASIS, BASIS | {name: "another"})
    refuse_other_basis(BASIS, dict(BASIS))
    first, *others = measurements(constant(0.7, "judge"))
    with pytest.raises(InputError, match="another"):
        compare([first, *(replace(other, basis=BASIS | {name: "another"}) for other in others)], seed=0, trained_on=None)
