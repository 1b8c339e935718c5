"""Which images came before: eight bytes for each image seen, in order, so that the first row of equal ones is kept.

Eight bytes take one of twelve million different images for another with a probability of 4e-6, all in all.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from PIL import Image

from rglcd.sharding.decoding import Pixels

_FIELD: Final = "fingerprints"


def digest_hash(data: bytes) -> int:
    """Equal for equal bytes."""
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def difference_hash(pixels: Pixels) -> int:
    """Equal for pictures that look alike: the signs of the 64 horizontal steps of a 9 by 8 miniature (Krawetz's dHash)."""
    miniature = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(miniature[:, 1:] > miniature[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


class Seen:
    """The fingerprints of all shards so far: those of earlier shards sorted, those of the current one kept separately."""

    def __init__(self) -> None:
        self._earlier = np.empty(0, dtype=np.uint64)
        self._here: dict[int, None] = {}

    def is_first(self, fingerprint: int) -> bool:
        """Whether no earlier image had ``fingerprint``; the next one that has will not be the first."""
        place = int(np.searchsorted(self._earlier, np.uint64(fingerprint)))
        if fingerprint in self._here or (place < len(self._earlier) and int(self._earlier[place]) == fingerprint):
            return False
        self._here[fingerprint] = None
        return True

    def record(self) -> dict[str, str]:
        """The fingerprints that the current shard has added, for its record; the next shard begins."""
        added = np.fromiter(self._here, dtype=np.uint64, count=len(self._here))
        self._earlier = np.union1d(self._earlier, added)
        self._here = {}
        return {_FIELD: b64encode(added.astype(">u8").tobytes()).decode()}

    def recall(self, record: Mapping[str, Any]) -> None:
        """Take in what the record of a finished shard says it has added."""
        added = np.frombuffer(b64decode(record[_FIELD]), dtype=">u8").astype(np.uint64)
        self._earlier = np.union1d(self._earlier, added)
