"""Dropout in the UNet's residual blocks, with masks that student and target share."""

from collections.abc import Sequence

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from rglcd.core.dropout import keep_mask


class SampleDropout(nn.Module):
    """Dropout whose mask is a function of the layer's number and of each sample's seed; the identity while ``seeds`` (B,) is None."""

    def __init__(self, *, rate: float, layer: int) -> None:
        super().__init__()
        self.rate = rate
        self.layer = layer
        self.seeds: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """``hidden`` (B, ...) with dropped elements 0 and the others scaled by 1 / (1 - rate)."""
        if self.seeds is None:
            return hidden
        return hidden * keep_mask(self.seeds, hidden, layer=self.layer, rate=self.rate) / (1 - self.rate)


def drop_in(networks: Sequence[nn.Module], *, rate: float) -> list[SampleDropout]:
    """Put a :class:`SampleDropout` into every residual block of each network, where iCT has its dropout; none for rate 0.

    Layers are numbered alike in all networks. There is no parameter in it, so weights are saved and loaded as before.
    """
    if rate == 0:
        return []
    dropouts = []
    for network in networks:
        blocks = (module for module in network.modules() if isinstance(module, ResnetBlock2D))
        for layer, block in enumerate(blocks):
            block.dropout = SampleDropout(rate=rate, layer=layer)
            dropouts.append(block.dropout)
    return dropouts
