"""The latent guidance: whose preferences it learns, from what, and what of it learns at all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from rglcd.config import FrozenProxy, HardLabels, LastBlocks, LatentReward, OnlineProxy
from rglcd.core.preference import contrastive_loss, hard_preferences, pairwise_preference_kl
from rglcd.errors import InputError
from rglcd.models.codec import Codec
from rglcd.rewards.protocol import Reward
from rglcd.stages.assembly import make_reward_guidance
from rglcd.training.reward_guidance import LatentRewardGuidance, PixelRewardGuidance, doubt_of_proxy
from tests.tiny_line import tiny_config
from tests.training.conftest import materials_of

RATE = 3e-3
TUNINGS = {
    "soft": OnlineProxy(learning_rate=RATE),
    "hard": OnlineProxy(learning_rate=RATE, labels=HardLabels()),
    "shuffled": OnlineProxy(learning_rate=RATE, pairing="other_captions"),
    "partial": OnlineProxy(learning_rate=RATE, trains=LastBlocks(num_blocks=0, text="stays")),
    "thrice": OnlineProxy(learning_rate=RATE, num_updates=3, real_image="privileged"),
}


class Redness:
    """Says of a picture only whether it is redder than others: somebody's own reward, with no gradient at all."""

    differentiable: Literal[False] = False
    range = (0.0, 1.0)
    logit_scale = 1.0
    text_width = 1

    def __init__(self, cut: float = 0.0) -> None:
        self.cut = cut

    def weights_sha256(self) -> None:
        return None

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        return torch.zeros(len(captions), 1)

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        return (redness(pixels) > self.cut).float()


def redness(pixels: Tensor) -> Tensor:
    return pixels[:, 0].mean(dim=(1, 2)) - pixels[:, 2].mean(dim=(1, 2))


def guidance_of(line: Path, tuning: FrozenProxy | OnlineProxy, **options: object) -> LatentRewardGuidance:
    materials = materials_of(line, tiny_config())
    codec = Codec.load(line / "pretrained" / "teacher", dtype=torch.float32, device=materials.world.device)
    guidance = make_reward_guidance(materials, LatentReward(tuning=tuning, **options), codec=codec, world=materials.world)
    assert isinstance(guidance, LatentRewardGuidance)
    return guidance


def candidates_of(step: int, *, num: int = 4) -> list[Tensor]:
    """Three latents for each caption."""
    return list(torch.randn(3, num, 4, 8, 8, generator=torch.Generator().manual_seed(step)))


def texts_of(*, num: int = 4) -> Mapping[str, Tensor]:
    return {"expert": torch.randn(num, 12, generator=torch.Generator().manual_seed(99))}


def weights(guidance: LatentRewardGuidance) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in guidance.model.named_parameters()}


def changed(before: Mapping[str, Tensor], guidance: LatentRewardGuidance) -> set[str]:
    return {name for name, parameter in guidance.model.named_parameters() if not torch.equal(before[name], parameter)}


def test_the_proxy_learns_the_preferences_of_an_expert_without_gradient(line: Path) -> None:
    guidance = guidance_of(line, TUNINGS["hard"])
    candidates, texts = candidates_of(0, num=16), texts_of(num=16)
    latents, text = torch.cat(candidates), texts["expert"].repeat(3, 1)
    pixels = guidance.codec.decode(latents)
    guidance.expert = Redness(cut=float(redness(pixels).median()))
    assert isinstance(guidance.expert, Reward)
    assert not guidance.expert.score(pixels.requires_grad_(), text).requires_grad
    agreement = [float(guidance.learn(step, candidates, texts)["lrm_agreement"]) for step in range(60)]
    assert agreement[-1] > agreement[0]
    assert doubt_of_proxy([{"lrm_agreement": share, "lrm_retrieval": 1.0} for share in agreement]) is None
    with torch.no_grad():
        red, score = (scores.view(3, -1) for scores in (guidance.expert.score(pixels, text), guidance.model.score(latents, text)))
    first, second = torch.triu_indices(3, 3, offset=1)
    differs = red[first] != red[second]
    assert differs.sum() > 10
    agrees = ((score[first] > score[second]) == (red[first] > red[second]))[differs]
    assert agrees.float().mean() > 0.9


