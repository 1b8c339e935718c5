"""From the sections to a distiller: models opened, the recipe put together. The choices themselves go on as they are."""

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch

from rglcd.config import AnyReward, Distillation, LatentReward, Model, NoReward, PixelReward
from rglcd.core.consistency import Boundary, BoundaryScalings, FlowBoundary
from rglcd.core.schedule import NoiseSchedule
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.models.codec import Codec
from rglcd.models.initial import start_from
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.models.schedules import read_schedule
from rglcd.models.student import AdapterShape, Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.recipe import (
    DecoderActivations,
    DoublingGrid,
    FrozenProxy,
    FullStudent,
    LoraStudent,
    OnlineProxy,
    Prediction,
    SameInputsStudent,
    SharedPrediction,
)
from rglcd.rewards.protocol import DifferentiableReward, Reward, without_text
from rglcd.stages.pretrained import Pretrained
from rglcd.store.manifest import read_manifest
from rglcd.training import controls
from rglcd.training.choices import dtype_of
from rglcd.training.distiller import Distiller
from rglcd.training.distributed import World
from rglcd.training.execution import Execution
from rglcd.training.optimization import LearningRate
from rglcd.training.reward_guidance import LatentRewardGuidance, PixelRewardGuidance, RewardGuidance
from rglcd.training.run_recipe import Recipe


@dataclass(frozen=True)
class Materials:
    """What every arm is made from; ``reward_model`` is the artifact of ``pretrain``, if there is one."""

    model: Model
    distillation: Distillation
    latents: Path
    pretrained: Pretrained
    reward_model: Path | None
    cache: LatentCache
    world: World

    @property
    def proxy_folder(self) -> Path:
        """The pretrained latent proxy reward model; :class:`InputError` when there is none."""
        if self.reward_model is None:
            raise InputError("reward.kind is latent and there is no reward_model; make it with: rglcd run pretrain")
        return self.reward_model


def make_distiller(materials: Materials, reward: AnyReward, *, num_steps: int, world: World) -> Distiller:
    """An untrained student with everything that teaches it, for a run of ``num_steps``."""
    distillation, folder = materials.distillation, materials.pretrained.teacher
    frozen = dtype_of(distillation.precision)
    resolution = materials.model.resolution
    teacher = Teacher.load(folder, dtype=frozen, device=world.device, resolution=resolution)
    _require_timesteps(materials, teacher.schedule.num_timesteps)
    # From its file: a teacher on meta, whose memory is planned, has a schedule without values.
    if (
        distillation.weighting == "inverse_gap"
        and not teacher.schedule.is_flow
        and read_schedule(folder / "scheduler")[0].has_zero_terminal_snr
    ):
        raise InputError(
            "distillation.weighting inverse_gap gives no weight to the last timestep of a zero terminal SNR teacher, where every picture "
            "begins: use even"
        )
    codec = _codec(materials, reward, world=world)
    start = teacher
    if frozen != torch.float32 and not isinstance(distillation.student, LoraStudent):
        start = Teacher.load(folder, dtype=torch.float32, device=world.device, resolution=resolution)
    return Distiller(
        recipe=make_recipe(materials, reward, num_steps=num_steps, scalings=boundary_of(materials.model, teacher.schedule)),
        student=make_student(distillation, teacher=teacher, start=start, initial=materials.pretrained.initial),
        teacher=teacher,
        codec=codec,
        text_encoder=TextEncoder.load(folder, dtype=frozen, device=world.device),
        cache=materials.cache,
        reward_guidance=make_reward_guidance(materials, reward, codec=codec, world=world),
        world=world,
    )


def _require_timesteps(materials: Materials, num_timesteps: int) -> None:
    """Refuse a grid that is as fine as the teacher's own schedule: its steps skip timesteps."""
    asked = {"model.num_ddim_steps": materials.model.num_ddim_steps}
    if isinstance(materials.distillation.grid, DoublingGrid):
        asked["distillation.grid.end"] = materials.distillation.grid.end
    for key, num_steps in asked.items():
        if num_steps >= num_timesteps:
            raise InputError(
                f"{key} is {num_steps}, and the schedule of {materials.model.teacher.uri} has {num_timesteps} timesteps: ask for fewer"
            )


def make_student(distillation: Distillation, *, teacher: Teacher, start: Teacher, initial: Path | None = None) -> Student:
    """Untrained: a copy of ``start``, the teacher in float32, with the weights of ``initial`` if given, or an adapter on ``teacher``."""
    chosen = distillation.student
    match chosen:
        case FullStudent() | SameInputsStudent():
            dim = chosen.omega_embedding_dim if isinstance(chosen, FullStudent) else None
            student = Student.of_teacher(start, omega_embedding_dim=dim)
            if initial is not None and start.unet.device.type != "meta":
                start_from(student, initial)
            return student
        case LoraStudent():
            if initial is not None:
                raise InputError(
                    "preparation.initial is where a whole student starts; distillation.student is an adapter: choose a whole one"
                )
            return Student.adapting(teacher, adapter_shape(chosen), seed=distillation.seed)
        case _:
            assert_never(chosen)


