"""What the environment says of the object store and of local copies of its files. None of it enters the configuration.

``RGLCD_STORE``  object-store folder in which the artifacts' bytes lie (``s3://bucket/prefix``; default: beside their manifests)
``RGLCD_CACHE``  local folder for copies of what a store holds (default: ``.cache`` beside the artifacts)
``RGLCD_CACHE_GIB``  how much of that is kept when nothing reads it (default: 100); see :mod:`rglcd.store.local_cache`

Credentials and endpoints are read from the environment by fsspec and huggingface_hub themselves.
"""

import os
from contextlib import suppress
from pathlib import Path

from rglcd.errors import InputError
from rglcd.store.files import is_remote


def store_in_force() -> str | None:
    """The object-store folder that the environment names, if it names one."""
    uri = os.environ.get("RGLCD_STORE") or None
    if uri is not None and not is_remote(uri):
        raise InputError(f"RGLCD_STORE is {uri!r}; it is a URL such as s3://bucket/prefix")
    return uri


def cache_folder(*, beside: Path) -> Path:
    """Where local copies of a store's files lie: what the environment names, or ``.cache`` beside the artifact's folder."""
    named = os.environ.get("RGLCD_CACHE")
    return Path(named) if named else beside.parent / ".cache"


def cache_limit() -> int:
    """Bytes that local copies of a store's files may take."""
    word = os.environ.get("RGLCD_CACHE_GIB") or "100"
    with suppress(ValueError, OverflowError):
        if (limit := int(float(word) * 2**30)) > 0:
            return limit
    raise InputError(f"RGLCD_CACHE_GIB is {word!r}; it is a number of GiB above 0")
