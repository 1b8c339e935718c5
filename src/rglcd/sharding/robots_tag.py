"""``X-Robots-Tag``: by which a host keeps an image out of data sets."""

from collections.abc import Iterable
from typing import Final

OPT_OUT: Final = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""Directives of ``X-Robots-Tag`` by which a host keeps its images out of data sets: those that img2dataset honours."""

ROBOT: Final = "rglcd"
"""The name by which a host may address us in ``X-Robots-Tag``."""

_VALUED: Final = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def opted_out(tags: Iterable[str]) -> bool:
    """Whether one of the ``X-Robots-Tag`` values holds a directive of :data:`OPT_OUT` that is addressed to everyone or to us.

    A value such as ``googlebot: noindex`` is addressed to that robot alone; some directives (``unavailable_after: DATE``)
    have a colon of their own.
    """
    for tag in tags:
        first, separator, rest = tag.partition(":")
        robot = first.strip().lower()
        if separator and "," not in first and robot not in _VALUED:
            if robot not in (ROBOT, "*"):
                continue
            tag = rest
        if {word.strip().lower() for word in tag.split(",")} & OPT_OUT:
            return True
    return False
