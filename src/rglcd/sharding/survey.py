"""Statistics of one shard's rows: domains, sizes, a few previews. Small enough to be part of the shard's record."""

import hashlib
import heapq
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from rglcd.sharding.accounting import RowRejectedError
from rglcd.sharding.decoding import decode, encode, square

SIDES: Final = (0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
"""Lower ends of the classes by the original's short side, in pixels."""

ASPECTS: Final = (1.0, 1.2, 1.4, 1.7, 2.0, 3.0, 5.0)
"""Lower ends of the classes by long side over short side."""

PREVIEW_SIDE: Final = 64  # pixels
OTHERS: Final = "(domains with one row in a shard)"
LOCAL: Final = "(local)"

_MAX_TEXT: Final = 200


@dataclass
class Survey:
    """The statistics of one shard. The previews are a random draw: the samples with the smallest :func:`stable_random` keys."""

    num_previews: int = 0
    num_samples: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    samples: Counter[str] = field(default_factory=Counter)
    sides: Counter[int] = field(default_factory=Counter)
    aspects: Counter[float] = field(default_factory=Counter)
    _chosen: list[tuple[int, str, bytes, str]] = field(default_factory=list)

    def add_sample(self, key: str, image: bytes, caption: str, facts: Mapping[str, Any]) -> None:
        """Count a sample with its encoded ``image``; ``facts`` may say its ``url`` and its original size."""
        domain = domain_of(facts.get("url"))
        self.num_samples += 1
        self.rows[domain] += 1
        self.samples[domain] += 1
        if "original_width" in facts:
            short, long = sorted((facts["original_width"], facts["original_height"]))
            self.sides[max(side for side in SIDES if side <= short)] += 1
            self.aspects[max(aspect for aspect in ASPECTS if aspect <= long / short)] += 1
        if self.num_previews:
            candidate = (-stable_random(key), key, image, caption)
            if len(self._chosen) < self.num_previews:
                heapq.heappush(self._chosen, candidate)
            else:
                heapq.heappushpop(self._chosen, candidate)

    def add_refusal(self, url: str | None) -> None:
        """Count a row that became no sample."""
        self.rows[domain_of(url)] += 1

    def record(self) -> dict[str, Any]:
        """The survey as JSON. Domains with a single row are counted together: they are most of them."""
        domains: dict[str, list[int]] = {}
        for domain, count in sorted(self.rows.items()):
            entry = domains.setdefault(domain if count > 1 or domain == LOCAL else OTHERS, [0, 0])
            entry[0] += count
            entry[1] += self.samples[domain]
        chosen = (_preview(key, image, caption) for _, key, image, caption in sorted(self._chosen, reverse=True))
        previews = [preview for preview in chosen if preview is not None]
        sides = {str(side): self.sides[side] for side in SIDES if self.sides[side]}
        aspects = {str(aspect): self.aspects[aspect] for aspect in ASPECTS if self.aspects[aspect]}
        return {"domains": domains, "short_sides": sides, "aspects": aspects, "previews": previews}


def stable_random(key: str) -> int:
    """A deterministic pseudo-random number for ``key``."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def domain_of(url: str | None) -> str:
    """The host that ``url`` names, without ``www.``; :data:`LOCAL` for a path or none."""
    try:
        host = urlsplit(url or "").hostname or ""
    except ValueError:
        host = ""
    return host.removeprefix("www.").lower()[:253] or LOCAL


def _preview(key: str, image: bytes, caption: str) -> dict[str, str] | None:
    try:
        thumbnail = encode(square(decode(image), PREVIEW_SIDE), "webp")
    except RowRejectedError:  # a large JPEG, which became a PNG or WebP: of those fewer pixels are decoded
        return None
    return {"key": key, "caption": caption[:_MAX_TEXT], "webp": b64encode(thumbnail).decode()}
