import pytest
import torch

from benchmarks.claim_pictures import rows_of
from benchmarks.claims import in_words, study_named, verdict
from benchmarks.comparisons import pooled
from benchmarks.studies import LINES, STUDIES

DRAWS = torch.Generator().manual_seed(0)
CLEAR = torch.rand(16, 150, generator=DRAWS, dtype=torch.float64) * 0.5 + 0.45
EVEN = torch.rand(16, 150, generator=DRAWS, dtype=torch.float64)


def test_a_claim_is_shown_if_the_interval_and_every_seed_are_above_a_half() -> None:
    assert verdict([CLEAR, CLEAR]) == "shown"
    assert verdict([1 - CLEAR]) == "refuted"
    assert verdict([EVEN]) == "open"
    assert verdict([CLEAR, CLEAR, 0.9 - 0.6 * CLEAR]) == "open", "one seed says the opposite"


def test_raters_who_copy_one_another_are_no_more_than_one() -> None:
    one = torch.rand(1, 150, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone, copied = pooled([one]), pooled([one.expand(16, -1)])
    assert (copied.high - copied.low) == pytest.approx(alone.high - alone.low, rel=0.1)


def test_raters_of_different_taste_widen_the_interval() -> None:
    taste = torch.linspace(0, 1, 16, dtype=torch.float64)[:, None].expand(16, 150)
    assert pooled([taste]).high - pooled([taste]).low > 0.25


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Captions and raters with effects of their own about a true .5: of sixty studies nearly all must cover."""
    covered = 0
    for study in range(60):
        draws = torch.Generator().manual_seed(study)
        effects = torch.randn(1, 60, generator=draws, dtype=torch.float64) + torch.randn(16, 1, generator=draws, dtype=torch.float64)
        found = pooled([0.5 + 0.1 * (effects + torch.randn(16, 60, generator=draws, dtype=torch.float64))], seed=study)
        covered += found.low < 0.5 < found.high
    assert covered >= 52


def test_a_figure_says_its_seeds() -> None:
    assert in_words([torch.full((1, 5), 0.6)]) == "60 % [60, 60]"
    assert in_words([torch.full((1, 5), 0.6), torch.full((1, 5), 0.7)]) == "65 % [65, 65] (60, 70)"


def test_every_study_compares_with_a_run_of_its_own_and_runs_of_one_name_are_one_run() -> None:
    runs = [run for study in STUDIES for run in study.runs]
    for study in STUDIES:
        assert study.baseline in {run.label for run in study.runs}
    for run in runs:
        assert {other.overrides for other in runs if other.name == run.name} == {run.overrides}


def test_every_claim_with_pictures_shows_runs_that_are_made() -> None:
    made = {run.name for study in STUDIES for run in study.runs} | {line.name for line in LINES}
    for claim in ("main", "flow", "over-optimisation", "votes-as-expert", "checker-as-expert", "proxy-start", "best-of-four"):
        assert {row.what.run.name for row in rows_of(claim)} <= made
    with pytest.raises(StopIteration):
        study_named("of no name")
