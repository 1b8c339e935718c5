"""How a reward guides the student: through the VAE decoder (:class:`PixelGuide`), or through a latent proxy (:class:`LatentGuide`).

Shapes: B batch, (C, h, w) latents, K candidates, D text width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rglcd.core.distillation import reward_gradient
from rglcd.core.preference import pairwise_preference_kl
from rglcd.models.codec import Codec
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.rewards.protocol import DifferentiableReward, Reward
from rglcd.training.checkpoint import optimizer_tensors, restore_optimizer
from rglcd.training.distributed import World
from rglcd.training.optimization import adamw, optimise

Texts = Mapping[str, Tensor]
"""Text features (B, D) by scorer name."""


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

    def learn(self, candidates: Sequence[Tensor], texts: Texts) -> Mapping[str, Tensor]:
        """Learn from K latents (B, C, h, w) for the same captions, if there is anything to learn; figures."""
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

    def learn(self, candidates: Sequence[Tensor], texts: Texts) -> Mapping[str, Tensor]:
        return {}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        pass


class LatentGuide:
    """RG-LCD Algorithm 4: the proxy's gradient, and the proxy tuned to prefer what the expert prefers.

    The expert is only ever asked for scores of decoded images, so it need not be differentiable. ``learning_rate`` None
    keeps the proxy as pretraining left it.
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
        learning_rate: float | None,
        label_every: int,
        world: World,
    ) -> None:
        self.model = model
        self.expert = expert
        self.codec = codec
        self.expert_scorer = expert_scorer
        self.model_scorer = model_scorer
        self.weight = weight
        self.chunk_size = chunk_size
        self.learning_rate = learning_rate
        self.label_every = label_every
        self._network: nn.Module = world.wrap(model)
        self._optimizer = adamw(model.parameters(), weight_decay=0.0)

    def guide(self, z0_hat: Tensor, texts: Texts) -> Guidance:
        text = texts[self.model_scorer]
        scores, gradient = reward_gradient(z0_hat, lambda z0, rows: self.model.score(z0, text[rows]), chunk_size=len(z0_hat))
        return Guidance(scores, gradient)

    def learn(self, candidates: Sequence[Tensor], texts: Texts) -> Mapping[str, Tensor]:
        """One step on the KL between the expert's and the proxy's preferences over all pairs of candidates."""
        if self.learning_rate is None:
            return {}
        labelled = slice(None, None, self.label_every)
        latents = torch.cat([candidate[labelled] for candidate in candidates])
        num = len(candidates)
        expert_text, model_text = (texts[name][labelled].repeat(num, 1) for name in (self.expert_scorer, self.model_scorer))
        expert_scores = self._expert_scores(latents, expert_text).view(num, -1)
        proxy_logits = self._network(latents, model_text).view(num, -1)
        loss = pairwise_preference_kl(self.expert.logit_scale * expert_scores, proxy_logits).mean()
        loss.backward()
        optimise(self._optimizer, list(self.model.parameters()), rate=self.learning_rate, max_grad_norm=None)
        return {"lrm_loss": loss.detach(), "expert_reward": expert_scores[0].mean()}

    @torch.no_grad()
    def _expert_scores(self, latents: Tensor, text: Tensor) -> Tensor:
        chunks = zip(latents.split(self.chunk_size), text.split(self.chunk_size), strict=True)
        return torch.cat([self.expert.score(self.codec.decode(chunk), rows) for chunk, rows in chunks])

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {"reward_model": dict(self.model.state_dict()), "reward_model_optimizer": optimizer_tensors(self._optimizer, self.model)}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.model.load_state_dict(dict(parts["reward_model"]))
        restore_optimizer(self._optimizer, self.model, parts["reward_model_optimizer"])
