"""How a reward guides the student: through the VAE decoder (:class:`PixelGuide`), or through a latent proxy (:class:`LatentGuide`).

Shapes: B batch, (C, h, w) latents, K candidates, D text width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from rglcd.core.distillation import reward_gradient
from rglcd.core.preference import Pairing, paired, pairwise_agreement, pairwise_preference_kl
from rglcd.errors import InputError
from rglcd.models.codec import Codec
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.models.precision import at_least_float32
from rglcd.rewards.protocol import DifferentiableReward, Reward
from rglcd.training.checkpoint import optimizer_tensors, restore_optimizer
from rglcd.training.distributed import World
from rglcd.training.draws import generator_for
from rglcd.training.optimization import adamw, optimise

Texts = Mapping[str, Tensor]
"""Text features (B, D) by scorer name."""


Scores = Mapping[str, Tensor]
"""Scores (B,) by scorer name."""

NONE_KNOWN: Final[Scores] = MappingProxyType({})

REAL: Final = 2
"""Which candidate is the real image, the last: a guide learns from the student's prediction, its target and that, in this order."""


@dataclass(frozen=True)
class Guidance:
    """Scores (B,) of the student's predictions, and their gradient (B, C, h, w) with respect to them."""

    scores: Tensor
    gradient: Tensor


class Guide(Protocol):
    """A reward as the distiller sees it."""

    @property
    def weight(self) -> float: ...

    def guide(self, z0_hat: Tensor, texts: Texts) -> Guidance:
        """Which way the student's clean latents (B, C, h, w) should go."""
        ...

    def learn(self, step: int, candidates: Sequence[Tensor], texts: Texts, scores: Scores = NONE_KNOWN) -> Mapping[str, Tensor]:
        """Learn at ``step`` from K latents (B, C, h, w) for the same captions, if there is anything to learn; figures.

        ``scores`` are those of the real images, the last candidate, as far as they are known beforehand.
        """
        ...

    def parts(self) -> dict[str, dict[str, Tensor]]: ...

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None: ...


@dataclass(frozen=True)
class PixelGuide:
    """RG-LCD Algorithm 3: the expert's gradient, through the decoder, in chunks that bound the memory."""

    expert: DifferentiableReward
    codec: Codec
    scorer: str
    weight: float
    chunk_size: int

    def guide(self, z0_hat: Tensor, texts: Texts) -> Guidance:
        text = texts[self.scorer]
        scores, gradient = reward_gradient(
            z0_hat, lambda z0, rows: self.expert.score(self.codec.decode(z0), text[rows]), chunk_size=self.chunk_size
        )
        return Guidance(scores, gradient)

    def learn(self, step: int, candidates: Sequence[Tensor], texts: Texts, scores: Scores = NONE_KNOWN) -> Mapping[str, Tensor]:
        return {}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        pass


@dataclass(frozen=True)
class Tuning:
    """How the proxy learns from the expert.

    ``labels`` makes expert logits (K, B) of the expert's scores (K, B). Every ``label_every``-th sample is labelled, and
    each labelled batch is learnt from ``num_updates`` times. ``privileged`` is the candidate that cannot lose, if one is.
    """

    learning_rate: float
    num_updates: int
    label_every: int
    labels: Callable[[Tensor], Tensor]
    privileged: int | None
    pairing: Pairing
    seed: int


