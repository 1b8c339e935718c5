"""The command line: parsing and printing, no work."""

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from rglcd import __version__
from rglcd.cli import ab, compare, data, doctor, draw, export, launch, plan, project, run, runs, toy
from rglcd.errors import InputError

_EPILOG = """\
first run       make demo
stage by stage  rglcd run shard && rglcd run prepare && ... && rglcd run evaluate
your own sizes  rglcd config use toy --set distillation.num_steps=800
your own data   rglcd data use ~/photos --reference 1000
Kubeflow        python -m pipelines run  (in a checkout: a wheel has neither `pipelines` nor the toy's models)

exit codes: 0 done; 2 bad input, configuration or data; 3 training diverged; 69 a machine of a job is not what it was promised
            to be; 70 a lack of memory, or an unexpected error, please report it; 75 try again: the same command goes
            on from what is saved
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    from rglcd.launch.boundary import process_boundary

    with process_boundary():
        options = _parser().parse_args(arguments)
        act: Callable[[argparse.Namespace], None] = options.act
        act(options)
    return 0


class _Parser(argparse.ArgumentParser):
    """A wrong word is bad input like any other: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see: {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rglcd",
        description="Reward guided latent consistency distillation: a teacher in, a student that draws in 1 to 8 steps out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rglcd {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    inspect = (
        project.add_config,
        plan.add_verb,
        project.add_dvc,
        data.add_data,
        toy.add_verb,
        project.add_show,
        export.add_verb,
        draw.add_verb,
        compare.add_verb,
        ab.add_verb,
        runs.add_runs,
        runs.add_clean,
    )
    for add in (run.add_verb, launch.add_verb, doctor.add_verb, *inspect):
        add(verbs)
    return parser
