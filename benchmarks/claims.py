"""The table that docs/results.md begins with: each claim of the method at toy size, and whether the runs show it.

By one measure a claim is shown if the interval's lower end is above one half and every seed's own figure is too; refuted if the upper
end is below and every seed's figure is too; else open. This rule and the list of claims are older than the first finished run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.claim_pictures import BEST_OF_FOUR
from benchmarks.comparisons import TEACHERS, Drawn, best_of, by_panel, by_scorer, drawn, pooled
from benchmarks.studies import CONTROLS, FLOW, MAIN, MATCHED, PLAIN, STUDIES, WEIGHTS, Run, Study
from benchmarks.study_runs import TEACHER, metrics_of, seeds_done

PEOPLE = ("panel", "judge")


@dataclass(frozen=True)
class Line:
    """A claim: what should win more than half of the comparisons. By measure its answers, one tensor (raters, captions) a seed."""

    claim: str
    answers: dict[str, Sequence[Tensor]]
    picture: str = ""

    def row(self) -> str:
        verdicts = {by: verdict(answers) for by, answers in self.answers.items()}
        figures = "; ".join(f"{by} {in_words(answers)}" for by, answers in self.answers.items())
        seeds = len(next(iter(self.answers.values())))
        return f"| {self.claim} | {_in_all(verdicts)} | {figures} | {seeds} | {self.picture} |"


def verdict(answers: Sequence[Tensor]) -> str:
    """Of one measure: "shown", "refuted" or "open"."""
    whole, each = pooled(answers), [of.mean().item() for of in answers]
    if whole.low > 0.5 and min(each) > 0.5:
        return "shown"
    return "refuted" if whole.high < 0.5 and max(each) < 0.5 else "open"


def _in_all(verdicts: dict[str, str]) -> str:
    found = set(verdicts.values())
    if len(found) == 1:
        return {"shown": "**shown**", "refuted": "refuted", "open": "not shown"}[found.pop()]
    return ", ".join(f"{word} by {by}" for by, word in verdicts.items() if word != "open")


def in_words(answers: Sequence[Tensor]) -> str:
    """`63 % [59, 67] (62, 63, 64)`: all seeds with the 95 % interval, and seed by seed where there are several."""
    whole = pooled(answers)
    seeds = f" ({', '.join(f'{100 * of.mean().item():.0f}' for of in answers)})" if len(answers) > 1 else ""
    return f"{100 * whole.value:.0f} % [{100 * whole.low:.0f}, {100 * whole.high:.0f}]{seeds}"


def compared(measure: str, ours: Drawn, theirs: Drawn, seeds: Sequence[int]) -> list[Tensor]:
    """By the panel, or by a scorer's scores."""
    return by_panel(ours, theirs, seeds) if measure == "panel" else by_scorer(measure, ours, theirs, seeds)


def claims_text() -> str:
    """The table, of the claims whose runs are done."""
    lines = list(_lines())
    if not lines:
        return "No claim has all its runs yet."
    rows = "\n".join(line.row() for line in lines)
    return f"""| claim: it wins more than half of the comparisons | | wins, 95 % interval (seed by seed) | seeds | pictures |
|---|---|---|--:|---|
{rows}"""


def _lines() -> Iterator[Line]:
    yield from _headline(MAIN)
    yield from _stopped_at_its_best()
    yield from _headline(FLOW, "flow teacher: ")
    yield from _frontier()
    yield from _without_gradient("votes-as-expert", "votes")
    yield from _without_gradient("checker-as-expert", "checker")
    yield from _pretraining()
    yield from _best_of_four()


def _line(claim: str, ours: Drawn, theirs: Drawn, seeds: Sequence[int], picture: str = "", *, by: Sequence[str] = PEOPLE) -> Line:
    return Line(claim, {measure: compared(measure, ours, theirs, seeds) for measure in by}, picture)


