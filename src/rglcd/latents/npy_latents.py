"""Latents as the released RG-LCD code stores them: a webdataset tar of ``KEY.npy``, the VAE's moments, and ``KEY.txt``, the caption.

Moments are (2C, h, w): mean, then log-variance, as diffusers' ``DiagonalGaussianDistribution.parameters`` has them.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from webdataset import WebDataset
from webdataset.writer import TarWriter

from rglcd.errors import InputError
from rglcd.latents.cache import LatentBatch
from rglcd.store.work_unit import written_aside


@dataclass(frozen=True)
class NpySample:
    """One sample: float32 mean and log-variance (C, h, w)."""

    key: str
    mean: Tensor
    logvar: Tensor
    caption: str


def write_npy_tar(path: Path, batch: LatentBatch, *, keys: Sequence[str], captions: Sequence[str]) -> None:
    """Write ``batch`` to ``path`` in that layout, float16."""
    moments = torch.cat([batch.mean, batch.logvar], dim=1).half().numpy()
    with written_aside(path) as aside, aside.open("wb") as stream:
        tar = TarWriter(stream, user="", group="", mode=0o444, encoder=False, mtime=0)
        for key, values, caption in zip(keys, moments, captions, strict=True):
            member = io.BytesIO()
            np.save(member, values, allow_pickle=False)
            tar.write({"__key__": key, "npy": member.getvalue(), "txt": caption.encode()})
        tar.close()


def read_npy_tar(path: Path) -> Iterator[NpySample]:
    """The samples of a tar in that layout. Raises :class:`InputError` for one without its moments or its caption.

    A tar cannot say that it was cut at a sample's border: count what comes.
    """
    for sample in WebDataset(str(path), shardshuffle=False, empty_check=False):
        try:
            moments = torch.from_numpy(np.load(io.BytesIO(sample["npy"]), allow_pickle=False)).float()
            mean, logvar = moments.chunk(2)
            yield NpySample(sample["__key__"], mean, logvar, sample["txt"].decode())
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: sample {sample['__key__']} has no moments as .npy and caption as .txt ({error})") from None