def test_a_proxy_that_no_longer_stands_for_the_expert_is_said_to() -> None:
    def curve(agreement: float, retrieval: float) -> list[dict[str, float]]:
        """Twenty rows of a good beginning, and twenty as given."""
        good, now = {"lrm_agreement": 0.7, "lrm_retrieval": 0.8}, {"lrm_agreement": agreement, "lrm_retrieval": retrieval}
        return [good] * 20 + [now] * 20

    assert doubt_of_proxy(curve(0.51, 0.41)) is None
    assert "agree on 36%" in str(doubt_of_proxy(curve(0.36, 0.8)))
    assert "finds 3% of the captions of real latents; in the beginning it found 80%" in str(doubt_of_proxy(curve(0.7, 0.028)))
    assert doubt_of_proxy(curve(0.36, 0.8)[:39]) is None
    # One that began at random knew no caption that it could forget.
    assert doubt_of_proxy([{"lrm_agreement": 0.6, "lrm_retrieval": found} for found in [0.12] * 20 + [0.05] * 20]) is None
    assert doubt_of_proxy([{"distance": 0.1}] * 99) is None


def test_the_proxys_retrieval_is_of_the_real_latents_alone(line: Path) -> None:
    guidance, texts = guidance_of(line, TUNINGS["hard"]), texts_of(num=16)
    known, first, second = candidates_of(0, num=16)
    optimizer = torch.optim.Adam(guidance.model.parameters(), lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        shown = guidance.model(known, texts["expert"])
        contrastive_loss(shown.latents, shown.text, shown.scale).backward()
        optimizer.step()
    assert guidance.learn(0, [first, second, known], texts)["lrm_retrieval"] == 1
    assert guidance.learn(1, [known, first, second], texts)["lrm_retrieval"] < 0.5


@pytest.mark.parametrize("name", TUNINGS)
def test_only_the_parameters_that_are_left_to_training_change(line: Path, name: str) -> None:
    guidance = guidance_of(line, TUNINGS[name])
    before = weights(guidance)
    for step in range(3):
        guidance.learn(step, candidates_of(step), texts_of())
    learning = {parameter for parameter in before if parameter.startswith("tower.head.")} | {"log_scale"}
    assert changed(before, guidance) == (learning if name == "partial" else set(before))


def test_a_frozen_proxy_does_not_change_and_reports_no_figures(line: Path) -> None:
    guidance = guidance_of(line, FrozenProxy())
    before = weights(guidance)
    assert guidance.learn(0, candidates_of(0), texts_of()) == {}
    assert changed(before, guidance) == set()


@pytest.mark.parametrize("name", TUNINGS)
def test_a_proxy_restored_from_its_parts_learns_on_bit_for_bit(line: Path, name: str) -> None:
    unbroken, before, after = (guidance_of(line, TUNINGS[name]) for _ in range(3))
    for step in range(4):
        unbroken.learn(step, candidates_of(step), texts_of())
    for step in range(2):
        before.learn(step, candidates_of(step), texts_of())
    after.restore({part: {key: tensor.clone() for key, tensor in tensors.items()} for part, tensors in before.parts().items()})
    for step in range(2, 4):
        after.learn(step, candidates_of(step), texts_of())
    for part, tensors in unbroken.parts().items():
        assert tensors.keys() == after.parts()[part].keys()
        assert all(torch.equal(tensor, after.parts()[part][key]) for key, tensor in tensors.items()), part


class RednessOfSome(Redness):
    """The same, of the captions alone whose feature is not 0."""

    def has_score(self, text: Tensor) -> Tensor:
        return text[:, 0] > 0

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        return super().score(pixels, text) * self.has_score(text)


@pytest.mark.parametrize("ties", ["half", "left_out"])
def test_captions_without_a_score_teach_nothing_and_pull_nowhere(line: Path, ties: Literal["half", "left_out"]) -> None:
    """As if the others were the whole batch, up to the mean, which counts them all; their own noise changes nothing."""
    tuning = OnlineProxy(learning_rate=RATE, labels=HardLabels(ties=ties))
    known = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    guidance, same, total = (guidance_of(line, tuning) for _ in range(3))
    for each in (guidance, same):
        each.expert, each.expert_scorer = RednessOfSome(), "red"
    total.expert, total.expert_scorer = Redness(), "red"
    texts = {**texts_of(), "red": known}
    candidates = candidates_of(0)
    figures = guidance.learn(0, candidates, texts)
    # Pictures of captions without a score may be any.
    others = [torch.where(known[:, :, None, None] > 0, latents, latents.flip(0) * 2) for latents in candidates]
    assert same.learn(0, others, texts)["lrm_loss"] == pytest.approx(float(figures["lrm_loss"]), rel=1e-5)
    torch.testing.assert_close(weights(same), weights(guidance))
    rows = [0, 2]
    half = total.learn(0, [latents[rows] for latents in candidates], {name: text[rows] for name, text in texts.items()})
    assert float(figures["lrm_loss"]) == pytest.approx(float(half["lrm_loss"]) / 2, rel=1e-5)
    assert float(figures["expert_reward"]) == pytest.approx(float(half["expert_reward"]))
    pull = guidance.gradient(candidates[0], texts).gradient
    assert pull[0].abs().max() > 0
    assert not pull[1].any()
    assert "expert_reward" not in guidance.learn(1, candidates, {**texts, "red": torch.zeros(4, 1)})


def test_several_updates_are_as_many_steps_on_the_same_labels(line: Path) -> None:
    once, thrice = guidance_of(line, TUNINGS["soft"]), guidance_of(line, replace(TUNINGS["soft"], num_updates=3))
    figures = [once.learn(step, candidates_of(0), texts_of()) for step in range(3)]
    assert thrice.learn(0, candidates_of(0), texts_of()) == figures[0]
    assert all(torch.equal(tensor, thrice.parts()["reward_model"][name]) for name, tensor in once.parts()["reward_model"].items())


def test_only_the_labelled_samples_are_learnt_from(line: Path) -> None:
    one, other = (guidance_of(line, OnlineProxy(learning_rate=RATE, label_every=2)) for _ in range(2))
    candidates = candidates_of(0)
    elsewhere = [candidate.clone() for candidate in candidates]
    for candidate in elsewhere:
        candidate[1::2] += 1
    assert one.learn(0, candidates, texts_of()) == other.learn(0, elsewhere, texts_of())
    elsewhere[0][2] += 1
    assert one.learn(1, candidates, texts_of()) != other.learn(1, elsewhere, texts_of())
    with pytest.raises(InputError, match="label_every 2 does not divide the 3 samples of a process"):
        one.learn(2, candidates_of(2, num=3), texts_of(num=3))


@pytest.mark.parametrize(("real_image", "privileged"), [("candidate", None), ("privileged", 2)])
def test_the_real_image_may_be_privileged(line: Path, real_image: str, privileged: int | None) -> None:
    guidance = guidance_of(line, OnlineProxy(learning_rate=RATE, real_image=real_image, labels=HardLabels()))
    candidates, text = candidates_of(0), texts_of()["expert"].repeat(3, 1)
    with torch.no_grad():
        labels = hard_preferences(guidance._judged(candidates, texts_of()["expert"]))
        logits = guidance.model(torch.cat(candidates), text).logits.view(3, -1)
    expected, otherwise = (
        pairwise_preference_kl(labels, logits, privileged=candidate).mean() for candidate in (privileged, 2 - (privileged or 0))
    )
    torch.testing.assert_close(guidance.learn(0, candidates, texts_of())["lrm_loss"], expected)
    assert not torch.isclose(expected, otherwise)


class AsDrawn:
    """A codec that decodes nothing: pixels are the latents."""

    def decode(self, z0: Tensor) -> Tensor:
        return z0


class LikeTheProxy:
    """An expert that prefers just what a proxy does, at a temperature of its own."""

    differentiable: Literal[True] = True
    range = (-1.0, 1.0)
    text_width = 12

    def __init__(self, model: torch.nn.Module, logit_scale: float) -> None:
        self.model, self.logit_scale = model, logit_scale

    def weights_sha256(self) -> None:
        return None

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        raise AssertionError("the cache holds what this scorer reads of captions")

    def score(self, pixels: Tensor, text: Tensor) -> Tensor:
        return self.model(pixels, text).logits / self.logit_scale


@pytest.mark.parametrize("tuning", [FrozenProxy(), OnlineProxy(), OnlineProxy(labels=HardLabels())])
def test_a_weight_means_the_same_for_a_reward_and_for_a_proxy_that_equals_it(line: Path, tuning: FrozenProxy | OnlineProxy) -> None:
    through_proxy = guidance_of(line, tuning)
    expert = LikeTheProxy(through_proxy.model, 75.6)
    latent = LatentRewardGuidance(
        through_proxy.model,
        expert=expert,
        codec=AsDrawn(),
        expert_scorer="expert",
        model_scorer="expert",
        weight=1.0,
        chunk_size=4,
        tuning=tuning,
        world=materials_of(line, tiny_config()).world,
    )
    pixel = PixelRewardGuidance(expert=expert, codec=AsDrawn(), scorer="expert", weight=1.0, chunk_size=4)
    z0, texts = candidates_of(0)[0], texts_of()
    ours, theirs = latent.gradient(z0, texts), pixel.gradient(z0, texts)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-6, atol=1e-9)
