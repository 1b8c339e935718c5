"""The proxy's objectives: minimal exactly where the proxy agrees with captions, and with the expert's preferences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from rglcd.core.preference import contrastive_loss, hard_preferences, pairwise_agreement, pairwise_preference_kl, retrieval_accuracy

INF = math.inf


def column(*values: float) -> torch.Tensor:
    """Logits (K,1) of one caption's candidates."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def triples() -> st.SearchStrategy[torch.Tensor]:
    return st.lists(st.floats(-30, 30), min_size=3, max_size=3).map(lambda values: column(*values))


@settings(max_examples=50, deadline=None)
@given(expert=triples(), proxy=triples(), shift=st.floats(-10, 10))
def test_preference_kl_is_positive_and_depends_on_differences_only(expert: torch.Tensor, proxy: torch.Tensor, shift: float) -> None:
    kl = pairwise_preference_kl(expert, proxy)
    assert kl.item() >= -1e-12
    torch.testing.assert_close(pairwise_preference_kl(expert, proxy + shift), kl, rtol=1e-9, atol=1e-9)
    assert pairwise_preference_kl(expert, expert + shift).item() == pytest.approx(0, abs=1e-11)


@settings(max_examples=50, deadline=None)
@given(expert=triples(), proxy=triples())
def test_preference_kl_ignores_the_order_of_candidates_and_a_common_sign(expert: torch.Tensor, proxy: torch.Tensor) -> None:
    kl = pairwise_preference_kl(expert, proxy)
    torch.testing.assert_close(pairwise_preference_kl(expert.flip(0), proxy.flip(0)), kl, rtol=1e-9, atol=1e-9)
    # Everybody preferring the other one is the same disagreement.
    torch.testing.assert_close(pairwise_preference_kl(-expert, -proxy), kl, rtol=1e-9, atol=1e-9)


def test_preference_kl_is_the_sum_over_pairs_of_its_definition(rng: torch.Generator) -> None:
    expert, proxy = torch.randn(2, 4, 6, generator=rng, dtype=torch.float64)
    expected = torch.zeros(6, dtype=torch.float64)
    for i in range(4):
        for j in range(i + 1, 4):
            p, q = (torch.stack([logits[i], logits[j]]).softmax(dim=0) for logits in (expert, proxy))
            expected += (p * (p / q).log()).sum(dim=0)
    torch.testing.assert_close(pairwise_preference_kl(expert, proxy), expected, rtol=1e-10, atol=1e-12)


def test_preference_kl_is_positive_where_one_preference_differs() -> None:
    assert pairwise_preference_kl(column(1.0, 0.0, 0.0), column(0.5, 0.0, 0.0)).item() > 1e-3


