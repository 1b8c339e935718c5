"""Stage ``distill``: teacher in, students out, one for each arm."""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rglcd import progress
from rglcd.config import (
    Cauchy,
    Distillation,
    DoublingGrid,
    EmaTarget,
    FrozenProxy,
    HardLabels,
    Huber,
    LastBlocks,
    LatentReward,
    LognormalTimesteps,
    LoraStudent,
    Model,
    NoReward,
    OnlineProxy,
    OwnPrediction,
    PixelReward,
    PseudoHuber,
    SoftLabels,
    StopGradientTarget,
    UniformTimesteps,
)
from rglcd.core.consistency import BoundaryScalings
from rglcd.core.distances import Distance, cauchy, huber, pseudo_huber, squared_l2
from rglcd.core.preference import Pairing, hard_preferences
from rglcd.core.timesteps import doubling_curriculum, even_weights, inverse_gap_weights, lognormal_weights, mixture, uniform_weights
from rglcd.errors import InputError
from rglcd.latents.cache import LatentCache
from rglcd.latents.order import sample_indices
from rglcd.models.codec import Codec
from rglcd.models.export import CardFacts, SamplingGrid, export_student
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.models.student import AdapterShape, Student
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.rewards.protocol import DifferentiableReward, Reward
from rglcd.stages.cache import fingerprint_of
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.run import Output
from rglcd.stages.table import stage_named
from rglcd.store.manifest import altered_files, digest_of, read_manifest, read_verified, write_json
from rglcd.training import distiller as training
from rglcd.training.checkpoint import Checkpointer
from rglcd.training.distiller import Distiller, Recipe
from rglcd.training.distributed import World, join_world
from rglcd.training.execution import Execution
from rglcd.training.loop import Run, curve_text, train
from rglcd.training.operations import flops_of_step
from rglcd.training.optimization import LearningRate
from rglcd.training.reward_guidance import REAL, Guide, LatentGuide, PixelGuide, Tuning

RECORD = "rglcd.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# What the key of an arm leaves out: which other arms there are, and how often the state is saved.
_NOT_THE_ARMS = {"arms", "match_compute", "num_steps", "checkpoint_every"}

AnyReward = NoReward | PixelReward | LatentReward


@dataclass(frozen=True)
class Arm:
    """One student to make: its name, what guides it, how long it trains, and the key that names the computation."""

    name: str
    reward: AnyReward
    num_steps: int
    key: str


@dataclass(frozen=True)
class Materials:
    """What every arm is made from."""

    model: Model
    distillation: Distillation
    latents: Path
    pretrained: Pretrained
    reward_model: Path | None
    cache: LatentCache
    world: World


def distill(
    model: Model,
    reward: AnyReward,
    distillation: Distillation,
    *,
    latents: Path,
    pretrained: Path,
    reward_model: Path | None,
    student: Output,
) -> Mapping[str, Any]:
    """Write a diffusers pipeline folder for each arm, with its curve and its record.

    An arm whose key equals that of one published before is taken over instead of trained: so a new reward weight leaves
    the ``lcm`` arm alone. Raises :class:`InputError`, ``TryAgain`` and ``TrainingDiverged`` as the loop does.
    """
    with join_world() as world:
        models = Pretrained.open(pretrained)
        cache = LatentCache.open(latents, expected=fingerprint_of(model, models, like=latents))
        cache.anticipate(sample_indices(distillation.seed, len(cache), start=0, count=len(cache)))
        materials = Materials(model, distillation, latents, models, reward_model, cache, world)
        arms = _arms(materials, reward)
        for arm in arms:
            if not _is_finished(student.folder / arm.name, arm) and not _taken_over(arm, student, world=world):
                _train_arm(arm, materials, student.folder)
            if world.is_main:
                # Here, not where the arm is trained: a kill may have come between its publication and this.
                shutil.rmtree(_checkpoints(student.folder, arm), ignore_errors=True)
            world.wait()
    return {"arms": {arm.name: {"num_steps": arm.num_steps, "key": arm.key} for arm in arms}}


# --- arms ----------------------------------------------------------------------------------------


