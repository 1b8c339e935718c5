"""Dropout in the UNet's residual blocks, with masks that student and target share."""

from collections.abc import Callable, Sequence
from typing import Any

from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from rglcd.core.dropout import keep_mask
from rglcd.errors import InputError


class SampleSeeds:
    """The seeds (B,) of the samples that pass through the networks now, one object for all their dropouts; None drops nothing."""

    def __init__(self) -> None:
        self.now: Tensor | None = None

    def held(self, module: Callable[..., Any]) -> Callable[..., Any]:
        """``module`` with the seeds of this moment, whenever it is called: run again in a backward pass, it drops what it dropped."""
        then = self.now

        def run(*inputs: Any) -> Any:
            others, self.now = self.now, then
            try:
                return module(*inputs)
            finally:
                self.now = others

        return run


class SampleDropout(nn.Module):
    """Dropout whose mask is a function of the layer's number and of each sample's seed; the identity while there are no seeds."""

    def __init__(self, *, rate: float, layer: int, seeds: SampleSeeds) -> None:
        super().__init__()
        self.rate = rate
        self.layer = layer
        self.seeds = seeds

    def forward(self, hidden: Tensor) -> Tensor:
        """``hidden`` (B, ...) with dropped elements 0 and the others scaled by 1 / (1 - rate)."""
        seeds = self.seeds.now
        if seeds is None:
            return hidden
        return hidden * keep_mask(seeds, hidden, layer=self.layer, rate=self.rate) / (1 - self.rate)


def drop_nothing(network: nn.Module) -> None:
    """Take this moment's seeds from the dropouts of ``network``: they are the identity until it is given some."""
    for module in network.modules():
        if isinstance(module, SampleDropout):
            module.seeds.now = None


def drop_in(networks: Sequence[nn.Module], *, rate: float) -> SampleSeeds | None:
    """Put a :class:`SampleDropout` into every residual block of each network, where iCT has its dropout; none for rate 0.

    Layers are numbered alike in all networks. There is no parameter in it, so weights are saved and loaded as before.
    Raises :class:`InputError` for a network without residual blocks.
    """
    if rate == 0:
        return None
    seeds = SampleSeeds()
    for network in networks:
        blocks = [module for module in network.modules() if isinstance(module, ResnetBlock2D)]
        if not blocks:
            raise InputError(
                f"distillation.dropout {rate:g}: a {type(network).__name__} has no residual blocks, where dropout is put; set it to 0"
            )
        for layer, block in enumerate(blocks):
            block.dropout = SampleDropout(rate=rate, layer=layer, seeds=seeds)
    return seeds
