"""YAML as plain values: what its readers take without a word, and nobody meant, is refused.

A key that is there twice, of which they keep the last; and ``true`` where a number is wanted, which pydantic takes for 1.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from rglcd.errors import InputError

_MERGE: Final = "tag:yaml.org,2002:merge"


class _Twice(yaml.YAMLError):
    """A key is there twice."""


class _Loader(yaml.SafeLoader):
    """PyYAML's own, but for keys that are there twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                where = f"line {line}" if lines[key.value] == line else f"lines {lines[key.value]} and {line}"
                raise _Twice(f"{key.value!r} is there twice, in {where}: leave one out")
            lines[key.value] = line
        return node


def parsed(text: str, *, where: str) -> Any:
    """What the YAML ``text`` says. Raises :class:`InputError`, which begins with ``where``."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except _Twice as error:
        raise InputError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a month that there is not, say
        raise InputError(f"{where} has a value that YAML takes for a date or a number, and is none ({error}): put it in quotes") from None


def refuse_switches_for_numbers(given: Any, taken: Any) -> None:
    """Raises ValueError, beginning with the key, for true or false in ``given`` that became a number in ``taken``."""
    for path, value in _switches_for_numbers(given, taken):
        raise ValueError(f"{'.'.join(path)}: a number is wanted (found {str(value).lower()})")


def _switches_for_numbers(given: Any, taken: Any) -> Iterator[tuple[list[str], bool]]:
    if isinstance(given, bool):
        if not isinstance(taken, bool | str | Mapping | None):
            yield [], given
    elif isinstance(given, Mapping) and isinstance(taken, Mapping):
        for key in given.keys() & taken.keys():
            yield from (([str(key), *path], value) for path, value in _switches_for_numbers(given[key], taken[key]))
    elif isinstance(given, list | tuple) and isinstance(taken, list):
        for number, pair in enumerate(zip(given, taken, strict=False)):
            yield from (([str(number), *path], value) for path, value in _switches_for_numbers(*pair))
