"""The survival report: how many rows became samples, where the others were lost, and what the samples are like."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rglcd.rendering import html_environment
from rglcd.sharding.accounting import Loss, Reason
from rglcd.sharding.survey import ASPECTS, LOCAL, OTHERS, SIDES, stable_random

NUM_PREVIEWS: Final = 100
MAX_DOMAINS: Final = 10_000
SHOWN_DOMAINS: Final = 50
FOLDED: Final = "(further domains)"


def previews_per_shard(num_shards: int) -> int:
    """How many previews a shard keeps: enough that a draw of :data:`NUM_PREVIEWS` from all samples almost surely finds its own."""
    return min(NUM_PREVIEWS, max(4, -(-4 * NUM_PREVIEWS // num_shards)))


def survival_of(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The report as JSON, from the shards' records, taken one at a time.

    Memory is bounded: beyond :data:`MAX_DOMAINS` the smallest domains are counted together.
    """
    statuses, sides, aspects = Counter[str](), Counter[str](), Counter[str]()
    rows, samples = Counter[str](), Counter[str]()
    chosen: list[tuple[int, str, dict[str, str]]] = []
    num_shards = 0
    for record in records:
        num_shards += 1
        survey = record["survey"]
        statuses.update(record["status_dict"])
        sides.update(survey["short_sides"])
        aspects.update(survey["aspects"])
        for domain, (num_rows, num_samples) in survey["domains"].items():
            rows[domain] += num_rows
            samples[domain] += num_samples
        if len(rows) > 2 * MAX_DOMAINS:
            _fold(rows, samples)
        chosen = heapq.nsmallest(
            NUM_PREVIEWS, [*chosen, *((stable_random(preview["key"]), preview["key"], preview) for preview in survey["previews"])]
        )
    _fold(rows, samples)
    return {
        "rows": statuses.total(),
        "samples": statuses["success"],
        "shards": num_shards,
        "reasons": {reason: count for reason, count in sorted(statuses.items()) if reason != "success"},
        "waterfall": _waterfall(statuses),
        "domains": {domain: {"rows": count, "samples": samples[domain]} for domain, count in _largest_first(rows)},
        "short_sides": {str(side): sides[str(side)] for side in SIDES},
        "aspects": {str(aspect): aspects[str(aspect)] for aspect in ASPECTS},
        "previews": [preview for _, _, preview in chosen],
    }


def render(survival: Mapping[str, Any]) -> str:
    """The report as one page that needs nothing beside it. Captions and domains are hostile text: the template escapes every value."""
    return _HTML.get_template("survival.html").render(survival=survival, shown_domains=SHOWN_DOMAINS)


def _waterfall(statuses: Mapping[str, int]) -> list[dict[str, Any]]:
    left = sum(statuses.values())
    steps = [{"left": "were read", "count": left}]
    for loss in Loss:
        left -= sum(count for status, count in statuses.items() if status != "success" and Reason(status).loss is loss)
        steps.append({"left": loss.survived, "count": left})
    return steps


def _fold(rows: Counter[str], samples: Counter[str]) -> None:
    named = [(count, domain) for domain, count in rows.items() if domain not in (OTHERS, FOLDED, LOCAL)]
    for count, domain in sorted(named, key=lambda pair: (-pair[0], pair[1]))[MAX_DOMAINS:]:
        rows[FOLDED] += count
        samples[FOLDED] += samples[domain]
        del rows[domain], samples[domain]


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


_HTML = html_environment("rglcd.sharding")
_HTML.filters["largest_first"] = _largest_first
