"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere.

It opens from disk, from an object store, and inside Kubeflow's sandboxed frame. A content security policy in the page
forbids everything but its own styles and its own pictures. Captions are other people's text: all of them are escaped.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import yaml
from PIL import Image

from rglcd.evaluation.measurement import REAL, TEACHER, Subject, sheet_image
from rglcd.evaluation.plots import Level, Panel, Point, Series, panel_svg, thinned
from rglcd.evaluation.report import (
    LRM,
    Comparison,
    Summary,
    duration,
    findings,
    in_words,
    interval_percent,
    label_of,
    outcome_of,
    percent,
    speed_up,
    verdict,
)
from rglcd.evaluation.statistics import Estimate
from rglcd.evaluation.style import STYLE

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_CRISP_SIDE = 128
"""Pictures up to this side are embedded as they are and enlarged crisply; larger ones are shrunk to :data:`_PREVIEW_SIDE`."""

_PREVIEW_SIDE = 320

_LONGEST_CAPTION = 240

_PRETRAINING = {
    "retrieval_accuracy": ("Proxy finds the caption", "of held-out latents, among as many captions; before the distillation"),
    "loss": ("Contrastive loss", "of the proxy’s pretraining"),
}
_CURVES = {
    "distance": ("Consistency distance", "between the student and its own average one step on"),
    "expert_reward": ("Expert’s score", "of the student’s predictions"),
    "reward": ("Reward", "as the student is told it"),
    "lrm_loss": ("Proxy against expert", "divergence of their preferences"),
    "lrm_agreement": ("Proxy and expert agree", "on pairs of pictures, before each update"),
    "grad_norm": ("Gradient norm", "before clipping"),
}


Records = Sequence[Mapping[str, float]]
"""A training's records: ``images`` seen, then figures by name."""


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from: enough to make them again.

    ``stages`` is the lineage by stage name (``version``, ``digest``, ``sections``), in order; ``seconds`` what each took.
    """

    stages: Mapping[str, Mapping[str, Any]]
    seconds: Mapping[str, float]
    teacher: str
    guidance_scale: float
    prompts: str
    num_prompts: int
    device: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Pictures:
    """Each drawn subject's contact sheet of square images of ``side`` pixels, and the captions of the first rows to show.

    ``scores`` are what ``judge`` said of each picture.
    """

    sheets: Mapping[Subject, Image.Image]
    side: int
    captions: Sequence[str]
    judge: str
    scores: Mapping[Subject, Sequence[float]]


def page(
    comparison: Comparison,
    *,
    pictures: Pictures,
    provenance: Provenance,
    curves: Mapping[str, Records],
    pretraining: Records = (),
) -> str:
    """The whole report. ``curves`` are each arm's training records, ``pretraining`` those of the latent reward model."""
    sections = [
        _section("pictures", "Same prompt, same noise", _grid_note(pictures), _grid(pictures)),
        _section("plot", "Quality against steps", _PLOT_NOTE, _quality_panels(comparison)),
        _section("numbers", "Every number", _table_note(comparison), _table(comparison)),
    ]
    panels = [*_curve_panels({LRM: pretraining}, _PRETRAINING), *_curve_panels(curves, _CURVES)]
    if panels:
        drawn = f'<div class="panels">{"".join(map(panel_svg, panels))}</div>'
        sections.append(_section("training", "Training", "As the records of each run have it.", drawn))
    sections.append(_section("run", "What was run", "", _run(provenance)))
    sections.append(_section("again", "How to make it again", "", _again(provenance)))
    title = verdict(comparison)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>RG-LCD report — {_e(title)}</title><style>{STYLE}</style></head><body><main>"
        f"{_header(comparison, title, provenance)}{''.join(sections)}"
        "<footer>Made by rg-lcd from its own measurements; the verdict above is computed, not written.</footer></main></body></html>\n"
    )


def _e(text: object) -> str:
    return html.escape(str(text))


def _section(name: str, title: str, note: str, body: str) -> str:
    lead = f'<p class="note">{note}</p>' if note else ""
    return f'<section id="{name}"><h2>{title}</h2>{lead}{body}</section>'


# --- the head ------------------------------------------------------------------------------------


