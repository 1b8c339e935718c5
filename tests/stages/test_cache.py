import io
import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

import rglcd.stages.cache as stages_cache
from rglcd import progress
from rglcd.config import Caching, Model, ModelSource
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.latents.format import Fingerprint, write_fingerprint
from rglcd.models.codec import Codec
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.rewards.registry import load_scorer
from rglcd.sharding.accounting import Reason
from rglcd.sharding.shards import Refusal, Sample, sample_key, write_shard
from rglcd.stages.cache import _pixels as pixels_in_floats
from rglcd.stages.cache import cache, fingerprint_of
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.run import Output
from rglcd.store.manifest import Manifest, results_digest, scan, write_manifest
from rglcd.store.shard_tasks import Part
from tests.publishing import publish
from tests.tiny_models import MAX_TOKENS, PROJECTION_WIDTH, RESOLUTION, TEXT_WIDTH, write_tiny_clip, write_tiny_pretrained

MODEL = Model(teacher=ModelSource(uri="./teacher"), resolution=RESOLUTION)
CACHING = Caching(batch_size=3)
SIZES = (4, 0, 5)
CAPTIONS = [f"a red fox, number {number}" for number in range(sum(SIZES))]
FLOAT32, CPU = torch.float32, torch.device("cpu")


def pixels_of(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(number).integers(0, 256, (RESOLUTION, RESOLUTION, 3), dtype=np.uint8)


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, the second of which has no sample."""
    folder = tmp_path_factory.mktemp("shards")
    numbers = iter(range(sum(SIZES)))
    for shard, size in enumerate(SIZES):
        outcomes: list[Sample | Refusal] = [Refusal("none", Reason.MISSING_FILE)]
        for place in range(size):
            number = next(numbers)
            outcomes.append(Sample(sample_key(shard, place, rows_per_shard=10), png(pixels_of(number)), CAPTIONS[number], {}))
        write_shard(folder, shard, outcomes, extension="png")
    return publish(folder, stage="shard")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    write_tiny_pretrained(folder)
    return publish(folder, stage="prepare")


@pytest.fixture(scope="module")
def unbroken(shards: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a run that nothing disturbed, published; to be read only."""
    folder = tmp_path_factory.mktemp("latents")
    run(shards, pretrained, folder)
    return publish(folder, stage="cache")


def run(shards: Path, pretrained: Path, folder: Path, *, model: Model = MODEL, caching: Caching = CACHING) -> Mapping[str, Any]:
    folder.mkdir(exist_ok=True)
    return cache(model, caching, shards=shards, pretrained=pretrained, latents=Output(folder, None))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def test_a_teacher_that_declares_another_prediction_type_is_said_and_changes_nothing(
    shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fresh network gives little: of the three types that is nearest to small latents."""
    own = shutil.copytree(pretrained, tmp_path / "pretrained")
    path = own / "teacher" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "epsilon"}))
    publish(own, stage="prepare")
    run(shards, own, tmp_path / "latents")
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rglcd: ")]
    assert "says prediction_type epsilon, but what it gives for these pictures is sample by its error" in said
    assert files_of(tmp_path / "latents") == files_of(unbroken)


class TestContent:
    def test_cached_rows_are_the_models_outputs(self, unbroken: Path, pretrained: Path) -> None:
        latents = LatentCache.open(unbroken)
        batch = latents.batch(torch.arange(len(latents)))
        pixels = torch.stack([torch.from_numpy(pixels_of(number)).permute(2, 0, 1) / 255 for number in range(len(latents))])
        moments = Codec.load(pretrained / "teacher", dtype=FLOAT32, device=CPU).moments(pixels)
        # float16 keeps eleven bits
        assert torch.allclose(batch.mean, moments.mean, rtol=2**-10, atol=1e-6)
        assert (batch.mean - moments.mean).norm() <= 1e-3 * moments.mean.norm()
        for rows in (slice(0, 4), slice(4, 9)):  # the shards, each with a scale of its own
            fresh = moments.logvar[rows]
            half_a_step = (fresh.max() - fresh.min()) / 254 / 2
            assert (batch.logvar[rows] - fresh).abs().max() <= half_a_step * 1.0001
        assert torch.equal(batch.input_ids, TextEncoder.load(pretrained / "teacher", dtype=FLOAT32, device=CPU).tokenise(CAPTIONS))
        expert = load_scorer("clip", pretrained / "scorers" / "expert", dtype=FLOAT32, device=CPU)
        assert torch.allclose(batch.text["expert"], expert.encode_text(CAPTIONS), atol=1e-6)
        assert latents.captions(torch.arange(len(latents))) == CAPTIONS

    def test_the_stage_reports_its_samples_and_fingerprint(self, shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path) -> None:
        facts = run(shards, pretrained, tmp_path)
        latents = LatentCache.open(unbroken)
        assert facts == {"samples": 9, "fingerprint": latents.fingerprint.digest}
        assert (len(latents), latents.latent_shape, latents.text_dim("expert")) == (9, (4, 8, 8), PROJECTION_WIDTH)
        assert latents.batch(torch.arange(2)).input_ids.shape == (2, MAX_TOKENS)

    def test_text_embeddings_are_cached_on_request(self, shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path) -> None:
        run(shards, pretrained, tmp_path, caching=Caching(batch_size=3, text_embeddings=True))
        batch = LatentCache.open(publish(tmp_path, stage="cache")).batch(torch.arange(9))
        assert batch.caption is not None
        assert batch.caption.embeddings.shape == (9, MAX_TOKENS, TEXT_WIDTH)
        encoded = TextEncoder.load(pretrained / "teacher", dtype=FLOAT32, device=CPU).encode(batch.input_ids).embeddings
        assert torch.allclose(batch.caption.embeddings, encoded, rtol=2**-10, atol=1e-5)
        assert LatentCache.open(unbroken).batch(torch.arange(9)).caption is None

    def test_each_caption_is_stored_with_its_key(self, unbroken: Path) -> None:
        rows = [json.loads(line) for line in (unbroken / "00002.jsonl").read_text().splitlines()]
        assert rows == [{"key": sample_key(2, place, rows_per_shard=10), "caption": CAPTIONS[4 + place]} for place in range(5)]

    def test_progress_counts_samples_to_the_end(self, shards: Path, pretrained: Path, tmp_path: Path) -> None:
        events: list[progress.Event] = []
        with progress.reporting_to(events.append):
            run(shards, pretrained, tmp_path)
        assert [event.done for event in events] == [0, 3, 4, 4, 7, 9, 9]
        assert {event.total for event in events} == {9}


class TestPictures:
    def test_bytes_become_the_pixels_that_a_division_on_the_host_makes_of_them(self) -> None:
        every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
        assert torch.equal(pixels_in_floats(torch.from_numpy(every)), torch.from_numpy(every.astype(np.float32) / 255))

    def test_pictures_are_decoded_while_those_before_are_encoded(
        self, shards: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second shard's five samples make three batches of two; the first is encoded no sooner than the third is decoded."""
        decoded: list[int] = []
        arrived = threading.Condition()
        moments, to_array = Codec.moments, stages_cache.to_array

        def counted(image: Image.Image) -> Any:
            with arrived:
                decoded.append(threading.get_ident())
                arrived.notify_all()
            return to_array(image)

        def waiting(self: Codec, pixels: torch.Tensor) -> Any:
            with arrived:
                assert arrived.wait_for(lambda: len(decoded) >= 4, timeout=30), "nothing is decoded meanwhile"
            return moments(self, pixels)

        monkeypatch.setattr(stages_cache, "to_array", counted)
        monkeypatch.setattr(Codec, "moments", waiting)
        run(shards, pretrained, tmp_path, caching=Caching(batch_size=2))
        assert threading.get_ident() not in decoded

    def test_a_broken_picture_ends_the_stage_and_its_thread(self, pretrained: Path, tmp_path: Path) -> None:
        folder = tmp_path / "shards"
        folder.mkdir()
        samples = [Sample(sample_key(0, place, rows_per_shard=10), png(pixels_of(place)), "caption", {}) for place in range(6)]
        samples.append(Sample("00006", b"no image", "caption", {}))
        write_shard(folder, 0, samples, extension="png")
        with pytest.raises(InputError, match="the image of sample 00006 is unknown_format"):
            run(publish(folder, stage="shard"), pretrained, tmp_path / "latents", caching=Caching(batch_size=2))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]

    def test_an_encoder_in_bfloat16_gives_float32_moments_near_those_of_float32(
        self, shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path
    ) -> None:
        run(shards, pretrained, tmp_path, caching=Caching(batch_size=3, precision="bfloat16"))
        batch, whole = (LatentCache.open(folder).batch(torch.arange(9)) for folder in (publish(tmp_path, stage="cache"), unbroken))
        off = (batch.mean - whole.mean).norm() / whole.mean.norm()
        assert 1e-5 < off < 2**-7, f"{off:.1e}"
        assert (batch.logvar - whole.logvar).square().mean().sqrt() < 0.02, "of a log-variance: 1 % of the deviation"
        coarse = batch.mean.to(torch.bfloat16).float()
        assert (coarse != batch.mean).float().mean() > 0.5, "moments are not rounded to bfloat16"


class TestByteIdentity:
    def test_a_run_in_another_folder_makes_the_same_bytes(self, shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path) -> None:
        run(shards, pretrained, tmp_path)
        assert files_of(tmp_path) == files_of(unbroken)

    @pytest.mark.parametrize("state", ["nothing else", "no record", "cut latents", "altered captions", "half a staged file"])
    def test_a_kill_changes_no_byte(self, shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path, state: str) -> None:
        """Each state that a kill (or a disk) can leave while the second file is made."""
        whole = files_of(unbroken)
        for name in whole:
            if name.startswith("00000" if state == "nothing else" else "0000"):
                (tmp_path / name).write_bytes(whole[name])
        if state == "no record":
            (tmp_path / "00002_stats.json").unlink()
        if state == "cut latents":
            (tmp_path / "00002.safetensors").write_bytes(whole["00002.safetensors"][:-100])
        if state == "altered captions":
            (tmp_path / "00002.jsonl").write_bytes(whole["00002.jsonl"].replace(b"fox", b"cat"))
        if state == "half a staged file":
            for name in ("00002.safetensors", "00002.jsonl", "00002_stats.json"):
                (tmp_path / name).unlink()
            (tmp_path / ".00002.safetensors.staging").write_bytes(b"half")
            (tmp_path / ".00002_stats.json.4711.staging").write_bytes(b"{")
        first_made = (tmp_path / "00000.safetensors").stat().st_mtime_ns
        run(shards, pretrained, tmp_path)
        assert files_of(tmp_path) == whole
        assert (tmp_path / "00000.safetensors").stat().st_mtime_ns == first_made

    def test_a_stage_interrupted_by_an_exception_ends_byte_identical(
        self, shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path
    ) -> None:
        class Killed(BaseException):
            pass

        def kill(event: progress.Event) -> None:
            if event.done == 7:
                raise Killed

        with progress.reporting_to(kill), pytest.raises(Killed):
            run(shards, pretrained, tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.jsonl", "00000.safetensors", "00000_stats.json"]
        run(shards, pretrained, tmp_path)
        assert files_of(tmp_path) == files_of(unbroken)


class TestMemory:
    """Faults are real exceptions of torch's, raised where a GPU raises them."""

    @staticmethod
    def with_room_for(monkeypatch: pytest.MonkeyPatch, num_samples: int) -> None:
        moments = Codec.moments

        def limited(self: Codec, pixels: torch.Tensor) -> Any:
            if len(pixels) > num_samples:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return moments(self, pixels)

        monkeypatch.setattr(Codec, "moments", limited)

    def test_out_of_memory_halves_the_batch_once_with_a_message(
        self, shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        self.with_room_for(monkeypatch, 2)
        run(shards, pretrained, tmp_path, caching=Caching(batch_size=4))
        assert capsys.readouterr().err.splitlines() == ["rglcd: 4 samples at once do not fit in memory; going on with 2"]
        batch, whole = (LatentCache.open(folder).batch(torch.arange(9)) for folder in (publish(tmp_path, stage="cache"), unbroken))
        assert torch.allclose(batch.mean, whole.mean, atol=1e-3)
        assert torch.equal(batch.input_ids, whole.input_ids)

    def test_running_out_of_memory_twice_is_an_error(
        self, shards: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.with_room_for(monkeypatch, 1)
        with pytest.raises(InputError, match=r"caching\.batch_size: 2 samples at once do not fit"):
            run(shards, pretrained, tmp_path, caching=Caching(batch_size=4))

    def test_a_teacher_that_does_not_fit_beside_what_encodes_is_not_looked_at_and_nothing_else_changes(
        self, shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
    ) -> None:
        """FLUX.1 and T5 in float32 take 44 GiB together, and a card of 40 encodes with what it is given."""

        def full(self: Teacher, *given: object, **named: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(Teacher, "output", full)
        run(shards, pretrained, tmp_path)
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rglcd: ")]
        assert "predicts what it declares was not looked at: it does not fit in memory beside what encodes (CUDA out of memory." in said
        assert files_of(tmp_path) == files_of(unbroken)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_make_what_one_worker_makes(shards: Path, pretrained: Path, unbroken: Path, tmp_path: Path, count: int) -> None:
    for index in reversed(range(count)):
        cache(MODEL, CACHING, shards=shards, pretrained=pretrained, latents=Output(tmp_path, None, Part(index, count)))
    assert files_of(tmp_path) == files_of(unbroken)


class TestRefusals:
    def test_an_altered_shard_is_refused_before_anything_is_encoded(self, shards: Path, pretrained: Path, tmp_path: Path) -> None:
        altered = shutil.copytree(shards, tmp_path / "shards")
        tar = altered / "00000.tar"
        tar.write_bytes(tar.read_bytes()[:-512])
        with pytest.raises(InputError, match=r"00000\.tar has \d+ bytes, not \d+; make it again: rglcd run shard"):
            run(altered, pretrained, tmp_path / "latents")
        assert list((tmp_path / "latents").iterdir()) == []

    def test_images_of_another_resolution_are_refused(self, shards: Path, pretrained: Path, tmp_path: Path) -> None:
        model = MODEL.model_copy(update={"resolution": 32})
        with pytest.raises(InputError, match=r"sample 000000 is 16 x 16 pixels and model\.resolution is 32"):
            run(shards, pretrained, tmp_path, model=model)

    def test_moments_that_are_not_finite_are_refused_by_key(self, shards: Path, pretrained: Path, tmp_path: Path) -> None:
        broken = shutil.copytree(pretrained, tmp_path / "pretrained")
        weights = broken / "teacher" / "vae" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        tensors["encoder.conv_in.weight"][0, 0, 0, 0] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
        publish(broken, stage="prepare")
        with pytest.raises(InputError, match="sample 000000: latent_mean is not finite"):
            run(shards, broken, tmp_path / "latents")

    def test_an_image_that_cannot_be_decoded_is_refused_by_key(self, pretrained: Path, tmp_path: Path) -> None:
        folder = tmp_path / "shards"
        folder.mkdir()
        write_shard(folder, 0, [Sample("00000", b"no image", "caption", {})], extension="png")
        with pytest.raises(InputError, match="the image of sample 00000 is unknown_format"):
            run(publish(folder, stage="shard"), pretrained, tmp_path / "latents")

    def test_an_unknown_scorer_is_refused(self, shards: Path, pretrained: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no scorer 'judge'"):
            run(shards, pretrained, tmp_path, caching=Caching(scorers=("judge",)))


class TestFingerprint:
    def test_equal_models_have_equal_fingerprints(self, pretrained: Path, unbroken: Path, tmp_path: Path) -> None:
        elsewhere = shutil.copytree(pretrained, tmp_path / "elsewhere")
        expected = fingerprint_of(MODEL, Pretrained(elsewhere), like=unbroken)
        assert len(LatentCache.open(unbroken, expected=expected)) == 9

    def test_another_resolution_vae_or_scorer_is_refused(self, pretrained: Path, unbroken: Path, tmp_path: Path) -> None:
        changed = shutil.copytree(pretrained, tmp_path / "changed")
        models = Pretrained(changed)
        AutoencoderKL(block_out_channels=[8], norm_num_groups=4).save_pretrained(changed / "teacher" / "vae")
        with pytest.raises(InputError, match=r"  ! vae: cache .*, now .*"):
            LatentCache.open(unbroken, expected=fingerprint_of(MODEL, models, like=unbroken))
        write_tiny_clip(changed / "scorers" / "expert", seed=1)
        with pytest.raises(InputError, match=r"  ! scorers\.expert: cache .*, now .*"):
            LatentCache.open(unbroken, expected=fingerprint_of(MODEL, models, like=unbroken))
        other = MODEL.model_copy(update={"resolution": 32})
        with pytest.raises(InputError, match="  ! resolution: cache 16, now 32"):
            LatentCache.open(unbroken, expected=fingerprint_of(other, Pretrained(pretrained), like=unbroken))


class TestSdxl:
    @pytest.fixture
    def xl(self, tmp_path: Path) -> Path:
        write_tiny_pretrained(tmp_path / "pretrained", xl=True)
        return publish(tmp_path / "pretrained", stage="prepare")

    @pytest.mark.parametrize(
        ("width", "height", "expected"),
        [
            (RESOLUTION, RESOLUTION, [16, 16, 0, 0, 16, 16]),
            (64, 32, [32, 64, 0, 8, 16, 16]),
            (100, 300, [300, 100, 16, 0, 16, 16]),
            (8, 12, [12, 8, 4, 0, 16, 16]),
        ],
    )
    def test_sdxl_time_ids_are_the_original_size_and_its_crop(
        self, xl: Path, tmp_path: Path, width: int, height: int, expected: list[int]
    ) -> None:
        facts = {"original_width": width, "original_height": height}
        shards = tmp_path / "shards"
        shards.mkdir()
        write_shard(shards, 0, [Sample("00000", png(pixels_of(0)), "a", facts)], extension="png")
        run(publish(shards, stage="shard"), xl, tmp_path / "latents", caching=Caching(text_embeddings=True))
        batch = LatentCache.open(publish(tmp_path / "latents", stage="cache")).batch(torch.arange(1))
        assert batch.time_ids is not None
        assert batch.time_ids.tolist() == [expected]
        assert batch.input_ids.shape == (1, 2 * MAX_TOKENS)
        assert batch.caption is not None
        assert batch.caption.pooled is not None
        assert batch.caption.pooled.shape == (1, PROJECTION_WIDTH)

    def test_a_sample_without_its_original_size_is_refused_by_key(self, xl: Path, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="sample 000000 does not say its original_width"):
            run(shards, xl, tmp_path / "latents")

    def test_sdxl_refuses_pictures_not_cropped_from_their_centre(self, xl: Path, tmp_path: Path) -> None:
        (tmp_path / "shards").mkdir()
        write_shard(tmp_path / "shards", 0, [Sample("00000", png(pixels_of(0)), "a", {})], extension="png")
        files = scan(tmp_path / "shards")
        sections = {"sharding": {"resize": "border"}}
        write_manifest(tmp_path / "shards", Manifest("shards", "shard", 1, "key", results_digest(files), {}, sections, files))
        with pytest.raises(InputError, match=r"made with sharding\.resize border"):
            run(tmp_path / "shards", xl, tmp_path / "latents")

    def test_the_fingerprint_covers_both_sdxl_text_encoders(self, xl: Path, tmp_path: Path) -> None:
        write_fingerprint(tmp_path, Fingerprint(resolution=0, vae="", text_encoder="", tokenizer="", scorers={}))
        before = fingerprint_of(MODEL, Pretrained(xl), like=tmp_path)
        for part in ("text_encoder_2", "tokenizer_2"):
            (xl / "teacher" / part / "more.txt").write_text("another")
        after = fingerprint_of(MODEL, Pretrained(xl), like=tmp_path)
        assert before.text_encoder != after.text_encoder
        assert before.tokenizer != after.tokenizer
        assert before.vae == after.vae
