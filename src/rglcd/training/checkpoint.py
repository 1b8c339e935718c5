"""Checkpoints: named state, whole or absent, resumed by running the same command again.

One folder per step: a safetensors file for each named part, ``state.json`` with everything that is not a
tensor, and ``COMMIT``, written last, with the SHA-256 of both. A folder without a true ``COMMIT`` was never
written. Randomness is not saved: it is a function of seed and step.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from rglcd.store.disk_space import disk_space_for
from rglcd.store.manifest import sha256_of, write_json
from rglcd.store.staging import STAGING, publish_folder

COMMIT = "COMMIT"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after ``step`` steps: tensors by part, and the rest."""

    step: int
    parts: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpointer:
    """Checkpoints of one run in ``folder``; the newest ``keep`` stay, and none goes before its successor is whole."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, needed: Collection[int] = ()) -> Path:
        """Write the checkpoint of ``step`` to a staging folder, commit it, flush and rename it, then drop the oldest but the ``needed``."""
        published = self.folder / f"step-{step:08d}"
        staging = self.folder / f".step-{step:08d}{STAGING}"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        with disk_space_for(staging, sum(tensor.nbytes for tensors in parts.values() for tensor in tensors.values())):
            for name, tensors in parts.items():
                save_file(
                    {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}, str(staging / f"{name}.safetensors")
                )
        write_json(staging / STATE, {"step": step, **state})
        write_json(staging / COMMIT, {path.name: sha256_of(path) for path in sorted(staging.iterdir())})
        publish_folder(staging, published)
        for old in self._folders()[: -self.keep]:
            if _step_of(old) not in needed:
                shutil.rmtree(old)
        return published

    def latest(self, *, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole, of those after ``at_most`` steps; a cut or altered one is passed over for the one before."""
        for folder in reversed(self._folders()):
            if (at_most is None or _step_of(folder) <= at_most) and _is_whole(folder):
                return _read(folder)
        return None

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: of a course that the run has left."""
        for folder in self._folders():
            if _step_of(folder) > step:
                shutil.rmtree(folder)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _is_whole(folder: Path) -> bool:
    try:
        commit = json.loads((folder / COMMIT).read_text(encoding="utf-8"))
        return all(sha256_of(folder / name) == digest for name, digest in commit.items()) and STATE in commit
    except (OSError, ValueError, AttributeError):
        return False


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    parts = {path.stem: load_file(str(path)) for path in sorted(folder.glob("*.safetensors"))}
    return Checkpoint(state.pop("step"), parts, state)


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as tensors named ``<parameter>/<slot>``; hyper-parameters are the configuration's."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{names[id(parameter)]}/{slot}": value
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Undo :func:`optimizer_tensors`, onto each parameter's device; state that was not there then goes."""
    optimizer.state.clear()
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        # Fused AdamW keeps even its step counter beside the parameter, and its moments in the parameter's own layout.
        like = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else value.to(parameter.device)
        optimizer.state[parameter][slot] = like.copy_(value)
