"""TensorBoard's event files, written by torch's own ``SummaryWriter``: ``tensorboard --logdir FOLDER`` shows them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rglcd.extras import install_command
from rglcd.launch.tracker import RefusedError, Row, Tracked, UnreachableError


class TensorBoardTracker:
    """A folder of event files for each task; a resumed run goes on in its own."""

    def __init__(self, folder: str, tracked: Tracked) -> None:
        self._folder, self._tracked = Path(folder), tracked
        self._writers: dict[str, Any] = {}

    def log(self, rows: Sequence[Row]) -> None:
        try:
            for row in rows:
                writer = self._writer(row)
                for name, value in row.values.items():
                    writer.add_scalar(name, value, global_step=row.step, walltime=row.seconds)
            for writer in self._writers.values():
                writer.flush()
        except OSError as error:
            raise UnreachableError(f"{self._folder}: {error}") from None

    def end(self, outcome: str) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, row: Row) -> Any:
        if row.task not in self._writers:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise RefusedError(f"{error}; install it: {install_command('tensorboard')}") from None
            task = re.sub(r"[^A-Za-z0-9_.-]+", "-", row.task)
            # What a killed run wrote of later steps is hidden.
            self._writers[row.task] = SummaryWriter(str(self._folder / f"{task}-{self._tracked.digest}"), purge_step=row.step)
        return self._writers[row.task]
