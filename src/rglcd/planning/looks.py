"""What a look at a training takes (the section ``monitoring``): pictures by the student, and the networks that are opened to rate them.

A look comes between two steps, so nothing that a step leaves for its backward pass is there; its number of pictures is its own.
"""

from dataclasses import dataclass

import torch

from rglcd.config import AnyReward, NoReward, PanelMonitoring
from rglcd.planning.costs import Line
from rglcd.planning.memory import Moment, Part
from rglcd.planning.networks import Networks
from rglcd.planning.scoring import FEATURES_BYTES, Scoring
from rglcd.training.choices import dtype_of


@dataclass(frozen=True)
class Looks:
    """Moments beside those of a step; ``notes`` name what could not be counted."""

    moments: tuple[Moment, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, networks: Networks, reward: AnyReward, *, student: Line, teacher: Line) -> "Looks":
        """Of a training guided by ``reward``; ``student`` and ``teacher`` are what a pass that draws takes."""
        monitoring = networks.config.monitoring
        if not isinstance(monitoring, PanelMonitoring):
            return cls()
        guides, dtype = ([], torch.float32) if isinstance(reward, NoReward) else ([reward.expert], dtype_of(reward.precision))
        rating = Scoring.of(networks, dict.fromkeys([*guides, *monitoring.scorers]), dtype=torch.float32)
        decoding = Scoring.of(networks, (), dtype=dtype).decoding()
        _, *raters = rating.lasting  # the first is the VAE, which the training has
        num = min(monitoring.batch_size, len(monitoring.prompts) * monitoring.images_per_prompt)

        def at_work(name: str, *passes: Line) -> Part:
            return Part(f"{name}, {num} pictures", Line(max(line.at(num) for line in passes)))

        drawn = (("teacher's pass", teacher), ("student's pass", student), ("decoder", decoding.peak))
        rated = (
            *raters,
            Part("features, float32", Line(FEATURES_BYTES)),
            at_work("scorers", rating.ratings().peak, rating.captions().peak),
        )
        moments = [Moment(f"a look, {name}", (at_work(name, line),), between_steps=True) for name, line in drawn]
        return cls((*moments, Moment("a look, scorers", rated, between_steps=True)), rating.notes)
