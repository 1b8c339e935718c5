"""What reading a damaged or hostile file says."""

import shutil
from collections.abc import Callable
from pathlib import Path

from rglcd.errors import InputError
from rglcd.sharding.import_source import use
from rglcd.sharding.source import Candidate
from rglcd.sharding.third_party_tars import LISTING, ReadyShards


def refusal_of(act: Callable[[], object]) -> str | None:
    """What :class:`InputError` said, if it was raised."""
    try:
        act()
    except InputError as refused:
        return str(refused)
    return None


def read_third_party_tar(path: Path, source: Path) -> str | list[Candidate]:
    """The samples of a tar that has no manifest, imported as ``source``; or why it was refused."""
    shutil.rmtree(source, ignore_errors=True)
    use(str(path), source)
    try:
        return list(ReadyShards.open(source / LISTING, None).candidates(0))
    except InputError as refused:
        return str(refused)
