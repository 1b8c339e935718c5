"""``python -m benchmarks.step``: what a training step costs, in each mode, with random weights; one JSON line on standard output.

    plain     latent consistency distillation
    pixel     with the reward's gradient through the decoder
    latent    with the latent proxy's gradient, and the proxy tuned to the expert

Milliseconds are medians of steps of which each is waited for; the split is of other steps, in which each part is. Memory is what
torch has allocated: asked of its allocator on a GPU, and on a CPU the tensors alive at any moment of a step. Two batch sizes give
the straight line from which the largest batch follows, a third, smaller one tells how straight it is. Operations are torch's own
count of what ran, against the sum of what each network needs by itself.

`--baseline` also times the step of the published scripts (:mod:`benchmarks.baseline`) beside ours, turn by turn: ``ratio`` is its time
over ours. `--cached` gives it latents too, instead of images to encode.

`--device meta` only counts, on any machine and at any size: its tensors have shapes and no values. As on a GPU, a step that mixed it
with the host would end in an error.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.beside import beside_baseline
from benchmarks.step_bench import MODES, SIZES, Bench, add_setting_options, setting_of
from benchmarks.step_measuring import hardware, measure, versions

RECORDS = Path("docs/step.jsonl")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the modes asked for, tell each as it is done, and print the line."""
    parser = argparse.ArgumentParser(prog="benchmarks.step", description="What a training step costs.")
    add_setting_options(parser, chunk_size=2)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--baseline", action="store_true", help="time the published scripts' step beside ours")
    parser.add_argument("--cached", action="store_true", help="with --baseline: it is given latents, not images")
    parser.add_argument("--record", action="store_true", help=f"append the line to {RECORDS}, which docs/results.md shows")
    asked = parser.parse_args(argv)
    setting = setting_of(asked)
    counting = setting.device == "meta"
    if counting and setting.precision != "float32":
        parser.error("--device meta has no half precision; the count is the same in each")
    bench = Bench(setting, SIZES[setting.model]())
    flops = {mode: bench.flops(mode) for mode in asked.modes}
    modes: dict[str, dict[str, Any]] = {}
    for mode in asked.modes:
        modes[mode] = flops[mode].figures() if counting else measure(bench, mode, flops[mode])
        if asked.baseline and not counting:
            modes[mode]["baseline"] = beside_baseline(bench, mode, cached=asked.cached)
        print(f"{mode:7} {modes[mode]}", file=sys.stderr)
    line = json.dumps({**vars(setting), "modes": modes, "hardware": hardware(bench.world.device), "versions": versions()})
    print(line)
    if asked.record:
        with RECORDS.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")


if __name__ == "__main__":
    main()
