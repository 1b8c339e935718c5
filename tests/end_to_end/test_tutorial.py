"""docs/tutorial.md, word for word: its blocks of commands are run in turn, and whoever is asked to vote is played by this test."""

import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SERVE = "rglcd ab serve"


def blocks() -> list[str]:
    """The commands of the page, block by block. What is fenced as `sh` installs the checkout, as this test's own environment was."""
    return re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment of its own, for the tutorial installs a package; what it lacks is this one's."""
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([*here, str(ROOT / "src")]) + "\n")
    for name, module in (("pip", "pip._internal.cli.main"), ("rglcd", "rglcd.cli")):
        program = tmp_path / "venv/bin" / name
        program.write_text(f"#!{tmp_path}/venv/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        program.chmod(0o755)
    path = f"{tmp_path / 'venv/bin'}:{os.environ['PATH']}"
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path, "OMP_NUM_THREADS": "1"}


def start(block: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"exec {block}" if block.startswith(SERVE) else block],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def get(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:
        return answer.read()


def roughness(picture: bytes) -> float:
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=float)
    return float(np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean())


def vote(link: str) -> Iterator[str]:
    """Answer everything: the smoother picture, so that pixels in disorder are never preferred to a picture."""
    for task in json.loads(get(f"{link}tasks"))["tasks"]:
        left, right = (roughness(get(f"{link}pictures/{task[side]}")) for side in ("left", "right"))
        answer = "left" if left < right else "right"
        entry = {"kind": "vote", "id": secrets.token_hex(16), "task": task["id"], "answer": answer, "milliseconds": 900}
        request = urllib.request.Request(f"{link}votes", json.dumps(entry).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request):
            yield task["id"]


def serve(server: subprocess.Popen[str]) -> str:
    """Vote through every printed link, then press Ctrl-C."""
    said, links = "", list[str]()
    assert server.stdout is not None
    for line in server.stdout:
        said += line
        links += re.findall(r"^rater \d+: (\S+)$", line)
        if line.startswith("votes are appended"):
            assert len(links) == 2
            assert all(list(vote(link)) for link in links)
            server.send_signal(signal.SIGINT)
    return said


def test_the_tutorial_runs_word_for_word(tmp_path: Path, environment: dict[str, str]) -> None:
    """In a folder beside `toy/`, as a checkout has it."""
    folder, said = tmp_path / "checkout", list[str]()
    folder.mkdir()
    (folder / "toy").symlink_to(ROOT / "toy")
    for block in blocks():
        process = start(block, folder, environment)
        said.append(serve(process) if block.startswith(SERVE) else process.communicate()[0])
        assert block.startswith(SERVE) or process.wait() == 0, f"{block}\n{said[-1][-3000:]}"
        if "cd my-run" in block:
            folder /= "my-run"
    assert "colourful" in said[-5]
    assert {Image.open(folder / f"{arm}.png").size for arm in ("rg", "lcm")} == {(32, 32)}
    assert re.search(r"votes of 2 raters; 0 failed a check", said[-1])
    assert re.search(r"rg-2 over lcm-2: [\d.]+ %", said[-1])
