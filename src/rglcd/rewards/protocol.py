"""The reward model interface: text features once per caption, then scores of pixels.

Text features (:meth:`Reward.encode_text`) are computed once per caption, so they can be cached with the latents; pixels
are given at every call. A reward whose score has a gradient in the pixels has the type :class:`DifferentiableReward`;
only such a reward can guide the student through the VAE's decoder.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Reward(Protocol):
    """Scores pixels against captions.

    Attributes:
        differentiable: whether ``score`` has a gradient with respect to the pixels.
        range: least and greatest possible score; infinite where there is no bound.
        logit_scale: the inverse temperature: preferences are the softmax of scores times it.
        text_width: D, the length of a caption's feature vector.
    """

    @property
    def differentiable(self) -> bool: ...

    @property
    def range(self) -> tuple[float, float]: ...

    @property
    def logit_scale(self) -> float: ...

    @property
    def text_width(self) -> int: ...

    def weights_sha256(self) -> str | None:
        """Digest of the weights: of one safetensors file what ``sha256sum`` prints; None for a reward without weights."""
        ...

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Features (B, D) of ``captions``, on the reward's device, without gradient.

        A model whose text encoder attends to the image has none before it sees one: its features are the token ids. Both
        survive being stored as float32. D is 0 where the caption does not matter.
        """
        ...

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        """Scores (B,) of ``pixels`` (B, 3, H, W) in [0, 1] for text features (B, D) of :meth:`encode_text`."""
        ...


@runtime_checkable
class DifferentiableReward(Reward, Protocol):
    """A reward whose ``score`` back-propagates to the pixels."""

    @property
    def differentiable(self) -> Literal[True]: ...


# The following name nothing but their method. Python 3.11 asks whether an object has what a protocol names by reading it, in any
# order: of a protocol that is a `Reward` too, that reads `logit_scale`, which waits for a GPU, in each step.
@runtime_checkable
class PartialReward(Protocol):
    """A reward that has no score for some captions. ``score`` gives 0 there, which means nothing: who trains or judges leaves it out."""

    def has_score(self, text: Tensor) -> Tensor | None:
        """For which of the text features (B, D) there is a score: bool (B,), on their device; None for all."""
        ...


@runtime_checkable
class TextReader(Protocol):
    """A reward that reads what is written in a picture, and so sees words that nobody asked for."""

    def score_and_unasked_text(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """What ``score`` gives, and whether each picture holds text that its caption does not quote: (B,), 0 or 1."""
        ...


@runtime_checkable
class SeparableText(Protocol):
    """A reward that can do without what it encodes captions with, once their features are cached."""

    def without_text(self) -> Reward:
        """The same reward, which encodes no more text."""
        ...


def without_text(reward: Reward) -> Reward:
    """``reward`` as training needs it, where captions come as cached features: only as large as what is used."""
    return reward.without_text() if isinstance(reward, SeparableText) else reward


def has_score(reward: Reward, text: Tensor) -> Tensor | None:
    """For which of the text features (B, D) ``reward`` has a score: bool (B,); None for all, as most rewards have."""
    return reward.has_score(text) if isinstance(reward, PartialReward) else None
