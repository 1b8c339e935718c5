"""`make release-check`: what must hold before a version is given away. A line for each check; ends with 1 if one does not hold.

`python .ci/release_check.py versions licences` runs some of them.
"""

import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml
from notice import ROOT, notice

sys.path.insert(0, str(ROOT / "src"))
from rglcd import __version__

_INSTALL = "docs/how-to/install.md"
_RUN_IN_AN_EMPTY_FOLDER = (
    ["--version"],
    ["config", "use", "micro"],
    ["config", "show", "sd21-paper"],
    ["toy", "data", "data"],
    ["run", "shard"],
    ["launch", "shard", "--dry-run", "--image", "registry.example.org/train@sha256:" + "1" * 64],
)


def versions() -> list[str]:
    """The version of the package, of the citation and of what the site says to install, and a heading of the changelog."""
    citation = yaml.safe_load(_text("CITATION.cff"))
    found = {"CITATION.cff": str(citation["version"])}
    found |= {f"{_INSTALL}, {wheel}": wheel for wheel in re.findall(r"rg_lcd-([\d.]+)-py3", _text(_INSTALL))}
    wrong = [f"{where} says {version}, the package {__version__}" for where, version in found.items() if version != __version__]
    return wrong + ([] if f"## [{__version__}]" in _text("CHANGELOG.md") else [f"CHANGELOG.md has no heading for {__version__}"])


def changelog() -> list[str]:
    """The version has a date."""
    dated = re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", _text("CHANGELOG.md"), re.MULTILINE)
    return [] if dated else [f"CHANGELOG.md gives {__version__} no date"]


def licences() -> list[str]:
    """NOTICE is what the lock's packages say today, and what it names as shipped is there."""
    gone = [name for name in re.findall(r"\bsrc/[\w./-]+\w", notice()) if not (ROOT / name).exists()]
    stale = [] if _text("NOTICE") == notice() else ["NOTICE is not what the lock's packages say: make notice, and read the diff"]
    return [f"NOTICE names {name}, which is not there" for name in gone] + stale


def wheel() -> list[str]:
    """The wheel holds every file of the package that is tracked, and works in an empty folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "-w",
                folder,
                _clean_copy(folder / "source"),
            ]
        )
        (made,) = folder.glob("*.whl")
        names = set(zipfile.ZipFile(made).namelist())
        lacking = [name for name in _tracked("src/rglcd") if name.removeprefix("src/") not in names]
        lacking += [name for name in ("LICENSE", "NOTICE") if not any(one.endswith(f"/licenses/{name}") for one in names)]
        return [f"the wheel lacks {name}" for name in lacking] or _works(made, folder)


def _works(made: Path, folder: Path) -> list[str]:
    """Installed into an environment of its own, whose other packages are this one's, and run where nothing else lies."""
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    zipfile.ZipFile(made).extractall(site)
    ours = [path for path in sys.path if path.endswith("site-packages")]
    # Its own package is found first; an editable installation of this checkout would be found by a hook, so that none is read.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *ours])}
    (folder / "empty").mkdir()
    for words in _RUN_IN_AN_EMPTY_FOLDER:
        command = [folder / "venv/bin/python", "-m", "rglcd", *words]
        ran = subprocess.run(command, cwd=folder / "empty", env=environment, capture_output=True, text=True, check=False)
        if ran.returncode:
            return [f"rglcd {' '.join(words)} of the wheel ended with {ran.returncode}: {(ran.stderr.strip() or '?').splitlines()[-1]}"]
    return []


def images() -> list[str]:
    """Every image is published, and named by its digest."""
    lock = yaml.safe_load(_text("images/lock.yaml"))
    return [
        f"images/lock.yaml: {name} is not published: make images PREFIX=..." for name, image in lock.items() if image.endswith("0" * 64)
    ]


def docs() -> list[str]:
    """The site is built without a warning."""
    ran = subprocess.run(["make", "--silent", "docs"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [] if ran.returncode == 0 else [f"make docs: {(ran.stderr or ran.stdout).strip().splitlines()[-1]}"]


def commit() -> list[str]:
    """What is checked is what is committed."""
    changed = _run(["git", "status", "--porcelain"]).splitlines()
    return [f"{len(changed)} files are changed and not committed"] if changed else []


CHECKS: dict[str, Callable[[], list[str]]] = {
    "versions": versions,
    "changelog": changelog,
    "licences": licences,
    "wheel": wheel,
    "images": images,
    "docs": docs,
    "commit": commit,
}


def main(words: list[str]) -> int:
    """Run the checks named, or all."""
    if unknown := [word for word in words if word not in CHECKS]:
        sys.exit(f"release-check: there is no check {unknown[0]}; there are: {', '.join(CHECKS)}")
    found = {name: CHECKS[name]() for name in words or CHECKS}
    for name, wrong in found.items():
        print("\n".join(f"{name}: {line}" for line in wrong) or f"{name}: holds")
    return 1 if any(found.values()) else 0


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _tracked(*where: str) -> list[str]:
    return [name for name in _run(["git", "ls-files", "-z", *where]).split("\0") if name and (ROOT / name).is_file()]


def _clean_copy(folder: Path) -> Path:
    for name in _tracked("src", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def _run(command: list[str | Path]) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
