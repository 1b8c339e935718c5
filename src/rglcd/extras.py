"""What is not installed, in one line: the extra that brings it, and how rg-lcd is installed with it."""

from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import Final

import rglcd

_EXTRA_OF: Final = {
    **dict.fromkeys(("torch", "diffusers", "transformers", "peft", "huggingface_hub", "safetensors", "webdataset", "numpy"), "train"),
    **dict.fromkeys(("PIL", "simplejpeg", "pyarrow", "aiohttp", "fsspec", "ftfy", "prometheus_client", "psutil"), "train"),
    **dict.fromkeys(("torchx", "kubernetes"), "torchx"),
    **dict.fromkeys(("kfp", "kfp_server_api"), "kfp"),
    "dvc": "dvc",
    "gradio": "page",
    "s3fs": "train",
}
"""Extras of pyproject.toml by the packages that they bring, as they are imported."""

_STUDY: Final = frozenset({"aiohttp", "numpy", "PIL"})
"""What the small extra ``study`` brings of that: enough for a machine that asks people and trains nothing."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """What to say of a package that an extra would have brought; ``None`` for any other, which is a bug."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRA_OF or _is_installed(package):
        return None
    extra = "study" if package in _STUDY and _is_of_a_study(error) else _EXTRA_OF[package]
    return f"{package} is not installed: {install_command(extra)}"


def install_command(extra: str) -> str:
    """How this very installation gets ``extra``: from its checkout, or from the wheel that it was installed from."""
    checkout = Path(rglcd.__file__).parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install '{checkout}[{extra}]'"
    return f"pip install 'WHEEL[{extra}]', WHEEL being the file that rg-lcd was installed from (or the path of a checkout)"


def _is_of_a_study(error: ModuleNotFoundError) -> bool:
    """Whether it was :mod:`rglcd.study` that asked for the package."""
    return any(frame.f_globals.get("__name__", "").startswith("rglcd.study.") for frame, _ in walk_tb(error.__traceback__))


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # hidden, or half installed
        return False
