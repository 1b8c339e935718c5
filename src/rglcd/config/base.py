"""What every section of the configuration is: frozen, closed to unknown keys, and of finite numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Frozen, and closed: a key that no section knows is an error, not a silent default. Numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What the random generators of numpy and of torch both take."""
