"""Pictures beside the claims: the first held-out captions as each sampler draws them, a row for each, with its name."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from benchmarks.comparisons import TEACHERS, Drawn, by_expert, drawn
from benchmarks.studies import LINES, MATCHED, STEPS, WEIGHTS
from benchmarks.study_runs import COPIES, TEACHER, pictures_of

COLUMNS = 12
_SCALE = 2
_LABEL = 18
"""Pixels of height for a row's name."""


BEST_OF_FOUR = "best-of-four"


@dataclass(frozen=True)
class Row:
    """A sampler's pictures with its name: the first of each caption, or the one at ``place`` in the expert's order of the four."""

    label: str
    what: Drawn
    place: int | None = None

    def numbers(self, seed: int) -> list[int]:
        """Which of the sampler's pictures are shown: one for each of the first captions."""
        if self.place is None:
            return list(range(COLUMNS))
        order = by_expert(self.what, seed)
        return [int(order[self.place, column]) * order.shape[1] + column for column in range(COLUMNS)]


def rows_of(claim: str) -> list[Row]:
    """What is shown for a claim, by name: a line's (`main`, `flow`), a study's or `best-of-four`. Raises StopIteration for another."""
    from benchmarks.claims import study_named

    if claim == BEST_OF_FOUR:
        who = (("the teacher, 50 steps", TEACHERS), (f"LCM, {STEPS} steps", drawn(MATCHED)))
        return [Row(f"{label}: the expert's choice number {place + 1}", of, place) for label, of in who for place in range(COPIES)]
    if line := next((line for line in LINES if line.name == claim), None):
        shown = [Row("the teacher, 50 steps", Drawn(line, TEACHER))]
        for steps in (2, 4):
            shown += [
                Row(f"LCM of equal compute, {steps} steps", drawn(line, steps, "lcm")),
                Row(f"RG-LCM, {steps} steps", drawn(line, steps)),
            ]
        return shown
    study = study_named(claim)
    if claim != "over-optimisation":
        return [Row(f"{run.label}, {STEPS} steps", drawn(run)) for run in study.runs]
    wanted = {"lcm-300"} | {f"{kind}-{weight:g}" for kind in ("pixel", "latent") for weight in WEIGHTS[1:]}
    return [Row(f"{run.label}, {STEPS} steps", drawn(run)) for run in study.runs if run.name in wanted]


def sheet(rows: Sequence[Row], seed: int) -> Image.Image:
    """The pictures of each row, of one seed, twice as large; the same captions below one another, and the same noise where
    each sampler's first pictures are shown."""
    shown = [
        (row.label, [pictures_of(row.what.run, seed, row.what.sampler) / f"{number:05d}.png" for number in row.numbers(seed)])
        for row in rows
    ]
    side = Image.open(shown[0][1][0]).width * _SCALE
    canvas = Image.new("RGB", (COLUMNS * side, len(rows) * (side + _LABEL)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for number, (label, pictures) in enumerate(shown):
        top = number * (side + _LABEL)
        draw.text((2, top + 1), label, fill="black", font=font)
        for column, path in enumerate(pictures):
            picture = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (column * side, top + _LABEL))
    return canvas
