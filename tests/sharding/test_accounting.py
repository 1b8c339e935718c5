import pytest

from rglcd.sharding.accounting import Reason, Tally, total_of


def test_a_tally_that_loses_a_row_cannot_be_made() -> None:
    with pytest.raises(AssertionError):
        Tally(rows=3, samples=1, reasons={Reason.MISSING_FILE: 1})


def test_the_sum_of_tallies_adds_rows_samples_and_reasons() -> None:
    total = total_of([Tally(3, 1, {"too_large": 2}), Tally(4, 2, {"missing_file": 1, "too_large": 1}), Tally(1, 1)])
    assert total == Tally(8, 4, {"missing_file": 1, "too_large": 3})
    assert str(total) == "8 rows, 4 samples, missing_file 1, too_large 3"


def test_the_sum_of_no_tallies_is_an_empty_tally() -> None:
    assert total_of([]) == Tally()
