"""What ``prepare`` reads and no stage makes: local model folders and files, and the code of rewards that other packages hold. Each gets a
digest."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rglcd.config import EntryPointScorer, Model, OcrScorer, Preparation, Section
from rglcd.errors import InputError
from rglcd.rewards.installed_code import READER, code_of, code_of_reader, in_words, offered_reward, reader_folder
from rglcd.stages.model_roles import ModelRole, model_roles
from rglcd.store.manifest import Manifest, digest_of, read_manifest
from rglcd.store.model_folders import TOKENIZER_FILES, local_files, named_local_files
from rglcd.store.remembered_files import entries_of, memory_beside


def reward_code(preparation: Preparation) -> dict[str, dict[str, str]]:
    """By scorer, the code of each reward of another package (:mod:`rglcd.rewards.installed_code`). Raises :class:`InputError`."""
    return {name: _code_now(about) for name, about in _held_elsewhere(preparation).items()}


def outside_digests(sections: Mapping[str, Section], *, published: Path) -> dict[str, str]:
    """By name, a digest of each thing outside the project that a stage with ``sections`` reads; nothing for all stages but ``prepare``.

    ``published`` is the folder of its artifact. A local folder that is there no more is what it was when that was made.
    Raises :class:`InputError` for an own reward that is not installed, or a local model that cannot be read.
    """
    model, preparation = sections.get("model"), sections.get("preparation")
    if not isinstance(model, Model) or not isinstance(preparation, Preparation):
        return {}
    digests = {f"model {role.what}": _local_digest(role, published) for role in model_roles(model, preparation) if role.source.is_local}
    return digests | {f"code of {name}": digest_of(code) for name, code in reward_code(preparation).items()}


def refuse_changed_rewards(prepared: Manifest) -> None:
    """Raise :class:`InputError` for an own reward that is installed with other code than ``prepare`` found."""
    for name, recorded in prepared.facts.get("rewards", {}).items():
        if not _is_installed(recorded):
            continue  # a machine that only launches has it in its images
        if (found := _code_now(recorded)) != recorded["code"]:
            raise InputError(
                f"the reward {name} is {in_words(found)} now, and {in_words(recorded['code'])} was prepared; run: rglcd run prepare"
            )


def reward_facts(preparation: Preparation) -> dict[str, Any]:
    """What the manifest of ``prepare`` says of the rewards of other packages, for :func:`refuse_changed_rewards`."""
    return {name: {**about, "code": _code_now(about)} for name, about in _held_elsewhere(preparation).items()}


def _held_elsewhere(preparation: Preparation) -> dict[str, dict[str, str]]:
    """By scorer, of those whose code another package holds, the ``entry_point`` or the ``package`` that it is."""
    found = {}
    for name, scorer in preparation.scorers.items():
        if isinstance(scorer, EntryPointScorer):
            found[name] = {"entry_point": scorer.name}
        elif isinstance(scorer, OcrScorer):
            found[name] = {"package": READER}
    return found


def _code_now(about: Mapping[str, Any]) -> dict[str, str]:
    return code_of(about["entry_point"]) if "entry_point" in about else code_of_reader()


def _is_installed(about: Mapping[str, Any]) -> bool:
    try:
        offered_reward(about["entry_point"]) if "entry_point" in about else reader_folder()
    except InputError:
        return False
    return True


def _local_digest(role: ModelRole, published: Path) -> str:
    """The digest that ``prepare`` reports and pins compare, from what is remembered where nothing changed."""
    root = Path(role.source.uri)
    if role.what == "teacher" and root.is_file():
        return entries_of({root.name: root}, of=root, memory=memory_beside(published))[root.name].sha256
    if not root.is_dir():
        return _digest_then(role, published)
    if role.file is not None:
        files = named_local_files(root, [role.file])
        of = root / role.file
    elif role.role == "tokenizer":
        files, of = named_local_files(root, TOKENIZER_FILES), root / "tokenizer"
    else:
        files, of = local_files(root), root
    entries = entries_of(files, of=of, memory=memory_beside(published))
    if role.file is not None:
        return entries[role.file].sha256 if role.file in entries else "missing"
    return digest_of({name: entry.sha256 for name, entry in entries.items()})


def _digest_then(role: ModelRole, published: Path) -> str:
    try:
        digest = read_manifest(published, made_by="prepare").facts["models"][role.what]
    except (InputError, KeyError, TypeError):
        return "missing"
    print(f"rglcd: {role.source.uri} is missing (looked in {Path.cwd()}); {published} keeps what was made of it", file=sys.stderr)
    return str(digest)
