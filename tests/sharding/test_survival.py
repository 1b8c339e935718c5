import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rglcd.config import Sharding
from rglcd.sharding.accounting import Reason
from rglcd.sharding.decoding import encode
from rglcd.sharding.survey import LOCAL, OTHERS, Survey, domain_of, stable_random
from rglcd.sharding.survival import NUM_PREVIEWS, previews_per_shard, render, survival_of
from tests.sharding.test_decoding import picture
from tests.stages.sharding_runs import run

IMAGE = encode(picture(16, 16), "png")
FACTS = {"url": "https://www.example.com/a.jpg", "original_width": 640, "original_height": 480}


def record(survey: Survey, **reasons: int) -> dict[str, Any]:
    return {"survey": survey.record(), "status_dict": {"success": survey.num_samples} | reasons}


def surveyed(num_samples: int, *, first: int = 0, num_previews: int = 4) -> Survey:
    survey = Survey(num_previews)
    for number in range(first, first + num_samples):
        survey.add_sample(f"{number:09d}", IMAGE, f"caption {number}", FACTS)
    return survey


def test_waterfall_counts_rows_left_after_each_step() -> None:
    survey = surveyed(5)
    for _ in range(6):
        survey.add_refusal("http://gone.example/x")
    survival = survival_of([record(survey, gone=3, malformed_row=2, undecodable=1)])
    assert [step["count"] for step in survival["waterfall"]] == [11, 9, 6, 5]
    assert (survival["rows"], survival["samples"], survival["reasons"]) == (11, 5, {"gone": 3, "malformed_row": 2, "undecodable": 1})
    assert survival["domains"] == {"gone.example": {"rows": 6, "samples": 0}, "example.com": {"rows": 5, "samples": 5}}
    assert survival["short_sides"]["384"] == 5
    assert survival["aspects"]["1.2"] == 5


def test_waterfall_counts_every_reason_once() -> None:
    survival = survival_of([record(surveyed(1), **{reason.value: 1 for reason in Reason})])
    assert survival["waterfall"][-1]["count"] == 1
    assert survival["rows"] == 1 + len(Reason)


def test_previews_are_a_random_draw_from_all_samples() -> None:
    shards = [surveyed(60, first=60 * number, num_previews=previews_per_shard(20)) for number in range(20)]
    survival = survival_of(record(shard) for shard in shards)
    expected = sorted((f"{number:09d}" for number in range(1200)), key=stable_random)[:NUM_PREVIEWS]
    assert [preview["key"] for preview in survival["previews"]] == expected


def test_domain_is_the_host_without_www() -> None:
    urls = ["https://WWW.Example.com:8/a", "http://[::1", "images/a.png", None, "http://" + "x" * 300]
    assert [domain_of(url) for url in urls] == ["example.com", LOCAL, LOCAL, LOCAL, "x" * 253]


def test_memory_does_not_grow_with_the_number_of_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rglcd.sharding.survival.MAX_DOMAINS", 500)

    def records(num_shards: int) -> Iterator[dict[str, Any]]:
        for number in range(num_shards):
            survey = Survey()
            for domain in range(400):
                for _ in range(2):
                    survey.add_refusal(f"http://{number}-{domain}.example/")
            survey.add_refusal(f"http://once-{number}.example/")
            yield record(survey, gone=801)

    def peak_bytes(num_shards: int) -> int:
        tracemalloc.start()
        survival = survival_of(records(num_shards))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(counts["rows"] for counts in survival["domains"].values()) == 801 * num_shards
        assert survival["domains"][OTHERS]["rows"] == num_shards
        assert len(survival["domains"]) <= 502
        return peak

    assert peak_bytes(32) < 1.3 * peak_bytes(8)


def test_page_escapes_captions_and_domains() -> None:
    survey = Survey(4)
    payload = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    survey.add_sample("000", IMAGE, payload, {**FACTS, "url": "http://<script>alert(2)</script>/"})
    survey.add_sample("001", IMAGE, payload, {**FACTS, "url": "http://<script>alert(2)</script>/"})
    page = render(survival_of([record(survey, gone=1)]))
    assert "<script" not in page
    assert "onerror=alert(1)>" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert "default-src 'none'" in page


def test_equal_records_give_equal_reports() -> None:
    made = [survival_of([record(surveyed(9)), record(surveyed(9, first=9))]) for _ in range(2)]
    assert json.dumps(made[0]) == json.dumps(made[1])
    assert render(made[0]) == render(made[1])


def test_a_sample_too_large_to_be_decoded_again_has_no_preview(tmp_path: Path) -> None:
    """A plain JPEG may have 64 million pixels, anything else 32: one that became a PNG ended the stage in an unexpected error."""
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    Image.new("RGB", (8000, 4100), (200, 60, 60)).save(source / "images" / "large.jpg")
    (source / "images" / "small.png").write_bytes(IMAGE)
    (source / "index.tsv").write_text("images/large.jpg\tlarge\nimages/small.png\tsmall\n")
    facts = run(source, tmp_path / "shards", Sharding(resolution=64, resize="no", image_format="png"))
    assert (facts["samples"], facts["reasons"]) == (2, {})
    previews = json.loads((tmp_path / "shards" / "survival.json").read_text())["previews"]
    assert [preview["caption"] for preview in previews] == ["small"]