def test_preference_kls_gradient_moves_the_proxy_towards_the_expert() -> None:
    proxy = column(0.0, 0.0, 0.0).requires_grad_()
    pairwise_preference_kl(column(2.0, 0.0, -2.0), proxy).sum().backward()
    assert proxy.grad is not None
    # d KL / d l_i = sum over its pairs of q_i - p_i
    p_near, p_far = torch.tensor(2.0).sigmoid().item(), torch.tensor(4.0).sigmoid().item()
    expected = column(1 - p_near - p_far, 0.0, p_near + p_far - 1)
    torch.testing.assert_close(proxy.grad, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("winner", [0, 1])
def test_a_certain_expert_costs_minus_log_of_the_winners_probability(winner: int) -> None:
    logits = (INF, 0.0) if winner == 0 else (-INF, 3.0)
    proxy = column(0.3, -0.4).requires_grad_()
    kl = pairwise_preference_kl(column(*logits), proxy)
    kl.sum().backward()
    torch.testing.assert_close(kl, -proxy.log_softmax(dim=0)[winner])
    assert proxy.grad is not None
    assert proxy.grad.isfinite().all()


@pytest.mark.parametrize("tie", [INF, -INF, 2.0])
def test_equal_expert_logits_are_a_label_of_one_half(tie: float) -> None:
    proxy = column(0.3, -0.4)
    torch.testing.assert_close(pairwise_preference_kl(column(tie, tie), proxy), pairwise_preference_kl(column(0.0, 0.0), proxy))
    assert pairwise_preference_kl(column(tie, tie), column(1.0, 1.0)).item() == pytest.approx(0, abs=1e-15)


def test_ties_that_do_not_count_leave_the_decided_pairs_and_their_gradient() -> None:
    proxy = column(0.3, -0.4, 0.8).requires_grad_()
    # Candidates 0 and 1 are tied; 2 beats both.
    kl = pairwise_preference_kl(column(1.0, 1.0, 4.0), proxy, ties_count=False)
    decided = sum(pairwise_preference_kl(column(1.0, 4.0), proxy[[other, 2]]) for other in (0, 1))
    torch.testing.assert_close(kl, decided)
    (gradient,) = torch.autograd.grad(kl.sum(), proxy)
    assert gradient.isfinite().all()
    (nothing,) = torch.autograd.grad(pairwise_preference_kl(column(INF, INF, INF), proxy, ties_count=False).sum(), proxy)
    assert not nothing.any()


def test_agreement_leaves_out_pairs_that_the_expert_hardly_decides() -> None:
    # Of three pairs one is decided with .51 : .49; a proxy that is wrong about that one alone agrees entirely.
    expert = column(0.0, 0.04, 3.0)
    assert pairwise_agreement(expert, column(1.0, 0.0, 5.0)).item() == 1
    assert pairwise_agreement(expert, column(1.0, 0.0, 0.5)).item() == 0.5
    assert pairwise_agreement(column(INF, INF, 0.0), column(2.0, 1.0, 0.0)).item() == 1
    assert pairwise_agreement(column(1.0, 1.0, 1.0), column(2.0, 1.0, 0.0)).item() == 0.5


def test_agreement_counts_pairs_and_halves_the_undecided() -> None:
    expert = column(3.0, 2.0, 1.0)
    assert pairwise_agreement(expert, 5 * expert).item() == 1
    assert pairwise_agreement(expert, -expert).item() == 0
    assert pairwise_agreement(expert, column(1.0, 1.0, 1.0)).item() == 0.5
    assert pairwise_agreement(expert, column(2.0, 3.0, 1.0)).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hard_preferences_are_certain_for_every_pair_and_fair_at_ties(dtype: torch.dtype) -> None:
    logits = hard_preferences(torch.tensor([[0.21], [0.2100001], [0.1], [0.1]], dtype=dtype))
    first, second = torch.triu_indices(4, 4, offset=1)
    assert (logits[first] - logits[second]).sigmoid().flatten().tolist() == [0, 1, 1, 1, 1, 0.5]


def test_the_privileged_candidate_may_win_and_tie_but_not_lose() -> None:
    proxy = column(0.3, -0.4, 0.8)
    # Candidate 2 is real. The expert prefers 0 to it, and it to 1: only the first of these labels is withdrawn.
    expert = column(1.0, -1.0, 0.0)
    pairs = [(0, 1), (0, 2), (1, 2)]
    labels = [column(1.0, -1.0), column(0.0, 0.0), column(-1.0, 0.0)]
    expected = sum(pairwise_preference_kl(label, proxy[list(pair)]) for pair, label in zip(pairs, labels, strict=True))
    torch.testing.assert_close(pairwise_preference_kl(expert, proxy, privileged=2), expected)
    # The same, wherever the real image stands.
    rolled = pairwise_preference_kl(expert.roll(1, 0), proxy.roll(1, 0), privileged=0)
    torch.testing.assert_close(rolled, expected)


def test_a_privileged_real_image_changes_no_pair_of_generated_images(rng: torch.Generator) -> None:
    expert = torch.randn(2, 8, generator=rng, dtype=torch.float64)
    real = torch.full((1, 8), -100.0, dtype=torch.float64)
    # A real image that loses to both, with a proxy that ties it to both: its own two pairs cost nothing once withdrawn.
    tied_proxy, undecided = torch.zeros(3, 8, dtype=torch.float64), torch.zeros_like(expert)
    with_real = pairwise_preference_kl(torch.cat([expert, real]), tied_proxy, privileged=2)
    torch.testing.assert_close(with_real, pairwise_preference_kl(expert, undecided))
    assert (pairwise_preference_kl(torch.cat([expert, real]), tied_proxy) > with_real + 1).all()


def test_half_precision_labels_do_not_coarsen_the_loss(rng: torch.Generator) -> None:
    expert, proxy = torch.randn(2, 3, 4, generator=rng)
    assert pairwise_preference_kl(expert.bfloat16(), proxy).dtype == torch.float32


def test_contrastive_loss_is_clips(rng: torch.Generator) -> None:
    images, texts = (normalize(x, dim=1) for x in torch.randn(2, 6, 8, generator=rng, dtype=torch.float64))
    logits = 14.3 * images @ texts.T
    expected = (cross_entropy(logits, torch.arange(6)) + cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, 14.3), expected)
    torch.testing.assert_close(contrastive_loss(3 * images, 0.1 * texts, 14.3), expected)
    torch.testing.assert_close(contrastive_loss(images, texts, 14.3, group_ids=torch.arange(10, 16)), expected)


def test_contrastive_loss_is_least_where_captions_match() -> None:
    axes = torch.eye(5, dtype=torch.float64)
    # At the optimum (orthogonal captions, matched images) it is log(1 + (B - 1) exp(-scale)).
    assert contrastive_loss(axes, axes, 10.0).item() == pytest.approx(math.log1p(4 * math.exp(-10)), rel=1e-9)
    assert contrastive_loss(axes.roll(1, 0), axes, 10.0).item() > 9


def test_equal_captions_are_positives_of_each_other() -> None:
    axes, ids = torch.eye(3, dtype=torch.float64), torch.tensor([0, 0, 1, 2])
    matched = axes[ids].requires_grad_()
    # The matched arrangement is the minimum: log 2 (which of two equals?) for half the rows, 0 for the others; its
    # gradient is zero, while without groups it is asked to separate what is the same.
    loss = contrastive_loss(matched, axes[ids], 50.0, group_ids=ids)
    assert loss.item() == pytest.approx(math.log(2) / 2, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, matched)
    assert gradient.abs().max().item() < 1e-9


def test_the_temperature_learns(rng: torch.Generator) -> None:
    images, texts = torch.randn(2, 6, 8, generator=rng, dtype=torch.float64)
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: contrastive_loss(images, texts, s), scale)


def test_retrieval_counts_own_captions_and_takes_a_caption_twice_for_both_ones() -> None:
    captions = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 2]]
    assert retrieval_accuracy(captions, captions).item() == 1
    assert retrieval_accuracy(captions[[1, 0, 2, 3]], captions).item() == 0.5
