"""Work for processes of one thread: a module of its own, for each of them imports it."""

import os
import signal
import time
from pathlib import Path

import torch

from rglcd import progress
from rglcd.errors import InputError


def work(folder: Path, name: str) -> None:
    """Says how it is done by its name: well, badly, killed, or not before it is stopped."""
    (folder / name).write_text(f"{torch.get_num_threads()} {os.getpid()}")
    progress.report(name, done=1, total=1, unit="things")
    if name == "bad":
        raise InputError("bad.txt holds nothing: give it a line")
    if name == "unexpected":
        raise ZeroDivisionError("by nothing")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "endless":
        time.sleep(600)
