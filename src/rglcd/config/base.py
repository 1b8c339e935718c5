"""What every section of the configuration is: frozen, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen, and closed: a key that no section knows is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)