def _arms(materials: Materials, reward: AnyReward) -> list[Arm]:
    """The arms in the order asked for; ``lcm`` is given the compute that ``rg``'s reward costs, if asked to match it."""
    distillation = materials.distillation
    num_steps = dict.fromkeys(distillation.arms, distillation.num_steps)
    if "lcm" in num_steps and distillation.match_compute and reward.kind != "none":
        num_steps["lcm"] = math.ceil(distillation.num_steps * _relative_cost(materials, reward))
    rewards: dict[str, AnyReward] = {"lcm": NoReward(), "rg": reward}
    return [Arm(name, rewards[name], num_steps[name], _arm_key(materials, rewards[name], num_steps[name])) for name in distillation.arms]


def _relative_cost(materials: Materials, reward: AnyReward) -> float:
    """Operations of a guided step over those of a plain one, counted on a throw-away pair: the same on any machine."""
    alone = World(0, 1, materials.world.device)
    guided, plain = (
        flops_of_step(_distiller(materials, guidance, num_steps=materials.distillation.num_steps, world=alone))
        for guidance in progress.track((reward, NoReward()), task="count the reward's operations", unit="steps")
    )
    return guided / plain


def _arm_key(materials: Materials, reward: AnyReward, num_steps: int) -> str:
    inputs = {"latents": read_manifest(materials.latents, made_by="cache").digest}
    inputs["pretrained"] = read_manifest(materials.pretrained.folder, made_by="prepare").digest
    if reward.kind == "latent":
        inputs["reward_model"] = read_verified(_lrm_folder(materials), made_by="pretrain").digest
    return digest_of(
        {
            "version": stage_named("distill").version,
            **_sections(materials, reward),
            "num_steps": num_steps,
            "inputs": inputs,
        }
    )


def _is_finished(folder: Path, arm: Arm) -> bool:
    path = folder / RECORD
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["key"] == arm.key


def _taken_over(arm: Arm, student: Output, *, world: World) -> bool:
    """Copy the arm from the student published before, if it is the very same computation and still what was published."""
    if student.previous is None or not _is_finished(student.previous / arm.name, arm):
        return False
    manifest = read_manifest(student.previous, made_by="distill")
    if altered_files(student.previous, manifest, names=[name for name in manifest.files if name.startswith(f"{arm.name}/")]):
        return False
    if world.is_main:
        aside = student.folder / f".{arm.name}.aside"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(student.previous / arm.name, aside)
        aside.rename(student.folder / arm.name)
    return True


# --- training ------------------------------------------------------------------------------------


def _train_arm(arm: Arm, materials: Materials, folder: Path) -> None:
    distillation, world = materials.distillation, materials.world
    distiller = _distiller(materials, arm.reward, num_steps=arm.num_steps, world=world)
    run = Run(f"distill {arm.name}", arm.num_steps, distillation.batch_size, distillation.checkpoint_every)
    curve = train(distiller, run, checkpointer=Checkpointer(_checkpoints(folder, arm)), world=world)
    if world.is_main:
        _export(arm, materials, distiller, curve=curve, folder=folder / arm.name)


def _checkpoints(folder: Path, arm: Arm) -> Path:
    return folder / f".{arm.name}-{arm.key[:12]}.checkpoints"


def _distiller(materials: Materials, reward: AnyReward, *, num_steps: int, world: World) -> Distiller:
    distillation, pretrained = materials.distillation, materials.pretrained
    frozen = _DTYPES[distillation.precision]
    teacher = Teacher.load(pretrained.teacher, dtype=frozen, device=world.device)
    codec = _codec(materials, reward, world=world)
    start = Teacher.load(pretrained.teacher, dtype=torch.float32, device=world.device) if frozen != torch.float32 else teacher
    return Distiller(
        recipe=_recipe(materials, reward, num_steps=num_steps),
        student=_new_student(distillation, teacher=teacher, start=start),
        teacher=teacher,
        codec=codec,
        text_encoder=TextEncoder.load(pretrained.teacher, dtype=frozen, device=world.device),
        cache=materials.cache,
        guide=_guide(materials, reward, codec=codec, world=world),
        world=world,
    )


def _new_student(distillation: Distillation, *, teacher: Teacher, start: Teacher) -> Student:
    """Untrained: of ``start``, the teacher in float32, or on ``teacher`` as it is."""
    chosen = distillation.student
    if isinstance(chosen, LoraStudent):
        return Student.adapting(teacher, adapter_shape(chosen), seed=distillation.seed)
    return Student.of_teacher(start, omega_embedding_dim=chosen.omega_embedding_dim)


