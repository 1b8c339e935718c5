"""Stage ``prepare``: fetch every frozen model, verify it, lay it out. Nothing is trained here."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rglcd import progress
from rglcd.config import Model, ModelSource, Preparation
from rglcd.data.manifest import folder_digest, write_json
from rglcd.data.storage import fetch_model_folder
from rglcd.errors import InputError
from rglcd.evaluation.features import load_features
from rglcd.models.codec import Codec
from rglcd.models.teacher import Teacher
from rglcd.models.text import TextEncoder
from rglcd.rewards.registry import load_scorer
from rglcd.stages.run import Output

SCORERS = "scorers.json"


def prepare(model: Model, preparation: Preparation, *, pretrained: Output) -> Mapping[str, Any]:
    """Lay out ``teacher/``, ``scorers/<name>/`` and ``features/``, and ``scorers.json``, which says what kind each is.

    Raises :class:`InputError` for a model that cannot be had, is not the one pinned, or cannot be opened.
    """
    folder = pretrained.folder
    wanted: dict[str, ModelSource] = {"teacher": model.teacher}
    for name, scorer in preparation.scorers.items():
        if "source" in scorer.sources():
            wanted[f"scorers/{name}"] = scorer.sources()["source"]
    if preparation.features.source is None:
        raise InputError("preparation.features needs a source")
    wanted["features"] = preparation.features.source

    digests = {
        place: _fetch(place, source, folder / place) for place, source in progress.track(wanted.items(), task="fetch models", unit="models")
    }
    kinds = {name: scorer.settings() for name, scorer in preparation.scorers.items()}
    write_json(folder / SCORERS, {"scorers": kinds, "features": {"kind": preparation.features.kind}})
    _open_each(folder, model, preparation)
    return {"models": digests}


def _fetch(place: str, source: ModelSource, destination: Path) -> str:
    """The digest of the folder that now lies at ``destination``; one that a killed run left half-copied is fetched anew."""
    shutil.rmtree(destination, ignore_errors=True)
    fetch_model_folder(source.uri, destination, revision=source.revision)
    digest = folder_digest(destination)
    if source.sha256 is not None and digest != source.sha256:
        raise InputError(f"{place} from {source.uri} has digest {digest}, and sha256 pins {source.sha256}: it is not the model meant")
    return digest


def _open_each(folder: Path, model: Model, preparation: Preparation) -> None:
    """What cannot be opened is refused here, not after an hour of caching."""
    device = torch.device("cpu")
    Codec.load(folder / "teacher", dtype=torch.float32, device=device).latent_shape(model.resolution)
    TextEncoder.load(folder / "teacher", dtype=torch.float32, device=device)
    Teacher.load(folder / "teacher", dtype=torch.float32, device=device)
    for name, scorer in preparation.scorers.items():
        load_scorer(scorer.kind, folder / "scorers" / name, dtype=torch.float32, device=device)
    load_features(preparation.features.kind, folder / "features", device=device)
