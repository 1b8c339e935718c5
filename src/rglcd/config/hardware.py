"""The head ``runs_on`` of a preset's file: the GPUs that its sizes were chosen for."""

from rglcd.config.base import Section
from rglcd.recipe import Positive

RUNS_ON = "runs_on"


class Hardware(Section):
    """``count`` cards called ``gpu``; a run computes the same on others, so this enters no key."""

    gpu: str
    count: Positive
