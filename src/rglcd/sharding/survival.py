"""The survival report: how many rows became samples, where the others were lost, and what the survivors are like."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

from rglcd.sharding.accounting import Loss, Reason
from rglcd.sharding.survey import ASPECTS, LOCAL, OTHERS, SIDES, lot

NUM_PREVIEWS: Final = 100
MAX_DOMAINS: Final = 10_000
SHOWN_DOMAINS: Final = 50
FOLDED: Final = "(further domains)"


def previews_per_shard(num_shards: int) -> int:
    """So many that the :data:`NUM_PREVIEWS` drawn from all shards' are those that a draw from all samples gives, but for rare luck."""
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
            NUM_PREVIEWS, [*chosen, *((lot(preview["key"]), preview["key"], preview) for preview in survey["previews"])]
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
    """The report as one page that needs nothing beside it. Captions and domains are hostile text: everything is escaped."""
    rows, samples = survival["rows"], survival["samples"]
    domains = list(survival["domains"].items())[:SHOWN_DOMAINS]
    sections = [
        f"<h1>{samples:,} of {rows:,} rows became samples ({_percent(samples, rows)})</h1>",
        "<h2>Where rows were lost</h2>",
        _table(
            ("rows that", "left", "of all"),
            [(step["left"], step["count"], _percent(step["count"], rows)) for step in survival["waterfall"]],
        ),
        "<h2>Reasons</h2>",
        _table(
            ("reason", "rows", "of all"), [(reason, count, _percent(count, rows)) for reason, count in _largest_first(survival["reasons"])]
        ),
        f"<h2>By domain ({min(len(domains), SHOWN_DOMAINS)} of {len(survival['domains']):,})</h2>",
        _table(("domain", "rows", "samples", "survived"), [_domain_row(*domain) for domain in domains]),
        "<h2>Size of the originals</h2>",
        _table(("short side, pixels, from", "samples"), survival["short_sides"].items()),
        _table(("long side over short side, from", "samples"), survival["aspects"].items()),
        f"<h2>{len(survival['previews'])} samples drawn at random</h2>",
        f"<div class=previews>{''.join(map(_figure, survival['previews']))}</div>",
    ]
    return _PAGE.replace("CONTENT", "\n".join(sections))


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


def _domain_row(domain: str, counts: Mapping[str, int]) -> tuple[Any, ...]:
    return domain, counts["rows"], counts["samples"], _percent(counts["samples"], counts["rows"])


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    def cell(value: Any) -> str:
        return f"<td class=n>{value:,}</td>" if isinstance(value, int) else f"<td>{escape(str(value))}</td>"

    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(word)}</th>' for word in head)}</tr>{body}</table>"


def _figure(preview: Mapping[str, str]) -> str:
    caption = escape(preview["caption"])
    return f'<figure><img alt="" src="data:image/webp;base64,{escape(preview["webp"])}"><figcaption>{caption}</figcaption></figure>'


_PAGE: Final = """<!doctype html>
<html lang=en><head><meta charset=utf-8><title>Survival of rows</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
.n { text-align: right; font-variant-numeric: tabular-nums }
.previews { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem }
figure { margin: 0; font-size: 12px; overflow-wrap: anywhere } img { width: 100%; display: block }
</style></head><body>
CONTENT
</body></html>
"""
