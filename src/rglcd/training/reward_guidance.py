"""Reward guidance: the gradient of a reward with respect to the student's predictions.

:class:`PixelRewardGuidance` takes it through the VAE decoder, :class:`LatentRewardGuidance` from a proxy of the reward that
looks at latents and is tuned as training goes.

Shapes: B batch, (C, h, w) latents, K candidates, D text width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType
from typing import Final, Protocol, assert_never

import torch
from torch import Tensor, nn

from rglcd import recipe
from rglcd.core.distillation import reward_gradient
from rglcd.core.preference import pairwise_agreement, pairwise_preference_kl, retrieval_accuracy
from rglcd.errors import InputError
from rglcd.models.codec import Codec
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.models.precision import at_least_float32
from rglcd.rewards.protocol import DifferentiableReward, Reward, has_score
from rglcd.training.checkpoint import optimizer_tensors, restore_optimizer
from rglcd.training.choices import label_function, label_scale, ties_count
from rglcd.training.controls import LabelScores
from rglcd.training.distributed import World, accumulated, micro_batches
from rglcd.training.optimization import adamw, optimise

Texts = Mapping[str, Tensor]
"""Text features (B, D) by scorer name."""

Scores = Mapping[str, Tensor]
"""Scores (B,) by scorer name."""

NONE_KNOWN: Final[Scores] = MappingProxyType({})

REAL: Final = 2
"""Which candidate is the real image, the last: a proxy learns from the student's prediction, its target and that, in this order."""


@dataclass(frozen=True)
class RewardGradient:
    """Scores (B,) of the student's predictions, and their gradient (B, C, h, w) with respect to them."""

    scores: Tensor
    gradient: Tensor


class RewardGuidance(Protocol):
    """A reward as the distiller sees it: a gradient, and perhaps something to learn."""

    @property
    def weight(self) -> float: ...

    def gradient(self, z0_hat: Tensor, texts: Texts) -> RewardGradient:
        """Scores of the student's clean latents (B, C, h, w), and which way these should go."""
        ...

    def learn(self, step: int, candidates: Sequence[Tensor], texts: Texts, scores: Scores = NONE_KNOWN) -> Mapping[str, Tensor]:
        """Learn at ``step`` from K latents (B, C, h, w) for the same captions, if there is anything to learn; figures.

        ``scores`` are those of the real images, the last candidate, as far as they are known beforehand.
        """
        ...

    def parts(self) -> dict[str, dict[str, Tensor]]: ...

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None: ...


