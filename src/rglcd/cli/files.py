"""Files and folders of a project where every verb expects them, and the options that name others."""

import argparse
from pathlib import Path

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
