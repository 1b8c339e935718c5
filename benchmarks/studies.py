"""The claims that are tested at toy size, each as runs that differ in what the claim is about and in nothing else."""

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

MATCHED = Run(MAIN.name, "no reward, matched by compute", MAIN.overrides, arm="lcm")

FLOW = Run(
    "flow",
    "the line with a flow teacher",
    (
        "model.teacher=./toy/flow-teacher",
        "distillation.student={kind: same_inputs}",
        "distillation.omega=[2.0, 2.0]",
    ),
)
"""The demo's line with the toy's Stable Diffusion 3 as its teacher; all else is the preset's, and nothing was tuned."""

LINES = (MAIN, FLOW)
"""Each is a teacher's whole line: both arms in all numbers of steps, and the teacher's own pictures, which other runs with it share."""

LATENT = (
    "reward={kind: latent, weight: 1.0, chunk_size: 32, prediction: {kind: shared, every: 2}, "
    "tuning: {kind: online, learning_rate: 1.0e-3, label_every: 1}}"
)
"""The proxy's recipe, for claims about it: the preset's reward acts through the decoder, on as many samples. docs/decisions/0011."""

SHORT_STEPS = 300

_SHORT = ("distillation.match_compute=false", f"evaluation.num_steps=[{STEPS}]")


def _guided(name: str, label: str, *overrides: str) -> Run:
    return Run(name, label, (*_SHORT, "distillation.arms=[rg]", f"distillation.num_steps={SHORT_STEPS}", *overrides))


def _plain(name: str, label: str, *overrides: str, num_steps: int = SHORT_STEPS) -> Run:
    return Run(name, label, (*_SHORT, "distillation.arms=[lcm]", f"distillation.num_steps={num_steps}", *overrides), arm="lcm")


def _taught_by(expert: str, what: str, *how: str) -> tuple[Run, Run, Run]:
    """The proxy tuned on an expert that has no gradient, and the two controls."""
    reward = (LATENT, f"reward.expert={expert}", *how)
    return (
        _guided(f"{expert}-online", f"tuned on {what}", *reward),
        _guided(f"{expert}-frozen", "left as pretrained", *reward, "reward.tuning={kind: frozen}"),
        _guided(f"{expert}-shuffled", f"tuned on {what} of other captions", *reward, "reward.tuning.pairing=other_captions"),
    )


WEIGHTS = (0.3, 1.0, 3.0, 10.0)


def _pixel(weight: float) -> Run:
    return _guided(f"pixel-{weight:g}", f"pixel, weight {weight:g}", f"reward.weight={weight:g}")


def _latent(weight: float) -> Run:
    return _guided(f"latent-{weight:g}", f"latent, weight {weight:g}", LATENT, f"reward.weight={weight:g}")


LATENT_AT_ONE = _latent(1.0)
"""The proxy's recipe as it was tuned."""

PLAIN = _plain("lcm-300", "no reward")

CONTROLS = (_plain("lcm-300", "no reward, 300 steps"), _plain("lcm-500", "no reward, 500 steps", num_steps=500))
"""Shorter than the control that is matched by compute: the best of the three is the control stopped at its best."""

STUDIES: tuple[Study, ...] = (
    Study(
        "control-length",
        "Is the control held back by its length?",
        "Matched by compute, the control takes more steps than the guided student. As many of them, and fewer.",
        (
            *CONTROLS,
            MATCHED,
            Run(MAIN.name, "guided, 500 steps", MAIN.overrides),
        ),
        ("judge", "votes", "whole", "frechet", "expert"),
        baseline="guided, 500 steps",
    ),
    Study(
        "over-optimisation",
        "A reward followed too far, in pixels and through the latent proxy",
        "With the weight raised, the expert's score rises; do the judge, the panel and the pictures themselves follow? "
        f"{SHORT_STEPS} steps, half of the samples rewarded; one unit of weight for both ways.",
        (PLAIN, *map(_pixel, WEIGHTS), *map(_latent, WEIGHTS)),
        ("expert", "judge", "votes", "whole", "frechet", "high_frequency", "diversity"),
        baseline=PLAIN.label,
    ),
    Study(
        "votes-as-expert",
        "A reward without gradient teaches through the proxy: votes",
        "A further group of simulated raters votes on pictures; none of them is in the judge or the panel. Does a proxy tuned on their "
        f"votes guide better than one left as it was, or tuned on votes for other captions? {SHORT_STEPS} steps.",
        _taught_by("votes", "votes", "reward.weight=0.4"),
        ("votes", "judge", "whole", "expert", "frechet"),
        baseline="tuned on votes",
    ),
    Study(
        "checker-as-expert",
        "A reward without gradient teaches through the proxy: a program's count",
        f"The same with the checker, a program that counts how many of five conditions a picture meets. {SHORT_STEPS} steps.",
        _taught_by("checker", "counts", "reward.weight=0.26", "reward.tuning.labels={kind: hard, ties: left_out}"),
        ("checker", "judge", "whole", "votes", "frechet"),
        baseline="tuned on counts",
    ),
    Study(
        "proxy-start",
        "What pretraining the proxy is worth",
        f"The same guided run from a proxy contrasted on the cached latents, and from one with random weights. {SHORT_STEPS} steps.",
        (LATENT_AT_ONE, _guided("latent-random", "latent, weight 1, random start", LATENT, "reward.initial=random")),
        ("expert", "judge", "votes", "whole", "frechet"),
        baseline="latent, weight 1, random start",
    ),
    Study(
        "ict",
        "Improved consistency training's choices, one at a time",
        f"Song and Dhariwal's techniques (ICLR 2024) on latent consistency distillation without a reward, {SHORT_STEPS} steps each. The "
        "preset has their curriculum already: `constant grid` is the run without it.",
        (
            PLAIN,
            _plain("ict-constant-grid", "constant grid", "distillation.grid={kind: constant}"),
            _plain("ict-target", "stop-gradient target", "distillation.target={kind: stop_gradient, evaluation_decay: 0.99}"),
            _plain("ict-pseudo-huber", "pseudo-Huber", "distillation.distance={kind: pseudo_huber}"),
            _plain("ict-cauchy", "Cauchy", "distillation.distance={kind: cauchy}"),
            _plain("ict-lognormal", "lognormal timesteps", "distillation.timesteps={kind: lognormal, p_mean: -0.41}"),
            _plain("ict-mixed", "half lognormal", "distillation.timesteps={kind: lognormal, p_mean: -0.41, uniform_share: 0.5}"),
            _plain("ict-weighting", "1/gap weighting", "distillation.weighting=inverse_gap"),
            _plain("ict-dropout", "shared dropout 0.1", "distillation.dropout=0.1"),
            _plain("ict-training", "consistency training", "distillation.neighbour=data"),
        ),
        ("judge", "votes", "whole", "frechet", "frechet_to_teacher"),
        baseline=PLAIN.label,
    ),
)
