"""``make gpu``: in eight minutes at most, what this project does on the GPU at hand; a JSON line for each result, printed as it is made.

For a bare machine: CUDA, Python 3.11 to 3.13, and a torch of its own from 2.11 on, which is never touched. Packages that are
missing, or older than pyproject.toml asks for, are installed from the wheels in ``--wheels`` (``make gpu WHEELS=dir``), without a
network, into a folder of their own. Each part has its own limit; one that overruns it is killed, and the others go on; what a part that
failed has printed is in a file beside the lines'.

    python3 -m benchmarks.gpu                                  # on a GPU
    python3 -m benchmarks.gpu --device cpu --model toy         # the same script, tiny, in minutes: CI does this
"""

import argparse
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 480
"""Of everything together, the installation included."""

INSTALLATION_SECONDS = 120

_CPU_IS_SLOWER = 4
"""How much more time a part has on a CPU, where the script is only tried: other work may share the cores."""

NEVER_INSTALLED = re.compile(r"(torch|triton|nvidia|cuda)", re.IGNORECASE)
SHOWN = ("torch", "diffusers", "transformers", "huggingface-hub", "safetensors", "peft", "pydantic", "numpy")


@dataclass(frozen=True)
class Part:
    """One command of this interpreter, the seconds that it may take, and variables beside the environment's."""

    name: str
    seconds: int
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def parts(model: str, device: str, *, batch_size: int) -> list[Part]:
    """In the order of what a reader wants first."""
    step = ("-m", "benchmarks.beside", "--model", model, "--device", device, "--precision", "bfloat16")
    # The baseline decodes its whole batch with gradient: of 16 images it would need more than 80 GiB.
    batches = {"plain": batch_size, "pixel": max(1, batch_size // 2), "latent": batch_size}

    def step_of(mode: str, *options: str) -> tuple[str, ...]:
        size = str(batches[mode])
        return (*step, "--mode", mode, "--batch-size", size, "--chunk-size", size, *options)

    # Nothing of tests/ above: other tests' fixtures import what a bare machine has not.
    tests = ("-m", "pytest", "-vv", "-p", "no:cacheprovider", "--confcutdir=tests/gpu", "tests/gpu")
    # Where there is a GPU, what runs on a CPU must not find it: ranks take the card that they see.
    on_cpu = {"RGLCD_GPU_TESTS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    throughput = ("-m", "benchmarks.throughput", "--model", model, "--device", device, "--precision", "bfloat16", "tf32")
    slower = _CPU_IS_SLOWER if device == "cpu" else 1
    return [
        *(Part(f"step {mode}", 50 * slower, step_of(mode), on_cpu) for mode in batches),
        Part("caching and evaluation", 70 * slower, (*throughput, "--batch-size", str(batch_size)), on_cpu),
        Part("tests", 130 * slower, tests, on_cpu),
        # The longest last: it may have what is left. A CPU's compiler takes longer than all the rest.
        *([] if device == "cpu" else [Part("step plain, compiled", 400, step_of("plain", "--execution", "compiled"))]),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Install what is missing, run the parts, keep their lines; 1 if a part failed or was cut."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is missing here")
    parser.add_argument("--model", choices=("sd21", "toy"), default="sd21", help="whose shapes the steps have (default: sd21, 512 pixels)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch-size", type=int, help="of a step (default: 16 on a GPU, 2 on a CPU)")
    parser.add_argument("--only", action="append", metavar="WORD", help="only parts whose name has this word (may be given again)")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="file that gets every line too (default: gpu.jsonl)")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="rglcd-gpu-") as site:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([site, str(ROOT / "src"), str(ROOT)]), "PYTHONUNBUFFERED": "1"}
        record = Record(asked.out)
        try:
            installed = install_missing(asked.wheels, Path(site)) if asked.wheels else []
        except subprocess.SubprocessError as error:
            record.add({"part": "environment", "ended": f"the wheels in {asked.wheels} cannot be installed: {error}"})
            return 1
        record.add({"part": "environment", "installed": installed, **environment_of(environment)})
        wanted = parts(asked.model, asked.device, batch_size=asked.batch_size or (16 if asked.device == "cuda" else 2))
        for part in wanted:
            if not asked.only or any(word in part.name for word in asked.only):
                limit = LIMIT_SECONDS * (_CPU_IS_SLOWER if asked.device == "cpu" else 1)
                left = limit - (time.monotonic() - started)
                run_part(part, {**environment, **part.environment}, seconds=min(part.seconds, left), record=record)
    return 1 if record.failed else 0


class Record:
    """Lines of JSON, printed and appended to a file as they come."""

    def __init__(self, path: Path) -> None:
        self.path, self.failed = path, False

    def add(self, line: Mapping[str, object]) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")


