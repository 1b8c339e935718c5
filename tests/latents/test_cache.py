import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.latents.format import (
    Fingerprint,
    LatentBatch,
    finished_latents,
    quantise,
    read_fingerprint,
    to_columns,
    write_fingerprint,
    write_latents,
)
from rglcd.store.manifest import Manifest, results_digest, scan, write_manifest

FINGERPRINT = Fingerprint(
    resolution=16, vae="a" * 64, text_encoder="b" * 64, tokenizer="c" * 64, scorers={"checker": "d", "expert": "e" * 64}
)


def batch_of(num_samples: int, *, seed: int = 0, embeddings: bool = False) -> LatentBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(num_samples, *shape, generator=generator)

    return LatentBatch(
        mean=draw(4, 2, 2).half().float(),
        logvar=draw(4, 2, 2).half().float(),
        input_ids=torch.randint(0, 70_000, (num_samples, 5), generator=generator),
        text={"expert": draw(6), "checker": torch.randint(0, 5, (num_samples, 3), generator=generator)},
        caption=Condition(draw(5, 3).half().float(), draw(4).half().float()) if embeddings else None,
        time_ids=torch.randint(0, 5_000, (num_samples, 6), generator=generator, dtype=torch.int32) if embeddings else None,
    )


def write_shard(folder: Path, name: str, batch: LatentBatch, *, fingerprint: Fingerprint = FINGERPRINT) -> None:
    keys = [f"{name}{row:04d}" for row in range(len(batch.mean))]
    rows = [{"key": key, "caption": f"caption {key}   <é>"} for key in keys]
    write_latents(folder, name, to_columns(batch, keys), rows=rows, fingerprint=fingerprint)


def publish(folder: Path) -> Path:
    write_fingerprint(folder, FINGERPRINT)
    files = scan(folder)
    write_manifest(folder, Manifest("latents", "cache", 1, "key", results_digest(files), {}, {}, files))
    return folder


