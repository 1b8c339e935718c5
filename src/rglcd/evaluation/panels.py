"""Which plots the report holds: every scorer against the number of steps, and the curves of each training."""

from collections.abc import Callable, Mapping, Sequence

from rglcd.evaluation.comparison import Comparison, Summary
from rglcd.evaluation.distance_names import LABELS
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.measurement import REAL, TEACHER
from rglcd.evaluation.plots import Level, Panel, Point, Series, thinned
from rglcd.evaluation.scatter import Mark, Tradeoff
from rglcd.evaluation.wording import LRM, css_class, label_of

Records = Sequence[Mapping[str, float]]
"""A training's records: ``images`` seen, then figures by name."""

_PRETRAINING = {
    "retrieval_accuracy": ("Retrieval accuracy of the proxy", "held-out latents, among as many captions; before the distillation"),
    "loss": ("Contrastive loss", "of the proxy’s pretraining"),
}
_CURVES = {
    "distance": ("Consistency distance", "between the student and its own average one step on"),
    "expert_reward": ("Expert’s score", "of the student’s predictions"),
    "reward": ("Training reward", "of the student’s predictions"),
    "lrm_loss": ("Proxy against expert", "divergence of their preferences"),
    "lrm_agreement": ("Proxy and expert agree", "on pairs of pictures, before each update"),
    "lrm_retrieval": ("Proxy finds captions", "of a batch’s real latents among its captions, before each update"),
    "grad_norm": ("Gradient norm", "before clipping"),
}


def quality_panels(comparison: Comparison) -> list[Panel]:
    """A panel for each scorer, held-out ones first, and one for the Fréchet distance."""
    training_reward = [name for name in comparison.scorers if name not in comparison.judges]
    panels = [_scorer_panel(comparison, scorer) for scorer in [*comparison.judges, *training_reward]]
    frechet = comparison.frechet_of(comparison.teacher)
    if frechet is not None:
        title = _in_full(str(comparison.frechet_name))
        note = "to real images; lower is better" if not comparison.frechet_has_too_few_images else "not meaningful: too few images"
        panels.append(_steps_panel(comparison, title, note, _exact(frechet), lambda summary: _exact(comparison.frechet_of(summary))))
    return panels


def _scorer_panel(comparison: Comparison, scorer: str) -> Panel:
    teacher = comparison.teacher.scores[scorer].mean
    return _steps_panel(comparison, scorer, _note(comparison, scorer), teacher, lambda summary: summary.scores[scorer].mean)


def _note(comparison: Comparison, scorer: str) -> str:
    if scorer == comparison.trained_on:
        return "the reward it was trained on"
    return "has weights or parts of the reward it was trained on" if scorer in comparison.akin else "never seen in training"


def tradeoffs(comparison: Comparison) -> list[Tradeoff]:
    """Each scorer, held-out ones first, against the Fréchet distance, which has no interval, and the first against kernel distances."""
    training_reward = [name for name in comparison.scorers if name not in comparison.judges]
    frechet = comparison.frechet_name
    plots = []
    if frechet is not None:
        few = "; not meaningful: too few images" if comparison.frechet_has_too_few_images else ""
        across = f"{_in_full(frechet)} to real images, lower is better{few}"
        plots += [
            _tradeoff(comparison, scorer, across, lambda summary: _exact(comparison.frechet_of(summary)), logarithmic=True)
            for scorer in [*comparison.judges, *training_reward]
        ]
    judge = comparison.judges[0]
    for name in comparison.teacher.distances.kernel:
        drawn = [summary for summary in comparison.summaries if summary.sampler.who != REAL]
        if all(name in summary.distances.kernel for summary in drawn):
            across = f"{LABELS[name]} to real images, lower is better"
            plots.append(_tradeoff(comparison, judge, across, _kernel(name), logarithmic=False))
    return plots


def _kernel(name: str) -> Callable[[Summary], Estimate]:
    return lambda summary: summary.distances.kernel[name]


def _in_full(frechet: str) -> str:
    return "Fréchet distance" if frechet == "frechet" else LABELS[frechet]


def _tradeoff(
    comparison: Comparison, scorer: str, across: str, distance_of: Callable[[Summary], Estimate], *, logarithmic: bool
) -> Tradeoff:
    drawn = [s for s in comparison.summaries if s.sampler.who == TEACHER] + [s for a in comparison.arms for s in comparison.steps_of(a)]
    marks = tuple(
        Mark(
            label_of(summary.sampler.who),
            css_class(summary.sampler.who),
            str(summary.sampler.num_steps),
            distance_of(summary),
            summary.scores[scorer].mean,
        )
        for summary in drawn
    )
    is_positive = all(mark.across.low > 0 for mark in marks)
    return Tradeoff(scorer, _note(comparison, scorer), across, scorer, marks, logarithmic=logarithmic and is_positive)


def _steps_panel(comparison: Comparison, title: str, note: str, teacher: Estimate, estimate_of: Callable[[Summary], Estimate]) -> Panel:
    ticks = tuple(sorted({float(s.sampler.num_steps) for arm in comparison.arms for s in comparison.steps_of(arm)}))
    level = Level(label_of(TEACHER), css_class(TEACHER), teacher.value, teacher.low, teacher.high)
    lines = tuple(_arm_series(comparison, arm, estimate_of) for arm in comparison.arms)
    return Panel(title, note, lines, (level,), ticks, "steps", logarithmic=True)


def _arm_series(comparison: Comparison, arm: str, estimate_of: Callable[[Summary], Estimate]) -> Series:
    points = []
    for summary in comparison.steps_of(arm):
        estimate = estimate_of(summary)
        points.append(Point(summary.sampler.num_steps, estimate.value, estimate.low, estimate.high))
    return Series(label_of(arm), css_class(arm), tuple(points))


def _exact(value: float | None) -> Estimate:
    assert value is not None, "students are compared with the real images"
    return Estimate(value, value, value)


def training_panels(curves: Mapping[str, Records], pretraining: Records) -> list[Panel]:
    """The curves of the latent reward model's ``pretraining``, then those of each arm, for the figures there are."""
    return [*_curve_panels({LRM: pretraining}, _PRETRAINING), *_curve_panels(curves, _CURVES)]


def _curve_panels(curves: Mapping[str, Records], panels_by_key: Mapping[str, tuple[str, str]]) -> list[Panel]:
    panels = []
    for key, (title, note) in panels_by_key.items():
        series = []
        for arm, records in curves.items():
            held = [record for record in records if key in record]
            points = thinned([record["images"] for record in held], [record[key] for record in held])
            if len(points) > 1:
                series.append(Series(label_of(arm), css_class(arm), points))
        if series:
            end = max(point.x for line in series for point in line.points)
            panels.append(Panel(title, note, tuple(series), (), (0.0, end / 2, end), "images seen", logarithmic=False))
    return panels
