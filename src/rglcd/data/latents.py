"""The latent cache: what every epoch would encode again, encoded once, in stacked safetensors that are memory-mapped.

    00000.safetensors   one row a sample of the shard of that number, N samples:
        latent_mean      (N, C, h, w)  float16  mean of the VAE's posterior, unscaled
        latent_logvar    (N, C, h, w)  float16  its log-variance
        input_ids        (N, L)        int32    token ids of the caption
        text.<scorer>    (N, D)        float32  the scorer's text features of the caption, as it gave them
        text_embeddings  (N, L, D)     float16  the text encoder's output, if asked for
        text_pooled      (N, P)        float16  with it, for SDXL: the pooled caption
        time_ids         (N, 6)        int32    for SDXL: the picture's sizes (see core's Condition)
    00000.jsonl         key and caption of each row
    00000_stats.json    the digests of the two; written last
    fingerprint.json    what the cache was made with

Shapes: B batch, C channels, (h, w) latent size, L token positions, D width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rglcd import progress
from rglcd.core.condition import Condition
from rglcd.data.manifest import alteration, digest_of, read_manifest, write_json
from rglcd.data.work_unit import finish_unit, finished_unit, written_aside
from rglcd.errors import InputError

FORMAT_VERSION: Final = 1
FINGERPRINT: Final = "fingerprint.json"

# The one place that says in what precision a column is stored. float16 has eight times the resolution of bfloat16 at
# the same size, and range enough for a VAE's moments; what overflows it is refused by name.
_STORED: Final = {
    "latent_mean": torch.float16,
    "latent_logvar": torch.float16,
    "input_ids": torch.int32,
    "text_embeddings": torch.float16,
    "text_pooled": torch.float16,
    "time_ids": torch.int32,
}
_TEXT_PREFIX: Final = "text."
_TEXT_STORED: Final = torch.float32
_METADATA_KEY: Final = "rglcd"  # one key only: safetensors writes several in an order that changes from run to run
_MAKE_AGAIN: Final = "make it again: rglcd run cache"


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

    ``caption`` is what the text encoder makes of the ids, if that is stored; ``time_ids`` (B, 6) are SDXL's.
    """

    mean: Tensor
    logvar: Tensor
    input_ids: Tensor
    text: Mapping[str, Tensor]
    caption: Condition | None = None
    time_ids: Tensor | None = None


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
    for name, column in stored.items():
        bad = (~column.isfinite()).flatten(start_dim=1).any(dim=1).nonzero()
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
    metadata = {_METADATA_KEY: json.dumps({"fingerprint": fingerprint.digest, "format_version": FORMAT_VERSION}, sort_keys=True)}
    with written_aside(folder / f"{name}.safetensors") as aside:
        save_file({column: tensor.contiguous() for column, tensor in columns.items()}, aside, metadata=metadata)
    with written_aside(folder / f"{name}.jsonl") as aside:
        aside.write_text("".join(json.dumps(dict(row), sort_keys=True) + "\n" for row in rows), encoding="utf-8")
    finish_unit(_record(folder, name), [f"{name}.safetensors", f"{name}.jsonl"], samples=len(rows))


def finished_latents(folder: Path, name: str) -> bool:
    """Whether shard ``name`` stands in ``folder``, whole."""
    return finished_unit(_record(folder, name)) is not None


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}_stats.json"


# --- reading -------------------------------------------------------------------------------------


