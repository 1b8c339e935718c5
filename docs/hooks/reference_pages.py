"""The reference that is made of the code: commands, configuration, presets, settings of a cluster, exit codes, the Python API."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from api_pages import api_pages
from command_page import command_page
from configuration_page import configuration_page
from mkdocs.structure.files import File, Files

from rglcd import errors
from rglcd.config import preset_names

ROOT = Path(__file__).parents[2]

EDIT_NOTHING = "<!-- made by docs/hooks from the code -->\n\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to those in the folder."""
    pages: dict[str, Callable[[], str]] = {
        "reference/commands.md": command_page,
        "reference/pipelines.md": _pipelines_page,
        "reference/configuration.md": configuration_page,
        "reference/presets.md": _presets_page,
        "reference/cluster-settings.md": _cluster_page,
        "reference/exit-codes.md": _exit_codes_page,
    }
    texts = {name: make() for name, make in pages.items()} | api_pages()
    for name, text in texts.items():
        files.append(File.generated(config, name, content=EDIT_NOTHING + text))
    return files


def _pipelines_page() -> str:
    parts = ["# Commands of the Kubeflow pipeline\n\nThe exit codes are those of [every command](exit-codes.md).\n"]
    for words in ([], ["run"], ["compile"], ["submit"]):
        command = [sys.executable, "-W", "ignore", "-m", "pipelines", *words, "--help"]
        environment = {"COLUMNS": "84", "PATH": ""}
        asked = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)  # noqa: S603 (fixed words)
        parts.append(f"## {' '.join(['python -m pipelines', *words])}\n\n```text\n{asked.stdout.strip()}\n```\n")
    return "\n".join(parts)


def _presets_page() -> str:
    parts = [
        "# Presets\n\nA preset is a file of the values that differ from the defaults of the [configuration](configuration.md), with a "
        "source beside a number. `rglcd config show PRESET` prints one with every value. `runs_on` names the GPUs that its sizes were "
        "chosen for; nothing is computed from it. A preset without it runs on a CPU.\n"
    ]
    for name in preset_names():
        text = (ROOT / "src/rglcd/presets" / f"{name}.yaml").read_text(encoding="utf-8").strip()
        parts.append(f"## {name}\n\n```yaml\n{text}\n```\n")
    return "\n".join(parts)


def _cluster_page() -> str:
    text = (ROOT / "manifests/cluster.example.yaml").read_text(encoding="utf-8").strip()
    return f"# Settings of a cluster\n\n`manifests/cluster.example.yaml`, whole.\n\n```yaml\n{text}\n```\n"


def _exit_codes_page() -> str:
    errors_raised = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    rows = [(kind.exit_code, f"`{kind.__name__}`", " ".join((kind.__doc__ or "").split())) for kind in errors_raised]
    rows += [(0, "", "Done."), (errors.UNEXPECTED, "", "An error that nobody expected: the line names the file that holds its traceback.")]
    lacking = "A machine of a job is not what it was promised to be: GPUs, shared memory, a folder to write to, its peers."
    rows.append((errors.UNAVAILABLE, "", f"{lacking} In a cluster it is tried again as a crash is."))
    table = "\n".join(f"| {code} | {name} | {what} |" for code, name, what in sorted(rows))
    about = " ".join((errors.__doc__ or "").split("\n\n", 1)[0].split())
    about += " A job that ends otherwise ends its launcher with the code of the first rank that failed: 137, say, of one that was killed."
    return f"# Exit codes\n\n{about}\n\n| code | raised as | means |\n|--:|---|---|\n{table}\n"
