"""What is wrong with a configuration, in one line: where, what was found, and the key that was probably meant."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rglcd.config.sections import Sections
from rglcd.config.synonyms import meant_by

# As pydantic calls it for a section, and for a choice of the recipe.
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
# Of a choice it cannot look for the tag, of others it wants a mapping.
_NO_CHOICE, _NO_MAPPING = "model_attributes_type", ("dict_type", "model_type", "dataclass_type")
_NO_KIND, _UNKNOWN_KIND = "union_tag_not_found", "union_tag_invalid"


def explain(error: ValidationError, values: Mapping[str, Any], *, within: tuple[str, ...] = ()) -> str:
    """The first problem in one line; an unknown key comes with its nearest neighbour, or with what another kind of choice has."""
    errors = error.errors()
    first = errors[0]
    location = (*within, *first["loc"])
    # A tagged union's location holds the tag too: it is not a key of the user's file.
    path = [str(part) for position, part in enumerate(location) if not _is_tag(location, position, values)]
    if first["type"] in _UNKNOWN_KEY:
        beside = [str(other["loc"][-1]) for other in errors if other["type"] in _UNKNOWN_KEY and other["loc"][:-1] == first["loc"][:-1]]
        return _of_another_kind(location, path, beside, values) or _unknown_key(location, path)
    if first["type"] in (_NO_KIND, _UNKNOWN_KIND) and isinstance(first["input"], Mapping) and first["ctx"]["discriminator"] == "'kind'":
        return _of_no_kind(location, ".".join(path), first["input"])
    message = _of_another_form(location, path, first) or first["msg"].removeprefix("Value error, ")
    found = "" if isinstance(first["input"], Mapping) or first["type"] == "missing" else f" (found {first['input']!r})"
    return f"{'.'.join(path)}: {message}{found}" if path else message


def _unknown_key(location: tuple[Any, ...], path: list[str]) -> str:
    meant = meant_by(path)
    near = nearest(path[-1], _known_keys(location)) if meant is None else f" (did you mean {meant!r}?)"
    return f"unknown key {'.'.join(path)}{near}"


def _of_another_kind(location: tuple[Any, ...], path: list[str], unknown: list[str], values: Mapping[str, Any]) -> str | None:
    """What to say of keys of a choice that its other kinds have: they were left there when ``kind`` was changed."""
    if len(location) < 2 or not _is_tag(location, len(location) - 2, values):
        return None
    alternatives = _types_at(location[:-1])
    others = {key for kind in alternatives for key in _keys(kind)}
    left = [key for key in unknown if key in others]
    if path[-1] not in left:
        return None
    kind, where = location[-2], ".".join(path[:-1])
    return f"{where}: kind {kind} has no {', '.join(left)}: give {where} whole: --set '{where}={{kind: {kind}, ...}}'"


def _of_no_kind(location: tuple[Any, ...], where: str, given: Mapping[str, Any]) -> str:
    """What to say of a choice without ``kind``, or with one that there is not."""
    kinds = [kind for choice in _types_at(location) for kind in get_args(_keys(choice).get("kind"))]
    if "kind" not in given:
        return f"{where} has no kind; there are: {', '.join(kinds)}"
    return f"{where}: there is no kind {given['kind']!r}{nearest(str(given['kind']), kinds)}; there are: {', '.join(kinds)}"


def _of_another_form(location: tuple[Any, ...], path: list[str], error: Mapping[str, Any]) -> str | None:
    """What to say of a value that is no list or no mapping, in YAML's words; of a choice with its kinds. None for another error."""
    if path and path[-1] == "[key]":  # pydantic's
        del path[-1]
        return "YAML takes this key for no text: put it in quotes"
    if error["type"] == "tuple_type":
        return "a list is wanted, as in [a, b]"
    if error["type"] not in (_NO_CHOICE, *_NO_MAPPING):
        return None
    kinds = [kind for choice in _types_at(location) for kind in get_args(_keys(choice).get("kind"))]
    if error["type"] != _NO_CHOICE or not kinds:  # a scorer may have the name of a key
        return "a mapping of keys is wanted"
    if error["input"] in kinds:
        return f"write it as {{kind: {error['input']}}}"
    return f"a mapping is wanted, as in {{kind: {kinds[0]}}}; there are: {', '.join(kinds)}"


def _is_tag(location: tuple[Any, ...], position: int, values: Any) -> bool:
    """Whether this part of ``location`` is the ``kind`` of a choice, by which pydantic tells its alternatives apart, or its form."""
    node = values
    for step in location[:position]:
        node = node.get(step, node) if isinstance(node, Mapping) else node
    part = location[position]
    if isinstance(node, Mapping) and part in node:
        return False
    # Tags of unions without a `kind` have a blank, which no key of ours has: rglcd.config.base.
    return " " in str(part) or (isinstance(node, Mapping) and node.get("kind") == part)


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys allowed where ``location`` (of an unknown key) points."""
    types = _types_at(location[:-1])
    # Of a choice only the kind that was chosen.
    chosen = [kind for kind in types if location[-2:-1] and location[-2] in get_args(_keys(kind).get("kind"))]
    return sorted({key for kind in chosen or types for key in _keys(kind)})


def _types_at(location: tuple[Any, ...]) -> list[type]:
    """The sections or choices that may stand at ``location``."""
    types: list[type] = [Sections]
    for part in location:
        types = [child for parent in types for child in _types_in(_keys(parent).get(str(part)))] or types
    return types


def _keys(kind: type) -> dict[str, Any]:
    """The keys of a section or of a choice, with their types."""
    if issubclass(kind, BaseModel):
        return {key: field.annotation for key, field in kind.model_fields.items()}
    assert is_dataclass(kind)
    return {field.name: field.type for field in fields(kind)}


def _types_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _types_in(argument)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, as the end of a sentence; empty if none is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