class LatentCache:
    """Random access to a cache by global index; rows lie in the order of shards and of samples in them.

    Files are mapped, not read: a row costs a copy of its bytes, and no file descriptor is kept.
    """

    def __init__(self, shards: Sequence[Mapping[str, NDArray[Any]]], sidecars: Sequence[Path], fingerprint: Fingerprint) -> None:
        self.fingerprint = fingerprint
        self._shards = shards
        self._sidecars = sidecars
        self._captions: dict[int, list[str]] = {}
        self._ends = np.cumsum([len(shard["latent_mean"]) for shard in shards])

    @classmethod
    def open(cls, folder: Path, *, expected: Fingerprint | None = None) -> Self:
        """The cache in ``folder``, once each of its files is found to be what the manifest says.

        Raises :class:`InputError` for a missing or altered file, and for a cache that was not made with ``expected``.
        """
        _verify(folder)
        fingerprint = read_fingerprint(folder)
        if expected is not None:
            _require_equal(folder, found=fingerprint, expected=expected)
        paths = sorted(folder.glob("*.safetensors"))
        shards = [_mapped(path, fingerprint) for path in paths]
        return cls(shards, [path.with_suffix(".jsonl") for path in paths], fingerprint)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one sample's latents."""
        channels, height, width = self._shards[0]["latent_mean"].shape[1:]
        return channels, height, width

    def text_dim(self, scorer: str) -> int:
        """Width of the text features of ``scorer``; :class:`InputError` when the cache holds none."""
        if scorer not in self.fingerprint.scorers:
            raise InputError(f"the latent cache has no text features of {scorer!r}; add it to caching.scorers and run: rglcd run cache")
        return int(self._shards[0][f"{_TEXT_PREFIX}{scorer}"].shape[1])

    def batch(self, indices: Tensor) -> LatentBatch:
        """The samples at global ``indices`` (B,), in that order, on the CPU. ``IndexError`` outside [0, len)."""
        places = self._places(indices)
        embeddings = self._gather_if_stored("text_embeddings", places)
        pooled = self._gather_if_stored("text_pooled", places)
        return LatentBatch(
            mean=self._gather("latent_mean", places).float(),
            logvar=self._gather("latent_logvar", places).float(),
            input_ids=self._gather("input_ids", places).long(),
            text={scorer: self._gather(f"{_TEXT_PREFIX}{scorer}", places).float() for scorer in self.fingerprint.scorers},
            caption=None if embeddings is None else Condition(embeddings.float(), None if pooled is None else pooled.float()),
            time_ids=self._gather_if_stored("time_ids", places),
        )

    def captions(self, indices: Tensor) -> list[str]:
        """The captions of the samples at global ``indices`` (B,)."""
        return [self._captions_of(shard)[row] for shard, row in self._places(indices)]

    def _places(self, indices: Tensor) -> list[tuple[int, int]]:
        """(shard, row within it) of each index."""
        wanted = indices.numpy()
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"indices run from {wanted.min()} to {wanted.max()}; the cache holds {len(self)} samples")
        shards = np.searchsorted(self._ends, wanted, side="right")
        starts = np.concatenate([[0], self._ends[:-1]])
        return list(zip(shards.tolist(), (wanted - starts[shards]).tolist(), strict=True))

    def _gather_if_stored(self, column: str, places: Sequence[tuple[int, int]]) -> Tensor | None:
        return self._gather(column, places) if column in self._shards[0] else None

    def _gather(self, column: str, places: Sequence[tuple[int, int]]) -> Tensor:
        first = self._shards[0][column]
        gathered = np.empty((len(places), *first.shape[1:]), dtype=first.dtype)
        for target, (shard, row) in enumerate(places):
            gathered[target] = self._shards[shard][column][row]
        return torch.from_numpy(gathered)

    def _captions_of(self, shard: int) -> list[str]:
        if shard not in self._captions:
            with self._sidecars[shard].open(encoding="utf-8") as lines:
                self._captions[shard] = [json.loads(line)["caption"] for line in lines]
        return self._captions[shard]


def _verify(folder: Path) -> None:
    manifest = read_manifest(folder, made_by="cache")
    for name in progress.track(manifest.files, task="verify the latent cache", unit="files"):
        problem = alteration(folder / name, manifest.files[name])
        if problem is not None:
            raise InputError(f"{folder}: {name} {problem}; {_MAKE_AGAIN}")


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


def _mapped(path: Path, fingerprint: Fingerprint) -> dict[str, NDArray[Any]]:
    """The columns of a shard, as arrays on the mapped file."""
    try:
        with safe_open(path, framework="pt") as opened:
            made_with = json.loads((opened.metadata() or {}).get(_METADATA_KEY, "{}")).get("fingerprint")
            if made_with != fingerprint.digest:
                raise InputError(f"{path} carries fingerprint {made_with}, not its folder's {fingerprint.digest}; {_MAKE_AGAIN}")
            return {name: opened.get_tensor(name).numpy() for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be opened ({error}); {_MAKE_AGAIN}") from None
