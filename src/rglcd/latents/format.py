"""The format of the latent cache: stacked safetensors with one row a sample, and how samples become rows and rows samples.

    00000.safetensors   one row a sample of the shard of that number, N samples:
        latent_mean      (N, C, h, w)  float16  mean of the VAE's posterior, unscaled
        latent_logvar    (N, C, h, w)  int8     its log-variance: code * scale + offset, both in the file's header
        input_ids        (N, L)        int32    token ids of the caption
        text.<scorer>    (N, D)        float32  the scorer's text features of the caption, as it gave them
        score.<scorer>   (N,)          float32  its score of the picture as the codec gives it back, if asked for
        text_embeddings  (N, L, D)     float16  the text encoder's output, if asked for
        text_rows        (M, D)        float16  in its place, for families with a mask: the M rows that their masks are true for, in order
        text_mask        (N, L)        bool     with them: the masks
        text_pooled      (N, P)        float16  with it, for SDXL and others: the pooled caption
        time_ids         (N, 6)        int32    for SDXL: the picture's sizes (see core's Condition)
    00000.jsonl         key and caption of each row
    00000_stats.json    the digests of the two; written last
    fingerprint.json    what the cache was made with

Shapes: B batch, C channels, (h, w) latent size, L token positions, D width.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.precision import dtype_name
from rglcd.store.disk_space import disk_space_for
from rglcd.store.manifest import digest_of, write_json
from rglcd.store.shard_tasks import finish_task, finished_task, task_lock
from rglcd.store.staging import staging_file, write_text

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
    "text_rows": torch.float16,
    "text_mask": torch.bool,
    "text_pooled": torch.float16,
    "time_ids": torch.int32,
}
RAGGED_ROWS: Final = "text_rows"
"""The one column that has not a row a sample, but as many as :data:`RAGGED_MASK` says."""
RAGGED_MASK: Final = "text_mask"
TEXT_PREFIX: Final = "text."
SCORE_PREFIX: Final = "score."
_TEXT_STORED: Final = torch.float32
METADATA_KEY: Final = "rglcd"  # one key only: safetensors writes several in an order that changes from run to run
MAKE_AGAIN: Final = "make it again: rglcd run cache"


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
    moments_dtype: str = dtype_name(_STORED["latent_mean"])
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
        raise InputError(f"{folder / FINGERPRINT} cannot be read ({error}); {MAKE_AGAIN}") from None


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

    Of the ragged column there are the rows of all samples, one after the other. ``logvar_steps`` (2, B) float32 are the scale and the
    offset of each row's log-variance codes. This is what travels to a device: there it is less than half of what it stands for, and a
    GPU unfolds it in no time.
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
        return LatentBatch(
            mean=columns["latent_mean"].float(),
            logvar=columns["latent_logvar"].float() * scale + offset,
            input_ids=columns["input_ids"].long(),
            text={name: features.float() for name, features in self._of_scorers(TEXT_PREFIX)},
            scores=dict(self._of_scorers(SCORE_PREFIX)),
            caption=self._caption(),
            time_ids=columns.get("time_ids"),
        )

    def _caption(self) -> Condition | None:
        embeddings, rows = self.columns.get("text_embeddings"), self.columns.get(RAGGED_ROWS)
        mask, pooled = self.columns.get(RAGGED_MASK), self.columns.get("text_pooled")
        if rows is not None and mask is not None:
            # Not by indices of the mask, whose number a device would be waited for.
            padded = torch.zeros(*mask.shape, rows.shape[-1], dtype=torch.float32, device=rows.device)
            embeddings = padded.masked_scatter(mask[..., None], rows.float())
        return None if embeddings is None else Condition(embeddings.float(), None if pooled is None else pooled.float(), mask=mask)

    def _of_scorers(self, prefix: str) -> list[tuple[str, Tensor]]:
        return [(name.removeprefix(prefix), column) for name, column in sorted(self.columns.items()) if name.startswith(prefix)]


def to_columns(batch: LatentBatch, keys: Sequence[str]) -> dict[str, Tensor]:
    """``batch`` as it is stored, on the CPU. Raises :class:`InputError` naming the key of a sample that is not finite so."""
    columns = {"latent_mean": batch.mean, "latent_logvar": batch.logvar, "input_ids": batch.input_ids}
    if batch.caption is not None:
        columns |= _stored_caption(batch.caption)
        if batch.caption.pooled is not None:
            columns["text_pooled"] = batch.caption.pooled
    if batch.time_ids is not None:
        columns["time_ids"] = batch.time_ids
    stored = {name: column.to("cpu", _STORED[name]) for name, column in columns.items()}
    stored |= {f"{TEXT_PREFIX}{scorer}": features.to("cpu", _TEXT_STORED) for scorer, features in batch.text.items()}
    stored |= {f"{SCORE_PREFIX}{scorer}": scores.to("cpu", torch.float32) for scorer, scores in batch.scores.items()}
    for name, column in stored.items():
        bad = (~column.isfinite()).reshape(len(column), -1).any(dim=1).nonzero()
        if len(bad):
            sample = int(bad[0]) if name != RAGGED_ROWS else int(stored[RAGGED_MASK].nonzero()[bad[0], 0])
            raise InputError(
                f"sample {keys[sample]}: {name} is not finite in {dtype_name(column.dtype)}; "
                "take its row out of the source index, or check the model that made it"
            )
    return stored


def _stored_caption(caption: Condition) -> dict[str, Tensor]:
    """Padding that nothing looks at is most of a caption for T5 or Gemma: of a family with a mask it is left out."""
    if caption.mask is None:
        return {"text_embeddings": caption.embeddings}
    return {RAGGED_ROWS: caption.embeddings[caption.mask], RAGGED_MASK: caption.mask}


def write_latents(
    folder: Path, name: str, columns: Mapping[str, Tensor], *, rows: Sequence[Mapping[str, str]], fingerprint: Fingerprint
) -> None:
    """Write the columns of shard ``name`` and the key and caption of each of its ``rows``, and then its record."""
    codes, steps = quantise(columns["latent_logvar"])
    header = {"fingerprint": fingerprint.digest, "format_version": FORMAT_VERSION, "logvar": asdict(steps)}
    stored = {**columns, "latent_logvar": codes}
    num_bytes = sum(tensor.nbytes for tensor in stored.values())
    with disk_space_for(folder, num_bytes), staging_file(folder / f"{name}.safetensors") as staging:
        metadata = {METADATA_KEY: json.dumps(header, sort_keys=True)}
        save_file({column: tensor.contiguous() for column, tensor in stored.items()}, staging, metadata=metadata)
    write_text(folder / f"{name}.jsonl", "".join(json.dumps(dict(row), sort_keys=True) + "\n" for row in rows))
    finish_task(record_of(folder, name), [f"{name}.safetensors", f"{name}.jsonl"], samples=len(rows))


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
    return finished_task(record_of(folder, name)) is not None


@contextmanager
def latents_lock(folder: Path, name: str) -> Iterator[None]:
    """While no other worker is at shard ``name`` of ``folder``."""
    with task_lock(record_of(folder, name), wait=True):
        yield


def record_of(folder: Path, name: str) -> Path:
    """Where shard ``name`` of ``folder`` is recorded as finished."""
    return folder / f"{name}_stats.json"