SIZES = (3, 1, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of three shards, to be read only."""
    folder = tmp_path_factory.mktemp("latents")
    for number, size in enumerate(SIZES):
        write_shard(folder, f"{number:05d}", batch_of(size, seed=number, embeddings=True))
    return publish(folder)


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A cache of one shard, to be damaged."""
    write_shard(tmp_path, "00000", batch_of(4))
    return publish(tmp_path)


class TestReading:
    @given(indices=st.lists(st.integers(0, sum(SIZES) - 1), max_size=20))
    def test_a_batch_holds_the_requested_rows_in_order(self, folder: Path, indices: list[int]) -> None:
        cache = LatentCache.open(folder)
        stored = [batch_of(size, seed=number, embeddings=True) for number, size in enumerate(SIZES)]
        batch = cache.batch(torch.tensor(indices, dtype=torch.int64))
        pairs: list[tuple[torch.Tensor | None, list[torch.Tensor | None]]] = [
            (batch.mean, [shard.mean for shard in stored]),
            (batch.logvar, [as_stored(shard.logvar) for shard in stored]),
            (batch.input_ids, [shard.input_ids for shard in stored]),
            (batch.text["expert"], [shard.text["expert"] for shard in stored]),
            (batch.text["checker"], [shard.text["checker"].float() for shard in stored]),
            (batch.time_ids, [shard.time_ids for shard in stored]),
            *((vars(batch.caption)[part], [vars(shard.caption)[part] for shard in stored]) for part in ("embeddings", "pooled")),
        ]
        for found, columns in pairs:
            assert found is not None
            expected = torch.cat([column for column in columns if column is not None])[indices]
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
        assert cache.captions(torch.tensor(indices, dtype=torch.int64)) == [caption(index) for index in indices]

    def test_stored_batches_decode_to_the_same_values_on_a_device(self, folder: Path) -> None:
        cache, indices, travelled = LatentCache.open(folder), torch.tensor([8, 0, 3]), list[torch.Tensor]()

        def place(tensor: torch.Tensor) -> torch.Tensor:
            travelled.append(tensor)
            return tensor.clone()

        placed, here = cache.batch(indices, place=place), cache.batch(indices)
        floats = {"float16": 4 * 2 * 2 + 5 * 3 + 4, "float32": 6 + 3 + 2}  # means and texts; the scorers' features, scale and offset
        values = {**floats, "int8": 4 * 2 * 2, "int32": 5 + 6}
        found = {name: sum(tensor.numel() for tensor in travelled if str(tensor.dtype) == f"torch.{name}") for name in values}
        assert found == {name: 3 * count for name, count in values.items()}
        assert sum(tensor.numel() for tensor in travelled) == sum(found.values())
        for name in ("mean", "logvar", "input_ids", "time_ids"):
            assert torch.equal(getattr(placed, name), getattr(here, name))
        assert all(torch.equal(placed.text[scorer], here.text[scorer]) for scorer in FINGERPRINT.scorers)
        assert placed.caption is not None
        assert here.caption is not None
        assert torch.equal(placed.caption.embeddings, here.caption.embeddings)

    def test_sizes(self, folder: Path) -> None:
        cache = LatentCache.open(folder)
        assert (len(cache), cache.latent_shape, cache.text_dim("expert"), cache.text_dim("checker")) == (9, (4, 2, 2), 6, 3)

    def test_a_cache_without_text_embeddings_and_sizes_gives_none(self, own_folder: Path) -> None:
        batch = LatentCache.open(own_folder).batch(torch.tensor([0]))
        assert batch.caption is None
        assert batch.time_ids is None

    @pytest.mark.parametrize("index", [-1, 9])
    def test_an_index_outside_is_refused(self, folder: Path, index: int) -> None:
        with pytest.raises(IndexError, match="holds 9 samples"):
            LatentCache.open(folder).batch(torch.tensor([0, index]))

    def test_a_scorer_that_was_not_cached_is_named(self, folder: Path) -> None:
        with pytest.raises(InputError, match=r"no text features of 'judge'; add it to caching\.scorers"):
            LatentCache.open(folder).text_dim("judge")

    def test_no_file_descriptor_is_kept(self, folder: Path) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        cache = LatentCache.open(folder)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert len(cache.batch(torch.arange(9)).mean) == 9


def as_stored(logvar: torch.Tensor) -> torch.Tensor:
    codes, steps = quantise(logvar)
    return steps.values(codes)


def read_all(folder: Path) -> None:
    """Every row of the cache, whatever it takes: what training does in an epoch."""
    cache = LatentCache.open(folder)
    cache.batch(torch.arange(len(cache)))
    cache.captions(torch.arange(len(cache)))


@given(values=st.lists(st.floats(-30, 20, width=32), min_size=1, max_size=50))
def test_no_value_moves_by_more_than_half_a_step(values: list[float]) -> None:
    original = torch.tensor(values)
    codes, steps = quantise(original)
    assert codes.dtype == torch.int8
    rounding = 1e-5  # of float32, which counts where all values are nearly one
    assert (steps.values(codes) - original).abs().max() <= steps.scale / 2 + rounding


def test_an_altered_file_opened_in_advance_is_reported_when_a_row_is_read(own_folder: Path) -> None:
    path = own_folder / "00000.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    cache = LatentCache.open(own_folder)
    cache.anticipate(torch.arange(4))
    for _ in range(2):
        with pytest.raises(InputError, match=r"00000\.safetensors has sha256"):
            cache.batch(torch.tensor([1]))


def caption(index: int) -> str:
    shard, row = [(shard, row) for shard, size in enumerate(SIZES) for row in range(size)][index]
    return f"caption {shard:05d}{row:04d}   <é>"


class TestWriting:
    def test_equal_samples_make_equal_bytes(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c", "d"):
            (tmp_path / name).mkdir()
            write_shard(tmp_path / name, "00000", batch_of(3, embeddings=True))
        assert len({tuple(path.read_bytes() for path in sorted((tmp_path / name).iterdir())) for name in ("a", "b", "c", "d")}) == 1

    def test_stored_precisions_and_size(self, own_folder: Path) -> None:
        columns = to_columns(batch_of(1, embeddings=True), ["0"])
        assert {name: column.dtype for name, column in columns.items()} == {
            "latent_mean": torch.float16,
            "latent_logvar": torch.float32,  # until its shard is whole
            "input_ids": torch.int32,
            "text_embeddings": torch.float16,
            "text_pooled": torch.float16,
            "time_ids": torch.int32,
            "text.expert": torch.float32,
            "text.checker": torch.float32,
        }

    @pytest.mark.parametrize(
        ("column", "value"),
        [("mean", 1e5), *((column, value) for column in ("mean", "logvar") for value in (float("nan"), float("inf"), -float("inf")))],
    )
    def test_samples_that_overflow_their_stored_type_are_refused_by_key(self, column: str, value: float) -> None:
        batch = batch_of(3)
        getattr(batch, column)[1, 2, 0, 1] = value
        with pytest.raises(InputError, match=f"sample k1: latent_{column} is not finite in float"):
            to_columns(batch, ["k0", "k1", "k2"])

    def test_text_features_that_are_not_finite_are_refused_by_key(self) -> None:
        batch = batch_of(3)
        batch.text["expert"][2, 0] = float("nan")
        with pytest.raises(InputError, match=r"sample k2: text\.expert is not finite"):
            to_columns(batch, ["k0", "k1", "k2"])

    def test_a_shard_without_its_record_is_not_finished(self, tmp_path: Path) -> None:
        write_shard(tmp_path, "00000", batch_of(2))
        assert finished_latents(tmp_path, "00000")
        (tmp_path / "00000_stats.json").unlink()
        assert not finished_latents(tmp_path, "00000")


class TestMaskedCaptions:
    """Of families with a mask, whose captions are padded to hundreds of tokens."""

    MASKS = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)

    def masked(self, rows: slice = slice(None)) -> LatentBatch:
        batch = batch_of(4, embeddings=True)
        assert batch.caption is not None
        caption = Condition(batch.caption.embeddings, mask=self.MASKS)
        return replace(batch_of(4), caption=caption) if rows == slice(None) else replace(batch_of(rows.stop), caption=caption[rows])

    def test_only_what_the_mask_is_true_for_is_stored_and_comes_back_in_place(self, tmp_path: Path) -> None:
        batch = self.masked()
        columns = to_columns(batch, list("abcd"))
        assert columns["text_rows"].shape == (6, 3)
        write_shard(tmp_path, "00000", batch)
        write_shard(tmp_path, "00001", self.masked(slice(0, 2)))
        cache = LatentCache.open(publish(tmp_path))
        order = torch.tensor([2, 5, 3, 0, 1, 4, 2])
        caption = cache.batch(order).caption
        assert caption is not None
        assert batch.caption is not None
        where = order % 4
        assert torch.equal(caption.mask, self.MASKS[where])
        assert torch.equal(caption.embeddings, batch.caption.embeddings[where] * self.MASKS[where][..., None])

    def test_a_row_that_is_not_finite_is_refused_by_its_samples_key(self) -> None:
        batch = self.masked()
        assert batch.caption is not None
        batch.caption.embeddings[1, 3] = float("nan")  # padding
        to_columns(batch, list("abcd"))
        batch.caption.embeddings[2, 3] = float("nan")
        with pytest.raises(InputError, match="sample c: text_rows is not finite"):
            to_columns(batch, list("abcd"))


class TestRefusals:
    def test_a_cache_with_the_expected_fingerprint_is_opened(self, own_folder: Path) -> None:
        again = Fingerprint(**json.loads((own_folder / "fingerprint.json").read_text()))
        assert len(LatentCache.open(own_folder, expected=again)) == 4
        assert read_fingerprint(own_folder).digest == FINGERPRINT.digest

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("resolution", 32),
            ("vae", "f" * 64),
            ("text_encoder", "f" * 64),
            ("tokenizer", "f" * 64),
            ("scorers", {"expert": "e" * 64}),
            ("scorers", {"checker": "d", "expert": "f" * 64}),
            ("moments_dtype", "int8"),
            ("format_version", 1),
        ],
    )
    def test_a_cache_with_another_fingerprint_is_refused_showing_both(self, own_folder: Path, field: str, value: Any) -> None:
        expected = replace(FINGERPRINT, **{field: value})
        with pytest.raises(InputError) as caught:
            LatentCache.open(own_folder, expected=expected)
        message = str(caught.value)
        assert FINGERPRINT.digest[:16] in message
        assert expected.digest[:16] in message
        theirs, ours = FINGERPRINT.fields(), expected.fields()
        for name in theirs.keys() | ours.keys():
            mark = "=" if theirs.get(name) == ours.get(name) else "!"
            shown = f"{mark} {name}: cache {theirs.get(name, 'absent')[:16]}, now {ours.get(name, 'absent')[:16]}"
            assert shown in message
        assert message.count("!") == 1

    @pytest.mark.parametrize("name", ["00000.safetensors", "00000.jsonl", "00000_stats.json", "fingerprint.json"])
    @pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
    def test_a_damaged_cache_is_refused_by_file(self, own_folder: Path, name: str, damage: str) -> None:
        path = own_folder / name
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InputError, match=rf"{name} (is missing|has .*); make it again: rglcd run cache"):
            read_all(own_folder)

    def test_a_shard_with_another_caches_fingerprint_is_refused(self, own_folder: Path) -> None:
        other = replace(FINGERPRINT, vae="0" * 64)
        write_shard(own_folder, "00000", batch_of(4), fingerprint=other)
        publish(own_folder)
        with pytest.raises(InputError, match=rf"00000\.safetensors carries fingerprint {other.digest}"):
            read_all(own_folder)

    def test_a_file_that_is_no_safetensors_is_refused(self, own_folder: Path) -> None:
        (own_folder / "00000.safetensors").write_bytes(b"\xff" * 100)
        publish(own_folder)
        with pytest.raises(InputError, match=r"00000\.safetensors cannot be opened"):
            read_all(own_folder)

    def test_an_unpublished_cache_is_refused(self, own_folder: Path) -> None:
        (own_folder / "manifest.json").unlink()
        with pytest.raises(InputError, match="missing or unfinished; make it with: rglcd run cache"):
            LatentCache.open(own_folder)
