"""Scores by group of prompts: equal to the published scripts' arithmetic, in metrics and on the page."""

import numpy as np
import pytest

from rglcd.evaluation.comparison import compare
from rglcd.evaluation.groups import grouped
from rglcd.evaluation.measurement import Sampler
from rglcd.evaluation.pages import report_html, report_markdown
from rglcd.evaluation.report_data import report_data
from rglcd.evaluation.result_files import metrics
from tests.evaluation.fixtures import NUM_IMAGES, constant, measurement, measurements, pictures, provenance

STYLES = ("anime", "concept-art", "paintings", "photo")


def test_hpsv2s_mean_and_deviation_are_those_of_its_script() -> None:
    """hpsv2/evaluation.py: ``avg_score = [np.mean(res[i:i+80]) for i in range(0, 800, 80)]``, then ``np.mean`` and ``np.std``."""
    values = np.random.default_rng(0).normal(0.28, 0.03, 3200)
    labels = [{"style": style} for style in STYLES for _ in range(800)]
    (grouping,) = grouped([measurement("rg", 2, {"hps": values.tolist()})], labels, seed=0)
    for number, style in enumerate(STYLES):
        res = values[800 * number : 800 * (number + 1)]
        avg_score = [np.mean(res[i : i + 80]) for i in range(0, 800, 80)]
        score = grouping.scores[Sampler("rg", 2)]["hps"][style]
        assert score.mean.value == pytest.approx(np.mean(avg_score), rel=1e-12)
        assert score.block_deviation == pytest.approx(np.std(avg_score), rel=1e-9)
    assert grouping.mean_of_groups(Sampler("rg", 2), "hps") == pytest.approx(values.mean(), rel=1e-12)


def test_another_number_of_images_has_no_deviation_over_blocks() -> None:
    (grouping,) = grouped([measurement("rg", 2, {"hps": [0.1] * 80})], [{"style": "anime"}] * 80, seed=0)
    assert grouping.scores[Sampler("rg", 2)]["hps"]["anime"].block_deviation is None


def test_every_group_counts_as_much_in_the_mean_of_groups() -> None:
    labels = [{"category": "few"}] * 4 + [{"category": "many"}] * 60
    (grouping,) = grouped([measurement("rg", 2, {"judge": [1.0] * 4 + [0.0] * 60})], labels, seed=0)
    assert grouping.num_images == {"few": 4, "many": 60}
    assert grouping.mean_of_groups(Sampler("rg", 2), "judge") == 0.5


def compared(labels):
    return compare(measurements(constant(0.7, "expert", "judge")), seed=0, trained_on="expert", labels=labels)


LABELS = [{"category": "<b>animals</b>", "challenge": "Basic"}, {"category": "arts", "challenge": "Complex"}] * (NUM_IMAGES // 2)


def test_metrics_hold_the_groups_of_every_model_but_the_real_images() -> None:
    found = metrics(compared(LABELS))
    groups = found["rg"]["2"]["groups"]
    assert list(groups) == ["category", "challenge"]
    assert groups["challenge"]["by_group"]["Basic"] == {
        "images": 32,
        "expert": {"mean": 0.7, "low": 0.7, "high": 0.7},
        "judge": {"mean": 0.7, "low": 0.7, "high": 0.7},
    }
    assert groups["challenge"]["mean_of_groups"] == {"expert": 0.7, "judge": 0.7}
    assert "groups" not in found["real"]
    assert "groups" not in str(metrics(compared([])))


def test_the_page_has_a_table_for_each_scorer_and_grouping_with_their_names_escaped() -> None:
    made = report_data(compared(LABELS), pictures=pictures(["a", "b"]), provenance=provenance(protocol="Prompts: mine."), curves={})
    page, text = report_html(made), report_markdown(made)
    assert page.count("<details") - 1 == 4
    assert "judge by challenge" in page
    assert "Prompts: mine." in page
    assert "<bdi>&lt;b&gt;animals&lt;/b&gt;</bdi> (32)" in page
    assert "By category, judge:" in text
    without = report_data(compared([]), pictures=pictures(["a", "b"]), provenance=provenance(), curves={})
    assert 'id="groups"' not in report_html(without)
