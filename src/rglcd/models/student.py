"""The student: the teacher's UNet with one more input, the guidance weight omega.

The guidance embedding enters through ``time_embedding.cond_proj``, a bias-free layer that the teacher does
not have. It starts at zero, so at step 0 the student *is* the teacher's conditional half (the released
RG-LCD code leaves it at random, so its student starts elsewhere).

Shapes: B batch, (C, h, w) latents.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from rglcd.core.condition import Condition
from rglcd.core.guidance import guidance_embedding
from rglcd.core.prediction import Prediction, PredictionType, convert
from rglcd.core.schedule import NoiseSchedule
from rglcd.errors import InputError
from rglcd.models.loading import load_weights
from rglcd.models.teacher import Teacher, read_schedule, told


class Student:
    """``student(z_t, t, omega, cond)`` predicts the clean latents and the noise.

    ``network`` is what is called, and may be a wrapper of ``unet`` (DistributedDataParallel).
    """

    def __init__(
        self, unet: UNet2DConditionModel, schedule: NoiseSchedule, kind: PredictionType, *, network: nn.Module | None = None
    ) -> None:
        self.unet = unet
        self.network = unet if network is None else network
        self.schedule = schedule
        self.kind = kind

    @classmethod
    def of_teacher(cls, teacher: Teacher, *, omega_embedding_dim: int) -> "Student":
        """A trainable copy, in float32 whatever the teacher's precision, with a guidance embedding that starts at zero."""
        # Private keys hold where the teacher was loaded from: no business of the student's config.json.
        shape = {name: value for name, value in teacher.unet.config.items() if not name.startswith("_")}
        unet = UNet2DConditionModel.from_config({**shape, "time_cond_proj_dim": omega_embedding_dim})
        missing, unexpected = unet.load_state_dict(teacher.unet.state_dict(), strict=False)
        assert missing == ["time_embedding.cond_proj.weight"], missing
        assert not unexpected, unexpected
        nn.init.zeros_(unet.time_embedding.cond_proj.weight)
        return cls(unet.to(teacher.unet.device), teacher.schedule, teacher.kind)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "Student":
        """The student of an exported pipeline folder, frozen."""
        unet = load_weights(UNet2DConditionModel, folder / "unet", dtype=dtype).to(device).eval().requires_grad_(False)
        if unet.config.time_cond_proj_dim is None:
            raise InputError(f"{folder}/unet takes no guidance embedding: it is a teacher, not a distilled student")
        schedule, kind = read_schedule(folder / "scheduler")
        return cls(unet, schedule.to(device=device), kind)

    def through(self, network: nn.Module) -> "Student":
        """The same student, called through ``network``, a wrapper of its UNet."""
        return Student(self.unet, self.schedule, self.kind, network=network)

    @property
    def learnt(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: every parameter. Optimised, averaged and checkpointed; nothing else is."""
        return dict(self.unet.named_parameters())

    @torch.no_grad()
    def restore(self, learnt: Mapping[str, Tensor]) -> None:
        """Take over the values of :attr:`learnt`, all of them."""
        mine = self.learnt
        assert mine.keys() == learnt.keys(), "a checkpoint of another student"
        for name, parameter in mine.items():
            parameter.copy_(learnt[name])

    def copy(self) -> "Student":
        """A frozen twin with weights of its own: the target network."""
        twin = UNet2DConditionModel.from_config(self.unet.config).to(self.unet.device)
        twin.load_state_dict(self.unet.state_dict())
        return Student(twin.eval().requires_grad_(False), self.schedule, self.kind)

    def __call__(self, z_t: Tensor, t: Tensor, omega: Tensor, cond: Condition) -> Prediction:
        """Prediction at (B, C, h, w) ``z_t``, (B,) integer ``t``, (B,) ``omega``, B rows of ``cond``."""
        dtype = self.unet.dtype
        embedding = guidance_embedding(omega, dim=self.unet.config.time_cond_proj_dim).to(dtype)
        output = self.network(z_t.to(dtype), t, timestep_cond=embedding, **told(cond.to(dtype=dtype))).sample
        return convert(output.to(z_t.dtype), z_t, t, schedule=self.schedule, kind=self.kind)
