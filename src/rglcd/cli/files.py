"""Files and folders of a project where every verb expects them, and the options that name others."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rglcd.config import Config, load_params
from rglcd.errors import InputError
from rglcd.stages.table import STAGES, Stage

PARAMS = Path("params.yaml")
ARTIFACTS = Path("artifacts")
DATA = Path("data")
DVC_FILE = Path("dvc.yaml")
IMAGES = Path("images/lock.yaml")


def add_params_option(verb: argparse.ArgumentParser) -> None:
    """``--params``: another configuration than the one in force."""
    verb.add_argument("--params", type=Path, default=PARAMS, metavar="FILE", help="the configuration in force (default: params.yaml)")


def add_set_option(verb: argparse.ArgumentParser) -> None:
    """``--set``: single values of the configuration."""
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value, as section.key=value")


def load_params_for(stage: Stage, params: Path, *, overrides: Sequence[str]) -> Config:
    """The configuration in force, for ``stage`` alone.

    Raises :class:`InputError` as :func:`load_params` does, and for an override of a section that the stage does not read, which
    would do nothing. One that the others need to be valid (``sharding.resolution`` and ``model.resolution``) is taken.
    """
    config = load_params(params, overrides=overrides)
    read = [override for override in overrides if override.partition(".")[0].partition("=")[0] in stage.sections]
    if len(read) < len(overrides) and _is_valid(params, read):
        unread = next(override for override in overrides if override not in read)
        section = unread.partition("=")[0].partition(".")[0]
        readers = [other.name for other in STAGES if section in other.sections]
        by = f"it is read by {', '.join(readers)}" if readers else f"it reads {', '.join(stage.sections)}"
        raise InputError(f"--set {unread}: {stage.name} does not read {section}, so this would change nothing; {by}")
    return config


def _is_valid(params: Path, overrides: Sequence[str]) -> bool:
    try:
        load_params(params, overrides=overrides)
    except InputError:
        return False
    return True
