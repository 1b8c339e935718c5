"""What differs between families of text-to-image models, behind the core's callables: one class a family.

Shapes: B batch, (C, h, w) latents, L token positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rglcd.core.condition import Condition
from rglcd.core.schedule import NoiseSchedule
from rglcd.errors import InputError
from rglcd.models.text_towers import TextPart, TextTower

Config = Any
"""A network's configuration: diffusers' ``FrozenDict``, read as attributes."""


@dataclass(frozen=True)
class Call:
    """One call of a network: ``z_t`` (B, C, h, w) in the network's dtype, timesteps ``t`` (B,), B rows of ``cond``, ``omega`` (B,).

    ``omega`` is None where the network is not given it.
    """

    z_t: Tensor
    t: Tensor
    cond: Condition
    omega: Tensor | None
    schedule: NoiseSchedule

    @property
    def sigma(self) -> Tensor:
        """The noise level (B,) of each row, float32: the time of a flow."""
        return self.schedule.sigmas.to(self.t.device)[self.t].float()


class Family(ABC):
    """How the networks of one family are called, and how its pipelines make conditions of captions."""

    title: ClassVar[str]
    """As messages call it."""
    pipelines: ClassVar[tuple[str, ...]]
    """``_class_name`` of the pipeline folders that are read, the one that is exported first."""
    network: ClassVar[Any]
    """diffusers' class."""
    folder: ClassVar[str] = "transformer"
    """The network's sub-folder, and the prefix of a LoRA's names."""
    is_flow: ClassVar[bool] = True
    seeds_scheduler: ClassVar[bool] = False
    """Whether the pipeline hands the caller's generator to the scheduler, which draws noise at each step of a student."""
    calling: ClassVar[str] = ""
    """What else the pipeline is given to draw as here, in Python."""
    loads_adapters: ClassVar[bool] = True
    """Whether the pipeline has diffusers' ``load_lora_weights``."""
    required_parts: ClassVar[tuple[str, ...]] = ()
    """Parts that a folder may lack; the pipeline is then loaded with None for each."""
    text_kinds: ClassVar[tuple[Any, ...]]
    """Classes of its text encoders, in their order; a folder may have fewer."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Ends of the names of the layers that an adapter usually changes."""
    omega_layers: ClassVar[tuple[str, ...]] = ()
    """Parameters by which a student is given omega, where its teacher has none of that name."""

    # --- the network -----------------------------------------------------------------------------

    @abstractmethod
    def output(self, network: nn.Module, config: Config, call: Call) -> Tensor:
        """What ``network`` gives (B, C, h, w), in the core's signs: eps, v, x0, or a flow's noise less data."""

    def takes_omega(self, config: Config) -> bool:
        """Whether the network of ``config`` has an input for the guidance scale."""
        return False

    def guides_itself(self, config: Config) -> bool:
        """Whether a teacher of ``config`` is given the scale, so that one pass is guided: its omega is diffusers' ``guidance_scale``."""
        return False

    def student_config(self, config: Mapping[str, Any], *, omega_embedding_dim: int | None) -> dict[str, Any]:
        """The configuration of a whole student; :class:`InputError` if it cannot be given omega as asked."""
        if omega_embedding_dim is not None:
            raise InputError(
                f"distillation.student: a network of {self.title} has no input for omega that a UNet's student gets; set kind to "
                "same_inputs: the student then learns the mean over distillation.omega, which may be one value, [4, 4]"
            )
        return dict(config)

    def renamed(self, state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        """The weights ``state`` of a teacher, by the names that a student of ``config`` has for them."""
        return dict(state)

    def start_omega(self, network: nn.Module) -> None:  # noqa: B027 (most have nothing to start)
        """Give the :attr:`omega_layers` of a new student their first values, with which omega changes nothing."""

    def exported(self, config: Config) -> tuple[str, str]:
        """``_class_name`` of the pipeline that draws with a whole student of ``config``, and of its scheduler."""
        return self.pipelines[0], "FlowMatchLCMScheduler" if self.is_flow else "LCMScheduler"

    def refuse(self, config: Config, *, latent_channels: int, where: Path) -> None:
        """Raise :class:`InputError` for a network that takes or gives more than latents of so many channels."""
        taken = self.latent_channels(config)
        if taken != latent_channels:
            raise InputError(f"{where} takes {taken} channels and the VAE's latents have {latent_channels}: they are not of one model")

    def refuse_conditioning(self, config: Config, folder: Path) -> None:  # noqa: B027 (most have nothing to refuse)
        """Raise :class:`InputError` for a network that is conditioned on more than the pipeline in ``folder`` makes of captions."""

    def latent_channels(self, config: Config) -> int:
        """C of the latents that the network takes."""
        return int(config.in_channels)

    def patch(self, config: Config) -> int:
        """Side of the squares of latents that are one token; what h and w must divide by."""
        return int(config.patch_size)

    @abstractmethod
    def blank(self, config: Config, rows: int, *, dtype: torch.dtype, device: torch.device) -> Condition:
        """A condition of the shapes that the network reads; its values mean nothing."""

    # --- captions --------------------------------------------------------------------------------

    @abstractmethod
    def text_parts(self, folder: Path) -> tuple[TextPart, ...]:
        """Text encoders and tokenizers of the pipeline in ``folder``, in their order."""

    def tokenise(self, towers: Sequence[TextTower], captions: Sequence[str]) -> Tensor:
        """Ids (B, L), those of all ``towers`` side by side, on the CPU."""
        return torch.cat([tower.ids(captions) for tower in towers], dim=1)

    @abstractmethod
    def encode(self, towers: Sequence[TextTower], ids: Tensor) -> Condition:
        """The condition of ids (B, L)."""

    def null(self, towers: Sequence[TextTower]) -> Condition:
        """The unconditional input of guidance (1 row): the empty caption's."""
        return self.encode(towers, self.tokenise(towers, [""]))

    def mask(self, towers: Sequence[TextTower], ids: Tensor) -> Tensor | None:
        """The mask of the condition of ids (B, L), for families that have one."""
        return None


def split_ids(towers: Sequence[TextTower], ids: Tensor) -> list[Tensor]:
    """The ids of each tower, on its device."""
    parts = ids.split([tower.length for tower in towers], dim=1)
    return [part.to(tower.model.device) for tower, part in zip(towers, parts, strict=True)]
