"""Stage ``distill``: teacher in, students out, one for each arm."""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rglcd.config import AnyReward, ArmSettings, Distillation, Model, Monitoring, arms_of, has_reward
from rglcd.latents.cache import LatentCache
from rglcd.latents.order import sample_indices
from rglcd.models.precision import tf32
from rglcd.models.threads import one_thread_if_small
from rglcd.stages.assembly import Materials, make_distiller
from rglcd.stages.cache import fingerprint_of
from rglcd.stages.monitoring import Watching
from rglcd.stages.pretrained import Pretrained
from rglcd.stages.run import Output
from rglcd.stages.side_by_side import run_side_by_side
from rglcd.stages.step_cost import StepCosts
from rglcd.stages.student_export import RECORD, Arm, arm_sections, export_arm
from rglcd.store.locks import exclusive_lock
from rglcd.store.manifest import altered_files, digest_of, read_manifest, read_verified
from rglcd.store.staging import STAGING, publish_folder
from rglcd.training.checkpoint import Checkpointer
from rglcd.training.distributed import World, join_world
from rglcd.training.loop import Run, train
from rglcd.training.reward_guidance import doubt_of_proxy


@dataclass(frozen=True)
class _Given:
    """What the stage reads, by its settings and places: what a process that trains one arm opens anew."""

    model: Model
    reward: AnyReward
    distillation: Distillation
    monitoring: Monitoring
    latents: Path
    pretrained: Path
    reward_model: Path | None

    def materials(self, world: World) -> Materials:
        models = Pretrained.open(self.pretrained)
        cache = LatentCache.open(self.latents, expected=fingerprint_of(self.model, models, like=self.latents))
        cache.anticipate(sample_indices(self.distillation.seed, len(cache), start=0, count=len(cache)))
        return Materials(self.model, self.distillation, self.latents, models, self.reward_model, cache, world)


def distill(
    model: Model,
    reward: AnyReward,
    distillation: Distillation,
    monitoring: Monitoring,
    *,
    latents: Path,
    pretrained: Path,
    reward_model: Path | None,
    student: Output,
) -> Mapping[str, Any]:
    """Write a diffusers pipeline folder for each arm, with its curve and its record.

    An arm whose key equals that of one published before is taken over instead of trained: so a new reward weight leaves
    the ``lcm`` arm alone. What ``monitoring`` looks at enters no key, and changes no weight.
    Raises :class:`InputError`, ``TryAgain`` and ``TrainingDiverged`` as the loop does.
    """
    given = _Given(model, reward, distillation, monitoring, latents, pretrained, reward_model)
    with join_world() as world, tf32(world.device), one_thread_if_small(Pretrained.open(pretrained).teacher, world.device) as at_once:
        materials = given.materials(world)
        costs = StepCosts(materials)
        arms = _arms(costs, reward)
        watching = Watching(monitoring, reward, costs, student.folder)
        left = [arm for arm in arms if not _is_there(arm, student, world=world)] if world.size == 1 else []
        if min(len(left), at_once) > 1:
            lengths = {arm.name: arm.num_steps for arm in left}
            run_side_by_side(partial(_train_alone, given, student.folder, lengths), list(lengths), at_once=at_once)
        for arm in arms:
            if not _is_there(arm, student, world=world):
                _train_arm(arm, student.folder, watching)
            if world.is_main:
                # Here, not where the arm is trained: a kill may have come between its publication and this.
                shutil.rmtree(_checkpoints(student.folder, arm), ignore_errors=True)
            world.wait()
        if world.is_main:
            watching.sweep()
    return {"arms": {arm.name: {"num_steps": arm.num_steps, "key": arm.key} for arm in arms}}


# --- arms ----------------------------------------------------------------------------------------


