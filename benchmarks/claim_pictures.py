"""Pictures beside the claims: the first held-out captions as each sampler draws them, a row for each, with its name."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from benchmarks.comparisons import Drawn, drawn
from benchmarks.studies import LINES, STEPS, WEIGHTS
from benchmarks.study_runs import TEACHER, pictures_of

COLUMNS = 12
_SCALE = 2
_LABEL = 18
"""Pixels of height for a row's name."""


def rows_of(claim: str) -> list[tuple[str, Drawn]]:
    """The samplers shown for a claim, by name: a line's (`main`, `flow`) or a study's. Raises StopIteration for another."""
    from benchmarks.claims import study_named

    if line := next((line for line in LINES if line.name == claim), None):
        shown = [("the teacher, 50 steps", Drawn(line, TEACHER))]
        for steps in (2, 4):
            shown += [(f"LCM of equal compute, {steps} steps", drawn(line, steps, "lcm")), (f"RG-LCM, {steps} steps", drawn(line, steps))]
        return shown
    study = study_named(claim)
    if claim != "over-optimisation":
        return [(f"{run.label}, {STEPS} steps", drawn(run)) for run in study.runs]
    wanted = {"lcm-300"} | {f"{kind}-{weight:g}" for kind in ("pixel", "latent") for weight in WEIGHTS[1:]}
    return [(f"{run.label}, {STEPS} steps", drawn(run)) for run in study.runs if run.name in wanted]


def sheet(rows: Sequence[tuple[str, Drawn]], seed: int) -> Image.Image:
    """The first `COLUMNS` pictures of each row, of one seed, twice as large; the same captions and noise below one another."""
    folders = [(label, pictures_of(what.run, seed, what.sampler)) for label, what in rows]
    first = [Image.open(folders[0][1] / f"{column:05d}.png") for column in range(COLUMNS)]
    side = first[0].width * _SCALE
    canvas = Image.new("RGB", (COLUMNS * side, len(rows) * (side + _LABEL)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for row, (label, folder) in enumerate(folders):
        top = row * (side + _LABEL)
        draw.text((2, top + 1), label, fill="black", font=font)
        for column in range(COLUMNS):
            picture = Image.open(folder / f"{column:05d}.png").convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (column * side, top + _LABEL))
    return canvas
