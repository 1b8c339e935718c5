from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.trained_gates import NUM_PICTURES, RIGHTLY_NAMED, retrieved
from rglcd.models.latent_reward import LatentRewardModel, LatentRewardShape
from rglcd.models.latent_towers import VitShape
from rglcd.toy.web import WEB


class Knowing:
    """A proxy that sees in every picture what is shown, in the order in which they are asked about."""

    def embed_text(self, text: Tensor) -> Tensor:
        self.text = text
        return text

    def embed_latents(self, latents: Tensor) -> Tensor:
        return self.text[torch.arange(len(latents)) % len(self.text)]


def test_a_proxy_that_knows_all_finds_every_right_caption_and_no_wrong_one() -> None:
    knowing: Any = Knowing()
    assert retrieved(knowing, RIGHTLY_NAMED) == 1.0
    # Binomial: 1,024 pictures, three standard deviations.
    assert retrieved(knowing, WEB) == pytest.approx(1 - WEB.wrong / 100, abs=3 * (0.15 * 0.85 / NUM_PICTURES) ** 0.5)


def test_a_proxy_of_random_weights_finds_next_to_none() -> None:
    shape = LatentRewardShape(latent=(4, 8, 8), text_dim=48, tower=VitShape(2, 32, 1, 2))
    assert retrieved(LatentRewardModel.at_random(shape, seed=0), RIGHTLY_NAMED) < 0.02
