"""Stage ``cache``: encode images and captions once: VAE moments, token ids, and the scorers' text features."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rglcd import progress
from rglcd.config import Caching, Model
from rglcd.core.condition import Condition
from rglcd.errors import InputError, lack_of_memory
from rglcd.latents.format import (
    Fingerprint,
    LatentBatch,
    finished_latents,
    latents_lock,
    read_fingerprint,
    to_columns,
    write_fingerprint,
    write_latents,
)
from rglcd.latents.read_ahead import read_ahead
from rglcd.models.chunks import Chunks
from rglcd.models.codec import Codec, Moments
from rglcd.models.declared_type import doubt_about, errors_of_x0
from rglcd.models.families import family_of
from rglcd.models.precision import tf32
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder, text_parts
from rglcd.models.threads import one_thread_if_small
from rglcd.models.trial import dtype_to_try
from rglcd.rewards.protocol import Reward
from rglcd.sharding.accounting import RowRejectedError
from rglcd.sharding.decoding import decode, to_array
from rglcd.sharding.shards import Sample, ShardEntry, read_shard, shard_entries
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.run import Output
from rglcd.store.local_copies import file_read_once
from rglcd.store.manifest import digest_of, folder_digest, read_manifest
from rglcd.store.shard_tasks import Part
from rglcd.store.staging import remove_stale_staging
from rglcd.training.choices import dtype_of
from rglcd.training.distributed import World, join_world, unequal_work

_TASK = "encode images and captions"

_LOOKED_AT = 64

_BATCHES_AHEAD = 2
"""How many batches of pictures are decoded before they are encoded: one to begin with at once, one being made."""


def cache(model: Model, caching: Caching, *, shards: Path, pretrained: Path, latents: Output) -> Mapping[str, Any]:
    """Write one stacked file of latents for each shard, and ``fingerprint.json``.

    Each is a pure function of its shard, so a finished one that a killed run left is taken over, and ranks and parts
    share the shards out: every so-many-th is theirs.
    Raises :class:`InputError` for an altered shard, an image of another resolution or a sample whose moments are not finite.
    """
    models, folder = Pretrained.open(pretrained), latents.folder
    fingerprint = _fingerprint(model, models, scorers=caching.scorers)
    entries = shard_entries(shards)
    with join_world() as world, tf32(world.device), one_thread_if_small(models.teacher, world.device):
        remove_stale_staging(folder)
        mine = Part(world.rank, world.size).of(latents.part.of(entries))
        encoder = _Encoder.load(model, caching, models, world=world)
        if encoder.text_encoder.is_xl:
            _require_crops(shards)
        looked_at = next((entry for entry in entries if entry.num_samples), None)
        num_samples, done = sum(entry.num_samples for entry in mine), 0
        with unequal_work(world):
            for entry in mine:
                name = Path(entry.name).stem
                progress.report(_TASK, done=done, total=num_samples, unit="samples")
                with latents_lock(folder, name):
                    if not finished_latents(folder, name):
                        columns, rows = _encode_shard(encoder, shards, entry, done=done, total=num_samples)
                        write_latents(folder, name, columns, rows=rows, fingerprint=fingerprint)
                        if entry is looked_at:
                            _look_at_the_teacher(models, encoder, columns)
                done += entry.num_samples
            progress.report(_TASK, done=done, total=num_samples, unit="samples")
        if world.is_main:
            write_fingerprint(folder, fingerprint)
    return {"samples": sum(entry.num_samples for entry in entries), "fingerprint": fingerprint.digest}


def fingerprint_of(model: Model, pretrained: Pretrained, *, like: Path) -> Fingerprint:
    """The fingerprint that a cache of the scorers of ``like``, a cache's folder, has if it is made now."""
    return _fingerprint(model, pretrained, scorers=tuple(read_fingerprint(like).scorers))


