"""What ends or holds up a job, as a table: whose fault it is, whether it is tried again, and what to do.

The rows are data: ``failure_table.yaml``, with a source beside each. The first that fits decides.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from typing import Any

import yaml


class Where(StrEnum):
    """What is looked at: a pod that failed, a container that does not start, the words with which a pod or a job is refused."""

    POD = "pod"
    CONTAINER = "container"
    REFUSAL = "refusal"


class Fault(StrEnum):
    """Whose fault it is."""

    CLUSTER = "cluster"
    JOB = "job"
    SETUP = "setup"


class Then(StrEnum):
    """``again``: tried again and not counted; ``counted``: tried again as often as ``failures`` says; ``never``: the run ends."""

    AGAIN = "again"
    COUNTED = "counted"
    NEVER = "never"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ``reason`` and ``message`` are patterns for Kubernetes' own words (a reason whole, a message anywhere), ``code`` the container's exit
    code; what is not given fits everything. ``pause`` is the seconds before the next attempt, doubled for each further one in a
    row; ``may_wait`` whether a container may be in this state for as long as the settings' ``start_seconds``. ``ends_with`` is the
    launcher's exit code where it is not the container's own. ``advice`` says what to do.
    """

    name: str
    where: Where
    fault: Fault
    then: Then
    source: str
    reason: str | None = None
    message: str | None = None
    code: int | None = None
    pause: float = 10.0
    may_wait: bool = False
    ends_with: int | None = None
    advice: str = ""

    def fits(self, reasons: Iterable[str], message: str, code: int | None) -> bool:
        """Whether the row speaks of this."""
        if self.reason is not None and not any(re.fullmatch(self.reason, reason) for reason in reasons):
            return False
        return (self.message is None or re.search(self.message, message) is not None) and self.code in (None, code)


DELETED = "Deleted"
"""Our word among the reasons for a pod that carries a deletionTimestamp: somebody, a drain mostly, deletes it."""


def _row(content: Mapping[str, Any]) -> Row:
    kinds = {"where": Where(content["where"]), "fault": Fault(content["fault"]), "then": Then(content["then"])}
    return Row(**{**content, **kinds})


TABLE = tuple(_row(content) for content in yaml.safe_load((files("rglcd.launch") / "failure_table.yaml").read_text(encoding="utf-8")))


def row_of(where: Where, *, reasons: Iterable[str] = (), message: str = "", code: int | None = None) -> Row | None:
    """The first row of ``where`` that fits; ``None`` where none does (a container that waits as every container waits at first)."""
    known = tuple(reasons)
    return next((row for row in TABLE if row.where is where and row.fits(known, message, code)), None)
