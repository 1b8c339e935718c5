"""The tiny line, and its commands in forked processes: one, or several ranks of one world; stopped at a chosen moment, or not."""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import rglcd.launch.execute  # noqa: F401 (here, for the same reason as stages' modules)
from rglcd.cli import main
from rglcd.config import Config, dump
from rglcd.stages.table import inputs_of, stage_named
from tests.faults.watched_process import file_operations, run_forked
from tests.tiny_line import run, write_pretrained_artifact
from tests.tiny_models import RESOLUTION

NUM_IMAGES = 64
TIMEOUT = 600.0  # seconds

Watch = Callable[[], Sequence[str]]
"""Called in the process before its command begins; what it returns then is written down when the command has ended."""


def write_line(root: Path, config: Config) -> None:
    """Shards, pretrained models, latents and a reward model under ``root``."""
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    (root / "data" / "images").mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(root / "data" / "images" / f"{number:05d}.png")
    rows = "".join(f"images/{number:05d}.png\tnumber {number}\n" for number in range(NUM_IMAGES))
    (root / "data" / "index.tsv").write_text(rows)
    write_pretrained_artifact(root / "pretrained")
    for stage in ("shard", "cache", "pretrain", "distill"):
        importlib.import_module(stage_named(stage).entry.partition(":")[0])  # once, so that no process of a round spends its time on it
    for stage in ("shard", "cache", "pretrain"):
        ended = run_forked(lambda stage=stage: run(root, config, stage).was_done, timeout=TIMEOUT)
        assert ended.value is not None, f"{stage} fails without any fault: {ended.exit_code}, {ended.error!r}"


@dataclass(frozen=True)
class Command:
    """``rglcd run STAGE`` on the artifacts under ``line``, whose output is ``folder/OUTPUT``."""

    stage: str
    config: Config
    line: Path
    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / stage_named(self.stage).outputs[0]

    def start(self, *, watch: Watch | None = None, environment: Mapping[str, str] | None = None) -> ForkProcess:
        """The command in a fork, which ends with the command's exit code."""
        self.folder.mkdir(parents=True, exist_ok=True)
        params = self.folder / "params.yaml"
        params.write_text(dump(self.config), encoding="utf-8")
        places = {name: self.line / name for name in inputs_of(stage_named(self.stage), self.config)} | {self.output.name: self.output}
        words = ["run", self.stage, "--params", str(params)]
        words += [word for name, place in places.items() for word in ("--artifact", f"{name}={place}")]

        def act() -> None:
            os.environ.update(environment or {})
            with open(self.folder / "log.txt", "a") as log:  # noqa: PTH123
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                sys.stdout = sys.stderr = log
                seen = [] if watch is None else watch()
                try:
                    code = main(words)
                except SystemExit as ended:
                    code = int(ended.code or 0)
                self._seen.write_text("".join(f"{line}\n" for line in seen))
                sys.exit(code)

        process = multiprocessing.get_context("fork").Process(target=act)
        process.start()
        return process

    def run(self, *, watch: Watch | None = None) -> int | None:
        """The exit code of the command in one process."""
        return exit_codes([self.start(watch=watch)])[0]

    def run_unbroken(self) -> tuple[str, ...]:
        """Run the command undisturbed; its file operations below its folder, in order."""
        code = self.run(watch=lambda: file_operations(self.folder))
        assert code == 0, f"{self.stage} fails without any fault: {code}, {self.log()}"
        return tuple(self._seen.read_text().splitlines())

    @property
    def _seen(self) -> Path:
        return self.folder / "seen.txt"

    def run_ranks(self, count: int, *, stop_at_event: int | None = None) -> set[int | None]:
        """The exit codes of the command in ``count`` ranks of one world, of which the first is asked to stop at an event of progress."""
        events = self.folder / "progress.jsonl"
        events.unlink(missing_ok=True)
        worlds = world_variables(count, progress=events)
        watches = [stop_at(events, stop_at_event) if stop_at_event is not None else None, *[None] * (count - 1)]
        return set(exit_codes([self.start(watch=watch, environment=world) for watch, world in zip(watches, worlds, strict=True)]))

    def log(self) -> str:
        """The end of what the command said."""
        return (self.folder / "log.txt").read_text()[-1500:]


def exit_codes(processes: list[ForkProcess]) -> list[int | None]:
    """Of forked processes, each of which is killed if it does not end."""
    for process in processes:
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def world_variables(count: int, *, progress: Path) -> list[dict[str, str]]:
    """What torchrun sets in the environment of each of ``count`` ranks; a world of one has none of it."""
    common = {"RGLCD_PROGRESS": str(progress)}
    if count == 1:
        return [common]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "faults"}
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def stop_at(progress: Path, event: int) -> Watch:
    """SIGTERM to this process when it reports its ``event``-th event of progress, counted from 1."""

    def watch() -> Sequence[str]:
        reported = 0

        def note(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal reported
            if name == "open" and str(arguments[0]) == str(progress):
                reported += 1
                if reported == event:
                    os.kill(os.getpid(), signal.SIGTERM)

        sys.addaudithook(note)
        return ()

    return watch
