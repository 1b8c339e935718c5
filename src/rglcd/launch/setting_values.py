"""What values a setting takes, as cluster.yaml says it and as a variable does."""

import json
import re
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode


def _whole_number(value: object) -> object:
    """Stricter than pydantic, which also takes ``true`` and ``"1.0"``."""
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError("it is a whole number from 1 on")
    return number


def _count(value: object) -> object:
    return 0 if value in (0, "0") and not isinstance(value, bool) else _whole_number(value)


def _volume(value: str) -> str:
    claim, _, path = value.partition("=")
    if not claim or not path.startswith("/"):
        raise ValueError("it takes the form claim=/path")
    return value


def _label(value: str) -> str:
    key, equals, label = value.partition("=")
    if not _LABEL.fullmatch(key) or (equals and not label):
        raise ValueError("it takes the form label=value, or label for any value")
    return value


def _taint(value: str) -> str:
    if not _TAINT.fullmatch(value):
        raise ValueError(f"{value!r} does not take the form key=value:Effect, key:Effect or key, as kubectl taint writes it")
    return value


def _secret_key(value: str) -> str:
    if not _SECRET_KEY.fullmatch(value):
        raise ValueError(f"{value!r} does not take the form secret/KEY, KEY being the variable's name too")
    return value


def _url(value: str) -> str:
    if "://" not in value:
        raise ValueError("it is a URL such as s3://bucket/prefix")
    return value


def _http_address(value: str) -> str:
    """``value`` without a slash at its end; ``ValueError`` unless it is the plain address of a server."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("it is an address such as https://mlflow.example.org")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds no credentials: they are variables of their own")
    return value.rstrip("/")


def _amounts(value: object) -> object:
    """``name=amount,name=amount`` of a variable, or a mapping of the file."""
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    if isinstance(value, Mapping):
        for name, amount in value.items():
            if isinstance(amount, bool | float):  # true would become True, and 1.10 become 1.1
                raise ValueError(f"{name!r} is {amount!r} to YAML, and no text: put it in quotes")
        pairs = [(name, "" if amount is None else str(amount)) for name, amount in value.items()]
    else:
        pairs = [(name, amount) for name, _, amount in (entry.partition("=") for entry in str(value).split(",") if entry)]
    if not all(name and amount for name, amount in pairs):
        raise ValueError("it takes the form name=amount, separated by commas")
    return dict(pairs)


def _names(value: object) -> object:
    """``name,name`` of a variable, or a list of the file."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


_LABEL = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_./]*")
_TAINT = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_./]*(=[-A-Za-z0-9_.]+)?(:(NoSchedule|PreferNoSchedule|NoExecute))?")
_SECRET_KEY = re.compile(r"[a-z0-9][-a-z0-9.]*/[A-Za-z_][A-Za-z0-9_]*")

Word = Annotated[str, Field(min_length=1)]
WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
Count = Annotated[int, BeforeValidator(_count)]
"""A whole number that may be 0."""
Pairs = Annotated[dict[str, str], NoDecode, BeforeValidator(_amounts)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
Taints = Annotated[tuple[Annotated[str, AfterValidator(_taint)], ...], NoDecode, BeforeValidator(_names)]
Label = Annotated[Word, AfterValidator(_label)]
SecretKeys = Annotated[tuple[Annotated[str, AfterValidator(_secret_key)], ...], NoDecode, BeforeValidator(_names)]
Volume = Annotated[Word, AfterValidator(_volume)]
Url = Annotated[Word, AfterValidator(_url)]
HttpAddress = Annotated[Word, AfterValidator(_http_address)]
