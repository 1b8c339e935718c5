"""The claims that are tested at toy size, each as runs that differ in what the claim is about and in nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 2
"""Where a study looks, unless it says otherwise: the paper's headline is about two steps."""


@dataclass(frozen=True)
class Run:
    """One line, as overrides of ``params.yaml``; ``arm`` is the student that is looked at."""

    name: str
    label: str
    overrides: tuple[str, ...]
    arm: str = "rg"


@dataclass(frozen=True)
class Study:
    """A claim of the method, the runs that could show it, and the columns that would.

    Every other run is compared with the one whose label is ``baseline``.
    """

    name: str
    title: str
    question: str
    runs: tuple[Run, ...]
    columns: tuple[str, ...]
    baseline: str


MAIN = Run("main", "the demo's line", ())
"""Both arms at the preset's length: claims about the teacher and about the control are read from it."""

LATENT = "reward={kind: latent, weight: 1.0, chunk_size: 32, tuning: {kind: online, learning_rate: 1.0e-4, label_every: 1}}"
"""The proxy's recipe, for claims about it: the preset's reward acts through the decoder. How it was tuned: docs/decisions/0011."""

_SHORT = ("distillation.match_compute=false", f"evaluation.num_steps=[{STEPS}]")


def _guided(name: str, label: str, num_steps: int, *overrides: str) -> Run:
    return Run(name, label, (*_SHORT, "distillation.arms=[rg]", f"distillation.num_steps={num_steps}", *overrides))


def _plain(name: str, label: str, num_steps: int, *overrides: str) -> Run:
    return Run(name, label, (*_SHORT, "distillation.arms=[lcm]", f"distillation.num_steps={num_steps}", *overrides), arm="lcm")


def _weights(kind: str, weights: Sequence[float]) -> tuple[Run, ...]:
    reward = {"pixel": "{kind: pixel, weight: %g, chunk_size: 32}"}
    return tuple(
        _guided(f"{kind}-{weight:g}", f"{kind}, weight {weight:g}", 200, f"reward={reward[kind] % weight}")
        if kind in reward
        else _guided(f"{kind}-{weight:g}", f"{kind}, weight {weight:g}", 200, LATENT, f"reward.weight={weight:g}")
        for weight in weights
    )


UNGUIDED = _plain("unguided", "no reward", 200)

STUDIES: tuple[Study, ...] = (
    Study(
        "control-length",
        "Is the control held back by its length?",
        "Matched by compute, the control takes more steps than the guided student. Fewer of them, as many, and those of the first table.",
        (
            _plain("lcm-250", "no reward, 250 steps", 250),
            _plain("lcm-500", "no reward, as many as guided: 500", 500),
            Run(MAIN.name, "no reward, matched by compute", MAIN.overrides, arm="lcm"),
            Run(MAIN.name, "guided, 500 steps", MAIN.overrides),
        ),
        ("judge", "checker", "whole", "frechet", "expert"),
        baseline="guided, 500 steps",
    ),
    Study(
        "over-optimisation",
        "A reward followed too far, in pixels and through the latent proxy",
        "With the weight raised, the expert's score rises; do the judge, the checker and the pictures themselves follow?",
        (UNGUIDED, *_weights("pixel", (0.1, 1.0, 10.0)), *_weights("latent", (0.1, 1.0, 10.0))),
        ("expert", "judge", "checker", "frechet_to_teacher", "high_frequency", "saturation", "diversity"),
        baseline=UNGUIDED.label,
    ),
    Study(
        "checker-as-expert",
        "A reward without gradient teaches through the proxy",
        "The checker is a program. Does a proxy tuned on its answers guide better than one left as it was, or tuned on the answers of "
        "other captions?",
        (
            _guided("checker-online", "tuned on the checker", 400, LATENT, "reward.expert=checker"),
            _guided("checker-frozen", "left as pretrained", 400, LATENT, "reward.expert=checker", "reward.tuning={kind: frozen}"),
            _guided(
                "checker-shuffled",
                "tuned on other captions' answers",
                400,
                LATENT,
                "reward.expert=checker",
                "reward.tuning.pairing=other_captions",
            ),
        ),
        ("checker", "judge", "expert", "frechet"),
        baseline="tuned on the checker",
    ),
    Study(
        "ict",
        "Improved consistency training's choices, one at a time",
        "Song and Dhariwal's techniques (ICLR 2024) on latent consistency distillation without a reward, 200 steps each.",
        (
            UNGUIDED,
            _plain("ict-target", "stop-gradient target", 200, "distillation.target={kind: stop_gradient}"),
            _plain("ict-pseudo-huber", "pseudo-Huber", 200, "distillation.distance={kind: pseudo_huber}"),
            _plain("ict-cauchy", "Cauchy", 200, "distillation.distance={kind: cauchy}"),
            _plain("ict-lognormal", "lognormal timesteps", 200, "distillation.timesteps={kind: lognormal, p_mean: -0.41}"),
            _plain("ict-mixed", "half lognormal", 200, "distillation.timesteps={kind: lognormal, p_mean: -0.41, uniform_share: 0.5}"),
            _plain("ict-weighting", "1/gap weighting", 200, "distillation.weighting=inverse_gap"),
            _plain("ict-constant-grid", "constant grid", 200, "distillation.grid={kind: constant}"),
            _plain("ict-dropout", "shared dropout 0.1", 200, "distillation.dropout=0.1"),
            _plain("ict-training", "consistency training", 200, "distillation.neighbour=data"),
        ),
        ("checker", "judge", "frechet", "frechet_to_teacher", "diversity"),
        baseline=UNGUIDED.label,
    ),
    Study(
        "proxy-start",
        "What pretraining the proxy is worth",
        "The same guided run from a proxy contrasted on the cached latents, and from one with random weights.",
        (
            _guided("proxy-pretrained", "pretrained", 400, LATENT),
            _guided("proxy-random", "random", 400, LATENT, "reward.initial=random"),
        ),
        ("expert", "judge", "checker", "frechet"),
        baseline="random",
    ),
)
