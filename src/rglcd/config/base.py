"""What every section of the configuration is: frozen, closed to unknown keys, and of finite numbers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field


class Section(BaseModel):
    """Frozen, and closed: a key that no section knows is an error, not a silent default. Numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What the random generators of numpy and of torch both take."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


OR_ONE = BeforeValidator(_listed)
"""Of a list's annotation: its only item may stand by itself."""


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