def _headline(line: Run, with_which: str = "") -> Iterator[Line]:
    """Of a teacher's line; ``with_which`` teacher is said before each claim."""
    if not (seeds := seeds_done([line])):
        return
    for steps in (2, 4):
        ours, who = drawn(line, steps), f"{with_which}RG-LCM in {steps} steps"
        yield _line(f"{who} against the teacher's 50", ours, Drawn(line, TEACHER), seeds, _seen(line.name))
        yield _line(f"{who} against an LCM of equal compute in {steps}", ours, drawn(line, steps, "lcm"), seeds, _seen(line.name))


def _stopped_at_its_best() -> Iterator[Line]:
    if seeds := seeds_done([MAIN, *CONTROLS]):
        best = best_control(seeds)
        picture = _seen(MAIN.name) if best == MATCHED else ""  # which has no other control
        yield _line(f"RG-LCM in 2 steps against the LCM stopped at its best ({best.label})", drawn(MAIN), drawn(best), seeds, picture)


def _seen(name: str) -> str:
    return f"[seen](images/claim-{name}.png)"


def best_control(seeds: Sequence[int]) -> Run:
    """Of the controls of three lengths, the one that the panel prefers most often to the teacher's fifty steps."""
    return max((*CONTROLS, MATCHED), key=lambda run: pooled(by_panel(drawn(run), TEACHERS, seeds)).value)


def _frontier() -> Iterator[Line]:
    study = study_named("over-optimisation")
    if not (seeds := seeds_done(study.runs)):
        return
    runs, picture = {run.name: run for run in study.runs}, _seen(study.name)
    plain, most = drawn(runs["lcm-300"]), f"{WEIGHTS[-1]:g}"
    pixel, latent = drawn(runs[f"pixel-{most}"]), drawn(runs[f"latent-{most}"])
    yield _line(f"pixel reward at weight {most} against no reward, by the reward itself", pixel, plain, seeds, picture, by=["expert"])
    yield _line("but no reward against it: the reward is over-optimised", plain, pixel, seeds, picture)
    yield _line(f"the proxy resists: latent against pixel reward, both at weight {most}", latent, pixel, seeds, picture)
    best = max((run for run in study.runs if run.name.startswith("latent-")), key=lambda run: _judge(run, seeds))
    yield _line(f"the proxy guides: {best.label} (of four the best by the judge) against no reward", drawn(best), plain, seeds, picture)


def _judge(run: Run, seeds: Sequence[int]) -> float:
    return sum(float(metrics_of(run, seed)[run.arm]["2"]["judge"]["mean"]) for seed in seeds)


def _without_gradient(name: str, expert: str) -> Iterator[Line]:
    study = study_named(name)
    if not (seeds := seeds_done((*study.runs, PLAIN))):
        return
    tuned, frozen, shuffled = map(drawn, study.runs)
    what, picture = "votes" if expert == "votes" else "a program's counts", _seen(name)
    yield _line(f"proxy tuned on {what} against one left as pretrained", tuned, frozen, seeds, picture, by=[expert])
    yield _line(f"proxy tuned on {what} against one tuned on those of other captions", tuned, shuffled, seeds, picture, by=[expert])
    yield _line(f"proxy tuned on {what} against no reward", tuned, drawn(PLAIN), seeds, picture, by=[expert])


def _pretraining() -> Iterator[Line]:
    study = study_named("proxy-start")
    if seeds := seeds_done(study.runs):
        pretrained, random = map(drawn, study.runs)
        yield _line("proxy pretrained against a random start", pretrained, random, seeds, _seen(study.name))


def _best_of_four() -> Iterator[Line]:
    """What the reward could at most do by choosing; nothing is trained."""
    if not (seeds := seeds_done([MAIN])):
        return
    # The teacher's pictures are the same with every seed.
    for label, who, of in (("the teacher's 50 steps", TEACHERS, seeds[:1]), ("the LCM's 2 steps", drawn(MATCHED), seeds)):
        judged, polled = best_of(who, of)
        claim = f"untrained: the expert's best of four of {label} against the others"
        yield Line(claim, {"panel": polled, "judge": judged}, _seen(BEST_OF_FOUR))


def study_named(name: str) -> Study:
    """Raises StopIteration for a name that no study has."""
    return next(study for study in STUDIES if study.name == name)
