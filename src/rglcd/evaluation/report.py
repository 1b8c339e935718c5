"""From measurements to what is told: summaries with intervals, the verdict, and the files that hold numbers.

The verdict is computed, never written: it is won only by an interval that excludes a tie, on scorers that the student
was not trained on.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from rglcd.evaluation.measurement import REAL, TEACHER, Measurement, Subject, sheet_image
from rglcd.evaluation.statistics import Estimate, bootstrap_mean, win_rate

PLAIN_ARM = "lcm"
"""The arm that no reward guides: what a guided arm is compared with, beside the teacher."""

LRM = "lrm"
"""The latent reward model: no arm, but its training is drawn as theirs is."""

LABELS = {REAL: "Real images", TEACHER: "Teacher", PLAIN_ARM: "LCM", "rg": "RG-LCM", LRM: "LRM"}

_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 10: "ten", 20: "twenty", 50: "fifty"}


def label_of(who: str) -> str:
    """The name readers know an arm by."""
    return LABELS.get(who, who)


def in_words(count: int) -> str:
    """Small counts as words."""
    return _WORDS.get(count, str(count))


@dataclass(frozen=True)
class ScoreSummary:
    """One scorer's mean; the share of images with its greatest possible score; win rates by opponent, image by image."""

    mean: Estimate
    full_marks: float
    win_rates: dict[str, Estimate]


@dataclass(frozen=True)
class Summary:
    """One subject in numbers."""

    subject: Subject
    scores: dict[str, ScoreSummary]
    fid: float | None
    fid_to_teacher: float | None
    diversity: float | None
    high_frequency: float
    saturation: float
    seconds_per_image: float | None


@dataclass(frozen=True)
class Comparison:
    """All subjects side by side. ``trained_on`` is the scorer that guided the arms (None: no reward did)."""

    summaries: tuple[Summary, ...]
    num_images: int
    trained_on: str | None

    @property
    def teacher(self) -> Summary:
        (found,) = (summary for summary in self.summaries if summary.subject.who == TEACHER)
        return found

    @property
    def arms(self) -> list[str]:
        """In the order they were measured; the guided one, if any, last."""
        arms = [summary.subject.who for summary in self.summaries if summary.subject.who not in (TEACHER, REAL)]
        return sorted(dict.fromkeys(arms), key=lambda arm: arm != PLAIN_ARM)

    @property
    def scorers(self) -> list[str]:
        return list(self.teacher.scores)

    @property
    def judges(self) -> list[str]:
        """The scorers that no student was trained on; all of them where there is no other."""
        return [name for name in self.scorers if name != self.trained_on] or self.scorers

    def steps_of(self, arm: str) -> list[Summary]:
        """The summaries of ``arm``, fewest steps first."""
        return sorted((s for s in self.summaries if s.subject.who == arm), key=lambda s: s.subject.num_steps)

    @property
    def focus(self) -> Summary:
        """What the verdict is about: the guided arm at two steps, or as near as there is."""
        return min(self.steps_of(self.arms[-1]), key=lambda summary: abs(summary.subject.num_steps - 2))


def compare(measurements: Sequence[Measurement], *, seed: int, trained_on: str | None) -> Comparison:
    """Means with bootstrap intervals, and win rates against the teacher and against the plain arm at equal steps."""
    by_subject = {measurement.subject: measurement for measurement in measurements}
    (teacher,) = (measurement for measurement in measurements if measurement.subject.who == TEACHER)
    summaries = []
    for measurement in measurements:
        subject = measurement.subject
        opponents = {} if subject.who in (TEACHER, REAL) else {TEACHER: teacher}
        plain = by_subject.get(Subject(PLAIN_ARM, subject.num_steps))
        if opponents and plain is not None and subject.who != PLAIN_ARM:
            opponents[PLAIN_ARM] = plain
        summaries.append(_summary(measurement, opponents, seed=seed))
    return Comparison(tuple(summaries), len(teacher.saturation), trained_on)