def adapter_shape(chosen: LoraStudent) -> AdapterShape:
    """The adapter that the configuration asks for."""
    return AdapterShape(chosen.rank, chosen.alpha, chosen.targets)


def _codec(materials: Materials, reward: AnyReward, *, world: World) -> Codec:
    """The VAE, in the precision that the reward's decoding asks for: float32 where nothing is decoded."""
    dtype = torch.float32 if isinstance(reward, NoReward) else dtype_of(reward.precision)
    codec = Codec.load(materials.pretrained.teacher, dtype=dtype, device=world.device)
    if isinstance(reward, PixelReward):
        _keep_or_recompute(codec, reward.activations)
    return codec


def _keep_or_recompute(codec: Codec, activations: DecoderActivations) -> None:
    match activations:
        case "kept":
            pass
        case "recomputed":
            codec.recompute_activations()
        case _:
            assert_never(activations)


def boundary_of(model: Model, schedule: NoiseSchedule) -> Boundary:
    """The boundary scalings of the student: LCM's with the model's constants, which a flow needs none of."""
    if schedule.is_flow:
        return FlowBoundary()
    return BoundaryScalings(sigma_data=model.sigma_data, timestep_scaling=model.timestep_scaling)


def make_recipe(materials: Materials, reward: AnyReward, *, num_steps: int, scalings: Boundary) -> Recipe:
    """The run's choices and numbers."""
    distillation, model = materials.distillation, materials.model
    return Recipe(
        num_steps=num_steps,
        batch_size=distillation.batch_size,
        learning_rate=LearningRate(distillation.learning_rate, distillation.warmup_steps, num_steps, distillation.schedule),
        weight_decay=distillation.weight_decay,
        max_grad_norm=distillation.max_grad_norm,
        target=distillation.target,
        neighbour=distillation.neighbour,
        omega=distillation.omega,
        caption_dropout=distillation.caption_dropout,
        dropout=distillation.dropout,
        distance=distillation.distance,
        timesteps=distillation.timesteps,
        weighting=distillation.weighting,
        grid=distillation.grid,
        num_ddim_steps=model.num_ddim_steps,
        prediction=_prediction(reward),
        scalings=scalings,
        precision=distillation.precision,
        execution=Execution(distillation.execution, distillation.memory_format),
        seed=distillation.seed,
        micro_batch=distillation.micro_batch,
        activations=distillation.activations,
        all_reduce=distillation.all_reduce,
    )


def _prediction(reward: AnyReward) -> Prediction:
    return SharedPrediction() if isinstance(reward, NoReward) else reward.prediction


def make_reward_guidance(materials: Materials, reward: AnyReward, *, codec: Codec, world: World) -> RewardGuidance | None:
    """The reward's gradient by the way that ``reward`` says; None for plain distillation."""
    match reward:
        case NoReward():
            return None
        case PixelReward():
            return _pixel_guidance(materials, reward, codec=codec, world=world)
        case LatentReward():
            return _latent_guidance(materials, reward, codec=codec, world=world)
        case _:
            assert_never(reward)


def _pixel_guidance(materials: Materials, reward: PixelReward, *, codec: Codec, world: World) -> PixelRewardGuidance:
    expert = _expert(materials, reward, world=world)
    if not isinstance(expert, DifferentiableReward) or not expert.differentiable:
        raise InputError(f"reward.expert {reward.expert!r} has no gradient: use reward.kind latent, whose proxy learns from it")
    return PixelRewardGuidance(expert, codec, reward.expert, reward.weight, reward.chunk_size)


def _latent_guidance(materials: Materials, reward: LatentReward, *, codec: Codec, world: World) -> LatentRewardGuidance:
    seed, folder = materials.distillation.seed, materials.proxy_folder
    return LatentRewardGuidance(
        _proxy(reward, folder, seed=seed).to(world.device),
        expert=_expert(materials, reward, world=world),
        codec=codec,
        expert_scorer=reward.expert,
        model_scorer=read_manifest(folder, made_by="pretrain").facts["scorer"],
        weight=reward.weight,
        chunk_size=reward.chunk_size,
        tuning=reward.tuning,
        world=world,
        label_scores=_label_scores(reward, seed=seed, world=world),
        micro_batch=materials.distillation.micro_batch,
    )


def _expert(materials: Materials, reward: PixelReward | LatentReward, *, world: World) -> Reward:
    """The reward model, without what encodes captions: their features are cached."""
    return without_text(materials.pretrained.scorer(reward.expert, dtype=dtype_of(reward.precision), device=world.device))


def _proxy(reward: LatentReward, folder: Path, *, seed: int) -> LatentRewardModel:
    pretrained = LatentRewardModel.load(folder, device=torch.device("cpu"))
    model = controls.start_of(pretrained, reward.initial, seed=seed)
    if isinstance(reward.tuning, OnlineProxy):
        controls.restrict_training(model, reward.tuning.trains)
    return model


def _label_scores(reward: LatentReward, *, seed: int, world: World) -> controls.LabelScores | None:
    match reward.tuning:
        case FrozenProxy():
            return None
        case OnlineProxy():
            return controls.label_scores(reward.tuning.pairing, seed=seed, world=world)
        case _:
            assert_never(reward.tuning)