def run_part(part: Part, environment: Mapping[str, str], *, seconds: float, record: Record) -> None:
    """Run ``part`` for at most ``seconds``; its lines of JSON as they come, then a line that says how it ended."""
    started = time.monotonic()
    if seconds < 1:
        record.add({"part": part.name, "ended": "not begun: the time of all parts is over"})
        record.failed = True
        return
    lines: list[str] = []

    def keep(printed: Iterable[str]) -> None:
        for line in printed:
            lines.append(line)
            for found in (*json_lines(line), *results_of_tests(line)):
                record.add({"part": part.name, **found})

    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            cwd=ROOT,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        reader = threading.Thread(target=keep, args=(process.stdout,))
        reader.start()
        try:
            code = process.wait(timeout=seconds)
            ended = "done" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"killed after {seconds:.0f} s"
        reader.join()
        errors.seek(0)
        out, err = "".join(lines), errors.read()
    if ended != "done":
        log = record.path.with_name(f"{record.path.stem}-{re.sub('[^a-z]+', '-', part.name)}.log")
        log.write_text(out + "\n" + err, encoding="utf-8")
    last = (
        {}
        if ended == "done"
        else {"last_lines": [*(line for line in out.splitlines()[-5:] if not line.startswith("{")), *err.splitlines()[-8:]]}
    )
    passed = [line for line in out.splitlines() if re.search(r"\d+ (passed|failed|skipped)", line)]
    record.add(
        {
            "part": part.name,
            "ended": ended,
            "seconds": round(time.monotonic() - started, 1),
            **({"pytest": passed[-1]} if passed else {}),
            **last,
        }
    )
    record.failed |= ended != "done"


def json_lines(text: str) -> Iterator[dict[str, object]]:
    """The objects among the lines of ``text``."""
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                continue


def results_of_tests(text: str) -> Iterator[dict[str, object]]:
    """What pytest says of each test, in the lines of ``text``: of a part that is cut, those that it had ended."""
    for line in text.splitlines():
        if found := re.match(r"(\S+::\S+) (PASSED|FAILED|ERROR|SKIPPED)\b", line):
            yield {"test": found[1], "outcome": found[2].lower()}


# --- packages ------------------------------------------------------------------------------------


def install_missing(wheels: Path, site: Path) -> list[str]:
    """Install into ``site`` the wheels whose distribution is missing here, or older than pyproject.toml asks for; their names."""
    minimum = minimum_versions((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    chosen = [wheel for wheel in sorted(wheels.glob("*.whl")) if is_wanted(wheel, installed_version, minimum)]
    if chosen:
        options = ("--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--no-compile", "--target", str(site))
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, chosen)], check=True, timeout=INSTALLATION_SECONDS)
    return [wheel.name for wheel in chosen]


def is_wanted(wheel: Path, version_here: Callable[[str], str | None], minimum: Mapping[str, str]) -> bool:
    """Whether to install ``wheel``: never torch or what comes with it, and nothing that is there in a version that will do.

    Of what pyproject.toml does not name (what others need) the version that was brought will do, and those after it.
    """
    name, version = normalised(wheel.name.split("-")[0]), wheel.name.split("-")[1]
    if NEVER_INSTALLED.match(name):
        return False
    here = version_here(name)
    return here is None or numbers(here) < numbers(minimum.get(name, version))


def installed_version(name: str) -> str | None:
    """The version of the distribution ``name`` in this interpreter; None if it has none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def minimum_versions(pyproject: str) -> dict[str, str]:
    """What pyproject.toml asks for with ``>=``, by normalised name: its dependencies, and the extra ``train``."""
    project = tomllib.loads(pyproject)["project"]
    asked = [
        re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", entry)
        for entry in (*project["dependencies"], *project["optional-dependencies"]["train"])
    ]
    return {normalised(found[1]): found[2] for found in asked if found}


def normalised(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of ``version``, without zeros at the end: 5.17.0 and 5.17 are one."""
    found = [int(number) for number in re.match(r"[0-9.]*", version)[0].split(".") if number]  # type: ignore[index]  # it matches always
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def environment_of(environment: Mapping[str, str]) -> dict[str, object]:
    """The versions that the parts will run with, and the card, asked of a process like theirs."""
    script = (
        "import importlib.metadata as m, json, platform, torch\n"
        "def v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return None\n"
        f"found = {{n: v(n) for n in {SHOWN!r}}}\n"
        "cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]\n"
        "print(json.dumps({'python': platform.python_version(), 'cuda': torch.version.cuda, 'cards': cards, 'versions': found}))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=dict(environment), cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
