"""What decoding and scoring take, with gradient and without: the VAE's decoder and the reward models."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPModel

from rglcd.models.codec import Codec, Moments
from rglcd.models.precision import dtype_name
from rglcd.models.text_towers import CLIP_TOKENS
from rglcd.planning.costs import FrozenPass, Line, TrainedPass, frozen_pass, trained_pass
from rglcd.planning.memory import Part
from rglcd.planning.networks import META, Captions, Networks, num_bytes
from rglcd.rewards.preprocessing import Fit, Preprocessing

FEATURES_BYTES = 86_580_480 * 4
"""Of DINOv2-base in float32, the presets' feature network: 86.6 M parameters (arXiv 2304.07193, Table 17)."""


@dataclass(frozen=True)
class Scoring:
    """A VAE and the reward models of a stage, loaded in one precision; ``notes`` name what could not be counted."""

    networks: Networks
    codec: Codec
    experts: dict[str, CLIPModel]
    lasting: tuple[Part, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        networks: Networks,
        scorers: Iterable[str],
        *,
        dtype: torch.dtype,
        vae_dtype: torch.dtype | None = None,
        captions: Captions = "encoded",
        recomputes: bool = False,
    ) -> "Scoring":
        """The VAE and ``scorers``, in one precision unless the VAE's is said."""
        codec = networks.codec(vae_dtype or dtype, recomputes=recomputes)
        built = {name: networks.scorer(name, dtype, captions=captions) for name in scorers}
        experts = {name: expert for name, expert in built.items() if expert is not None}
        lasting = [Part(f"VAE, {dtype_name(vae_dtype or dtype)}", Line(num_bytes(codec.vae)))]
        lasting += [Part(f"scorer {name}, {dtype_name(dtype)}", Line(num_bytes(expert))) for name, expert in experts.items()]
        kinds = networks.config.preparation.scorers
        notes = tuple(f"not counted: scorer {name}, of kind {kinds[name].kind}" for name in sorted(built.keys() - experts.keys()))
        return cls(networks, codec, experts, tuple(lasting), notes)

    def gradient(self) -> TrainedPass:
        """Of the first expert's score in the latents."""

        def run(samples: int) -> tuple[Tensor, Tensor]:
            latents = self.networks.latents(samples).requires_grad_()
            pixels = self.codec.decode(latents)
            expert = next(iter(self.experts.values()), None)
            return pixels if expert is None else _embedded(expert, pixels), latents

        return trained_pass(run, autocast=torch.float32, parameters=[])

    def scores(self) -> FrozenPass:
        """Of all experts' scores of what the decoder makes of latents."""

        def run(samples: int) -> Tensor:
            pixels = self.codec.decode(self.networks.latents(samples))
            for expert in self.experts.values():
                _embedded(expert, pixels)
            return pixels

        return frozen_pass(run)

    def decoding(self) -> FrozenPass:
        """Of latents to pixels."""
        return frozen_pass(lambda samples: self.codec.decode(self.networks.latents(samples)))

    def ratings(self) -> FrozenPass:
        """Of all experts' scores of pixels, which are in float32."""
        side = self.networks.config.model.resolution

        def run(samples: int) -> None:
            pixels = torch.empty(samples, 3, side, side, device=META)
            for expert in self.experts.values():
                _embedded(expert, pixels)

        return frozen_pass(run)

    def encoding(self) -> FrozenPass:
        """Of pixels to moments."""
        side, dtype = self.networks.config.model.resolution, self.codec.vae.encoder.conv_in.weight.dtype

        def run(samples: int) -> Moments:
            return self.codec.moments(torch.empty(samples, 3, side, side, dtype=dtype, device=META))

        return frozen_pass(run)

    def captions(self) -> FrozenPass:
        """Of captions to every expert's text features."""

        def run(samples: int) -> None:
            for expert in self.experts.values():
                length = min(CLIP_TOKENS, expert.config.text_config.max_position_embeddings)
                expert.text_model(torch.zeros(samples, length, dtype=torch.int64, device=META))

        return frozen_pass(run)


def _embedded(expert: CLIPModel, pixels: Tensor) -> Tensor:
    """As :class:`rglcd.rewards.clip.ClipReward` embeds them, at whichever fit: both make the same square."""
    size = expert.config.vision_config.image_size
    prepared = Preprocessing.of(Fit.SHORTEST_CROPPED).like(expert.visual_projection.weight.to(META))(pixels, size)
    projected: Tensor = expert.visual_projection(expert.vision_model(pixel_values=prepared).pooler_output)
    return projected.float()