def _header(comparison: Comparison, title: str, provenance: Provenance) -> str:
    teacher_steps = comparison.teacher.subject.num_steps
    lead = (
        f"A diffusion teacher draws a picture in {in_words(teacher_steps)} steps. Reward guided latent consistency distillation "
        '(<abbr title="Li et al., arXiv 2403.11027">RG-LCD</abbr>) trains a student that needs one to eight, while a reward model '
        f"corrects it on the way. Here every one of them drew {comparison.num_images} pictures for {provenance.num_prompts} prompts "
        "from the same noise, and scorers that the student never met said which they prefer."
    )
    if comparison.judges == comparison.scorers and comparison.trained_on in comparison.scorers:
        lead = lead.replace("and scorers that the student never met", "and its own reward")
    notes = "".join(f"<li>{_e(sentence)}</li>" for sentence in findings(comparison))
    return (
        f'<header><p class="eyebrow">rg-lcd · evaluation</p><h1>{_e(title)}</h1><p class="lead">{lead}</p>'
        f'<div class="tiles">{"".join(_tiles(comparison))}</div>{f"<ul class=findings>{notes}</ul>" if notes else ""}</header>'
    )


def _tiles(comparison: Comparison) -> list[str]:
    focus, teacher = comparison.focus, comparison.teacher
    name = f"{label_of(focus.subject.who)}, {in_words(focus.subject.num_steps)} step{'s' if focus.subject.num_steps != 1 else ''}"
    tiles = []
    for judge in comparison.judges:
        rate = focus.scores[judge].win_rates[TEACHER]
        detail = f"{interval_percent(rate)}; a tie is half a win"
        tiles.append(_tile(f"preferred to the teacher, by {judge}", percent(rate.value), detail, _interval(rate)))
    if focus.fid is not None and teacher.fid is not None:
        tiles.append(_tile("Fréchet distance to real images", f"{focus.fid:.1f}", f"teacher {teacher.fid:.1f}; lower is better", ""))
    ratio = speed_up(comparison)
    if ratio is not None and focus.seconds_per_image and teacher.seconds_per_image:
        pace = f"{duration(focus.seconds_per_image)} an image, teacher {duration(teacher.seconds_per_image)}"
        tiles.append(_tile("faster than the teacher", f"{ratio:.0f} ×" if ratio >= 10 else f"{ratio:.1f} ×", pace, ""))
    return [f'<p class="tiles-of">{_e(name)}</p>', *tiles]


def _tile(what: str, number: str, detail: str, glyph: str) -> str:
    return f'<div class="tile"><p class="what">{_e(what)}</p><p class="big">{_e(number)}</p>{glyph}<p class="detail">{_e(detail)}</p></div>'


def _interval(rate: Estimate) -> str:
    """A win rate on a line from 0 to 100 %, the tie marked in the middle."""
    low, high, at = (100 * value for value in (rate.low, rate.high, rate.value))
    return (
        f'<svg class="interval {outcome_of(rate).value}" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="axis" x1="0" x2="100" y1="5" y2="5"/><line class="tie" x1="50" x2="50" y1="0" y2="10"/>'
        f'<line class="range" x1="{low:.1f}" x2="{high:.1f}" y1="5" y2="5"/>'
        f'<line class="at" x1="{at:.1f}" x2="{at:.1f}" y1="1" y2="9"/></svg>'
    )


# --- pictures ------------------------------------------------------------------------------------


def _grid_note(pictures: Pictures) -> str:
    return (
        f"The first {len(pictures.captions)} prompts, not chosen. Every picture of a row starts from the same noise. "
        f"Under each is what the <b>{_e(pictures.judge)}</b> says of it; point at a picture to enlarge it."
    )


_GAP = "<td class=gap></td>"


