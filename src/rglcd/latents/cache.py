"""The latent cache: what every epoch would encode again, encoded once, and read from memory-mapped files.

A file is compared with its digest, and its rows with the number recorded, before the first of its rows is returned.

Shapes: B batch, C channels, (h, w) latent size, D width. The files are those of :mod:`rglcd.latents.format`.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rglcd.errors import InputError
from rglcd.latents.format import (
    MAKE_AGAIN,
    METADATA_KEY,
    RAGGED_MASK,
    RAGGED_ROWS,
    TEXT_PREFIX,
    Fingerprint,
    LatentBatch,
    Steps,
    StoredBatch,
    read_fingerprint,
    record_of,
)
from rglcd.latents.verification import verify_once_a_node
from rglcd.store.local_copies import local_file
from rglcd.store.manifest import Manifest, altered_files, read_manifest, size_mismatches
from rglcd.store.shard_tasks import read_record

_OPENED_AT_ONCE: Final = 4


@dataclass(frozen=True)
class _Shard:
    """One file: its columns (N, values of a row) on the mapped file, the shapes of their rows, what log-variance codes stand for.

    ``ragged_ends`` (N + 1,) are where each sample's rows of the ragged column end, and 0 before the first.
    """

    columns: Mapping[str, NDArray[Any]]
    shapes: Mapping[str, tuple[int, ...]]
    logvar: Steps
    ragged_ends: NDArray[np.int64] | None

    def rows(self, column: str, row: int) -> Any:
        """Those of sample ``row``: one, but in the ragged column."""
        if column != RAGGED_ROWS or self.ragged_ends is None:
            return self.columns[column][row]
        return self.columns[column][self.ragged_ends[row] : self.ragged_ends[row + 1]]


def _unmoved(tensor: Tensor) -> Tensor:
    return tensor


class LatentCache:
    """Random access to a cache by global index; rows lie in the order of shards and of samples in them.

    Files are mapped, not read: a row costs a copy of its bytes, and no file descriptor is kept. A file is fetched (from an
    object store), verified and mapped when the first of its rows is wanted, or before that if :meth:`anticipate` named it.
    """

    def __init__(self, folder: Path, manifest: Manifest, sizes: Mapping[str, int], fingerprint: Fingerprint) -> None:
        self.fingerprint = fingerprint
        self._folder = folder
        self._manifest = manifest
        self._names = list(sizes)
        self._sizes = list(sizes.values())
        self._ends = np.cumsum(self._sizes)
        self._starts = self._ends - np.array(self._sizes, np.int64)
        self._logvar_steps = np.empty((len(sizes), 2), np.float32)  # of the shards that are open
        self._captions: dict[int, list[str]] = {}
        self._opened: dict[int, Future[_Shard]] = {}
        self._ahead: deque[int] = deque()
        self._lock = RLock()
        self._opening = ThreadPoolExecutor(_OPENED_AT_ONCE, thread_name_prefix="latents")

    @classmethod
    def open(cls, folder: Path, *, expected: Fingerprint | None = None) -> Self:
        """The cache in ``folder``, once its records are found to be what the manifest says, and its files to be there.

        Raises :class:`InputError` for a missing, cut or altered file, and for a cache that was not made with ``expected``.
        """
        manifest = read_manifest(folder, made_by="cache")
        problems = altered_files(folder, manifest, names=[name for name in manifest.files if name.endswith(".json")])
        if manifest.store is None:
            problems += size_mismatches(folder, manifest)
        if problems:
            raise InputError(f"{folder}: {problems[0]}; {MAKE_AGAIN}")
        fingerprint = read_fingerprint(folder)
        if expected is not None:
            _require_equal(folder, found=fingerprint, expected=expected)
        names = sorted(name.removesuffix(".safetensors") for name in manifest.files if name.endswith(".safetensors"))
        sizes = {name: read_record(record_of(folder, name))["samples"] for name in names}
        return cls(folder, manifest, sizes, fingerprint)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one sample's latents."""
        channels, height, width = self._shard(0).shapes["latent_mean"]
        return channels, height, width

    def text_dim(self, scorer: str) -> int:
        """Width of the text features of ``scorer``; :class:`InputError` when the cache holds none."""
        if scorer not in self.fingerprint.scorers:
            raise InputError(f"the latent cache has no text features of {scorer!r}; add it to caching.scorers and run: rglcd run cache")
        return int(self._shard(0).columns[f"{TEXT_PREFIX}{scorer}"].shape[1])

    def batch(self, indices: Tensor, *, place: Callable[[Tensor], Tensor] = _unmoved) -> LatentBatch:
        """The samples at global ``indices`` (B,), in that order; ``place`` puts a tensor on the device that decodes them.

        ``IndexError`` outside [0, len).
        """
        return self.stored(indices).each(place).decoded()

    def stored(self, indices: Tensor) -> StoredBatch:
        """The same as they are stored, on the CPU: one copy of their bytes."""
        numbers, rows = self._places(indices)
        shards = {number: self._shard(number) for number in dict.fromkeys(numbers.tolist()) or (0,)}
        places = [(shards[number], row) for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)]
        some = next(iter(shards.values()))
        columns = {name: _gathered(name, places, like=column, shape=some.shapes[name]) for name, column in some.columns.items()}
        return StoredBatch(columns, torch.from_numpy(self._logvar_steps[numbers].T))

    def captions(self, indices: Tensor) -> list[str]:
        """The captions of the samples at global ``indices`` (B,)."""
        numbers, rows = self._places(indices)
        return [self._captions_of(number)[row] for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)]

    def _places(self, indices: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of the shard, and row within it, of each index."""
        wanted = indices.numpy()
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"indices run from {wanted.min()} to {wanted.max()}; the cache holds {len(self)} samples")
        numbers = np.searchsorted(self._ends, wanted, side="right")
        return numbers, wanted - self._starts[numbers]

    def anticipate(self, indices: Tensor) -> None:
        """Begin to fetch, verify and map, in the background and in this order, what the samples at global ``indices`` will need.

        What is wrong with a file is raised when one of its rows is wanted.
        """
        with self._lock:
            self._ahead.extend(dict.fromkeys(self._places(indices)[0].tolist()))
        for _ in range(_OPENED_AT_ONCE):
            self._open_next()

    def _open_next(self, _: object = None) -> None:
        # One after another, so that a process that ends waits for the files in flight and not for all that were anticipated.
        with self._lock, suppress(RuntimeError):  # as raised when the interpreter is on its way out
            while self._ahead:
                number = self._ahead.popleft()
                if number not in self._opened:
                    self._begin_opening(number).add_done_callback(self._open_next)
                    return

    def _begin_opening(self, number: int) -> "Future[_Shard]":
        with self._lock:
            if number not in self._opened:
                self._opened[number] = self._opening.submit(self._open_shard, number)
            return self._opened[number]

    def _shard(self, number: int) -> _Shard:
        opened = self._opened.get(number)
        return (opened or self._begin_opening(number)).result()

    def _open_shard(self, number: int) -> _Shard:
        path = self._file(f"{self._names[number]}.safetensors")
        shard = _mapped(path, self.fingerprint)
        if (rows := len(shard.columns["latent_mean"])) != self._sizes[number]:
            raise InputError(f"{path} holds {rows} samples, not {self._sizes[number]}; {MAKE_AGAIN}")
        self._logvar_steps[number] = shard.logvar.scale, shard.logvar.offset
        return shard

    def _file(self, name: str) -> Path:
        """The file called ``name``, here and found to be what the manifest says."""
        path, entry, is_copy = self._folder / name, self._manifest.files[name], self._manifest.store is not None
        fetch = partial(local_file, self._folder, self._manifest, name) if is_copy else None
        problem = verify_once_a_node(path, entry, fetch=fetch)
        if problem is not None:
            raise InputError(f"{self._folder}: {name} {problem}; {MAKE_AGAIN}")
        return path

    def _captions_of(self, shard: int) -> list[str]:
        if shard not in self._captions:
            with self._file(f"{self._names[shard]}.jsonl").open(encoding="utf-8") as lines:
                self._captions[shard] = [json.loads(line)["caption"] for line in lines]
        return self._captions[shard]


def _gathered(column: str, places: Sequence[tuple[_Shard, int]], *, like: NDArray[Any], shape: tuple[int, ...]) -> Tensor:
    """The rows of ``column`` at ``places`` (a shard, row), one after the other: every byte is copied once."""
    copied = bytearray().join([shard.rows(column, row) for shard, row in places])
    return torch.from_numpy(np.frombuffer(copied, like.dtype).reshape(-1 if column == RAGGED_ROWS else len(places), *shape))


def _require_equal(folder: Path, *, found: Fingerprint, expected: Fingerprint) -> None:
    theirs, ours = found.fields(), expected.fields()
    if theirs == ours:
        return
    names = sorted(theirs.keys() | ours.keys())
    shown = [(name, theirs.get(name, "absent"), ours.get(name, "absent")) for name in names]
    lines = [f"  {'=' if cached == wanted else '!'} {name}: cache {cached[:16]}, now {wanted[:16]}" for name, cached, wanted in shown]
    raise InputError(
        f"{folder} was not made with these models and settings; {MAKE_AGAIN}\n"
        f"  fingerprint of the cache {found.digest[:16]}, of what is asked for {expected.digest[:16]}\n" + "\n".join(lines)
    )


def _mapped(path: Path, fingerprint: Fingerprint) -> _Shard:
    """A shard, as arrays on the mapped file."""
    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get(METADATA_KEY, "{}"))
            if (made_with := header.get("fingerprint")) != fingerprint.digest:
                raise InputError(f"{path} carries fingerprint {made_with}, not its folder's {fingerprint.digest}; {MAKE_AGAIN}")
            tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
            columns = {name: tensor.view(len(tensor), math.prod(tensor.shape[1:])).numpy() for name, tensor in tensors.items()}
            shapes = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
            mask = tensors.get(RAGGED_MASK)
            ends = None if mask is None else np.concatenate([[0], mask.sum(dim=1).cumsum(0).numpy()])
            if ends is not None and ends[-1] != len(columns[RAGGED_ROWS]):
                raise InputError(f"{path} holds {len(columns[RAGGED_ROWS])} rows of captions, and its masks {ends[-1]}; {MAKE_AGAIN}")
            return _Shard(columns, shapes, Steps(**header["logvar"]), ends)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be opened ({error}); {MAKE_AGAIN}") from None
