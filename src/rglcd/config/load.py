"""The only way into the configuration: presets, ``params.yaml``, ``--set``, and sections as plain values."""

import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from rglcd.config.base import Section, placed
from rglcd.config.explanation import explain, nearest
from rglcd.config.hardware import RUNS_ON, Hardware
from rglcd.config.plain_values import parsed, refuse_switches_for_numbers
from rglcd.config.root import SECTIONS, Config
from rglcd.config.sections import Sections
from rglcd.config.unicode_text import require_unicode
from rglcd.errors import InputError


def preset_names() -> list[str]:
    """The presets that ship with the package, smallest first."""
    order = {"micro": 0, "toy": 1}
    names = [Path(entry.name).stem for entry in resources.files("rglcd.presets").iterdir() if entry.name.endswith(".yaml")]
    return sorted(names, key=lambda name: (order.get(name, 2), name))


def load_preset(name: str, *, overrides: Sequence[str] = ()) -> Config:
    """The preset called ``name`` with ``section.key=value`` overrides, resolved.

    Raises :class:`InputError` for an unknown preset or key (naming the nearest) or a value of the wrong kind.
    """
    if name not in preset_names():
        raise InputError(f"unknown preset {name!r}{nearest(name, preset_names())}; there are: {', '.join(preset_names())}")
    sections = {key: value for key, value in _preset(name).items() if key != RUNS_ON}
    return resolve({**sections, "preset": name}, overrides=overrides, where=f"preset {name}")


def preset_hardware(name: str) -> Hardware | None:
    """The GPUs that the preset called ``name`` is for: the head of its file, which is no part of the configuration.

    None for a preset that runs on a CPU, and for a name that no preset has.
    """
    head = _preset(name).get(RUNS_ON) if name in preset_names() else None
    return None if head is None else Hardware.model_validate(head)


def load_params(path: Path, *, overrides: Sequence[str] = ()) -> Config:
    """The configuration in force: ``params.yaml`` as ``rglcd config use`` wrote it."""
    if not path.is_file():
        raise InputError(f"{path} is missing; write it with: rglcd config use toy")
    return resolve(mapping_in(text_of(path), where=str(path)), overrides=overrides, where=str(path))


def text_of(path: Path) -> str:
    """The text of a configuration's file. Raises :class:`InputError` where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{path} line {line} is not UTF-8: save the file as UTF-8") from None


def resolve(values: Mapping[str, Any], *, overrides: Sequence[str] = (), where: str) -> Config:
    """Validate ``values`` with ``overrides`` applied; ``where`` begins every message."""
    merged = dict(values)
    for override in overrides:
        merged = overridden(merged, override)
    require_unicode(merged, where=where)
    try:
        config = Config.model_validate(merged)
        refuse_switches_for_numbers(merged, config.model_dump(mode="json"))
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, merged)}") from None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    return config


def validate_section(name: str, values: Mapping[str, Any]) -> Section:
    """One section by its name, from plain values (as Kubeflow and TorchX carry them)."""
    if name not in SECTIONS:
        raise InputError(f"unknown section {name!r}{nearest(name, SECTIONS)}")
    if not isinstance(values, Mapping):
        raise InputError(f"section {name} must be a mapping, not {values!r}")
    require_unicode(values, where=f"section {name}")
    adapter: TypeAdapter[Section] = TypeAdapter(Sections.__annotations__[name])
    try:
        section = adapter.validate_python(dict(values))
        refuse_switches_for_numbers({name: values}, {name: section.model_dump(mode="json")})
    except ValidationError as error:
        raise InputError(f"section {explain(error, {name: values}, within=(name,))}") from None
    except ValueError as error:
        raise InputError(f"section {error}") from None
    return section


def dump(config: Config, *, overrides: Sequence[str] = ()) -> str:
    """``params.yaml``: every value spelled out, in the order of the classes, as :func:`load_params` reads it.

    Its head has the command that writes it, with ``overrides``: :func:`rglcd.config.edits.edits_in` takes all else for edits.
    """
    command = shlex.join(["rglcd", "config", "use", config.preset, *(word for override in overrides for word in ("--set", override))])
    head = f"# The configuration in force. Written by `{' '.join(command.split())}`; edit freely, every key is checked.\n"
    return head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=110)


def _preset(name: str) -> dict[str, Any]:
    text = resources.files("rglcd.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return mapping_in(text, where=f"preset {name}")


def mapping_in(text: str, *, where: str) -> dict[str, Any]:
    """The mapping that the YAML ``text`` is. Raises :class:`InputError`, which begins with ``where``."""
    values = parsed(text, where=where)
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping of sections")
    return values


def overridden(values: Mapping[str, Any], override: str) -> dict[str, Any]:
    """``values`` with ``section.key=value`` applied, not yet validated; ``values`` itself stays. Raises :class:`InputError`."""
    path, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"--set takes section.key=value, not {override!r}")
    return placed(values, path.split("."), parsed(text, where=f"--set {override}"))
