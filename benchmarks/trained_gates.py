"""The gates that only what is trained on the toy's models can answer: a plain LCM against its teacher, and a proxy's captions."""

import statistics
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.comparisons import TEACHERS, by_scorer, drawn, pooled
from benchmarks.page_parts import not_run_yet
from benchmarks.studies import LATENT_AT_ONE, MAIN, MATCHED, Run
from benchmarks.study_runs import proxies_of, seeds_done
from rglcd.models.codec import Codec
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.rewards.clip import ClipReward
from rglcd.toy.gates import Gate, gate
from rglcd.toy.measuring import GATE_SEED
from rglcd.toy.scene import caption, shuffled, split
from rglcd.toy.web import WEB, Mixture, draw_pixels, web_rows

NUM_PICTURES = 1024
RIGHTLY_NAMED = Mixture(flawed=round(100 * WEB.flawed / (100 - WEB.wrong)), wrong=0)
"""The corpus without its wrong captions."""

_TITLE = "What is trained on the toy's models, held to its gates"
_CPU = torch.device("cpu")


def trained_gates_text() -> str:
    """The section of docs/results.md."""
    seeds = seeds_done([MAIN, LATENT_AT_ONE])
    if not seeds:
        return not_run_yet(_TITLE)
    rows = [
        f"| {of.name} | {of.low:.2f} to {of.high:.2f} | {of.figure:.2f} | {'met' if of.met else '**not met**'} |"
        for of in trained_gates(seeds)
    ]
    web = statistics.mean(retrieved(_proxies(LATENT_AT_ONE, seed)[0], WEB) for seed in seeds)
    return f"""## {_TITLE}

A gate is a condition that was fixed before any student was trained ([decision 11](decisions/0011-a-toy-world-as-the-web-is.md) has the
others, and what was tried for those that are not met). The plain LCM is matched by compute; its bound is the upper end of its interval.
The proxy is that of `{LATENT_AT_ONE.label}`; it picks among the {len(split().train)} captions of the corpus, for {NUM_PICTURES:,} new
pictures whose captions are right. Of pictures as the corpus has them, {WEB.wrong} % of which have another's caption, it finds {web:.2f}:
a proxy that knew all would find {1 - WEB.wrong / 100:.2f}.

| gate | within | figure | |
|---|---|--:|---|
{chr(10).join(rows)}"""


def trained_gates(seeds: Sequence[int]) -> Iterator[Gate]:
    """Over all seeds, which are pooled for the intervals; of proxies the mean."""
    for steps in (2, 4):
        answers = by_scorer("judge", drawn(MAIN, steps, MATCHED.arm), TEACHERS, seeds)
        yield gate(f"plain LCM in {steps} steps against the teacher by the judge: upper bound", pooled(answers).high)
    before, after = zip(*([retrieved(each, RIGHTLY_NAMED) for each in _proxies(LATENT_AT_ONE, seed)] for seed in seeds), strict=True)
    yield gate("proxy: captions retrieved after pretraining", statistics.mean(before))
    yield gate("proxy: share of that kept by tuning", statistics.mean(after) / statistics.mean(before))


def _proxies(run: Run, seed: int) -> list[LatentRewardModel]:
    """As pretrained, and as tuned."""
    return [LatentRewardModel.load(folder, device=_CPU).eval() for folder in proxies_of(run, seed)]


@torch.no_grad()
def retrieved(proxy: LatentRewardModel, mixture: Mixture) -> float:
    """How often the caption nearest to a picture's latent, among all of the corpus's, is its own."""
    asked = _asked(mixture)
    texts = proxy.embed_text(asked.texts)
    nearest = (proxy.embed_latents(asked.latents) @ texts.T).argmax(1)
    return nearest.eq(asked.own).double().mean().item()


class _Asked(NamedTuple):
    """Latents (N, C, h, w) of new pictures, the expert's features of all captions (M, D), and each picture's caption (N,)."""

    latents: Tensor
    texts: Tensor
    own: Tensor


@cache
@torch.no_grad()
def _asked(mixture: Mixture) -> _Asked:
    scenes = shuffled(split().train, "gates")
    shown = [scenes[number % len(scenes)] for number in range(NUM_PICTURES)]
    rows = web_rows(shown, range(GATE_SEED, GATE_SEED + NUM_PICTURES), mixture)
    expert = ClipReward.load(Path("toy/expert"), dtype=torch.float32, device=_CPU)
    texts = expert.encode_text([caption(scene) for scene in scenes])
    own = torch.tensor([scenes.index(row.claimed) for row in rows])
    return _Asked(_latents(draw_pixels(rows, first_seed=GATE_SEED)), texts, own)


def _latents(pixels: Tensor) -> Tensor:
    """Of the posterior's mean, as the pretraining's own accuracy is measured."""
    codec = Codec.load(Path("toy/teacher"), dtype=torch.float32, device=_CPU)
    moments = [codec.moments(part) for part in pixels.split(128)]
    return torch.cat([codec.latents(of, torch.zeros_like(of.mean)) for of in moments])
