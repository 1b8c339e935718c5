"""What the latent proxy reward model learns: captions first, then the preferences of an expert (RG-LCD Algorithm 4).

Shapes: image_embeds, text_embeds (B,E)    logits (K,B): K candidate latents for each of B captions    P = K (K - 1) / 2
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

# Apart by this much, a softmax is exactly (1, 0) in float32 and float64.
_CERTAIN = 1000.0

# Apart by less, the expert prefers one with a probability below .55: nobody can be expected to agree.
_DECIDED = math.log(0.55 / 0.45)


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float, *, group_ids: Tensor | None = None) -> Tensor:
    """CLIP's symmetric cross-entropy over the batch, a scalar; `logit_scale` multiplies the cosines (already exp'd).

    Samples with equal `group_ids` (B,) share a caption: each is then a positive of the others, not a negative.
    """
    cosines = normalize(image_embeds, dim=1) @ normalize(text_embeds, dim=1).T
    ids = torch.arange(len(cosines), device=cosines.device) if group_ids is None else group_ids
    positives = (ids[:, None] == ids[None, :]).to(cosines.dtype)
    labels = positives / positives.sum(dim=1, keepdim=True)
    logits = logit_scale * cosines
    # CLIP, arXiv 2103.00020, Fig. 3; "equal captions" is symmetric, so the same labels serve both directions
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def pairwise_preference_kl(
    expert_logits: Tensor, proxy_logits: Tensor, *, privileged: int | None = None, ties_count: bool = True
) -> Tensor:
    """Sum over the P pairs i < j of KL(softmax(e_i, e_j) || softmax(l_i, l_j)), per caption (B,).

    Expert logits may be infinite (a certain preference); equal ones, infinite too, are a tie. Candidate `privileged`
    is the real image: an expert that prefers a generated one to it is taken as undecided. A tie is a preference of one half,
    or, unless `ties_count`, no opinion: its pair is left out.
    """
    num_candidates = len(expert_logits)
    assert privileged is None or 0 <= privileged < num_candidates, "privileged names a candidate"
    first, second = torch.triu_indices(num_candidates, num_candidates, offset=1, device=expert_logits.device)
    tied = expert_logits[first] == expert_logits[second]
    expert = (expert_logits[first] - expert_logits[second]).masked_fill(tied, 0.0).to(proxy_logits.dtype)
    if privileged is not None:
        lost = ((first == privileged)[:, None] & (expert < 0)) | ((second == privileged)[:, None] & (expert > 0))
        expert = expert.masked_fill(lost, 0.0)
    proxy = proxy_logits[first] - proxy_logits[second]
    # A softmax over two is the sigmoid of the difference.
    wins, losses = expert.sigmoid(), (-expert).sigmoid()
    entropy = torch.special.entr(wins) + torch.special.entr(losses)
    # KL(p || q) = H(p, q) - H(p), summed over the pairs: RG-LCD Algorithm 4
    kl: Tensor = binary_cross_entropy_with_logits(proxy, wins, reduction="none") - entropy
    return kl.sum(dim=0) if ties_count else kl.masked_fill(expert == 0, 0.0).sum(dim=0)


def hard_preferences(scores: Tensor) -> Tensor:
    """Expert logits (K,B) that say 0, 1 or (at ties) 1/2 of each pair, for an expert whose `scores` (K,B) only rank."""
    beaten = (scores[:, None] > scores[None, :]).sum(dim=1)
    return _CERTAIN * beaten.to(scores.dtype)


def pairwise_agreement(expert_logits: Tensor, proxy_logits: Tensor) -> Tensor:
    """How often both prefer the same candidate, over the pairs that the expert decides: a scalar in [0, 1].

    It decides a pair (of (P,B)) that it prefers one way with a probability of .55 at least. A proxy that is undecided there counts
    half; so does a batch in which the expert decides nothing.
    """
    first, second = torch.triu_indices(len(expert_logits), len(expert_logits), offset=1, device=expert_logits.device)
    expert, proxy = (logits[first] - logits[second] for logits in (expert_logits, proxy_logits))
    decided = expert.nan_to_num(nan=0.0).abs() >= _DECIDED
    agreed = (expert.sign() * proxy.sign()).masked_fill(~decided, 0.0).sum()
    return (1 + agreed / decided.sum().clamp(min=1)) / 2


def retrieval_accuracy(latent_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """How often a latent (B, E) is nearest to its own caption of the B (unit vectors): a scalar; equally near is as good."""
    # Not as a product of matrices: those are counted as what training costs, which a look at it does not change.
    cosines = torch.cat([(some[:, None] * text_embeds[None]).sum(dim=-1) for some in latent_embeds.split(16)])
    # A caption that the batch has twice is each one's own, up to rounding.
    return (cosines.diagonal() >= cosines.amax(dim=1) - 1e-6).to(cosines.dtype).mean()
