"""The files of a report that hold its numbers, for programs and for DVC."""

import csv
import io
from typing import Any

from rglcd.evaluation.comparison import Comparison, Summary
from rglcd.evaluation.groups import Grouping
from rglcd.evaluation.intervals import Estimate
from rglcd.evaluation.measurement import REAL, TEACHER, Sampler


def metrics(comparison: Comparison) -> dict[str, Any]:
    """``metrics.json``: nested by model and steps, with every interval; results only, no times."""
    nested: dict[str, Any] = {}
    partial = {name for name in comparison.scorers if comparison.teacher.scores[name].num_images < comparison.num_images}
    for summary in comparison.summaries:
        numbers: dict[str, Any] = {"high_frequency": summary.high_frequency, "saturation": summary.saturation}
        numbers |= summary.distances.frechet
        optional = {"frechet_to_teacher": summary.frechet_to_teacher, "diversity": summary.diversity}
        numbers |= {name: value for name, value in optional.items() if value is not None}
        for name, distance in summary.distances.kernel.items():
            numbers[name] = {"value": distance.value, "low": distance.low, "high": distance.high}
        if summary.distances.frechet:
            numbers["distances_measured_with"] = dict(summary.basis)
        if summary.unasked_text is not None:
            share = summary.unasked_text
            numbers["unasked_text"] = {"value": share.value, "low": share.low, "high": share.high}
        for name, score in summary.scores.items():
            numbers[name] = {"mean": score.mean.value, "low": score.mean.low, "high": score.mean.high, "full_marks": score.full_marks}
            if name in partial:
                numbers[name]["images"] = score.num_images
            for opponent, rate in score.win_rates.items():
                numbers[name][f"win_rate_{opponent}"] = {"value": rate.value, "low": rate.low, "high": rate.high}
        if comparison.groupings and summary.sampler.who != REAL:
            numbers["groups"] = {grouping.name: _groups(grouping, summary.sampler) for grouping in comparison.groupings}
        if summary.sampler.num_steps:
            nested.setdefault(summary.sampler.who, {})[str(summary.sampler.num_steps)] = numbers
        else:
            nested[summary.sampler.who] = numbers
    rounded: dict[str, Any] = _rounded(nested)
    return rounded


def _groups(grouping: Grouping, sampler: Sampler) -> dict[str, Any]:
    """Each group's mean by scorer, and the mean of these means, in which every group counts as much."""
    found: dict[str, Any] = {group: {"images": count} for group, count in grouping.num_images.items()}
    for scorer, groups in grouping.scores[sampler].items():
        for group, score in groups.items():
            found[group][scorer] = {"mean": score.mean.value, "low": score.mean.low, "high": score.mean.high}
            if score.block_deviation is not None:
                found[group][scorer]["deviation_of_ten_blocks"] = score.block_deviation
    return {"by_group": found, "mean_of_groups": {name: grouping.mean_of_groups(sampler, name) for name in grouping.scores[sampler]}}


def headlines(comparison: Comparison) -> dict[str, dict[str, float]]:
    """``metrics/<sampler>.json``: the main figures of each sampler, flat, so that ``dvc metrics show`` has a row for each."""
    judge = comparison.judges[0]
    files: dict[str, dict[str, float]] = {}
    for summary in comparison.summaries:
        figures = {name: score.mean.value for name, score in summary.scores.items()}
        figures |= summary.distances.frechet
        figures |= {name: distance.value for name, distance in summary.distances.kernel.items()}
        figures |= {} if summary.unasked_text is None else {"unasked_text": summary.unasked_text.value}
        figures |= {f"wins over {opponent}, {judge}": rate.value for opponent, rate in _wins(summary, judge).items()}
        files[summary.sampler.name] = _rounded(figures)
    return files


def _wins(summary: Summary, judge: str) -> dict[str, Estimate]:
    """None of the real images, for whose captions ``judge`` may have no score."""
    return summary.scores[judge].win_rates if judge in summary.scores else {}


def speeds(comparison: Comparison) -> dict[str, dict[str, float]]:
    """``speed.json``: seconds per image, text encoding and decoding included, by model and steps."""
    nested: dict[str, dict[str, float]] = {}
    for summary in comparison.summaries:
        if summary.seconds_per_image is not None:
            nested.setdefault(summary.sampler.who, {})[str(summary.sampler.num_steps)] = summary.seconds_per_image
    return nested


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return value if isinstance(value, str) else round(value, 6)


def quality_csv(comparison: Comparison) -> str:
    """``quality.csv``, for ``dvc plots``: a row for each number of steps, a column for each arm and score.

    A column is called ``<arm> <scorer>`` or ``<arm> frechet`` (``fid``, ``fd_dinov2``); the teacher's figure, of its own many steps, stands
    in every row; of several numbers of the teacher's steps the first.
    """
    columns: dict[str, dict[int, float]] = {}
    steps = sorted({summary.sampler.num_steps for arm in comparison.arms for summary in comparison.steps_of(arm)})
    for summary in comparison.summaries:
        who, at = summary.sampler.who, summary.sampler.num_steps
        figures = {name: score.mean.value for name, score in summary.scores.items()}
        figures |= summary.distances.frechet
        for name, value in figures.items():
            if who != REAL and (who != TEACHER or summary is comparison.teacher):
                columns.setdefault(f"{who} {name}", {}).update(dict.fromkeys(steps if who == TEACHER else [at], value))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["steps", *columns])
    for at in steps:
        writer.writerow([at, *(round(column[at], 6) if at in column else "" for column in columns.values())])
    return stream.getvalue()
