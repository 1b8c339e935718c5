"""Digests of images that nobody has published yet: a fresh clone's images/lock.yaml holds zeros until `make images` has run."""

import sys

from rglcd.errors import InputError

_NOT_PUBLISHED = "sha256:" + "0" * 64


def is_published(image: str | None) -> bool:
    """Whether the image may be one that a registry has."""
    return image is None or not image.endswith(_NOT_PUBLISHED)


def require_published(image: str | None) -> None:
    """Raises :class:`InputError` for a digest of zeros, which every pod would wait for in vain."""
    if not is_published(image):
        raise InputError(f"{_explained(image)}, or name another in cluster.yaml (image) or RGLCD_IMAGE")


def warn_unless_published(image: str | None) -> None:
    """Say on stderr that what is printed cannot run as it is."""
    if not is_published(image):
        print(f"rglcd: {_explained(image)}, before anybody applies this", file=sys.stderr)


def _explained(image: str | None) -> str:
    return f"the image {str(image).partition('@')[0]} has a digest of zeros, nobody has published it: make images first"
