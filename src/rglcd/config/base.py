"""What every section of the configuration is: frozen, closed to unknown keys, and of finite numbers."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field


class Section(BaseModel):
    """Frozen, and closed: a key that no section knows is an error, not a silent default. Numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What the random generators of numpy and of torch both take."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


OR_ONE = BeforeValidator(_listed)
"""Of a list's annotation: its only item may stand by itself."""


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ValueError(f"{twice[0]} stands there more than once: name each once")
    return values


EACH_ONCE = AfterValidator(_each_once)
"""Of a list's annotation: no item is there twice."""


def _within_source(path: str) -> str:
    parts = PurePosixPath(path)
    if not parts.name or parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path or 'nothing'} does not lie in the source folder: name a path in it, as in prompts/heldout.txt")
    return path


SourcePath = Annotated[str, AfterValidator(_within_source)]
"""A file or folder that lies in the source folder, by its path there."""


def placed(values: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """``values`` with ``value`` at the nested ``keys``; ``values`` itself stays. What is no mapping on the way becomes one."""
    first, *rest = keys
    if rest:
        child = values.get(first)
        value = placed(child if isinstance(child, Mapping) else {}, rest, value)
    return {**values, first: value}


SHORT, SPELLED_OUT = "in short", "spelled out"
"""Tags of a value that may be a plain one or a mapping. No key has a blank, so an error's location tells tags from keys."""


def _form_of(value: Any) -> str:
    return SPELLED_OUT if isinstance(value, Mapping | BaseModel) else SHORT


SHORT_OR_SPELLED_OUT = Discriminator(_form_of)
"""Of a union with these two tags: one form is validated, so that an error is about the form that was used."""

SEVERAL = "a list"
"""Tag of a value that may be one or several; :data:`SHORT` is that of one."""

ONE_OR_SEVERAL = Discriminator(lambda value: SEVERAL if isinstance(value, list | tuple) else SHORT)