def _fingerprint(model: Model, pretrained: Pretrained, *, scorers: Sequence[str]) -> Fingerprint:
    parts = text_parts(pretrained.teacher)
    return Fingerprint(
        resolution=model.resolution,
        vae=folder_digest(pretrained.teacher / "vae"),
        text_encoder=_joint_digest([pretrained.teacher / part.encoder for part in parts]),
        tokenizer=_joint_digest([pretrained.teacher / part.tokenizer for part in parts]),
        scorers={name: pretrained.scorer_digest(name) for name in sorted(scorers)},
    )


def _joint_digest(folders: Sequence[Path]) -> str:
    digests = [folder_digest(folder) for folder in folders]
    return digests[0] if len(digests) == 1 else digest_of(digests)


@dataclass
class _Encoder:
    """The frozen networks, what to keep of them, and how many samples they are given at once (halved once for the run at most)."""

    codec: Codec
    text_encoder: TextEncoder
    scorers: Mapping[str, Reward]
    scoring: Sequence[str]
    resolution: int
    keep_embeddings: bool
    world: World
    at_once: Chunks

    @classmethod
    def load(cls, model: Model, caching: Caching, pretrained: Pretrained, *, world: World) -> "_Encoder":
        # In float32 whatever the run's precision, but for the encoding of pictures where that is asked for: this is done once.
        dtype, device = torch.float32, world.device
        codec = Codec.load(pretrained.teacher, dtype=dtype, device=device)
        codec.latent_shape(model.resolution)
        codec.encode_in(dtype_of(caching.precision))
        text_encoder = TextEncoder.load(pretrained.teacher, dtype=dtype, device=device)
        scorers = {name: pretrained.scorer(name, dtype=dtype, device=device) for name in sorted(caching.scorers)}
        at_once = Chunks("caching.batch_size", caching.batch_size, num_halvings=1)
        return cls(codec, text_encoder, scorers, caching.scores, model.resolution, caching.text_embeddings, world, at_once)

    def columns(self, samples: Sequence[Sample], pictures: Tensor) -> Iterator[dict[str, Tensor]]:
        """The latents of ``samples`` and of their ``pictures`` as they are stored, in one piece or more."""

        def encode(numbers: range) -> dict[str, Tensor]:
            rows = slice(numbers.start, numbers.stop)
            return to_columns(self.encode(samples[rows], pictures[rows]), [sample.key for sample in samples[rows]])

        return self.at_once.calls(encode, range(len(samples)))

    def encode(self, samples: Sequence[Sample], pictures: Tensor) -> LatentBatch:
        captions = [sample.caption for sample in samples]
        moments = self.codec.moments(_pixels(self.world.to_device(pictures)))
        ids = self.text_encoder.tokenise(captions)
        text = {name: scorer.encode_text(captions) for name, scorer in self.scorers.items()}
        return LatentBatch(
            mean=moments.mean,
            logvar=moments.logvar,
            input_ids=ids,
            text=text,
            scores=self._scores(moments, text),
            caption=self.text_encoder.encode(ids) if self.keep_embeddings else None,
            time_ids=torch.tensor([_time_ids(sample, self.resolution) for sample in samples]) if self.text_encoder.is_xl else None,
        )

    @torch.no_grad()
    def _scores(self, moments: Moments, text: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the decoded picture, not of the original: what is compared with it in training has been through the decoder, too."""
        if not self.scoring:
            return {}
        pixels = self.codec.decode(self.codec.latents(moments, torch.zeros_like(moments.mean)))
        return {name: self.scorers[name].score(pixels, text[name]) for name in sorted(self.scoring)}

    def decoded(self, samples: Iterator[Sample], *, size: int) -> Iterator[tuple[list[Sample], Tensor]]:
        """``size`` samples at a time, with their pictures (B, 3, H, W) in bytes: a quarter of what float32 would take to a device."""
        while batch := list(islice(samples, size)):
            yield batch, torch.from_numpy(np.stack([self._picture(sample) for sample in batch]))

    def _picture(self, sample: Sample) -> NDArray[np.uint8]:
        """Pixels (3, H, W)."""
        try:
            pixels = to_array(decode(sample.image))
        except RowRejectedError as rejected:
            raise InputError(f"the image of sample {sample.key} is {rejected.reason}; make it again: rglcd run shard") from None
        if pixels.shape[1:] != (self.resolution, self.resolution):
            _, height, width = pixels.shape
            wanted = f"model.resolution is {self.resolution}: set sharding.resolution to it"
            raise InputError(f"sample {sample.key} is {width} x {height} pixels and {wanted}")
        return pixels


def _look_at_the_teacher(models: Pretrained, encoder: _Encoder, columns: Mapping[str, Tensor]) -> None:
    """Say it when the first latents show that the teacher does not predict what it declares. Nothing that is stored depends on it.

    So a teacher that does not fit in memory beside what encodes is not looked at, which is said.
    """
    try:
        doubt = _doubt_about_the_teacher(models, encoder, columns)
    except Exception as error:
        if lack_of_memory(error) is None:
            raise
        why = " ".join(str(error).split())[:200]
        doubt = f"whether the teacher predicts what it declares was not looked at: it does not fit in memory beside what encodes ({why})"
    if doubt is not None:
        print(f"rglcd: {doubt}", file=sys.stderr)


def _doubt_about_the_teacher(models: Pretrained, encoder: _Encoder, columns: Mapping[str, Tensor]) -> str | None:
    device = encoder.world.device
    network = models.teacher / family_of(models.teacher).folder
    teacher = Teacher.load(models.teacher, dtype=dtype_to_try(network), device=device, resolution=encoder.resolution)
    first = {name: column[:_LOOKED_AT].to(device) for name, column in columns.items() if name in ("input_ids", "time_ids")}
    mean = columns["latent_mean"][:_LOOKED_AT].to(device).float()
    latents = encoder.codec.latents(Moments(mean, torch.zeros_like(mean)), torch.zeros_like(mean))

    def condition(rows: slice) -> Condition:
        return encoder.text_encoder.encode(first["input_ids"][rows].long()).with_time_ids(
            first["time_ids"][rows] if "time_ids" in first else None
        )

    return doubt_about(teacher.kind, errors_of_x0(teacher, latents, condition))


def _pixels(pictures: Tensor) -> Tensor:
    """Pixels in [0, 1] of bytes, on their device. Divided by a tensor: by a number, CUDA multiplies with its rounded reciprocal."""
    return pictures.float() / torch.full((), 255.0, device=pictures.device)


def _require_crops(shards: Path) -> None:
    """:class:`InputError` for pictures that were not cropped from their centre: SDXL's networks would be given wrong sizes."""
    resize = read_manifest(shards, made_by="shard").sections.get("sharding", {}).get("resize", "center_crop")
    if resize != "center_crop":
        raise InputError(
            f"{shards} was made with sharding.resize {resize}; SDXL's sizes are known for center_crop alone: run shard with it"
        )


def _time_ids(sample: Sample, resolution: int) -> list[int]:
    """SDXL's sizes: the original's height and width, top and left of the crop once resized, height and width of the square."""
    width, height = (sample.facts.get(f"original_{side}") for side in ("width", "height"))
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise InputError(f"sample {sample.key} does not say its original_width and original_height, which SDXL is conditioned on")
    # The centre is cropped of what has its short side resized: rglcd.sharding.decoding.
    top, left = (round((side * resolution / min(width, height) - resolution) / 2) for side in (height, width))
    return [height, width, top, left, resolution, resolution]


def _encode_shard(
    encoder: _Encoder, shards: Path, entry: ShardEntry, *, done: int, total: int
) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
    """The columns of one shard, and key and caption of each row."""
    batches: list[dict[str, Tensor]] = []
    rows: list[dict[str, str]] = []
    with (
        file_read_once(shards, read_manifest(shards, made_by="shard"), entry.name) as tar,
        read_ahead(encoder.decoded(read_shard(tar, entry), size=encoder.at_once.size), num_ahead=_BATCHES_AHEAD) as decoded,
    ):
        for samples, pictures in decoded:
            batches += encoder.columns(samples, pictures)
            rows += [{"key": sample.key, "caption": sample.caption} for sample in samples]
            progress.report(_TASK, done=done + len(rows), total=total, unit="samples")
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}, rows
