"""The latent cache: what every epoch would encode again, encoded once, in stacked safetensors that are memory-mapped.

    00000.safetensors   one row a sample of the shard of that number, N samples:
        latent_mean      (N, C, h, w)  float16  mean of the VAE's posterior, unscaled
        latent_logvar    (N, C, h, w)  int8     its log-variance: code * scale + offset, both in the file's header
        input_ids        (N, L)        int32    token ids of the caption
        text.<scorer>    (N, D)        float32  the scorer's text features of the caption, as it gave them
        score.<scorer>   (N,)          float32  its score of the picture as the codec gives it back, if asked for
        text_embeddings  (N, L, D)     float16  the text encoder's output, if asked for
        text_pooled      (N, P)        float16  with it, for SDXL: the pooled caption
        time_ids         (N, 6)        int32    for SDXL: the picture's sizes (see core's Condition)
    00000.jsonl         key and caption of each row
    00000_stats.json    the digests of the two; written last
    fingerprint.json    what the cache was made with

A file is compared with its digest, and its rows with the number recorded, before the first of its rows is handed out.

Shapes: B batch, C channels, (h, w) latent size, L token positions, D width.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.store.artifacts import local_file
from rglcd.store.disk_space import room_for
from rglcd.store.manifest import Manifest, alteration, altered_files, digest_of, missized_files, read_manifest, write_json
from rglcd.store.work_unit import finish_unit, finished_unit, read_record, unit_claimed, written_aside

FORMAT_VERSION: Final = 2
FINGERPRINT: Final = "fingerprint.json"

# The one place that says in what precision a column is stored. float16 has eight times the resolution of bfloat16 at
# the same size, and range enough for a VAE's moments; what overflows it is refused by name. The log-variance waits in
# float32 until its shard is whole, and is then stored in 255 steps over the range that it has there: even over all that
# diffusers' autoencoder allows, [-30, 20], half a step changes the posterior's deviation by 5 % of itself.
_STORED: Final = {
    "latent_mean": torch.float16,
    "latent_logvar": torch.float32,
    "input_ids": torch.int32,
    "text_embeddings": torch.float16,
    "text_pooled": torch.float16,
    "time_ids": torch.int32,
}
_TEXT_PREFIX: Final = "text."
_SCORE_PREFIX: Final = "score."
_TEXT_STORED: Final = torch.float32
_METADATA_KEY: Final = "rglcd"  # one key only: safetensors writes several in an order that changes from run to run
_MAKE_AGAIN: Final = "make it again: rglcd run cache"
_OPENED_AT_ONCE: Final = 4


@dataclass(frozen=True)
class Fingerprint:
    """What a cache was made with: SHA-256 digests of the networks' folders, and the sizes that shape its rows.

    ``scorers`` maps each scorer whose text features are stored to the digest of its weights.
    """

    resolution: int
    vae: str
    text_encoder: str
    tokenizer: str
    scorers: Mapping[str, str]
    moments_dtype: str = str(_STORED["latent_mean"]).removeprefix("torch.")
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """One digest over all fields."""
        return digest_of(asdict(self))

    def fields(self) -> dict[str, str]:
        """Every field in words, each scorer on its own: what is compared, and what is shown when it differs."""
        plain = {name: str(value) for name, value in asdict(self).items() if name != "scorers"}
        return plain | {f"scorers.{name}": digest for name, digest in sorted(self.scorers.items())}


def read_fingerprint(folder: Path) -> Fingerprint:
    """The fingerprint of the cache in ``folder``. Raises :class:`InputError`."""
    try:
        return Fingerprint(**json.loads((folder / FINGERPRINT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / FINGERPRINT} cannot be read ({error}); {_MAKE_AGAIN}") from None


def write_fingerprint(folder: Path, fingerprint: Fingerprint) -> None:
    """Write ``fingerprint.json``."""
    write_json(folder / FINGERPRINT, asdict(fingerprint))


@dataclass(frozen=True)
class LatentBatch:
    """Samples of the cache: float32 moments (B, C, h, w), int64 ids (B, L), float32 text features (B, D) by scorer.

    ``scores`` (B,) are those that scorers gave the decoded picture. ``caption`` is what the text encoder makes of the ids, if
    that is stored; ``time_ids`` (B, 6) are SDXL's.
    """

    mean: Tensor
    logvar: Tensor
    input_ids: Tensor
    text: Mapping[str, Tensor]
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    caption: Condition | None = None
    time_ids: Tensor | None = None


@dataclass(frozen=True)
class StoredBatch:
    """Samples as they lie in the cache: the rows (B, ...) of each column in the type that it is stored in.

    ``logvar_steps`` (2, B) float32 are the scale and the offset of each row's log-variance codes. This is what travels to a device:
    there it is less than half of what it stands for, and a GPU unfolds it in no time.
    """

    columns: Mapping[str, Tensor]
    logvar_steps: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Every tensor, changed: placed on a device."""
        return type(self)({name: change(column) for name, column in self.columns.items()}, change(self.logvar_steps))

    def decoded(self) -> LatentBatch:
        """What the rows stand for, computed where they are."""
        columns = self.columns
        scale, offset = self.logvar_steps.view(2, -1, 1, 1, 1)
        embeddings, pooled = columns.get("text_embeddings"), columns.get("text_pooled")
        return LatentBatch(
            mean=columns["latent_mean"].float(),
            logvar=columns["latent_logvar"].float() * scale + offset,
            input_ids=columns["input_ids"].long(),
            text={name: features.float() for name, features in self._of_scorers(_TEXT_PREFIX)},
            scores=dict(self._of_scorers(_SCORE_PREFIX)),
            caption=None if embeddings is None else Condition(embeddings.float(), None if pooled is None else pooled.float()),
            time_ids=columns.get("time_ids"),
        )

    def _of_scorers(self, prefix: str) -> list[tuple[str, Tensor]]:
        return [(name.removeprefix(prefix), column) for name, column in sorted(self.columns.items()) if name.startswith(prefix)]


