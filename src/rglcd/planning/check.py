"""Before a cluster's queue is waited for: refuse what cannot fit. Imports torch only when it counts."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec

from rglcd.config import Config, preset_hardware
from rglcd.planning.gpus import gpu_named, gpu_of_label

COUNTED = ("cache", "distill", "evaluate")
"""Stages whose memory is counted."""


@dataclass(frozen=True)
class Nodes:
    """The GPUs that a job will get: the label ``key=value`` of their nodes, and how many train (None: as the preset says)."""

    label: str
    num_training: int | None = None


def refuse_what_cannot_fit(config: Config, nodes: Nodes, *, stage: str | None = None) -> None:
    """Raises :class:`InputError` if ``stage`` (None: any of the pipeline) takes more than a card has; says so when it cannot count.

    A teacher of one's own that is nowhere on this machine cannot be counted, and is no reason to refuse the run.
    """
    hardware = preset_hardware(config.preset)
    if hardware is None or (stage is not None and stage not in COUNTED):
        return
    if find_spec("torch") is None or find_spec("diffusers") is None:
        print("rglcd: memory is not checked here, for torch is not installed; where it is: rglcd plan", file=sys.stderr)
        return
    from rglcd.planning.networks import UnknownShapesError
    from rglcd.planning.plan import plan, require_fit

    gpu = gpu_of_label(nodes.label) or gpu_named(hardware.gpu)
    try:
        planned = plan(config, gpu, nodes.num_training or hardware.count)
    except UnknownShapesError as error:
        print(f"rglcd: memory is not checked: {error}", file=sys.stderr)
        return
    require_fit(planned, stage)
