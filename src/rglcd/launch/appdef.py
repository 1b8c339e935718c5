"""A stage as a TorchX app definition (``AppDef``): plain data, the same for a local process group and a cluster."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchx import specs

from rglcd.config import Section
from rglcd.errors import InputError
from rglcd.launch.kept_failures import FAILURES_FOLDER, failures_folder
from rglcd.launch.placement import Accelerators, Placement
from rglcd.launch.resources import RESOURCES, Resources, resources_of
from rglcd.stages.computation import Artifacts
from rglcd.stages.table import Stage

TERMINATION_MESSAGE = "/dev/termination-log"
"""Where Kubernetes looks for a container's termination message."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_EXPANDED = re.compile(r"[${}]")


def stage_app(
    stage: Stage,
    *,
    sections: Mapping[str, Mapping[str, Any] | Section],
    artifacts: Artifacts,
    image: str,
    num_processes: int,
    python: str = "python",
) -> specs.AppDef:
    """The app that runs ``stage`` on one machine: ``python -m rglcd run NAME --sections JSON --artifact NAME=PATH ...``.

    With several processes, torchrun starts them, every rank running that command.
    Raises :class:`InputError` for an artifact path that a launcher would expand.
    """
    run = _command(stage, sections=sections, artifacts=artifacts)
    ranks = [] if num_processes == 1 else ["rglcd.launch.process_group", "--standalone", "--nproc-per-node", str(num_processes), "-m"]
    return _app(stage, image=image, entrypoint=python, args=["-m", *ranks, *run], asked=RESOURCES[stage.profile])


def cluster_app(
    stage: Stage, *, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts, placement: Placement
) -> specs.AppDef:
    """The app that runs ``stage`` in a cluster: a replica for each node, with :mod:`rglcd.launch.pod` around the ranks.

    The ranks meet at the first replica, whose host name Volcano's svc plugin puts into every pod's environment.
    Raises :class:`InputError` for an artifact path that a launcher would expand.
    """
    rendezvous = {
        "--nnodes": str(placement.num_nodes),
        "--nproc-per-node": str(placement.processes_per_node),
        "--rdzv-backend": "c10d",
        # TorchX writes the variable's name, Kubernetes its value.
        "--rdzv-endpoint": f"$(${{rank0_env}}):{placement.rendezvous_port}",
        "--rdzv-id": placement.run,
        # One node may pull its image for minutes while the others wait.
        "--rdzv-conf": "read_timeout=900,join_timeout=900",
        "--local-addr": "$(RGLCD_POD_IP)",
    }
    observed = [
        "--run",
        placement.run,
        "--metrics-address",
        "$(RGLCD_POD_IP)",
        "--metrics-port",
        str(placement.metrics_port),
        "--error-file",
        TERMINATION_MESSAGE,
    ]
    torchrun = [word for pair in rendezvous.items() for word in pair]
    run = _command(stage, sections=sections, artifacts=artifacts)
    args = ["-m", "rglcd.launch.pod", *observed, "--", *torchrun, "-m", *run]
    asked = resources_of(stage.profile, placement.pool)
    app = _app(stage, image=placement.image, entrypoint="python", args=args, asked=asked)
    (role,) = app.roles
    role.num_replicas = placement.num_nodes
    folder = _failures_folder(Path(artifacts[stage.outputs[0]]), placement) if stage.outputs[0] in artifacts else None
    if folder is not None:
        role.env[FAILURES_FOLDER] = str(folder)
    role.env["RGLCD_PREFLIGHT"] = _expected(asked, placement.accelerators)
    return app


def _failures_folder(output: Path, placement: Placement) -> Path | None:
    """Where failed attempts leave what they know, on the claim, which outlives the pod: beside the artifact if that lies there."""
    if placement.store is None:
        return None
    mount = Path(placement.store[0])
    return failures_folder(output if output.is_relative_to(mount) else mount / output.name)


def _app(stage: Stage, *, image: str, entrypoint: str, args: list[str], asked: Resources) -> specs.AppDef:
    role = specs.Role(
        name=stage.name,
        image=image,
        entrypoint=entrypoint,
        args=args,
        # The job must not submit itself again: within it, the stage runs in its own process.
        env={"RGLCD_RUNTIME": "inline"},
        resource=specs.Resource(cpu=asked.cpus, gpu=asked.gpus, memMB=asked.memory_gib * 1024),
    )
    return specs.AppDef(name=f"rglcd-{stage.name}", roles=[role])


def _command(stage: Stage, *, sections: Mapping[str, Mapping[str, Any] | Section], artifacts: Artifacts) -> list[str]:
    run = ["rglcd", "run", stage.name, "--sections", inline_json({name: _plain(sections[name]) for name in stage.sections})]
    for name in (*stage.inputs, *stage.outputs):
        if name in artifacts:
            run += ["--artifact", f"{name}={_literal(name, artifacts[name])}"]
    return run


def _expected(asked: Resources, accelerators: Accelerators) -> str:
    real = accelerators is Accelerators.REAL
    return json.dumps({"gpus": asked.gpus if real else 0, "shared_memory_gib": asked.shared_memory_gib if real else 0})


def inline_json(value: Any) -> str:
    """``value`` as JSON that TorchX (``${name}``), Kubernetes (``$(NAME)``) and Argo (``{{name}}``) leave alone.

    Inside strings ``$``, ``{`` and ``}`` are written as JSON's own unicode escapes; plain ``json.loads`` decodes them.
    """
    text = json.dumps(value, allow_nan=False)
    return _STRING.sub(lambda string: _EXPANDED.sub(lambda found: f"\\u{ord(found[0]):04x}", string[0]), text)


def _plain(section: Mapping[str, Any] | Section) -> Any:
    return section.model_dump(mode="json") if isinstance(section, Section) else dict(section)


def _literal(name: str, location: Path | str) -> str:
    if "$" in str(location) or "{{" in str(location):
        raise InputError(f"artifact {name} lies in {location}: launchers expand '$' and '{{{{'; use a folder without them")
    return str(location)