class LatentGuide:
    """RG-LCD Algorithm 4: the proxy's gradient, and the proxy tuned to prefer what the expert prefers.

    The expert is only ever asked for scores of decoded images, so it need not be differentiable. ``tuning`` None keeps
    the proxy as it is. Parameters of ``model`` that want no gradient are left alone; which those are is settled before.
    """

    def __init__(
        self,
        model: LatentRewardModel,
        *,
        expert: Reward,
        codec: Codec,
        expert_scorer: str,
        model_scorer: str,
        weight: float,
        chunk_size: int,
        tuning: Tuning | None,
        world: World,
    ) -> None:
        self.model = model
        self.expert = expert
        self.codec = codec
        self.expert_scorer = expert_scorer
        self.model_scorer = model_scorer
        self.weight = weight
        self.chunk_size = chunk_size
        self.tuning = tuning
        self.world = world
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._network: nn.Module = model if tuning is None else world.wrap(model)
        self._optimizer = adamw(self._learning, weight_decay=0.0)

    def guide(self, z0_hat: Tensor, texts: Texts) -> Guidance:
        text = texts[self.model_scorer]
        scores, gradient = reward_gradient(z0_hat, lambda z0, rows: self.model.score(z0, text[rows]), chunk_size=len(z0_hat))
        return Guidance(scores, gradient)

    def learn(self, step: int, candidates: Sequence[Tensor], texts: Texts, scores: Scores = NONE_KNOWN) -> Mapping[str, Tensor]:
        """Learn from the KL between the expert's and the proxy's preferences over all pairs of candidates."""
        tuning = self.tuning
        if tuning is None:
            return {}
        rows = _labelled(tuning, len(candidates[0]))
        latents = [candidate[rows] for candidate in candidates]
        known = [scores[self.expert_scorer][rows]] if self.expert_scorer in scores else []
        judged = self._judged(latents[: len(latents) - len(known)], texts[self.expert_scorer][rows])
        labels = tuning.labels(self._paired(tuning, torch.stack([*judged, *known]), step))
        text = texts[self.model_scorer][rows].repeat(len(latents), 1)
        updates = [self._update(tuning, torch.cat(latents), text, labels) for _ in range(tuning.num_updates)]
        return {**updates[0], "expert_reward": judged[0].mean()}

    def _paired(self, tuning: Tuning, scores: Tensor, step: int) -> Tensor:
        """This rank's columns of the scores (K, B), exchanged over the whole batch where the pairing is a control."""
        if tuning.pairing is Pairing.OWN:
            return scores
        everybody = self.world.gather(scores.T).T
        mixed = paired(everybody, tuning.pairing, generator=generator_for(tuning.seed, step, "pairing"))
        return mixed[:, self.world.rows(mixed.shape[1])]

    def _update(self, tuning: Tuning, latents: Tensor, text: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step of the optimiser; the figures are those before it."""
        logits = self._network(latents, text).logits.view_as(labels)
        loss = pairwise_preference_kl(labels, logits, privileged=tuning.privileged).mean()
        loss.backward()
        optimise(self._optimizer, self._learning, rate=tuning.learning_rate, max_grad_norm=None)
        return {"lrm_loss": loss.detach(), "lrm_agreement": pairwise_agreement(labels, logits.detach())}

    @torch.no_grad()
    def _judged(self, candidates: Sequence[Tensor], text: Tensor) -> Tensor:
        """The expert's scores (K, B) of K candidates (B, C, h, w), decoded in chunks."""
        num = len(candidates)
        chunks = zip(torch.cat([*candidates]).split(self.chunk_size), text.repeat(num, 1).split(self.chunk_size), strict=True)
        scores = torch.cat([self.expert.score(self.codec.decode(chunk), rows) for chunk, rows in chunks]).view(num, -1)
        # Labels are differences of scores: not in half precision, even where the expert is.
        return at_least_float32(scores)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {"reward_model": dict(self.model.state_dict()), "reward_model_optimizer": optimizer_tensors(self._optimizer, self.model)}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model.load_state_dict(dict(parts["reward_model"]))
        restore_optimizer(self._optimizer, self.model, parts["reward_model_optimizer"])


def _labelled(tuning: Tuning, num_rows: int) -> slice:
    """Every n-th row; :class:`InputError` when other ranks would then label other samples of the batch than these do."""
    if num_rows % tuning.label_every:
        raise InputError(f"reward.tuning.label_every {tuning.label_every} does not divide the {num_rows} samples of a process")
    return slice(None, None, tuning.label_every)
