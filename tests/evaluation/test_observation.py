"""Batches of images: shared out, kept after a kill, put together to the same bits in any case."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from rglcd import progress
from rglcd.errors import InputError
from rglcd.evaluation.observation import Batches, Observed, ScoringPanel
from rglcd.models.chunks import Chunks
from rglcd.store.shard_tasks import WHOLE, Part

CPU = torch.device("cpu")
CAPTIONS = [f"caption {number % 5}" for number in range(22)]


def draw(indices: Sequence[int]) -> Tensor:
    """Noise of each image's own."""
    return torch.stack([torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index)) for index in indices])


class Brightness:
    """A reward whose score depends on the picture and on the words."""

    differentiable, range, logit_scale, text_width = False, (0.0, 1.0), 1.0, 1

    def __init__(self, most: int = 100) -> None:
        self.most = most

    def weights_sha256(self) -> None:
        return None

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        self._fits(captions)
        return torch.tensor([[float(len(caption) + hash(caption[-1]) % 3)] for caption in captions])

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        self._fits(pixels)
        return pixels.mean(dim=(1, 2, 3)) * text[:, 0]

    def _fits(self, samples: Sequence[object] | Tensor) -> None:
        if len(samples) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


def panel(*, most: int = 100) -> ScoringPanel:
    def features(pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :6]

    return ScoringPanel.of({"brightness": Brightness(most)}, CAPTIONS, features={"auto": features}, device=CPU, at_once=Chunks("n", 4))


def batches(folder: Path, *, captions: Sequence[str] = CAPTIONS) -> Batches:
    return Batches(folder, captions, batch_size=4, sheet_images=6)


def observed(folder: Path, *, shares: Sequence[Part] = (WHOLE,), rating: ScoringPanel | None = None) -> Observed:
    rating = rating or panel()
    for share in shares:
        batches(folder).observe(lambda: draw, lambda: rating, task="draw", share=share)
    return batches(folder).collected()


def assert_same_bits(one: Observed, other: Observed) -> None:
    assert one.scores.keys() == other.scores.keys()
    for name in one.scores:
        assert torch.equal(one.scores[name], other.scores[name])
    assert torch.equal(one.features["auto"], other.features["auto"])
    for field in ("high_frequency", "saturation", "sheet"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_processes_that_share_the_batches_out_make_what_one_makes(tmp_path: Path, count: int) -> None:
    alone = observed(tmp_path / "alone")
    shares = [Part(rank, count) for rank in reversed(range(count))]
    assert_same_bits(observed(tmp_path / "together", shares=shares), alone)
    assert len(alone.saturation) == len(CAPTIONS)
    assert len(alone.sheet) == 6


def test_every_process_has_a_share_and_no_image_is_drawn_twice(tmp_path: Path) -> None:
    drawn: list[list[int]] = []

    def noting(indices: Sequence[int]) -> Tensor:
        drawn.append(list(indices))
        return draw(indices)

    for rank in range(2):
        batches(tmp_path).observe(lambda: noting, panel, task="draw", share=Part(rank, 2))
    assert [indices[0] for indices in drawn] == [0, 8, 16, 4, 12, 20]
    assert sorted(index for indices in drawn for index in indices) == list(range(len(CAPTIONS)))


class KilledError(BaseException):
    pass


def test_killed_in_the_middle_it_goes_on_with_the_batches_that_lack(tmp_path: Path) -> None:
    def kill(event: progress.Event) -> None:
        if event.done == 12:
            raise KilledError

    with pytest.raises(KilledError), progress.reporting_to(kill):
        observed(tmp_path / "killed")
    starts: list[int] = []

    def noting(indices: Sequence[int]) -> Tensor:
        starts.append(indices[0])
        return draw(indices)

    batches(tmp_path / "killed").observe(lambda: noting, panel, task="draw", share=WHOLE)
    assert starts == [12, 16, 20]
    assert_same_bits(batches(tmp_path / "killed").collected(), observed(tmp_path / "unbroken"))


def test_networks_are_not_loaded_for_batches_that_are_there(tmp_path: Path) -> None:
    observed(tmp_path)

    def load() -> NoReturn:
        raise AssertionError("nothing is to be drawn")

    batches(tmp_path).observe(load, load, task="draw", share=WHOLE)


def test_damaged_batch_is_drawn_again(tmp_path: Path) -> None:
    before = observed(tmp_path)
    damaged = tmp_path / "00001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert_same_bits(observed(tmp_path), before)
    assert damaged.read_bytes() != bytes(content)


def test_processes_that_do_not_share_the_folder_are_told_so(tmp_path: Path) -> None:
    batches(tmp_path).observe(lambda: draw, panel, task="draw", share=Part(0, 2))
    with pytest.raises(InputError, match="lacks the images from number 4 on: the processes of evaluate must share one folder"):
        batches(tmp_path).collected()


def test_rating_fewer_at_once_when_memory_runs_out_changes_no_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = observed(tmp_path / "roomy")
    assert_same_bits(observed(tmp_path / "tight", rating=panel(most=1)), before)
    assert "4 samples at once do not fit in memory; going on with 2" in capsys.readouterr().err


def test_seconds_are_of_an_image_and_of_all_processes_together(tmp_path: Path) -> None:
    found = observed(tmp_path)
    assert 0 < found.draw_seconds_per_image < 1
    assert 0 < found.rate_seconds_per_image < 1
    least = min(found.draw_seconds_per_image, found.rate_seconds_per_image)
    assert found.total_seconds > least * len(CAPTIONS) / 2
