"""The teacher: a frozen network of one of the families, whose output is converted to (x0, eps).

Shapes: B batch, (C, h, w) latents.
"""

from pathlib import Path

import torch
from diffusers import ModelMixin
from torch import Tensor

from rglcd.core.condition import Condition
from rglcd.core.guidance import guided_teacher
from rglcd.core.prediction import Prediction, PredictionType, convert
from rglcd.core.schedule import NoiseSchedule
from rglcd.models.codec import latent_factor
from rglcd.models.families import STABLE_DIFFUSION, family_of
from rglcd.models.families.protocol import Call, Family
from rglcd.models.loading import load_weights
from rglcd.models.schedules import read_schedule


class Teacher:
    """``teacher(z_t, t, cond)`` predicts the clean latents and the noise; no gradient, ever.

    ``unet`` is the denoising network, a transformer in most families.
    """

    def __init__(self, unet: ModelMixin, schedule: NoiseSchedule, kind: PredictionType, *, family: Family = STABLE_DIFFUSION) -> None:
        self.unet = unet.eval().requires_grad_(False)
        self.schedule = schedule
        self.kind = kind
        self.family = family

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device, resolution: int | None = None) -> "Teacher":
        """Network and noise schedule of the diffusers pipeline in ``folder``; ``resolution`` decides on a flow's dynamic shift."""
        family = family_of(folder)
        network = load_weights(family.network, folder / family.folder, dtype=dtype).to(device)
        family.refuse_conditioning(network.config, folder)
        schedule, kind = read_teacher_schedule(folder, resolution=resolution, patch=family.patch(network.config))
        return cls(network, schedule.to(device=device), kind, family=family)

    @property
    def guides_itself(self) -> bool:
        """Whether the network is given the guidance scale: omega is then diffusers' ``guidance_scale``, not that less one."""
        return self.family.guides_itself(self.unet.config)

    @torch.no_grad()
    def __call__(self, z_t: Tensor, t: Tensor, cond: Condition) -> Prediction:
        """Prediction at (B, C, h, w) ``z_t``, (B,) integer ``t``, B rows of ``cond``."""
        return convert(self.output(z_t, t, cond), z_t, t, schedule=self.schedule, kind=self.kind)

    @torch.no_grad()
    def guided(self, z_t: Tensor, t: Tensor, *, omega: Tensor, cond: Condition, uncond: Condition) -> Prediction:
        """The prediction under guidance of ``omega`` (B,): two passes, or one of a network that is given it and needs no ``uncond``."""
        if not self.guides_itself:
            return guided_teacher(self, z_t, t, omega=omega, cond=cond, uncond=uncond)
        return convert(self.output(z_t, t, cond, omega=omega), z_t, t, schedule=self.schedule, kind=self.kind)

    @torch.no_grad()
    def output(self, z_t: Tensor, t: Tensor, cond: Condition, *, omega: Tensor | None = None) -> Tensor:
        """What the network itself gives (B, C, h, w), of its own prediction type; arguments as for a call.

        ``omega`` (B,) is for a network that is given it; left out, it is 1: neither more guidance nor less than it was trained with.
        """
        dtype = self.unet.dtype
        if self.guides_itself and omega is None:
            omega = torch.ones_like(t, dtype=torch.float32)
        call = Call(z_t.to(dtype), t, cond.to(dtype=dtype), omega if self.guides_itself else None, self.schedule)
        return self.family.output(self.unet, self.unet.config, call).to(z_t.dtype)


def read_teacher_schedule(folder: Path, *, resolution: int | None, patch: int) -> tuple[NoiseSchedule, PredictionType]:
    """Noise schedule and prediction type of the pipeline in ``folder``, whose tokens are squares of ``patch`` latents."""
    family = family_of(folder)
    num_tokens = None if resolution is None or not family.is_flow else (resolution // latent_factor(folder) // patch) ** 2
    return read_schedule(folder / "scheduler", is_flow=family.is_flow, num_tokens=num_tokens)