def _grid(pictures: Pictures) -> str:
    subjects = list(pictures.sheets)
    groups = [(who, list(members)) for who, members in groupby(subjects, key=lambda subject: subject.who)]
    names = _GAP.join(f'<th colspan="{len(members)}" scope="colgroup">{_e(label_of(who))}</th>' for who, members in groups)
    steps = _GAP.join("".join(f'<th scope="col">{_steps(subject)}</th>' for subject in members) for _, members in groups)
    rows = []
    for row, caption in enumerate(pictures.captions):
        cells = _GAP.join("".join(_cell(pictures, subject, row) for subject in members) for _, members in groups)
        span = len(subjects) + len(groups) - 1
        rows.append(f'<tr class="caption"><th colspan="{span}"><bdi>{_e(_cut(caption))}</bdi></th></tr><tr>{cells}</tr>')
    crisp = " crisp" if pictures.side <= _CRISP_SIDE else ""
    return (
        f'<div class="wide"><table class="grid{crisp}"><thead><tr class="who">{names}</tr><tr class="steps">{steps}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(pictures: Pictures, subject: Subject, row: int) -> str:
    picture = sheet_image(pictures.sheets[subject], row, side=pictures.side)
    words = f"{label_of(subject.who)}, {_steps(subject)}"
    score = pictures.scores[subject][row]
    return f'<td><img src="{_data_uri(picture)}" alt="{_e(words)}" title="{_e(words)}"><span>{score:.2f}</span></td>'


def _steps(subject: Subject) -> str:
    return "1 step" if subject.num_steps == 1 else f"{subject.num_steps} steps"


def _cut(caption: str) -> str:
    return caption if len(caption) <= _LONGEST_CAPTION else caption[:_LONGEST_CAPTION] + "…"


def _data_uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    if picture.width <= _CRISP_SIDE:
        picture.save(stream, format="PNG", optimize=True)
        kind = "png"
    else:
        picture.resize((_PREVIEW_SIDE, _PREVIEW_SIDE), Image.Resampling.LANCZOS).save(stream, format="WEBP", quality=88)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


# --- plots ---------------------------------------------------------------------------------------

_PLOT_NOTE = "Means with 95 % intervals. The dashed line is the teacher, the band its interval."


def _quality_panels(comparison: Comparison) -> str:
    ticks = tuple(sorted({float(s.subject.num_steps) for arm in comparison.arms for s in comparison.steps_of(arm)}))
    panels = []
    for scorer in [*comparison.judges, *(name for name in comparison.scorers if name not in comparison.judges)]:
        lines = tuple(_series(comparison, arm, lambda s, scorer=scorer: s.scores[scorer].mean) for arm in comparison.arms)
        mean = comparison.teacher.scores[scorer].mean
        level = Level("Teacher", "arm-teacher", mean.value, mean.low, mean.high)
        note = "the reward it was trained on" if scorer == comparison.trained_on else "never seen in training"
        panels.append(Panel(scorer, note, lines, (level,), ticks, "steps", logarithmic=True))
    if comparison.teacher.fid is not None:
        lines = tuple(_series(comparison, arm, lambda s: _exact(s.fid)) for arm in comparison.arms)
        fid = comparison.teacher.fid
        level = Level("Teacher", "arm-teacher", fid, fid, fid)
        panels.append(Panel("Fréchet distance", "to real images; lower is better", lines, (level,), ticks, "steps", logarithmic=True))
    return f'<div class="panels">{"".join(panel_svg(panel) for panel in panels)}</div>'


def _series(comparison: Comparison, arm: str, estimate: Any) -> Series:
    points = []
    for summary in comparison.steps_of(arm):
        found: Estimate = estimate(summary)
        points.append(Point(summary.subject.num_steps, found.value, found.low, found.high))
    return Series(label_of(arm), f"arm-{arm}", tuple(points))


def _exact(value: float | None) -> Estimate:
    assert value is not None, "students are compared with the real images"
    return Estimate(value, value, value)


def _curve_panels(curves: Mapping[str, Records], panels_by_key: Mapping[str, tuple[str, str]]) -> list[Panel]:
    panels = []
    for key, (title, note) in panels_by_key.items():
        series = []
        for arm, records in curves.items():
            held = [record for record in records if key in record]
            points = thinned([record["images"] for record in held], [record[key] for record in held])
            if len(points) > 1:
                series.append(Series(label_of(arm), f"arm-{arm}", points))
        if series:
            end = max(point.x for line in series for point in line.points)
            panels.append(Panel(title, note, tuple(series), (), (0.0, end / 2, end), "images seen", logarithmic=False))
    return panels


# --- numbers -------------------------------------------------------------------------------------


def _table_note(comparison: Comparison) -> str:
    parts = [f"{comparison.num_images} pictures each; small figures are 95 % intervals."]
    parts.append("“wins” is how often it beats the teacher on the same prompt and noise, the tick marking a tie.")
    if any(score.full_marks > 0 for summary in comparison.summaries for score in summary.scores.values()):
        parts.append("“full” is the share of pictures with the scorer’s greatest score.")
    parts.append("Fine detail: what a 3 × 3 blur takes away (RMS). Colour: mean distance from grey.")
    return " ".join(parts)


_TRAINED_ON = "<i>training reward</i>"


def _table(comparison: Comparison) -> str:
    scorers = comparison.scorers
    full = {name for name in scorers if any(summary.scores[name].full_marks > 0 for summary in comparison.summaries)}
    head = "".join(
        f'<th colspan="{3 if name in full else 2}" class="start">{_e(name)}{_TRAINED_ON if name == comparison.trained_on else ""}</th>'
        for name in scorers
    )
    under = "".join(f'<th class="start">mean</th>{"<th>full</th>" if name in full else ""}<th>wins</th>' for name in scorers)
    body = "".join(_row(comparison, summary, full) for summary in comparison.summaries)
    return (
        f'<div class="wide"><table class="numbers"><thead><tr><th></th><th></th>{head}<th class="start">FID</th>'
        f"<th>to teacher</th><th>diversity</th><th>fine detail</th><th>colour</th><th>time</th></tr>"
        f"<tr><th></th><th>steps</th>{under}<th class=start></th><th></th><th></th><th></th><th></th><th>per image</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(comparison: Comparison, summary: Summary, full: set[str]) -> str:
    subject = summary.subject
    cells = []
    for name, score in summary.scores.items():
        cells.append(f'<td class="start">{score.mean.value:.3f}<small>{score.mean.low:.3f}–{score.mean.high:.3f}</small></td>')
        if name in full:
            cells.append(f"<td>{percent(score.full_marks)}</td>")
        rate = score.win_rates.get(TEACHER)
        cells.append(f'<td class="win">{percent(rate.value)}{_interval(rate)}</td>' if rate else "<td></td>")
    cells.append(f'<td class="start">{"" if summary.fid is None else f"{summary.fid:.2f}"}</td>')
    cells += [f"<td>{'' if value is None else f'{value:.2f}'}</td>" for value in (summary.fid_to_teacher, summary.diversity)]
    cells.append(f"<td>{summary.high_frequency:.4f}</td><td>{summary.saturation:.3f}</td>")
    cells.append(f"<td>{'' if summary.seconds_per_image is None else duration(summary.seconds_per_image)}</td>")
    marks = [f"arm-{subject.who}"] + (["focus"] if summary is comparison.focus else [])
    is_first = subject.who in (REAL, TEACHER) or comparison.steps_of(subject.who)[0] is summary
    marks += ["first"] if is_first else []
    label = f"<b>{_e(label_of(subject.who))}</b>" if is_first else ""
    return f'<tr class="{" ".join(marks)}"><th scope="row">{label}</th><td>{subject.num_steps or ""}</td>{"".join(cells)}</tr>'


# --- what was run --------------------------------------------------------------------------------


def _run(provenance: Provenance) -> str:
    facts = {
        "Teacher": provenance.teacher,
        "Guidance": f"{provenance.guidance_scale:g}, as diffusers counts it (omega = {provenance.guidance_scale - 1:g})",
        "Prompts": f"{provenance.num_prompts} in {provenance.prompts}",
        "Samplers": "teacher: DDIM, eta 0, on the distillation’s own grid (“trailing”); students: multistep consistency sampling (LCM)",
        "Drawn on": provenance.device,
        "Versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
    }
    listed = "".join(f"<div><dt>{_e(name)}</dt><dd>{_e(value)}</dd></div>" for name, value in facts.items())
    rows = "".join(
        f"<tr><th scope=row>{_e(name)}</th><td>{_e(stage.get('version', ''))}</td>"
        f'<td class="digest">{_e(str(stage.get("digest", ""))[:16])}</td>'
        f"<td>{duration(provenance.seconds[name]) if name in provenance.seconds else ''}</td><td>{_e(_facts(stage))}</td></tr>"
        for name, stage in provenance.stages.items()
    )
    return (
        f'<dl>{listed}</dl><div class="wide"><table class="stages"><thead><tr><th>stage</th><th>version</th><th>digest of its result</th>'
        f"<th>took</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _facts(stage: Mapping[str, Any]) -> str:
    """Counts that a stage recorded; words and nested records are for its manifest."""
    facts = stage.get("facts", {})
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in facts.items() if isinstance(value, int))[:120]


def _again(provenance: Provenance) -> str:
    sections: dict[str, Any] = {}
    for stage in provenance.stages.values():
        sections |= stage.get("sections", {})
    written = yaml.safe_dump(sections, sort_keys=False, width=100)
    commands = "\n".join(f"rglcd run {name}" for name in provenance.stages)
    return (
        "<p>Put the sections below into <code>params.yaml</code>, then run everything that is not there already with "
        f"<code>dvc repro</code>, or stage by stage:</p><pre>{_e(commands)}</pre>"
        "<p>On the same machine, versions and thread count the digests above come out equal; "
        "a stage whose result stands is not run again.</p>"
        f"<details><summary>The configuration of this run</summary><pre>{_e(written)}</pre></details>"
    )
