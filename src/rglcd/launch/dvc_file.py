"""DVC: ``dvc.yaml`` rendered from the stage table, and runs made through another interface recorded in ``dvc.lock``."""

from pathlib import Path
from typing import Any

import yaml

from rglcd.config import Config, dump
from rglcd.errors import InputError
from rglcd.evaluation.distance_names import FRECHET, main_kind
from rglcd.stages.computation import digest_of_parts, source_digest, stage_key
from rglcd.stages.outside import outside_digests
from rglcd.stages.table import SOURCE, Parts, Stage, inputs_of, is_read, maker_of, parts_read, stages_of
from rglcd.store.artifact_store import ArtifactStore
from rglcd.store.artifacts import ArtifactLocation
from rglcd.store.files import is_remote
from rglcd.store.local_copies import source_copy
from rglcd.store.manifest import read_manifest
from rglcd.store.remembered_files import memory_beside
from rglcd.store.staging import write_text

DVC_FILE = "dvc.yaml"
PARAMS_FILE = "params.yaml"
SOURCE_FOLDER = "data"
STORE = "artifacts"

_HEAD = "# Rendered from the stage table and params.yaml by `rglcd dvc render`; edit those.\n"


def source_place(root: Path) -> Path | str:
    """Where the source is: the folder ``data``, or the URL that ``data.dvc`` imports without having downloaded it."""
    recorded = _recorded_source(root)
    imported = recorded is not None and "deps" in recorded and "md5" not in recorded["outs"][0]
    return str(recorded["deps"][0]["path"]) if recorded is not None and imported else root / SOURCE_FOLDER


def source_md5(root: Path) -> str:
    """The md5 by which ``data.dvc`` versions the source. Raises :class:`InputError` when it names none."""
    recorded = _recorded_source(root)
    if recorded is None:
        raise InputError(f"{root / SOURCE_FOLDER}.dvc is missing; record the source folder with: dvc add {SOURCE_FOLDER}")
    versioned = [entry["md5"] for entry in (*recorded["outs"], *recorded.get("deps", [])) if "md5" in entry]
    if len(recorded["outs"]) != 1 or not versioned:
        raise InputError(
            f"{root / SOURCE_FOLDER}.dvc names no single output with its md5; record the source again: dvc add {SOURCE_FOLDER}"
        )
    return str(versioned[0])


def _recorded_source(root: Path) -> dict[str, Any] | None:
    path = root / f"{SOURCE_FOLDER}.dvc"
    if not path.is_file():
        return None
    try:
        recorded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        recorded["outs"][0]["path"]
    except (yaml.YAMLError, TypeError, KeyError, IndexError):
        raise InputError(f"{path} names no single output with its md5; record the source again: dvc add {SOURCE_FOLDER}") from None
    return recorded


def write_dvc_file(config: Config, root: Path) -> None:
    """Write the ``dvc.yaml`` of the project in ``root`` for ``config``: whoever changes the configuration calls this."""
    write_text(root / DVC_FILE, render(config, source=source_place(root)))


def require_current(stage_name: str, config: Config, root: Path) -> None:
    """Raise :class:`InputError` when ``dvc.yaml`` has another entry for the stage than ``config`` gives: DVC would watch other files."""
    path = root / DVC_FILE
    found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    expected = yaml.safe_load(render(config, source=source_place(root)))["stages"].get(stage_name)
    if found is not None and found.get("stages", {}).get(stage_name) != expected:
        raise InputError(f"{path} is not what the configuration gives for {stage_name}; write it with: rglcd dvc render")


def render(config: Config, *, source: Path | str = SOURCE_FOLDER) -> str:
    """``dvc.yaml`` for ``config``: the stages it runs, what they read and write, and what DVC shows of the report.

    A section is the unit of re-running; code enters by the stage's version in its command. Outs persist, because a
    stage takes over from its former result what is still valid.
    """
    stages = {stage.name: _stage(stage, config, source) for stage in stages_of(config)}
    report = f"{STORE}/report"
    who = ["teacher", *config.distillation.arms]
    kinds = [network.kind for network in config.preparation.feature_networks]
    plots = [
        {
            f"{score} by number of steps": {
                "x": "steps",
                "y": {f"{report}/quality.csv": [f"{name} {score}" for name in who]},
                "template": "linear",
            }
        }
        for score in (*config.evaluation.scorers, FRECHET.get(main_kind(kinds), "frechet"))
    ]
    shown = {"metrics": [f"{report}/metrics"], "plots": plots}
    return _HEAD + yaml.safe_dump(_literal({"stages": stages, **shown}), sort_keys=False, width=110)


def _literal(content: Any) -> Any:
    """``content`` with no text that DVC would expand: ``${name}`` stands for a parameter, unless a backslash is before it.
    https://dvc.org/doc/user-guide/project-structure/dvcyaml-files#templating"""
    match content:
        case str():
            return content.replace("${", "\\${")
        case dict():
            return {_literal(key): _literal(value) for key, value in content.items()}
        case list():
            return [_literal(each) for each in content]
    return content


