"""What a reward model is to the rest of the house.

Text enters once per caption (:meth:`Reward.encode_text`), so its features can be cached with the
latents; pixels enter at every call. A reward that back-propagates to its pixels says so by its
type, :class:`DifferentiableReward`, and only such a one may guide the student directly.
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
        logit_scale: what a score is multiplied by before a softmax makes it a preference (an inverse temperature).
        text_width: D, how many numbers a caption becomes.
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

        A model whose text looks at the image has none before it sees one: its features are the token numbers. Numbers of
        either sort survive being kept in float32; D is 0 where the caption does not matter.
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
