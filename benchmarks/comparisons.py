"""Two samplers of the studies' runs against each other, picture by picture: by the judge's scores, and by the panel.

The panel are simulated raters that nothing was trained on; no person was asked. Both are given pictures of the same captions and noise.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.studies import MAIN, STEPS, Run
from benchmarks.study_runs import COPIES, TEACHER, folder_of, pictures_of
from rglcd.evaluation.score_tables import ScoreTable, read_score_table
from rglcd.toy.gates import NUM_RESAMPLES, Interval
from rglcd.toy.raters import Group, Question, poll


@dataclass(frozen=True)
class Drawn:
    """What a run drew with a sampler (`rg-2`, `teacher-50`)."""

    run: Run
    sampler: str


TEACHERS = Drawn(MAIN, TEACHER)


def drawn(run: Run, steps: int = STEPS, arm: str | None = None) -> Drawn:
    return Drawn(run, f"{arm or run.arm}-{steps}")


def by_panel(ours: Drawn, theirs: Drawn, seeds: Sequence[int]) -> list[Tensor]:
    """By seed, how every rater of the panel answers on each caption, 1 for ours, a tie being a half: (16, captions)."""
    return [_panel(_pictures(ours, seed), _pictures(theirs, seed)) for seed in seeds]


def by_scorer(scorer: str, ours: Drawn, theirs: Drawn, seeds: Sequence[int]) -> list[Tensor]:
    """By seed, how often our picture of a caption has the higher score, a tie being a half: (1, captions)."""
    answers = []
    for seed in seeds:
        first, second = (torch.tensor(_table(_folder(what, seed)).scores[scorer]) for what in (ours, theirs))
        won = (first > second).double() + 0.5 * (first == second).double()
        answers.append(won.view(1, COPIES, -1).mean(1))
    return answers


def best_of(who: Drawn, seeds: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    """How often the expert's best of the pictures of a caption beats the others: by judge (1, captions) and panel (16, captions)."""
    judged, polled = [], []
    for seed in seeds:
        table, folder = _table(_folder(who, seed)), _pictures(who, seed)
        judge = torch.tensor(table.scores["judge"]).view(COPIES, -1)
        best = by_expert(who, seed)[0]
        chosen = judge.gather(0, best[None])
        others = torch.ones_like(judge, dtype=torch.bool).scatter(0, best[None], False)
        won = (chosen > judge).double() + 0.5 * (chosen == judge).double()
        judged.append((won * others).sum(0, keepdim=True) / (COPIES - 1))
        pictures = _read(folder)
        turned = pictures.view(COPIES, -1, *pictures.shape[1:])
        first = turned.gather(0, best.view(1, -1, 1, 1, 1).expand(1, *turned.shape[1:]))[0]
        captions = table.captions[: len(best)]
        votes = [
            poll(Group.PANEL, captions, first, turned.gather(0, other.view(1, -1, 1, 1, 1).expand(1, *turned.shape[1:]))[0], _QUESTION)
            for other in ((best + step) % COPIES for step in range(1, COPIES))
        ]
        polled.append(torch.stack(votes).mean(0))
    return judged, polled


def by_expert(who: Drawn, seed: int) -> Tensor:
    """Which copies of a caption's pictures the expert prefers, best first: (COPIES, captions)."""
    scores = torch.tensor(_table(_folder(who, seed)).scores["expert"]).view(COPIES, -1)
    return scores.argsort(dim=0, descending=True, stable=True)


def pooled(answers: Sequence[Tensor], *, seed: int = 0) -> Interval:
    """The mean over seeds, raters and captions, with its 95 % percentile interval over resampled captions and raters.

    Captions and raters are drawn independently of each other, as both are crossed (Owen 2007, the pigeonhole bootstrap); training
    seeds are not resampled: there are too few.
    """
    table = torch.stack(list(answers)).mean(0)
    draws = torch.Generator().manual_seed(seed)
    means = torch.empty(NUM_RESAMPLES, dtype=table.dtype)
    for turn in range(NUM_RESAMPLES):
        rows, columns = (torch.randint(size, (size,), generator=draws) for size in table.shape)
        means[turn] = table[rows][:, columns].mean()
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval(table.mean().item(), low, high)


_QUESTION = Question.GENERAL_PREFERENCE


def _folder(what: Drawn, seed: int) -> Path:
    return folder_of(what.run, seed) / "report" / "draws" / what.sampler / "scores.csv"


def _pictures(what: Drawn, seed: int) -> Path:
    return pictures_of(what.run, seed, what.sampler)


@cache
def _table(path: Path) -> ScoreTable:
    return read_score_table(path)


@cache
def _panel(ours: Path, theirs: Path) -> Tensor:
    """Both folders' pictures of a caption and copy side by side: (16, captions)."""
    answers = poll(Group.PANEL, _captions(ours), _read(ours), _read(theirs), _QUESTION)
    return answers.view(len(answers), COPIES, -1).mean(1)


def _captions(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["text"] for line in sorted(lines, key=lambda line: str(line["file_name"]))]


def _read(folder: Path) -> Tensor:
    """Pictures (N, 3, 32, 32) in [0, 1], by number."""
    images = [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob("*.png"))]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