def adopt(config: Config, root: Path) -> list[str]:
    """Record in ``dvc.lock`` a finished run that DVC did not make (the CLI's, Kubeflow's); return the stages' names.

    Nothing runs. Afterwards ``dvc status`` is clean and ``dvc repro`` has nothing to do.
    Raises :class:`InputError`, before anything is recorded, when a stage is not done, or was done with other parameters,
    inputs or code than those in force; or when ``dvc.yaml`` or ``params.yaml`` is not what ``config`` gives.
    """
    source = source_place(root)
    _check_file(root / DVC_FILE, render(config, source=source), remedy="rglcd dvc render")
    _check_file(root / PARAMS_FILE, dump(config), remedy=f"rglcd config use {config.preset}")
    stages = stages_of(config)
    for stage in stages:
        _check_done(stage, config, root, source)

    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        if not is_remote(source):
            _keep_source(repo, root)
        for stage in stages:
            repo.commit(target=f"{root / DVC_FILE}:{stage.name}", force=True)
    return [stage.name for stage in stages]


def _keep_source(repo: Any, root: Path) -> None:
    """Put the source folder in DVC's cache; :class:`InputError` when it is not the one that ``data.dvc`` versions."""
    target = str(root / f"{SOURCE_FOLDER}.dvc")
    changes = [change["changed outs"][SOURCE_FOLDER] for entries in repo.status([target]).values() for change in entries]
    if changes == ["not in cache"]:
        # The bytes are those recorded (a toy drawn anew on this machine, say); only the cache has never seen them.
        repo.commit(target=target, force=True)
    elif changes:
        raise InputError(
            f"{root / SOURCE_FOLDER} is {changes[0]}: not what {SOURCE_FOLDER}.dvc versions; record it with: dvc add {SOURCE_FOLDER}"
        )


def _stage(stage: Stage, config: Config, source: Path | str) -> dict[str, Any]:
    entry: dict[str, Any] = {"desc": stage.summary, "cmd": f"rglcd run {stage.name} --stage-version {stage.version}"}
    parts = parts_read(stage, config)
    deps = [dep for name in inputs_of(stage, config) for dep in _deps(name, parts[name], source)]
    if deps:
        entry["deps"] = deps
    entry["params"] = list(stage.keyed)
    entry["outs"] = [{str(_folder(name)): {"persist": True}} for name in stage.outputs]
    return entry


def _deps(artifact: str, parts: Parts, source: Path | str) -> list[str]:
    """The paths of what is read of an artifact."""
    if artifact == SOURCE and is_remote(source):
        return [str(source)]  # DVC follows it there, as one external dependency
    if artifact == SOURCE and Path(source).is_dir():  # a source has an index or ready-made shards, and DVC refuses what is missing
        parts = tuple(part for part in parts if (Path(source) / part).exists())
    elif artifact == SOURCE:
        parts = tuple(part for part in parts if part != "shards.json")
    return [str(_folder(artifact) / part) for part in parts]


def _folder(artifact: str) -> Path:
    return Path(SOURCE_FOLDER) if artifact == SOURCE else Path(STORE) / artifact


def _check_file(path: Path, expected: str, *, remedy: str) -> None:
    found = path.read_text(encoding="utf-8") if path.is_file() else None
    if found is None or yaml.safe_load(found) != yaml.safe_load(expected):
        raise InputError(f"{path} is {'missing' if found is None else 'not what the configuration gives'}; write it with: {remedy}")


def _check_done(stage: Stage, config: Config, root: Path, source: Path | str) -> None:
    """The stage's published manifest must be the computation that ``config`` asks for; one made elsewhere comes from the store."""
    (output,) = stage.outputs
    place = ArtifactLocation.of(output, root / _folder(output))
    sections = {name: config.section(name) for name in stage.sections}
    parts = parts_read(stage, config)
    made_from = {name: _digest(name, parts[name], root, source) for name in inputs_of(stage, config)}
    key = stage_key(stage, sections, made_from | outside_digests(sections, published=place.folder))
    made = ArtifactStore(place.uri).made(key) if place.uri is not None else None
    if made is not None:
        place.mirror(made, kept=stage.kept)
    elif read_manifest(place.folder, made_by=stage.name).key != key:
        raise InputError(
            f"stage {stage.name}: {place.folder} was made with other parameters, inputs or code; run it first: rglcd run {stage.name}"
        )


def _digest(artifact: str, parts: Parts, root: Path, source: Path | str) -> str:
    if artifact != SOURCE:
        folder = root / _folder(artifact)
        return digest_of_parts(read_manifest(folder, made_by=maker_of(artifact).name), parts, where=folder)
    if is_remote(source):
        return source_copy(str(source), wanted=lambda name: is_read(name, parts))[1]
    return source_digest(Path(source), parts, memory=memory_beside(root / STORE / SOURCE))
