"""The student of one arm as a folder: a diffusers pipeline or an adapter, its curve, its model card and its record."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from rglcd.config import AnyReward, LatentReward, NoReward, PixelReward
from rglcd.evaluation.looks import FOLDER as LOOKS
from rglcd.models.export import CardFacts, SamplingGrid, export_student
from rglcd.recipe import FrozenProxy, OnlineProxy
from rglcd.stages.assembly import Materials
from rglcd.store.manifest import write_json
from rglcd.store.staging import STAGING, publish_folder
from rglcd.training.distiller import Distiller
from rglcd.training.loop import curve_text
from rglcd.training.reward_guidance import LatentRewardGuidance

RECORD = "rglcd.json"
"""The file that says which computation an arm's folder holds."""

# What the key of an arm leaves out: which other arms there are, and how often the state is saved.
_NOT_THE_ARMS = {"arms", "match_compute", "num_steps", "checkpoint_every"}


@dataclass(frozen=True)
class Arm:
    """One student to make: its name, what it is made from, its reward, how long it trains, and the key that names the computation."""

    name: str
    materials: Materials
    reward: AnyReward
    num_steps: int
    key: str


def export_arm(arm: Arm, distiller: Distiller, *, curve: list[dict[str, Any]], seen: Path | None, folder: Path) -> None:
    """Write the weights to evaluate into a staging folder beside ``folder``, then rename it. ``seen`` holds the looks, if there are."""
    staging = folder.with_name(f".{folder.name}{STAGING}")
    shutil.rmtree(staging, ignore_errors=True)
    materials, model = arm.materials, arm.materials.model
    # The scalings are functions of timestep_scaling / sigma_data alone, and diffusers' LCMScheduler has a sigma_data of 0.5.
    grid = SamplingGrid(model.num_ddim_steps, model.timestep_scaling * 0.5 / model.sigma_data, model.resolution)
    export_student(distiller.evaluated, teacher=materials.pretrained.teacher, folder=staging, grid=grid, card=_card(arm))
    if isinstance(distiller.reward_guidance, LatentRewardGuidance):
        distiller.reward_guidance.model.save(staging / "reward_model")
    (staging / "curves.jsonl").write_text(curve_text(curve), encoding="utf-8")
    if seen is not None:
        shutil.copytree(seen, staging / LOOKS)
    write_json(staging / RECORD, _record(arm))
    # Not left to publish_folder, which renames what it replaces within the artifact: a kill in between would publish that too.
    shutil.rmtree(folder, ignore_errors=True)
    publish_folder(staging, folder)


def arm_sections(materials: Materials, reward: AnyReward) -> dict[str, Any]:
    """The configuration of one arm alone, as plain values."""
    return {
        "model": materials.model.model_dump(mode="json"),
        "reward": reward.model_dump(mode="json"),
        "distillation": materials.distillation.model_dump(mode="json", exclude=_NOT_THE_ARMS),
    }


def _record(arm: Arm) -> dict[str, Any]:
    images_seen = arm.num_steps * arm.materials.distillation.batch_size
    config = arm_sections(arm.materials, arm.reward)
    return {"arm": arm.name, "key": arm.key, "num_steps": arm.num_steps, "images_seen": images_seen, "config": config}


def _card(arm: Arm) -> CardFacts:
    distillation, teacher = arm.materials.distillation, arm.materials.model.teacher.uri
    low, high = distillation.omega
    return CardFacts(
        title=f"{Path(teacher).name} · {arm.name}",
        teacher=teacher,
        arm=arm.name,
        reward=_in_words(arm.reward),
        num_steps=arm.num_steps,
        images_seen=arm.num_steps * distillation.batch_size,
        omega=distillation.omega,
        guidance_scale=(low + high) / 2 + 1,
    )


def _in_words(reward: AnyReward) -> str:
    match reward:
        case NoReward():
            return "none (plain latent consistency distillation)"
        case PixelReward():
            through = "the VAE decoder"
        case LatentReward():
            through = f"a latent proxy ({_tuned_in_words(reward)})"
        case _:
            assert_never(reward)
    return f"`{reward.expert}`, weight {reward.weight:g}, through {through}"


def _tuned_in_words(reward: LatentReward) -> str:
    tuning = reward.tuning
    match tuning:
        case FrozenProxy():
            how = "frozen"
        case OnlineProxy(pairing="own"):
            how = "tuned online"
        case OnlineProxy():
            how = f"tuned online on the scores of {tuning.pairing.replace('_', ' ')}"
        case _:
            assert_never(tuning)
    return how if reward.initial == "pretrained" else f"{how}, from a random start"
