"""Where a job's code and data come from, if this is a checkout: git's commit, and the digest of dvc.lock."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

from rglcd.launch.settings import ClusterSettings

_DVC_LOCK = Path("dvc.lock")
_ILLEGAL = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_LABEL = 63


def with_provenance(settings: ClusterSettings) -> ClusterSettings:
    """``settings`` with the commit and the lock of this folder, where they do not say any."""
    found = {"git_commit": settings.git_commit or git_commit(), "dvc_lock": settings.dvc_lock or dvc_lock()}
    return settings.model_copy(update={name: value for name, value in found.items() if value})


def git_commit() -> str | None:
    """The commit of this folder, ``-dirty`` behind it where tracked files differ; ``None`` outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return None
    words = [git, "describe", "--always", "--abbrev=40", "--match=", "--dirty"]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 (fixed words)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() or None if ran.returncode == 0 else None


def dvc_lock() -> str | None:
    """The SHA-256 of dvc.lock, if there is one here."""
    return hashlib.sha256(_DVC_LOCK.read_bytes()).hexdigest() if _DVC_LOCK.is_file() else None


def as_label(value: str) -> str:
    """``value`` as a label's value may be: 63 characters at most, letters, digits, ``-_.``, a letter or digit at either end.
    https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set"""
    return _ILLEGAL.sub("-", value)[:_LONGEST_LABEL].strip("-_.")