# --- writing -------------------------------------------------------------------------------------


def to_columns(batch: LatentBatch, keys: Sequence[str]) -> dict[str, Tensor]:
    """``batch`` as it is stored, on the CPU. Raises :class:`InputError` naming the key of a sample that is not finite so."""
    columns = {"latent_mean": batch.mean, "latent_logvar": batch.logvar, "input_ids": batch.input_ids}
    if batch.caption is not None:
        columns["text_embeddings"] = batch.caption.embeddings
        if batch.caption.pooled is not None:
            columns["text_pooled"] = batch.caption.pooled
    if batch.time_ids is not None:
        columns["time_ids"] = batch.time_ids
    stored = {name: column.to("cpu", _STORED[name]) for name, column in columns.items()}
    stored |= {f"{_TEXT_PREFIX}{scorer}": features.to("cpu", _TEXT_STORED) for scorer, features in batch.text.items()}
    stored |= {f"{_SCORE_PREFIX}{scorer}": scores.to("cpu", torch.float32) for scorer, scores in batch.scores.items()}
    for name, column in stored.items():
        bad = (~column.isfinite()).reshape(len(column), -1).any(dim=1).nonzero()
        if len(bad):
            raise InputError(
                f"sample {keys[int(bad[0])]}: {name} is not finite in {str(column.dtype).removeprefix('torch.')}; "
                "take its row out of the source index, or check the model that made it"
            )
    return stored


def write_latents(
    folder: Path, name: str, columns: Mapping[str, Tensor], *, rows: Sequence[Mapping[str, str]], fingerprint: Fingerprint
) -> None:
    """Write the columns of shard ``name`` and the key and caption of each of its ``rows``, and then its record."""
    codes, steps = quantise(columns["latent_logvar"])
    header = {"fingerprint": fingerprint.digest, "format_version": FORMAT_VERSION, "logvar": asdict(steps)}
    stored = {**columns, "latent_logvar": codes}
    num_bytes = sum(tensor.nbytes for tensor in stored.values())
    with room_for(folder, num_bytes), written_aside(folder / f"{name}.safetensors") as aside:
        metadata = {_METADATA_KEY: json.dumps(header, sort_keys=True)}
        save_file({column: tensor.contiguous() for column, tensor in stored.items()}, aside, metadata=metadata)
    with written_aside(folder / f"{name}.jsonl") as aside:
        aside.write_text("".join(json.dumps(dict(row), sort_keys=True) + "\n" for row in rows), encoding="utf-8")
    finish_unit(_record(folder, name), [f"{name}.safetensors", f"{name}.jsonl"], samples=len(rows))


@dataclass(frozen=True)
class Steps:
    """How int8 codes stand for numbers: ``code * scale + offset``."""

    scale: float
    offset: float

    def values(self, codes: Tensor) -> Tensor:
        """Float32 values of int8 ``codes``."""
        return codes.float() * self.scale + self.offset


def quantise(values: Tensor) -> tuple[Tensor, Steps]:
    """``values`` in 255 even steps over their range, as int8 codes; no value moves by more than half a step."""
    low, high = float(values.min()), float(values.max())
    steps = Steps(scale=max((high - low) / 254, 1e-12), offset=(high + low) / 2)
    codes = ((values.double() - steps.offset) / steps.scale).round().clamp(-127, 127).to(torch.int8)
    return codes, steps


def finished_latents(folder: Path, name: str) -> bool:
    """Whether shard ``name`` stands in ``folder``, whole."""
    return finished_unit(_record(folder, name)) is not None


