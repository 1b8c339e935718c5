"""A stage as a TorchX app: pure data, the same for a local process group and a cluster."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchx import specs

from rglcd.config import Section
from rglcd.errors import InputError
from rglcd.launch.resources import RESOURCES
from rglcd.stages.table import Stage

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_EXPANDED = re.compile(r"[${}]")


def stage_app(
    stage: Stage,
    *,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Mapping[str, Path],
    image: str,
    num_processes: int,
    python: str = "python",
) -> specs.AppDef:
    """The app that runs ``stage``: ``python -m rglcd run NAME --sections JSON --artifact NAME=PATH ...``.

    With several processes, one node's worth of them under torchrun, every rank running that command.
    Raises :class:`InputError` for an artifact path that a launcher would expand.
    """
    run = ["run", stage.name, "--sections", inline_json({name: _plain(sections[name]) for name in stage.sections})]
    for name in (*stage.inputs, *stage.outputs):
        if name in artifacts:
            run += ["--artifact", f"{name}={_literal(name, artifacts[name])}"]
    asked = RESOURCES[stage.profile]
    role = specs.Role(
        name=stage.name,
        image=image,
        entrypoint=python,
        args=["-m", *_launcher(num_processes), "rglcd", *run],
        # The job must not submit itself again: within it, the stage runs in its own process.
        env={"RGLCD_RUNTIME": "inline"},
        resource=specs.Resource(cpu=asked.cpus, gpu=asked.gpus, memMB=asked.memory_gib * 1024),
    )
    return specs.AppDef(name=f"rglcd-{stage.name}", roles=[role])


def inline_json(value: Any) -> str:
    """``value`` as JSON that TorchX (``${name}``), Kubernetes (``$(NAME)``) and Argo (``{{name}}``) leave alone.

    Inside strings ``$``, ``{`` and ``}`` are written as JSON's own unicode escapes; plain ``json.loads`` decodes them.
    """
    text = json.dumps(value, allow_nan=False)
    return _STRING.sub(lambda string: _EXPANDED.sub(lambda found: f"\\u{ord(found[0]):04x}", string[0]), text)


def _launcher(num_processes: int) -> list[str]:
    if num_processes == 1:
        return []
    return ["rglcd.launch.gang", "--standalone", "--nproc-per-node", str(num_processes), "-m"]


def _plain(section: Mapping[str, Any] | Section) -> Any:
    return section.model_dump(mode="json") if isinstance(section, Section) else dict(section)


def _literal(name: str, path: Path) -> str:
    if "$" in str(path) or "{{" in str(path):
        raise InputError(f"artifact {name} lies in {path}: launchers expand '$' and '{{{{'; use a folder without them")
    return str(path)