def adapter_shape(chosen: LoraStudent) -> AdapterShape:
    """The adapter that the configuration asks for."""
    return AdapterShape(chosen.rank, chosen.alpha, chosen.targets)


def _codec(materials: Materials, reward: AnyReward, *, world: World) -> Codec:
    """The VAE, in the precision that the reward's decoding asks for: float32 where nothing is decoded."""
    dtype = torch.float32 if isinstance(reward, NoReward) else _DTYPES[reward.precision]
    codec = Codec.load(materials.pretrained.teacher, dtype=dtype, device=world.device)
    if isinstance(reward, PixelReward) and reward.activations == "recomputed":
        codec.vae.enable_gradient_checkpointing()
    return codec


def _recipe(materials: Materials, reward: AnyReward, *, num_steps: int) -> Recipe:
    distillation, model = materials.distillation, materials.model
    grid = distillation.grid

    def num_grid_steps(step: int) -> int:
        if isinstance(grid, DoublingGrid):
            return doubling_curriculum(step, total_steps=num_steps, s0=grid.start, s1=grid.end)
        return model.num_ddim_steps

    return Recipe(
        batch_size=distillation.batch_size,
        learning_rate=LearningRate(distillation.learning_rate, distillation.warmup_steps, num_steps, distillation.schedule),
        weight_decay=distillation.weight_decay,
        max_grad_norm=distillation.max_grad_norm,
        target=_target(distillation.target),
        neighbour=distillation.neighbour,
        omega=distillation.omega,
        caption_dropout=distillation.caption_dropout,
        dropout=distillation.dropout,
        distance=_distance(distillation),
        timesteps=_timesteps(distillation.timesteps),
        weighting=inverse_gap_weights if distillation.weighting == "inverse_gap" else even_weights,
        scalings=BoundaryScalings(sigma_data=model.sigma_data, timestep_scaling=model.timestep_scaling),
        num_grid_steps=num_grid_steps,
        rewarded=_rewarded(reward),
        precision=_DTYPES[distillation.precision],
        execution=Execution(distillation.execution, distillation.memory_format),
        seed=distillation.seed,
    )


def _distance(distillation: Distillation) -> Distance:
    chosen = distillation.distance
    if isinstance(chosen, Huber):
        return lambda x, y: huber(x, y, c=chosen.c)
    if isinstance(chosen, PseudoHuber):
        return lambda x, y: pseudo_huber(x, y, c=chosen.c)
    if isinstance(chosen, Cauchy):
        return lambda x, y: cauchy(x, y, c=chosen.c)
    return squared_l2


def _target(chosen: EmaTarget | StopGradientTarget) -> training.EmaTarget | training.StopGradientTarget:
    if isinstance(chosen, EmaTarget):
        return training.EmaTarget(chosen.decay)
    return training.StopGradientTarget(chosen.evaluation_decay)


def _timesteps(chosen: UniformTimesteps | LognormalTimesteps) -> training.Timesteps:
    if isinstance(chosen, UniformTimesteps):
        return lambda levels: uniform_weights(levels, span=chosen.span)
    return lambda levels: mixture(lognormal_weights(levels, p_mean=chosen.p_mean, p_std=chosen.p_std), uniform_share=chosen.uniform_share)


def _rewarded(reward: AnyReward) -> training.SharedPrediction | training.OwnPrediction:
    if isinstance(reward, NoReward):
        return training.SharedPrediction(every=1)
    if isinstance(reward.prediction, OwnPrediction):
        return training.OwnPrediction(reward.prediction.every, _timesteps(reward.prediction.timesteps))
    return training.SharedPrediction(reward.prediction.every)


def _guide(materials: Materials, reward: AnyReward, *, codec: Codec, world: World) -> Guide | None:
    if isinstance(reward, NoReward):
        return None
    expert = materials.pretrained.scorer(reward.expert, dtype=_DTYPES[reward.precision], device=world.device)
    if isinstance(reward, PixelReward):
        if not isinstance(expert, DifferentiableReward) or not expert.differentiable:
            raise InputError(f"reward.expert {reward.expert!r} has no gradient: use reward.kind latent, whose proxy learns from it")
        return PixelGuide(expert, codec, reward.expert, reward.weight, reward.chunk_size)
    folder = _lrm_folder(materials)
    return LatentGuide(
        _latent_reward_model(reward, folder, seed=materials.distillation.seed).to(world.device),
        expert=expert,
        codec=codec,
        expert_scorer=reward.expert,
        model_scorer=read_manifest(folder, made_by="pretrain").facts["scorer"],
        weight=reward.weight,
        chunk_size=reward.chunk_size,
        tuning=_tuning(reward.tuning, expert, seed=materials.distillation.seed),
        world=world,
    )