@contextmanager
def latents_claimed(folder: Path, name: str) -> Iterator[None]:
    """While no other worker is at shard ``name`` of ``folder``."""
    with unit_claimed(_record(folder, name), wait=True):
        yield


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}_stats.json"


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    """One file: its columns (N, values of a row) on the mapped file, the shapes of their rows, what log-variance codes stand for."""

    columns: Mapping[str, NDArray[Any]]
    shapes: Mapping[str, tuple[int, ...]]
    logvar: Steps


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class LatentCache:
    """Random access to a cache by global index; rows lie in the order of shards and of samples in them.

    Files are mapped, not read: a row costs a copy of its bytes, and no file descriptor is kept. A file is fetched (from an
    object store), verified and mapped when the first of its rows is wanted, or before that where :meth:`anticipate` was told.
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
            problems += missized_files(folder, manifest)
        if problems:
            raise InputError(f"{folder}: {problems[0]}; {_MAKE_AGAIN}")
        fingerprint = read_fingerprint(folder)
        if expected is not None:
            _require_equal(folder, found=fingerprint, expected=expected)
        names = sorted(name.removesuffix(".safetensors") for name in manifest.files if name.endswith(".safetensors"))
        sizes = {name: read_record(_record(folder, name))["samples"] for name in names}
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
        return int(self._shard(0).columns[f"{_TEXT_PREFIX}{scorer}"].shape[1])

    def batch(self, indices: Tensor, *, place: Callable[[Tensor], Tensor] = _as_it_is) -> LatentBatch:
        """The samples at global ``indices`` (B,), in that order; ``place`` puts a tensor on the device that decodes them.

        ``IndexError`` outside [0, len).
        """
        return self.stored(indices).each(place).decoded()

    def stored(self, indices: Tensor) -> StoredBatch:
        """The same as they are stored, on the CPU: one copy of their bytes."""
        numbers, rows = self._places(indices)
        shards = {number: self._shard(number) for number in dict.fromkeys(numbers.tolist()) or (0,)}
        places = [(shards[number].columns, row) for number, row in zip(numbers.tolist(), rows.tolist(), strict=True)]
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

        What is wrong with a file is told when one of its rows is wanted.
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
            raise InputError(f"{path} holds {rows} samples, not {self._sizes[number]}; {_MAKE_AGAIN}")
        self._logvar_steps[number] = shard.logvar.scale, shard.logvar.offset
        return shard

    def _file(self, name: str) -> Path:
        """The file called ``name``, here and found to be what the manifest says."""
        path = local_file(self._folder, self._manifest, name)
        problem = alteration(path, self._manifest.files[name])
        if problem is not None:
            raise InputError(f"{self._folder}: {name} {problem}; {_MAKE_AGAIN}")
        return path

    def _captions_of(self, shard: int) -> list[str]:
        if shard not in self._captions:
            with self._file(f"{self._names[shard]}.jsonl").open(encoding="utf-8") as lines:
                self._captions[shard] = [json.loads(line)["caption"] for line in lines]
        return self._captions[shard]


def _gathered(
    column: str, places: Sequence[tuple[Mapping[str, NDArray[Any]], int]], *, like: NDArray[Any], shape: tuple[int, ...]
) -> Tensor:
    """The rows of ``column`` at ``places`` (a shard's columns, row), one after the other: every byte is copied once."""
    copied = bytearray().join([columns[column][row] for columns, row in places])
    return torch.from_numpy(np.frombuffer(copied, like.dtype).reshape(len(places), *shape))


def _require_equal(folder: Path, *, found: Fingerprint, expected: Fingerprint) -> None:
    theirs, ours = found.fields(), expected.fields()
    if theirs == ours:
        return
    names = sorted(theirs.keys() | ours.keys())
    shown = [(name, theirs.get(name, "absent"), ours.get(name, "absent")) for name in names]
    lines = [f"  {'=' if cached == wanted else '!'} {name}: cache {cached[:16]}, now {wanted[:16]}" for name, cached, wanted in shown]
    raise InputError(
        f"{folder} was not made with these models and settings; {_MAKE_AGAIN}\n"
        f"  fingerprint of the cache {found.digest[:16]}, of what is asked for {expected.digest[:16]}\n" + "\n".join(lines)
    )


def _mapped(path: Path, fingerprint: Fingerprint) -> _Shard:
    """A shard, as arrays on the mapped file."""
    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get(_METADATA_KEY, "{}"))
            if (made_with := header.get("fingerprint")) != fingerprint.digest:
                raise InputError(f"{path} carries fingerprint {made_with}, not its folder's {fingerprint.digest}; {_MAKE_AGAIN}")
            tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
            columns = {name: tensor.view(len(tensor), math.prod(tensor.shape[1:])).numpy() for name, tensor in tensors.items()}
            shapes = {name: tuple(tensor.shape[1:]) for name, tensor in tensors.items()}
            return _Shard(columns, shapes, Steps(**header["logvar"]))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be opened ({error}); {_MAKE_AGAIN}") from None