@dataclass(frozen=True)
class PixelRewardGuidance:
    """RG-LCD Algorithm 3: the expert's gradient, through the decoder, in chunks that bound the memory."""

    expert: DifferentiableReward
    codec: Codec
    scorer: str
    weight: float
    chunk_size: int

    def gradient(self, z0_hat: Tensor, texts: Texts) -> RewardGradient:
        text = texts[self.scorer]
        scores, gradient = reward_gradient(
            z0_hat, lambda z0, rows: self.expert.score(self.codec.decode(z0), text[rows]), chunk_size=self.chunk_size
        )
        return RewardGradient(scores, gradient)

    def learn(self, step: int, candidates: Sequence[Tensor], texts: Texts, scores: Scores = NONE_KNOWN) -> Mapping[str, Tensor]:
        return {}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def restore(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        pass


class LatentRewardGuidance:
    """RG-LCD Algorithm 4: the proxy's gradient, and the proxy tuned to prefer what the expert prefers.

    The expert is only ever asked for scores of decoded images, so it need not be differentiable. Parameters of ``model``
    that want no gradient are left alone; which those are is settled before. ``label_scores`` is a control's: it gives the
    images other scores than their own. Of the labelled captions ``micro_batch`` are learnt from at once, or all.
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
        tuning: recipe.Tuning,
        world: World,
        label_scores: LabelScores | None = None,
        micro_batch: int | None = None,
    ) -> None:
        self.model = model
        self.expert = expert
        self.codec = codec
        self.expert_scorer = expert_scorer
        self.model_scorer = model_scorer
        self.weight = weight
        self.chunk_size = chunk_size
        self.tuning = tuning
        self.label_scores = label_scores
        self.micro_batch = micro_batch
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._unit = expert.logit_scale if isinstance(tuning, recipe.FrozenProxy) else label_scale(tuning.labels, expert)
        self._world = world
        self._network: nn.Module = model
        if isinstance(tuning, recipe.OnlineProxy):
            self._network = world.wrap(model)
            self._labels = label_function(tuning.labels, expert)
        self._optimizer = adamw(self._learning, weight_decay=0.0)

    def gradient(self, z0_hat: Tensor, texts: Texts) -> RewardGradient:
        text = texts[self.model_scorer]
        # In the expert's unit: the proxy learns scale x cosine = the expert's scale x its score, so that a weight means the same
        # for both kinds of guidance, whatever the two temperatures are.
        worth = self.model.log_scale.detach().exp() / self._unit
        scores, gradient = reward_gradient(z0_hat, lambda z0, rows: worth * self.model.score(z0, text[rows]), chunk_size=len(z0_hat))
        scored = has_score(self.expert, texts[self.expert_scorer])
        # Where the expert has no score, the proxy was not tuned to it: it pulls nowhere.
        return RewardGradient(scores, gradient if scored is None else gradient.masked_fill(~scored.view(-1, 1, 1, 1), 0.0))

    def learn(self, step: int, candidates: Sequence[Tensor], texts: Texts, scores: Scores = NONE_KNOWN) -> Mapping[str, Tensor]:
        match self.tuning:
            case recipe.FrozenProxy():
                return {}
            case recipe.OnlineProxy():
                return self._tune(self.tuning, step, candidates, texts, scores)
            case _:
                assert_never(self.tuning)

    def _tune(
        self, tuning: recipe.OnlineProxy, step: int, candidates: Sequence[Tensor], texts: Texts, known: Scores
    ) -> Mapping[str, Tensor]:
        """Learn from the KL between the expert's and the proxy's preferences over all pairs of candidates.

        Captions for which the expert has no score teach nothing, and ``expert_reward`` is missing where no process has another.
        """
        rows = _labelled(tuning, len(candidates[0]))
        latents = [candidate[rows] for candidate in candidates]
        real = [known[self.expert_scorer][rows]] if self.expert_scorer in known else []
        theirs = texts[self.expert_scorer][rows]
        judged, scored = self._judged(latents[: len(latents) - len(real)], theirs), has_score(self.expert, theirs)
        scores = torch.stack([*judged, *real])
        labels = self._labels(scores if self.label_scores is None else self.label_scores(scores, step))
        text = texts[self.model_scorer][rows]
        # Equal labels are no decision either: the agreement leaves them out.
        labels = labels if scored is None else labels.masked_fill(~scored, 0.0)
        updates = [self._update(tuning, latents, text, labels, scored) for _ in range(tuning.num_updates)]
        return {**updates[0], **self._expert_reward(judged[0], scored)}

    def _expert_reward(self, scores: Tensor, scored: Tensor | None) -> dict[str, Tensor]:
        """The mean of the expert's ``scores`` (b,); of those captions that have one the mean over all processes, if there are any."""
        if scored is None:
            return {"expert_reward": scores.mean()}
        all_scores, counts = self._world.gather(scores.masked_fill(~scored, 0.0)), self._world.gather(scored.to(scores.dtype))
        return {"expert_reward": all_scores.sum() / counts.sum()} if bool(counts.any()) else {}

    def _update(
        self, tuning: recipe.OnlineProxy, latents: Sequence[Tensor], text: Tensor, labels: Tensor, scored: Tensor | None
    ) -> dict[str, Tensor]:
        """One step of the optimiser on all labels (K, b), from gradients of ``micro_batch`` captions at a time; figures before it."""
        divergences, logits, real = [], [], []
        for rows in accumulated(self._network, micro_batches(len(text), self.micro_batch)):
            some = labels[:, rows]
            answers = self._network(torch.cat([candidate[rows] for candidate in latents]), text[rows].repeat(len(latents), 1))
            theirs = answers.logits.view(some.shape)
            kl = pairwise_preference_kl(
                some, theirs, privileged=privileged_candidate(tuning.real_image), ties_count=ties_count(tuning.labels.ties)
            )
            kl = kl if scored is None else kl.masked_fill(~scored[rows], 0.0)
            (len(kl) / len(text) * kl.mean()).backward()
            divergences.append(kl.detach())
            logits.append(theirs.detach())
            real.append([each.detach().view(len(latents), len(some[0]), -1)[REAL] for each in (answers.latents, answers.text)])
        optimise(self._optimizer, rate=tuning.learning_rate)
        # Over the pairs of all ranks: how many are decided differs from one to another.
        theirs, decided = (self._world.gather(each.T.contiguous()).T for each in (torch.cat(logits, dim=1), labels))
        return {
            "lrm_loss": torch.cat(divergences).mean(),
            "lrm_agreement": pairwise_agreement(decided, theirs),
            # Whether it still knows what is in a picture, among the captions of all ranks; by chance, one over their number.
            "lrm_retrieval": retrieval_accuracy(*(self._world.gather(torch.cat(each)) for each in zip(*real, strict=True))),
        }

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


_ROWS = 20
_KNOWS_CAPTIONS = 0.2


def doubt_of_proxy(curve: Sequence[Mapping[str, float]]) -> str | None:
    """Why the proxy may no longer stand for the expert, as the last rows of a training curve say, and what to do; None if they do not.

    It should agree with the expert on half of the decided pairs at least, and know half as many captions as in the beginning, if any.
    """
    tuned = [row for row in curve if "lrm_agreement" in row]
    if len(tuned) < 2 * _ROWS:
        return None
    agreement, retrieval = (fmean(row[name] for row in tuned[-_ROWS:]) for name in ("lrm_agreement", "lrm_retrieval"))
    known = fmean(row["lrm_retrieval"] for row in tuned[:_ROWS])
    if agreement < 0.5:
        return (
            f"proxy and expert agree on {agreement:.0%} of the pairs that the expert decides, less than by chance: the student goes where "
            "the proxy alone likes it. Lower reward.weight, or let the proxy follow faster (reward.tuning.learning_rate, num_updates)"
        )
    if known >= _KNOWS_CAPTIONS and retrieval < known / 2:
        return (
            f"the proxy finds {retrieval:.0%} of the captions of real latents; in the beginning it found {known:.0%}. "
            "Lower reward.tuning.learning_rate, so that it does not forget what a caption is"
        )
    return None


def privileged_candidate(chosen: recipe.RealImage) -> int | None:
    """The candidate that cannot lose, if one is."""
    match chosen:
        case "candidate":
            return None
        case "privileged":
            return REAL
        case _:
            assert_never(chosen)


def _labelled(tuning: recipe.OnlineProxy, num_rows: int) -> slice:
    """Every n-th row; :class:`InputError` when other ranks would then label other samples of the batch than these do."""
    if num_rows % tuning.label_every:
        raise InputError(f"reward.tuning.label_every {tuning.label_every} does not divide the {num_rows} samples of a process")
    return slice(None, None, tuning.label_every)
