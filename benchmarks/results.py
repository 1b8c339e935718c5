"""``python -m benchmarks.results [--seeds N]``: the claims at toy size, written to docs/results.md as they are finished.

A seed is that of the latent reward model's pretraining and of the distillation; world, frozen models and the noise that pictures
are drawn from are shared. Every run goes through the stages and is found done the next time, so a stopped command goes on.
Runs are made in processes of one thread each, as many at once as there are cores: the figures do not depend on how many.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context

import torch

from benchmarks.page_parts import PAGE
from benchmarks.results_page import page_text
from benchmarks.studies import LINES, STUDIES
from benchmarks.study_runs import MOST_SEEDS, make
from rglcd.launch.boundary import process_boundary
from rglcd.launch.progress_display import drawing
from rglcd.progress import report, reporting_to

_BETWEEN_PAGES = 1200.0
"""Seconds: writing the page takes minutes of a core that the runs could use."""


def main() -> None:
    """Run what is not done yet; the page is written now and then, and says which claims are still to come."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, choices=range(1, MOST_SEEDS + 1), default=MOST_SEEDS, help="how many seeds, from 0")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="how many runs at once (default: %(default)s)")
    arguments = parser.parse_args()
    seeds = range(arguments.seeds)
    # Studies share runs, each by a label of its own.
    studied = {run.name: run for study in STUDIES for run in study.runs}.values()
    # A stopped command leaves every claim with one seed before any study has two.
    lines = {line.name for line in LINES}
    leading = [(line, seeds[0]) for line in LINES]
    others = [(line, seed) for seed in seeds[1:] for line in LINES]
    others += [(run, seed) for seed in seeds for run in studied if run.name not in lines]
    total = len(leading) + len(others)
    with process_boundary(), drawing(sys.stderr) as sink, reporting_to(sink):
        started = written = time.perf_counter()
        report("runs", done=0, total=total, unit="runs")
        with _workers(arguments.processes) as pool:
            leaders = []
            for line in leading:  # the first makes what all share, each what those with its teacher do
                leaders.append(pool.submit(make, *line))
                leaders[-1].result()
            for done, future in enumerate(as_completed([*leaders, *(pool.submit(make, *which) for which in others)]), start=1):
                future.result()
                report("runs", done=done, total=total, unit="runs")
                if time.perf_counter() - written > _BETWEEN_PAGES:
                    PAGE.write_text(page_text(), encoding="utf-8")
                    written = time.perf_counter()
        PAGE.write_text(page_text(), encoding="utf-8")
        print(f"{PAGE} is written, after {(time.perf_counter() - started) / 60:.1f} min")


@contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """New interpreters of one thread each; when a run fails, those not started yet are cancelled."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main()
