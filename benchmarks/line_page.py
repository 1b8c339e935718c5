"""The section of docs/results.md on a teacher's whole line: both arms in all numbers of steps, against each other and the teacher."""

import statistics
from collections.abc import Sequence

from benchmarks.claims import compared, in_words
from benchmarks.comparisons import Drawn, drawn
from benchmarks.page_parts import figure, gaps, head, not_run_yet, seeds_in_words, value, write_picture, written
from benchmarks.studies import FLOW, MAIN, STEPS, Run
from benchmarks.study_runs import TEACHER, folder_of, metrics_of
from rglcd.evaluation.pages import figure_svg
from rglcd.evaluation.plots import Level, Panel, Point, Series
from rglcd.store.manifest import read_manifest

COLUMNS = ("expert", "judge", "votes", "checker", "whole", "frechet", "frechet_to_teacher", "diversity")
TITLES = {
    MAIN.name: "Two guided steps against the teacher's fifty, and against steps without a reward",
    FLOW.name: "The same with a teacher that predicts a flow",
}
OPENINGS = {
    MAIN.name: "",
    FLOW.name: "The teacher is a small Stable Diffusion 3 (`rglcd toy build --teacher flow`), which learnt the same pictures.\n",
}
PLOTS = {MAIN.name: "steps", FLOW.name: "steps-flow"}


def line_text(line: Run, seeds: Sequence[int]) -> str:
    """The section, of the seeds that are done."""
    if not seeds:
        return not_run_yet(TITLES[line.name])
    arms = read_manifest(folder_of(line, seeds[0]) / "student", made_by="distill").facts["arms"]
    cells = {
        (who, steps): [metrics_of(line, seed)[who][steps] for seed in seeds]
        for who in ("teacher", "lcm", "rg")
        for steps in _steps(line, who, seeds)
    }
    rows = [f"| {who} | {steps} | {' | '.join(figure(of, column) for column in COLUMNS)} |" for (who, steps), of in cells.items()]
    wins = [f"| {steps} | {' | '.join(_wins(line, int(steps), seeds))} |" for steps in _steps(line, "rg", seeds)]
    write_picture(line.name, seeds)
    shown = ("judge", "votes", "whole", "frechet")
    differences = [
        f"| {steps} | {' | '.join(gaps(cells['rg', steps], cells['lcm', steps], column) for column in shown)} |"
        for steps in _steps(line, "rg", seeds)
    ]
    chance = {scorer: _chance(line, seeds, scorer) for scorer in ("judge", "votes")}
    return f"""## {TITLES[line.name]}

{OPENINGS[line.name]}`lcm` is the control: no reward, and as many more training steps as the reward costs in counted operations
({arms["lcm"]["num_steps"]} against {arms["rg"]["num_steps"]}). {seeds_in_words(seeds).capitalize()}.

| who | steps | {" | ".join(head(column) for column in COLUMNS)} |
|---|--:|{"--:|" * len(COLUMNS)}
{chr(10).join(rows)}

{written(PLOTS[line.name], "Judge and votes against the number of steps", _plot(line, seeds))}

How often `rg` wins, with its 95 % interval (seed by seed):

| steps | against lcm: panel | judge | against the teacher's fifty: panel | judge |
|--:|---|---|---|---|
{chr(10).join(wins)}

Difference `rg` - `lcm`, seed by seed:

| steps | {" | ".join(head(column) for column in shown)} |
|--:|{"---|" * len(shown)}
{chr(10).join(differences)}

The choice of pictures leaves a mean uncertain by up to ±{chance["judge"]:.3f} by the judge and ±{chance["votes"]:.3f} by
the voters (95 %). Here and below, a difference whose sign is another with another seed shows nothing."""


def _wins(line: Run, steps: int, seeds: Sequence[int]) -> list[str]:
    """Of the guided student against the control and the teacher, by panel and judge."""
    opponents = (drawn(line, steps, "lcm"), Drawn(line, TEACHER))
    return [in_words(compared(by, drawn(line, steps), theirs, seeds)) for theirs in opponents for by in ("panel", "judge")]


def _plot(line: Run, seeds: Sequence[int]) -> str:
    """Judge and votes against the number of steps, the teacher's as a line across; seeds' means, and from the least to the most."""
    return figure_svg([_steps_panel(line, scorer, seeds) for scorer in ("judge", "votes")])


def _steps_panel(line: Run, scorer: str, seeds: Sequence[int]) -> Panel:
    def points(who: str) -> tuple[Point, ...]:
        of = {steps: [value(metrics_of(line, seed)[who][steps], scorer) for seed in seeds] for steps in _steps(line, who, seeds)}
        return tuple(Point(float(steps), statistics.mean(values), min(values), max(values)) for steps, values in of.items())

    (teacher,) = points("teacher")
    level = Level("teacher", "arm-teacher", teacher.y, teacher.low, teacher.high)
    arms = tuple(Series(who, f"arm-{who}", points(who)) for who in ("lcm", "rg"))
    ticks = tuple(point.x for point in arms[0].points)
    return Panel(scorer, "mean score; whiskers from the least seed to the most", arms, (level,), ticks, "steps", logarithmic=True)


def _steps(line: Run, who: str, seeds: Sequence[int]) -> list[str]:
    return list(metrics_of(line, seeds[0])[who])


def _chance(line: Run, seeds: Sequence[int], scorer: str) -> float:
    """Half of the widest 95 % interval of ``scorer``'s mean over the pictures of a cell of the first table."""
    means = [metrics_of(line, seed)[arm][str(STEPS)][scorer] for seed in seeds for arm in ("lcm", "rg")]
    return max((float(mean["high"]) - float(mean["low"])) / 2 for mean in means)
