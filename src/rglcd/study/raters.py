"""Who may vote: raters by number, each with a random token that is its link; people, or programs that stand for them."""

import hmac
import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.store.locks import exclusive_lock
from rglcd.store.staging import staging_file

RATERS: Final = "raters.json"
_TOKEN_BYTES: Final = 24


@dataclass(frozen=True)
class Rater:
    """``number`` counts from 0 and decides what is asked; who holds ``token`` votes as this rater; ``simulated``: a program, no person."""

    number: int
    token: str
    simulated: bool


def read_raters(folder: Path) -> list[Rater]:
    """The raters that the study in ``folder`` has, by number. Raises :class:`InputError` for a file that is none."""
    path = folder / RATERS
    if not path.is_file():
        return []
    try:
        listed = list(json.loads(path.read_text("utf-8")))
        raters = [Rater(int(one["number"]), str(one["token"]), bool(one["simulated"])) for one in listed]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error})") from None
    if not raters or [rater.number for rater in raters] != list(range(len(raters))):
        raise InputError(f"{path}: raters must be numbered from 0 on, in order")
    return raters


def with_raters(folder: Path, count: int, *, simulated: bool) -> list[Rater]:
    """``count`` raters of a kind, the first that there are; those that are missing are made and written down (mode 0600)."""
    path = folder / RATERS
    with exclusive_lock(folder / f".{RATERS}.lock"):
        raters = read_raters(folder)
        missing = count - sum(rater.simulated == simulated for rater in raters)
        new = [Rater(len(raters) + more, secrets.token_urlsafe(_TOKEN_BYTES), simulated) for more in range(missing)]
        if new:
            raters += new
            with staging_file(path) as staging:
                descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                    json.dump([asdict(rater) for rater in raters], stream, indent=1)
    return [rater for rater in raters if rater.simulated == simulated][:count]


def rater_with(token: str, raters: Iterable[Rater]) -> Rater | None:
    """The rater whose token it is. Every token is compared, each in constant time: how long it takes says nothing of any."""
    found = None
    for rater in raters:
        if hmac.compare_digest(rater.token.encode(), token.encode("utf-8", "replace")):
            found = rater
    return found
