"""Before hours are spent: refuse what cannot fit a GPU, and students that the teacher cannot have. Imports torch only when it looks."""

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

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
    if not _can_look():
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


def refuse_students_of_another_family(config: Config, pretrained: Path | None = None) -> None:
    """Raises :class:`InputError` for an arm that stage ``distill`` would refuse after caching, for the family of its teacher.

    Nothing is known of a teacher that is neither a folder of this machine nor published, until ``prepare`` has made ``pretrained``.
    """
    if not _can_look():
        return
    from rglcd.planning.arms import with_sections
    from rglcd.planning.networks import Networks

    for arm in config.arms:
        networks = Networks(with_sections(config, arm.reward, arm.distillation), pretrained)
        try:
            teacher = networks.teacher(networks.precision)
        except Exception:  # what is wrong with the teacher itself `prepare` says
            return
        networks.student(teacher)


def _can_look() -> bool:
    return find_spec("torch") is not None and find_spec("diffusers") is not None
