"""A weighted sum of reward models; differentiable if all of its parts are."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from rglcd.models.precision import at_least_float32
from rglcd.rewards.protocol import Reward, has_score, without_text


class MixtureReward:
    """The sum of ``weights[name] * parts[name]``. Text features lie side by side, in the order of ``weights``."""

    differentiable: bool = False

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float], *, logit_scale: float) -> None:
        self._parts = [(parts[name], weight) for name, weight in weights.items() if weight != 0]
        self._widths = [part.text_width for part, _ in self._parts]
        self.text_width = sum(self._widths)
        self.logit_scale = logit_scale

    @property
    def range(self) -> tuple[float, float]:
        ends = [sorted((weight * part.range[0], weight * part.range[1])) for part, weight in self._parts]
        return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)

    def weights_sha256(self) -> str | None:
        digests = [digest for digest in (part.weights_sha256() for part, _ in self._parts) if digest is not None]
        return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else None

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Features (B, D), D the sum of the parts' widths; in float32 at least, so that token ids stay exact."""
        features = [part.encode_text(captions) for part, _ in self._parts]
        return torch.cat([at_least_float32(feature) for feature in features], dim=1)

    def has_score(self, text: Tensor) -> Tensor | None:
        """Where every part has one; None for all."""
        texts = text.split(self._widths, dim=1)
        known = [has_score(part, own) for (part, _), own in zip(self._parts, texts, strict=True)]
        partial = [each for each in known if each is not None]
        return torch.stack(partial).all(dim=0) if partial else None

    def without_text(self) -> "MixtureReward":
        """This mixture, the text towers of its parts gone, where these can do without."""
        for part, _ in self._parts:
            without_text(part)
        return self

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """The sum (B,)."""
        texts = text.split(self._widths, dim=1)
        scores = [weight * part.score(pixels, own) for (part, weight), own in zip(self._parts, texts, strict=True)]
        return torch.stack(scores).sum(dim=0)


class DifferentiableMixtureReward(MixtureReward):
    """A mixture whose every part has a gradient."""

    differentiable: Literal[True] = True


def mixture(parts: Mapping[str, Reward], weights: Mapping[str, float], *, logit_scale: float) -> MixtureReward:
    """The mixture of the ``parts`` that ``weights`` names; its type says whether it has a gradient."""
    used = [parts[name] for name, weight in weights.items() if weight != 0]
    kind = DifferentiableMixtureReward if all(part.differentiable for part in used) else MixtureReward
    return kind(parts, weights, logit_scale=logit_scale)