def _arms(costs: StepCosts, reward: AnyReward) -> list[Arm]:
    """The arms in the order asked for; those without a reward are given the compute that the reward costs, if asked to match it."""
    materials, matched = costs.materials, 1.0
    settings = arms_of(reward, materials.distillation)
    if materials.distillation.match_compute and reward.kind != "none" and any(_is_matched(arm) for arm in settings):
        matched = costs.relative(reward)
    return [_arm(arm, materials, longer=matched if _is_matched(arm) else 1.0) for arm in settings]


def _is_matched(settings: ArmSettings) -> bool:
    return not (has_reward(settings) or settings.has_own_length)


def _arm(settings: ArmSettings, materials: Materials, *, longer: float) -> Arm:
    own = replace(materials, distillation=settings.distillation)
    num_steps = math.ceil(settings.distillation.num_steps * longer)
    return Arm(settings.name, own, settings.reward, num_steps, _arm_key(own, settings.reward, num_steps))


def _arm_key(materials: Materials, reward: AnyReward, num_steps: int) -> str:
    inputs = {"latents": read_manifest(materials.latents, made_by="cache").digest}
    inputs["pretrained"] = read_manifest(materials.pretrained.folder, made_by="prepare").digest
    if reward.kind == "latent":
        inputs["reward_model"] = read_verified(materials.proxy_folder, made_by="pretrain").digest
    return digest_of(
        {
            "version": _version_of_arm(reward),
            **arm_sections(materials, reward),
            "num_steps": num_steps,
            "inputs": inputs,
        }
    )


def _version_of_arm(reward: AnyReward) -> int:
    """What an arm of such a reward is made by. The stage's version is of all that it writes; an arm that a change leaves alone stays.

    4: draws by sample; 5: a tuned proxy's retrieval is in the curve.
    """
    return 5 if reward.kind == "latent" and reward.tuning.kind == "online" else 4


def _is_there(arm: Arm, student: Output, *, world: World) -> bool:
    return _is_finished(student.folder / arm.name, arm) or _taken_over(arm, student, world=world)


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
        staging = student.folder / f".{arm.name}{STAGING}"
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(student.previous / arm.name, staging)
        publish_folder(staging, student.folder / arm.name)
    return True


# --- training ------------------------------------------------------------------------------------


def _train_arm(arm: Arm, folder: Path, watching: Watching) -> None:
    distillation, world = arm.materials.distillation, arm.materials.world
    distiller = make_distiller(arm.materials, arm.reward, num_steps=arm.num_steps, world=world)
    save_every, guard = distillation.checkpoint_every, distillation.guard
    run = Run(f"distill {arm.name}", arm.num_steps, distillation.batch_size, save_every, guard, doubt_of_proxy)
    monitor = watching.monitor(arm, distiller, run)
    curve = train(distiller, run, checkpointer=Checkpointer(_checkpoints(folder, arm)), world=world, monitor=monitor)
    if world.is_main:
        export_arm(arm, distiller, curve=curve, seen=watching.seen_of(arm), folder=folder / arm.name)


def _train_alone(given: _Given, folder: Path, lengths: Mapping[str, int], name: str) -> None:
    """Train the arm ``name`` for its number of steps, in a process that has opened nothing yet."""
    with join_world() as world:
        materials = given.materials(world)
        settings = next(settings for settings in arms_of(given.reward, given.distillation) if settings.name == name)
        own = replace(materials, distillation=settings.distillation)
        arm = Arm(name, own, settings.reward, lengths[name], _arm_key(own, settings.reward, lengths[name]))
        checkpoints = _checkpoints(folder, arm)
        checkpoints.mkdir(parents=True, exist_ok=True)
        # The process of a killed stage may take a moment to notice, and still be writing here.
        with exclusive_lock(checkpoints / ".lock"):
            _train_arm(arm, folder, Watching(given.monitoring, given.reward, StepCosts(materials), folder))


def _checkpoints(folder: Path, arm: Arm) -> Path:
    return folder / f".{arm.name}-{arm.key[:12]}.checkpoints"
