"""An unbroken run of the micro preset, which rows compare theirs with."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from rglcd.config import Config, load_preset
from rglcd.stages.table import SOURCE, inputs_of, stage_named, stages_of
from rglcd.toy.corpus import write_corpus
from tests.faults.watched_process import file_operations, run_forked
from tests.tiny_line import run

TIMEOUT = 900.0  # seconds


@dataclass(frozen=True)
class Unbroken:
    """What a stage took that nobody disturbed: seconds, and its file operations in order."""

    seconds: float
    operations: tuple[str, ...]


class MicroPipeline:
    """The micro preset run under ``root`` without a fault, each stage when it is first wanted."""

    def __init__(self, root: Path) -> None:
        self.root, self.config = root, load_preset("micro")
        self._stages: dict[str, Unbroken] = {}
        write_corpus(root / "data", num_images=64, num_reference=16)
        for stage in stages_of(self.config):
            importlib.import_module(stage.entry.partition(":")[0])  # once, so that no process of a round spends its time on it

    def upto(self, stage: str) -> Unbroken:
        """Run ``stage``, and every one before it."""
        for each in stages_of(self.config):
            if each.name not in self._stages:
                self._stages[each.name] = _unbroken(self.root, self.config, each.name)
            if each.name == stage:
                break
        return self._stages[stage]

    def link_inputs(self, root: Path, stage: str) -> None:
        """Give ``root`` what ``stage`` reads."""
        for name in inputs_of(stage_named(stage), self.config):
            folder = "data" if name == SOURCE else name
            (root / folder).symlink_to(self.root / folder)


def _unbroken(root: Path, config: Config, stage: str) -> Unbroken:
    def work() -> list[str]:
        operations = file_operations(root)
        run(root, config, stage)
        return operations

    ended = run_forked(work, timeout=TIMEOUT)
    assert ended.error is None, f"{stage} fails without any fault: {ended.error!r}"
    assert ended.value is not None, f"{stage} fails without any fault: exit code {ended.exit_code}"
    return Unbroken(ended.seconds, tuple(ended.value))
