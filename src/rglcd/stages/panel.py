"""The panel of a training, put together: what it draws with, who rates, and how often a share of the run lets it look."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from rglcd.config import AnyReward, NoReward, PanelMonitoring
from rglcd.errors import InputError
from rglcd.evaluation.looks import SUSPICIOUS_LOOKS
from rglcd.evaluation.observation import ScoringPanel
from rglcd.evaluation.training_panel import TrainingPanel
from rglcd.models.chunks import Chunks
from rglcd.models.features import load_features
from rglcd.rewards.kinship import akin
from rglcd.stages.assembly import Materials
from rglcd.stages.step_cost import StepCosts, throw_away_distiller, without_values
from rglcd.store.manifest import read_manifest
from rglcd.training.distiller import Distiller
from rglcd.training.operations import count_flops

MOST_LOOKS: Final = 40
"""Of one run, where it is long enough for more."""

OpenScoring = Callable[[], ScoringPanel]
"""Opens all networks that rate. They are there for a look alone, and take no memory between two."""


def make_panel(monitoring: PanelMonitoring, materials: Materials, distiller: Distiller) -> TrainingPanel:
    """The panel, which draws with the networks of ``distiller``, on their device."""
    model = materials.model
    return TrainingPanel(
        prompts=monitoring.prompts,
        images_per_prompt=monitoring.images_per_prompt,
        num_steps=monitoring.num_steps,
        teacher_steps=monitoring.teacher_steps,
        guidance_scale=monitoring.guidance_scale,
        seed=monitoring.seed,
        resolution=model.resolution,
        num_ddim_steps=model.num_ddim_steps,
        scalings=distiller.recipe.scalings,
        teacher=distiller.teacher,
        codec=distiller.codec,
        text_encoder=distiller.text_encoder,
        device=distiller.world.device,
        at_once=Chunks("monitoring.batch_size", monitoring.batch_size),
    )


def opening_scorers(panel: TrainingPanel, monitoring: PanelMonitoring, materials: Materials, reward: AnyReward) -> OpenScoring:
    """The reward's expert, if it has one, and the scorers of ``monitoring``, in float32; and the feature network of diversity."""
    pretrained, device = materials.pretrained, panel.device
    names = dict.fromkeys([*([] if reward.kind == "none" else [reward.expert]), *monitoring.scorers])

    def open_scoring() -> ScoringPanel:
        scorers = {name: pretrained.scorer(name, dtype=torch.float32, device=device) for name in names}
        kind, folder = pretrained.feature_folders()[0]
        features = {kind: load_features(kind, folder, device=device)}
        scoring = ScoringPanel.of(scorers, panel.captions, features=features, device=device, at_once=panel.at_once)
        for name in names:
            # What is chance is known from the spread over the prompts.
            if (count := scoring.num_scored(name, panel.prompts)) < 2:
                raise InputError(
                    f"the scorer {name!r} has a score for {count} of monitoring.prompts and needs two: quote in two of them what is to be "
                    "written in the picture, or leave it out of what is watched"
                )
        return scoring

    return open_scoring


def held_out(monitoring: PanelMonitoring, materials: Materials, reward: AnyReward) -> tuple[str, ...]:
    """The scorers of ``monitoring`` that have nothing in common with what guides the student."""
    if reward.kind == "none":
        return monitoring.scorers
    guides = [reward.expert]
    if reward.kind == "latent":  # the proxy reads captions as this scorer does
        guides.append(str(read_manifest(materials.proxy_folder, made_by="pretrain").facts["scorer"]))
    pretrained = materials.pretrained
    family = akin(guides, pretrained.catalogue(), read_manifest(pretrained.folder, made_by="prepare"))
    return tuple(name for name in monitoring.scorers if name not in family)


# --- how often ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PanelCost:
    """Floating point operations: of a training step of one rank, of a look, which one rank takes while the others wait, and of the
    teacher's pictures, which are drawn once."""

    step: float
    look: float
    teachers: float

    def interval(self, share: float, *, num_steps: int) -> int | None:
        """Steps between two looks, so that all of them and the teacher's pictures are no more than ``share`` of the run.

        None where that leaves too few looks to suspect anything.
        """
        num_looks = min(MOST_LOOKS, math.floor((share * num_steps * self.step - self.teachers) / self.look))
        return None if num_looks <= SUSPICIOUS_LOOKS else math.ceil(num_steps / num_looks)

    def share(self, every: int, *, num_steps: int) -> float:
        """What looks ``every`` so many steps, and the teacher's pictures, are of the run's operations."""
        return (self.teachers + math.ceil(num_steps / every) * self.look) / (num_steps * self.step)


def counted_cost(monitoring: PanelMonitoring, costs: StepCosts, reward: AnyReward, open_scoring: OpenScoring) -> PanelCost:
    """Training and drawing are counted where tensors have no values, rating on one black picture.

    What a scorer computes in another process is not counted, nor the time that it takes to open the networks that rate.
    """
    materials, num_pictures = costs.materials, len(monitoring.prompts) * monitoring.images_per_prompt
    student, teacher, decoder = without_values(materials, lambda device: _drawing_costs(monitoring, materials, device))
    opened: list[ScoringPanel] = []
    encoding = count_flops(lambda: opened.append(open_scoring()))
    side = materials.model.resolution
    black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=materials.world.device)
    rating = count_flops(lambda: opened[0].ratings(black, monitoring.prompts[:1]))
    return PanelCost(
        step=costs.of_batch(reward) / materials.world.size,
        look=encoding + num_pictures * (monitoring.num_steps * student + decoder + rating),
        teachers=num_pictures * (monitoring.teacher_steps * teacher + decoder),
    )


def _drawing_costs(monitoring: PanelMonitoring, materials: Materials, device: torch.device) -> tuple[int, int, int]:
    """Of one picture: a step of the student, one of the guided teacher, and the decoder."""
    distiller = throw_away_distiller(materials, NoReward(), device=device)
    panel = replace(make_panel(monitoring, materials, distiller), num_steps=1, teacher_steps=1)
    student, latents = distiller.evaluated.at_rest(), list[Tensor]()
    return (
        count_flops(lambda: latents.append(panel.student_latents(student, range(1)))),
        count_flops(lambda: panel.teacher_latents(range(1))),
        count_flops(lambda: panel.codec.decode(latents[0])),
    )