def _latent_reward_model(reward: LatentReward, folder: Path, *, seed: int) -> LatentRewardModel:
    model = LatentRewardModel.load(folder, device=torch.device("cpu"))
    if reward.initial == "random":
        model = LatentRewardModel.at_random(model.shape, seed=seed)
    if isinstance(reward.tuning, OnlineProxy) and isinstance(reward.tuning.trains, LastBlocks):
        model.train_last(reward.tuning.trains.num_blocks, text=reward.tuning.trains.text == "learns")
    return model


def _tuning(tuning: FrozenProxy | OnlineProxy, expert: Reward, *, seed: int) -> Tuning | None:
    if isinstance(tuning, FrozenProxy):
        return None
    return Tuning(
        learning_rate=tuning.learning_rate,
        num_updates=tuning.num_updates,
        label_every=tuning.label_every,
        labels=_labels(tuning.labels, expert),
        privileged=REAL if tuning.real_image == "privileged" else None,
        pairing=Pairing(tuning.pairing),
        seed=seed,
    )


def _labels(labels: SoftLabels | HardLabels, expert: Reward) -> Callable[[torch.Tensor], torch.Tensor]:
    if isinstance(labels, HardLabels):
        return hard_preferences
    scale = expert.logit_scale if labels.logit_scale is None else labels.logit_scale
    return lambda scores: scale * scores


def _lrm_folder(materials: Materials) -> Path:
    if materials.reward_model is None:
        raise InputError("reward.kind is latent and there is no reward_model; make it with: rglcd run pretrain")
    return materials.reward_model


# --- the student as a folder ---------------------------------------------------------------------


def _export(arm: Arm, materials: Materials, distiller: Distiller, *, curve: list[dict[str, Any]], folder: Path) -> None:
    """The weights to evaluate, as a pipeline folder: written aside, then renamed."""
    distillation, model = materials.distillation, materials.model
    aside = folder.with_name(f".{folder.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    images_seen = arm.num_steps * distillation.batch_size
    low, high = distillation.omega
    card = CardFacts(
        title=f"{Path(model.teacher.uri).name} · {arm.name}",
        teacher=model.teacher.uri,
        arm=arm.name,
        reward=_in_words(arm.reward),
        num_steps=arm.num_steps,
        images_seen=images_seen,
        omega=distillation.omega,
        guidance_scale=(low + high) / 2 + 1,
    )
    grid = SamplingGrid(num_ddim_steps=model.num_ddim_steps, timestep_scaling=model.timestep_scaling)
    export_student(distiller.evaluated, teacher=materials.pretrained.teacher, folder=aside, grid=grid, card=card)
    if isinstance(distiller.guide, LatentGuide):
        distiller.guide.model.save(aside / "reward_model")
    (aside / "curves.jsonl").write_text(curve_text(curve), encoding="utf-8")
    config = _sections(materials, arm.reward)
    write_json(aside / RECORD, {"arm": arm.name, "key": arm.key, "num_steps": arm.num_steps, "images_seen": images_seen, "config": config})
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _sections(materials: Materials, reward: AnyReward) -> dict[str, Any]:
    return {
        "model": materials.model.model_dump(mode="json"),
        "reward": reward.model_dump(mode="json"),
        "distillation": materials.distillation.model_dump(mode="json", exclude=_NOT_THE_ARMS),
    }


def _in_words(reward: AnyReward) -> str:
    if isinstance(reward, NoReward):
        return "none (plain latent consistency distillation)"
    through = "the VAE decoder" if isinstance(reward, PixelReward) else f"a latent proxy ({_tuned_in_words(reward)})"
    return f"`{reward.expert}`, weight {reward.weight:g}, through {through}"


def _tuned_in_words(reward: LatentReward) -> str:
    tuning = reward.tuning
    if isinstance(tuning, FrozenProxy):
        how = "frozen"
    else:
        how = "tuned online" if tuning.pairing == "own" else f"tuned online on the scores of {tuning.pairing.replace('_', ' ')}"
    return how if reward.initial == "pretrained" else f"{how}, from a random start"
