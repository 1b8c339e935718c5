"""A comparison of two runs as a text for the terminal, and as a page in the style of the report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rglcd.evaluation.distance_names import LABELS
from rglcd.evaluation.measurement import TEACHER, Sampler
from rglcd.evaluation.pages import html_page
from rglcd.evaluation.pictures import ColumnGroup, PictureGrid, Shown, grid_of
from rglcd.evaluation.run_comparison import RunComparison, SamplerDifference, ValueDifference
from rglcd.evaluation.score_tables import OTHER_VALUES, UNASKED_TEXT
from rglcd.evaluation.wording import duration, interval_percent, label_of, percent, steps

_OTHER_LABELS = {"high_frequency": "fine detail", "saturation": "colour", UNASKED_TEXT: "unasked text"}


@dataclass(frozen=True)
class ValueRow:
    """A scorer or another value of each picture, in both runs."""

    label: str
    note: str
    decimals: int
    found: ValueDifference


@dataclass(frozen=True)
class PlainRow:
    """A number of each run, as text, that has no pairs."""

    label: str
    a: str
    b: str


@dataclass(frozen=True)
class Block:
    """The rows of one sampler."""

    title: str
    is_focus: bool
    values: tuple[ValueRow, ...]
    plain: tuple[PlainRow, ...]


def blocks(comparison: RunComparison) -> tuple[Block, ...]:
    """The table: a block for each sampler of both runs."""
    return tuple(_block(comparison, one) for one in comparison.samplers)


def _block(comparison: RunComparison, one: SamplerDifference) -> Block:
    values = tuple(
        ValueRow(
            _OTHER_LABELS.get(name, name),
            "training reward" if name in comparison.training_rewards else "",
            4 if name in OTHER_VALUES else 3,
            found,
        )
        for name, found in one.values.items()
    )
    plain = [PlainRow(LABELS.get(name, name), f"{found.a:.4g}", f"{found.b:.4g}") for name, found in one.distances.items()]
    plain += [] if one.seconds is None else [PlainRow("time an image", duration(one.seconds.a), duration(one.seconds.b))]
    return Block(f"{one.label}, {steps(one.sampler.num_steps)}", one.sampler == comparison.focus, values, tuple(plain))


# --- text ------------------------------------------------------------------------------------------


def as_text(comparison: RunComparison) -> str:
    """What ``rglcd compare`` prints, without what a terminal would obey: names and settings are other people's text."""
    return "\n".join("".join(each if each.isprintable() else " " for each in line) for line in _lines(comparison))


def _lines(comparison: RunComparison) -> Iterator[str]:
    for letter, run in (("A", comparison.a), ("B", comparison.b)):
        yield f"{letter}  {run.name}  (report {run.digest[:12]}, student {run.student[:12]})"
    yield from ("", comparison.verdict, "")
    yield "settings that differ:" if comparison.settings else "the settings are the same"
    yield from (f"  {key}: {a} in A, {b} in B" for key, a, b in comparison.settings)
    if comparison.refused:
        yield from ("", "not compared:", *(f"  {reason}" for reason in comparison.refused))
    if comparison.notes:
        yield from ("", *(f"note: {note}" for note in comparison.notes))
    if comparison.scorers:
        yield from ("", pairs_in_words(comparison))
    yield from ("", f"{'':18}{'A':>10}{'B':>10}   {'B − A':<28}B preferred")
    for block in blocks(comparison):
        yield from (block.title, *_rows(block))


def _rows(block: Block) -> Iterator[str]:
    for row in block.values:
        found, decimals = row.found, row.decimals
        head = f"  {row.label[:15]:16}{found.a:10.{decimals}f}{found.b:10.{decimals}f}   "
        if found.is_same:
            yield f"{head}the same in every picture"
        else:
            wins = "" if found.wins is None else f"{percent(found.wins.value)} ({interval_percent(found.wins)})"
            yield f"{head}{signed(found, decimals):<28}{wins}{f'  {row.note}' if row.note else ''}"
    yield from (f"  {row.label[:15]:16}{row.a:>10}{row.b:>10}" for row in block.plain)


def signed(found: ValueDifference, decimals: int) -> str:
    """A difference with its interval: ``+0.038 (+0.020 to +0.051)``."""
    one = found.difference
    return f"{one.value:+.{decimals}f} ({one.low:+.{decimals}f} to {one.high:+.{decimals}f})"


def pairs_in_words(comparison: RunComparison) -> str:
    """How many pairs there are, and what their intervals are over."""
    prompts = f"{comparison.num_captions} {'prompt' if comparison.num_captions == 1 else 'prompts'}"
    return f"{comparison.num_images} pairs of pictures, of the same prompt and noise, of {prompts}; intervals (95 %) are over prompts"


# --- page ------------------------------------------------------------------------------------------


def page_html(comparison: RunComparison) -> str:
    """The page: one file that needs nothing else, as the report is."""
    return html_page(
        "compare.html", comparison=comparison, blocks=blocks(comparison), grid=_grid(comparison), pairs=pairs_in_words(comparison)
    )


def _grid(comparison: RunComparison) -> PictureGrid | None:
    """The first pictures of the teacher and of the arm in the verdict, A's and B's side by side; None where they are no pairs."""
    if not comparison.scorers:
        return None
    judge = next((name for name in comparison.scorers if name not in comparison.training_rewards), comparison.scorers[0])
    shown = [one.sampler for one in comparison.samplers if one.sampler.who in (TEACHER, comparison.focus.who)]
    columns = [(sampler, _pictures(comparison, sampler, judge)) for sampler in shown]
    num_rows = min(min(len(pictures) for pictures in pair) for _, pair in columns)
    return grid_of(
        [(comparison.captions[row], [[pictures[row] for pictures in pair] for _, pair in columns]) for row in range(num_rows)],
        judge=judge,
        groups=tuple(ColumnGroup(f"{label_of(sampler.who)}, {steps(sampler.num_steps)}", ("A", "B")) for sampler in shown),
    )


def _pictures(comparison: RunComparison, sampler: Sampler, judge: str) -> tuple[Sequence[Shown], Sequence[Shown]]:
    def of(letter: str) -> list[Shown]:
        run = comparison.a if letter == "A" else comparison.b
        name, scores = f"{letter}: {label_of(sampler.who)}, {steps(sampler.num_steps)}", run.measured[sampler].table.scores[judge]
        # A contact sheet's last row may be filled with black.
        return [Shown(image, name, score) for image, score, _ in zip(run.pictures(sampler), scores, comparison.captions, strict=False)]

    return of("A"), of("B")
