"""A distiller in float64 throughout, so that two ways to compute the same differ by rounding alone: 1e-10 and less."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rglcd.config import Config, PixelReward
from rglcd.core.prediction import PredictionType
from rglcd.core.schedule import NoiseSchedule
from rglcd.models.codec import Codec
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.stages.assembly import Materials, boundary_of, make_recipe, make_reward_guidance, make_student
from rglcd.training.batch import Batch
from rglcd.training.distiller import Distiller
from rglcd.training.distributed import World

DOUBLE = torch.float64


class DoubleDistiller(Distiller):
    """The shipped distiller; only what the cache and the draws give it in float32 is widened."""

    def _batch(self, step: int) -> Batch:
        batch = super()._batch(step)
        draws = replace(batch.draws, omega=batch.draws.omega.double(), eps=batch.draws.eps.double())
        texts = {name: features.double() if features.is_floating_point() else features for name, features in batch.texts.items()}
        scores = {name: values.double() for name, values in batch.scores.items()}
        return Batch(batch.z0.double(), batch.cond.to(dtype=DOUBLE), texts, scores, draws)


class StillDistiller(DoubleDistiller):
    """Takes its gradient down instead of following it."""

    gradient: Tensor

    def _update(self, step: int) -> Tensor:
        self.gradient = torch.cat([parameter.grad.flatten() for parameter in self._parameters])
        return self.gradient.norm()


def double_distiller(
    kind: type[DoubleDistiller], materials: Materials, config: Config, *, world: World, prediction: PredictionType = PredictionType.V
) -> Any:
    """A distiller of ``kind`` for the run that ``config`` describes, on Stable Diffusion's schedule."""
    folder, device = materials.pretrained.teacher, world.device
    schedule = NoiseSchedule.scaled_linear(beta_start=0.00085, beta_end=0.012, num_timesteps=1000)
    teacher = Teacher(Teacher.load(folder, dtype=DOUBLE, device=device).unet, schedule, prediction)
    student = make_student(config.distillation, teacher=teacher, start=teacher)
    student.unet.double()
    _away_from_the_teacher(student)
    codec = Codec.load(folder, dtype=DOUBLE, device=device)
    materials = replace(materials, distillation=config.distillation)
    # Its networks are widened before ranks come together over them.
    guidance: Any = make_reward_guidance(materials, config.reward, codec=codec, world=World(0, 1, device))
    if guidance is not None:
        expert = materials.pretrained.scorer(config.reward.expert, dtype=DOUBLE, device=device)
        if isinstance(config.reward, PixelReward):
            guidance = replace(guidance, expert=expert)
        else:
            guidance.model.double()
            guidance.expert, guidance._network, guidance._world = expert, world.wrap(guidance.model), world
            if guidance.label_scores is not None:
                guidance.label_scores = replace(guidance.label_scores, world=world)
    return kind(
        recipe=make_recipe(
            materials, config.reward, num_steps=config.distillation.num_steps, scalings=boundary_of(materials.model, schedule)
        ),
        student=student,
        teacher=teacher,
        codec=codec,
        text_encoder=TextEncoder.load(folder, dtype=DOUBLE, device=device),
        cache=materials.cache,
        reward_guidance=guidance,
        world=world,
    )


@torch.no_grad()
def _away_from_the_teacher(student: Student) -> None:
    """As if some steps were behind it: its omega then matters."""
    generator = torch.Generator().manual_seed(3)
    for parameter in student.trainable_parameters.values():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)


def main(line: str, folder: str, *overrides: str) -> None:
    """What each rank of a group runs: three steps, and the leader writes what they made."""
    from safetensors.torch import save_file

    from rglcd.training.distributed import join_world
    from tests.tiny_line import tiny_config
    from tests.training.conftest import materials_of

    with join_world() as world:
        config = tiny_config(*overrides)
        distiller = double_distiller(DoubleDistiller, materials_of(Path(line), config), config, world=world)
        figures = [{name: world.mean(value.detach()) for name, value in distiller.step(step).items()} for step in range(3)]
        if world.is_main:
            tensors = {f"{part}/{name}": tensor.detach() for part, tensors in distiller.parts().items() for name, tensor in tensors.items()}
            tensors |= {f"figures/{step}/{name}": value for step, row in enumerate(figures) for name, value in row.items()}
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder)


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
