"""At which commit and on what machine rounds were run."""

import os
import platform
import subprocess
from pathlib import Path


def commit_of(checkout: Path, *, without: tuple[Path, ...]) -> str:
    """The commit of ``checkout``, and a plus where a tracked file other than ``without`` was changed; of no repository: unversioned."""
    head = _git(checkout, "rev-parse", "--short=9", "HEAD")
    if head is None:
        return "unversioned"
    excluded = [f":!{path.relative_to(checkout)}" for path in without]
    changed = _git(checkout, "status", "--porcelain", "-uno", "--", ".", *excluded)
    return f"{head}+" if changed else head


def _git(checkout: Path, *words: str) -> str | None:
    ran = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else None


def machine() -> str:
    """Processor, cores, memory, system and Python; no host's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{model}, {os.cpu_count()} cores, {gib:.0f} GiB, {platform.system()} {kernel}, Python {platform.python_version()}"
