from pathlib import Path

import numpy as np
import pytest
import torch
from webdataset.writer import TarWriter

from rglcd.errors import InputError
from rglcd.latents.cache import LatentBatch
from rglcd.latents.npy_latents import read_npy_tar, write_npy_tar


def test_what_is_written_is_read(tmp_path: Path) -> None:
    mean, logvar = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).half().float()
    batch = LatentBatch(mean, logvar, torch.zeros(3, 5, dtype=torch.int64), {})
    keys, captions = ["000", "001", "002"], ["a fox", "", "<é>\tb"]
    write_npy_tar(tmp_path / "0.tar", batch, keys=keys, captions=captions)
    read = list(read_npy_tar(tmp_path / "0.tar"))
    assert [(sample.key, sample.caption) for sample in read] == list(zip(keys, captions, strict=True))
    assert torch.equal(torch.stack([sample.mean for sample in read]), mean)
    assert torch.equal(torch.stack([sample.logvar for sample in read]), logvar)


@pytest.mark.parametrize("members", [{"txt": b"a fox"}, {"npy": b"no array", "txt": b"a fox"}])
def test_a_sample_without_its_moments_is_refused_by_key(tmp_path: Path, members: dict[str, bytes]) -> None:
    with (tmp_path / "0.tar").open("wb") as stream:
        tar = TarWriter(stream, encoder=False, mtime=0)
        tar.write({"__key__": "000", **members})
        tar.close()
    with pytest.raises(InputError, match="sample 000 has no moments"):
        list(read_npy_tar(tmp_path / "0.tar"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with (tmp_path / "0.tar").open("wb") as stream:
        tar = TarWriter(stream, encoder=False, mtime=0)
        tar.write({"__key__": "000", "npy": (tmp_path / "a.npy").read_bytes(), "txt": b""})
        tar.close()
    with pytest.raises(InputError, match="sample 000"):
        list(read_npy_tar(tmp_path / "0.tar"))