def _summary(measurement: Measurement, opponents: Mapping[str, Measurement], *, seed: int) -> Summary:
    scores = {}
    for name, values in measurement.scores.items():
        ours = torch.tensor(values, dtype=torch.float64)
        wins = {who: win_rate(ours, torch.tensor(other.scores[name], dtype=torch.float64)) for who, other in opponents.items()}
        scores[name] = ScoreSummary(bootstrap_mean(ours, seed=seed), measurement.full_marks[name], wins)
    return Summary(
        subject=measurement.subject,
        scores=scores,
        fid=measurement.fid,
        fid_to_teacher=measurement.fid_to_teacher,
        diversity=measurement.diversity,
        high_frequency=_mean(measurement.high_frequency),
        saturation=_mean(measurement.saturation),
        seconds_per_image=measurement.seconds_per_image,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --- the verdict ---------------------------------------------------------------------------------


class Outcome(StrEnum):
    """What a win rate's interval lets one say."""

    BETTER = "better"
    UNDECIDED = "undecided"
    WORSE = "worse"


def outcome_of(rate: Estimate) -> Outcome:
    """Better or worse only if the whole interval is on that side of a tie."""
    if rate.low > 0.5:
        return Outcome.BETTER
    return Outcome.WORSE if rate.high < 0.5 else Outcome.UNDECIDED


def verdict(comparison: Comparison) -> str:
    """One honest sentence: the guided student in few steps against the teacher in many."""
    focus = comparison.focus
    student = f"{in_words(focus.subject.num_steps).capitalize()} {_steps(focus)} of {label_of(focus.subject.who)}"
    teacher = f"the teacher’s {in_words(comparison.teacher.subject.num_steps)}"
    by = {outcome: [n for n in comparison.judges if _outcome(focus, n) is outcome] for outcome in Outcome}
    is_one = focus.subject.num_steps == 1
    if not by[Outcome.WORSE] and not by[Outcome.UNDECIDED]:
        return f"{student} {'is' if is_one else 'are'} preferred to {teacher}, by {_listed(by[Outcome.BETTER])}."
    if not by[Outcome.BETTER] and not by[Outcome.WORSE]:
        return f"{student} and {teacher} cannot be told apart by {_listed(by[Outcome.UNDECIDED])}."
    if not by[Outcome.BETTER] and not by[Outcome.UNDECIDED]:
        return f"{student} {'does' if is_one else 'do'} not reach {teacher} yet, says {_listed(by[Outcome.WORSE])}."
    parts = []
    if by[Outcome.BETTER]:
        parts.append(f"preferred by {_listed(by[Outcome.BETTER])}")
    if by[Outcome.UNDECIDED]:
        parts.append(f"not told apart by {_listed(by[Outcome.UNDECIDED])}")
    if by[Outcome.WORSE]:
        parts.append(f"rated lower by {_listed(by[Outcome.WORSE])}")
    return f"{student} against {teacher}: {', '.join(parts)}."


def findings(comparison: Comparison) -> list[str]:
    """The sentences under the verdict: against the plain arm, and warnings that the numbers call for."""
    focus = comparison.focus
    sentences = []
    against_plain = {n: focus.scores[n].win_rates[PLAIN_ARM] for n in comparison.judges if PLAIN_ARM in focus.scores[n].win_rates}
    if against_plain:
        rates = ", ".join(f"{percent(rate.value)} by {name} ({interval_percent(rate)})" for name, rate in against_plain.items())
        sentences.append(f"Against the plain LCM in as many steps it wins {rates}.")
    if comparison.trained_on is None:
        sentences.append("No reward guided the students of this run.")
    elif comparison.judges == comparison.scorers and comparison.trained_on in comparison.scorers:
        sentences.append(f"The only scorer, {comparison.trained_on}, is the training reward: it cannot tell quality from flattery.")
    elif comparison.trained_on in comparison.scorers and _outcome(focus, comparison.trained_on) is Outcome.BETTER:
        losing = [name for name in comparison.judges if _outcome(focus, name) is Outcome.WORSE]
        if losing:
            sentences.append(
                f"Signs of over-optimisation: {comparison.trained_on}, the reward it was trained on, prefers the student "
                f"while {_listed(losing)} {'prefers' if len(losing) == 1 else 'prefer'} the teacher."
            )
    return sentences


def speed_up(comparison: Comparison) -> float | None:
    """How many images the student draws in the time the teacher takes for one."""
    ours, theirs = comparison.focus.seconds_per_image, comparison.teacher.seconds_per_image
    return theirs / ours if ours and theirs else None


def _steps(summary: Summary) -> str:
    return "step" if summary.subject.num_steps == 1 else "steps"


def _outcome(summary: Summary, scorer: str) -> Outcome:
    return outcome_of(summary.scores[scorer].win_rates[TEACHER])


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# --- numbers as text -----------------------------------------------------------------------------


def percent(value: float) -> str:
    """A share without decimals."""
    return f"{100 * value:.0f} %"


def interval_percent(rate: Estimate) -> str:
    """An interval of shares."""
    return f"{100 * rate.low:.0f}–{100 * rate.high:.0f} %"


def duration(seconds: float) -> str:
    """Seconds in the unit one would say them in, three digits at most."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


# --- files ---------------------------------------------------------------------------------------


def metrics(comparison: Comparison) -> dict[str, Any]:
    """``metrics.json``: nested by subject and steps, with every interval; results only, no times."""
    nested: dict[str, Any] = {}
    for summary in comparison.summaries:
        numbers: dict[str, Any] = {"high_frequency": summary.high_frequency, "saturation": summary.saturation}
        optional = {"fid": summary.fid, "fid_to_teacher": summary.fid_to_teacher, "diversity": summary.diversity}
        numbers |= {name: value for name, value in optional.items() if value is not None}
        for name, score in summary.scores.items():
            numbers[name] = {"mean": score.mean.value, "low": score.mean.low, "high": score.mean.high, "full_marks": score.full_marks}
            for opponent, rate in score.win_rates.items():
                numbers[name][f"win_rate_{opponent}"] = {"value": rate.value, "low": rate.low, "high": rate.high}
        if summary.subject.num_steps:
            nested.setdefault(summary.subject.who, {})[str(summary.subject.num_steps)] = numbers
        else:
            nested[summary.subject.who] = numbers
    rounded: dict[str, Any] = _rounded(nested)
    return rounded


def headlines(comparison: Comparison) -> dict[str, dict[str, float]]:
    """``metrics/<subject>.json``: what the table says of each subject, flat, so that ``dvc metrics show`` has a row for each."""
    judge = comparison.judges[0]
    told: dict[str, dict[str, float]] = {}
    for summary in comparison.summaries:
        figures = {name: score.mean.value for name, score in summary.scores.items()}
        figures |= {} if summary.fid is None else {"fid": summary.fid}
        figures |= {f"wins over {opponent}, {judge}": rate.value for opponent, rate in summary.scores[judge].win_rates.items()}
        told[summary.subject.name] = _rounded(figures)
    return told


def speeds(comparison: Comparison) -> dict[str, dict[str, float]]:
    """``speed.json``: seconds per image, text encoding and decoding included, by subject and steps."""
    nested: dict[str, dict[str, float]] = {}
    for summary in comparison.summaries:
        if summary.seconds_per_image is not None:
            nested.setdefault(summary.subject.who, {})[str(summary.subject.num_steps)] = summary.seconds_per_image
    return nested


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 6)


def quality_csv(comparison: Comparison) -> str:
    """``quality.csv``, for ``dvc plots``: a row for each number of steps, a column for each arm and score.

    A column is called ``<arm> <scorer>`` or ``<arm> fid``; the teacher's figure, of its own many steps, stands in every row.
    """
    columns: dict[str, dict[int, float]] = {}
    steps = sorted({summary.subject.num_steps for arm in comparison.arms for summary in comparison.steps_of(arm)})
    for summary in comparison.summaries:
        who, at = summary.subject.who, summary.subject.num_steps
        figures = {name: score.mean.value for name, score in summary.scores.items()}
        figures |= {} if summary.fid is None else {"fid": summary.fid}
        for name, value in figures.items():
            if who != REAL:
                columns.setdefault(f"{who} {name}", {}).update(dict.fromkeys(steps if who == TEACHER else [at], value))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["steps", *columns])
    for at in steps:
        writer.writerow([at, *(round(column[at], 6) if at in column else "" for column in columns.values())])
    return stream.getvalue()


def markdown(comparison: Comparison) -> str:
    """``report.md``: the verdict and the table."""
    scorers = comparison.scorers
    head = ["", "steps", *(f"{name}{' (trained on)' if name == comparison.trained_on else ''}" for name in scorers)]
    head += [f"wins, {name}" for name in comparison.judges] + ["FID", "s/image"]
    lines = [f"**{verdict(comparison)}**", "", *findings(comparison), ""]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for summary in comparison.summaries:
        cells = [label_of(summary.subject.who), str(summary.subject.num_steps or "–")]
        cells += [f"{s.mean.value:.3f} [{s.mean.low:.3f}, {s.mean.high:.3f}]" for s in summary.scores.values()]
        for name in comparison.judges:
            rate = summary.scores[name].win_rates.get(TEACHER)
            cells.append(f"{percent(rate.value)} [{interval_percent(rate)}]" if rate else "–")
        cells.append("–" if summary.fid is None else f"{summary.fid:.2f}")
        cells.append("–" if summary.seconds_per_image is None else f"{summary.seconds_per_image:.4g}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"{comparison.num_images} images each, from the same noise; intervals are 95 %; wins are over the teacher, a tie half a win.",
    ]
    return "\n".join(lines) + "\n"


def grid_png(sheets: Mapping[Subject, Image.Image], captions: Sequence[str], *, side: int) -> Image.Image:
    """The contact sheet for READMEs: a row per prompt, a column per subject, at least 96 pixels a picture."""
    scale = max(1, 96 // side)
    cell, gap, header, text = side * scale, 6, 40, 20
    width = len(sheets) * (cell + gap) + gap
    picture = Image.new("RGB", (width, header + len(captions) * (cell + gap + text) + gap), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=12)
    for column, (subject, sheet) in enumerate(sheets.items()):
        left = gap + column * (cell + gap)
        draw.text((left, 6), label_of(subject.who), fill="#222222", font=font)
        steps = "1 step" if subject.num_steps == 1 else f"{subject.num_steps} steps"
        draw.text((left, 21), steps, fill="#777777", font=font)
        for row in range(len(captions)):
            image = sheet_image(sheet, row, side=side)
            picture.paste(image.resize((cell, cell), Image.Resampling.NEAREST), (left, header + row * (cell + gap + text) + text))
    for row, caption in enumerate(captions):
        draw.text((gap, header + row * (cell + gap + text) + 3), _fitting(caption, font, width - 2 * gap), fill="#444444", font=font)
    return picture


def _fitting(caption: str, font: Any, width: int) -> str:
    # Pillow refuses to measure several lines; control characters have no glyph.
    line = "".join(character if character.isprintable() else " " for character in caption)[:400]
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
