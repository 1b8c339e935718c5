"""Which scorers have something in common with a reward: a score by one of them is not a judge's.

Two scorers are one family when they are made of the same weights, under whatever names and kinds: a mixture is made of its parts,
``hpsv2`` and ``hpsv2-process`` of one published file, a scorer without weights of its kind and settings (but for ``logit_scale``, which
makes no other score).
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from rglcd.rewards.registry import Catalogue, has_weights
from rglcd.store.manifest import Manifest, digest_of

_WEIGHTS: Final = frozenset({".safetensors", ".bin", ".pt", ".pth"})


def akin(trained_on: Iterable[str], catalogue: Catalogue, pretrained: Manifest) -> frozenset[str]:
    """The scorers of ``catalogue`` that share a part or weights with one of ``trained_on``, these included.

    ``pretrained`` is the manifest of what ``prepare`` laid out. A name that the catalogue lacks stands for itself alone.
    """
    made_of = {name: _made_of(name, catalogue, pretrained) for name in catalogue}
    reward = frozenset[str]().union(*(made_of.get(name, frozenset()) for name in trained_on))
    return frozenset(trained_on) | {name for name, parts in made_of.items() if parts & reward}


def _made_of(name: str, catalogue: Catalogue, pretrained: Manifest) -> frozenset[str]:
    """Digests of all that the scorer ``name`` is made of. A part of a mixture that counts for nothing is none."""
    settings = catalogue[name]
    if settings["kind"] == "mixture":
        used = [part for part, weight in settings["weights"].items() if weight and part in catalogue]
        return frozenset[str]().union(*(_made_of(part, catalogue, pretrained) for part in used))
    if not has_weights(name, catalogue):
        return frozenset({digest_of({key: value for key, value in settings.items() if key != "logit_scale"})})
    folder = f"scorers/{name}"
    files = {entry.sha256 for path, entry in pretrained.files.items() if path.startswith(f"{folder}/") and _is_weights(path)}
    return frozenset(files | _fetched(pretrained.facts, folder))


def _is_weights(path: str) -> bool:
    return PurePosixPath(path).suffix in _WEIGHTS


def _fetched(facts: Mapping[str, Any], folder: str) -> set[str]:
    """The digests of what was fetched for a scorer: a published file's is its own, however it was converted."""
    models: Mapping[str, str] = facts.get("models", {})
    return {models[what] for what in (folder, f"{folder}/head") if what in models}
