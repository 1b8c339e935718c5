"""What a look at a cluster finds, as one line."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing looked at: whether it is as it must be (``None``: it could not be seen), and what to do where it is not.

    A note is no fault for everybody: what to do about it depends on what one is after.
    """

    what: str
    is_well: bool | None
    advice: str = ""
    is_note: bool = False

    def __str__(self) -> str:
        mark = "note" if self.is_note else {True: "ok", False: "MISSING", None: "unknown"}[self.is_well]
        return f"{mark:8} {self.what}" + ("" if self.is_well else f"; {self.advice}")
