"""What ``prepare`` laid out, opened: the models that several stages share."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rglcd.config import Preparation
from rglcd.errors import InputError
from rglcd.models.loading import read_json
from rglcd.rewards.protocol import Reward
from rglcd.rewards.registry import Catalogue, has_weights, open_scorer
from rglcd.store.manifest import digest_of, folder_digest, read_verified, write_json


def features_record(preparation: Preparation) -> dict[str, Any]:
    """What ``features.json`` says: the ``kind`` of the one network in ``features/``, or the ``kinds`` that have folders there."""
    kinds = [network.kind for network in preparation.feature_networks]
    return {"kinds": kinds} if preparation.has_several_features else {"kind": kinds[0]}


def feature_folders(folder: Path) -> list[tuple[str, Path]]:
    """The kind and the folder of each feature network in the artifact ``folder``, in the order of the configuration."""
    record = read_json(folder / "features.json")
    if "kind" in record:
        return [(str(record["kind"]), folder / "features")]
    return [(str(kind), folder / "features" / str(kind)) for kind in record["kinds"]]


def write_catalogue(folder: Path, scorers: Catalogue, *, features: Mapping[str, Any]) -> None:
    """Say in ``folder`` what kind each scorer is, a file each, so that another scorer is another file; and what ``features`` is."""
    (folder / "catalogue").mkdir(exist_ok=True)
    for name, settings in scorers.items():
        write_json(folder / "catalogue" / f"{name}.json", dict(settings))
    write_json(folder / "features.json", dict(features))


@dataclass(frozen=True)
class Pretrained:
    """The artifact ``pretrained``: a teacher folder, scorers by name, a feature network; or the parts of it that a stage reads."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Pretrained":
        """What ``prepare`` published in ``folder``; :class:`InputError` names a file that is no longer what it published."""
        read_verified(folder, made_by="prepare")
        return cls(folder)

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def initial(self) -> Path | None:
        """The few-step model that students start from, if one was prepared."""
        folder = self.folder / "initial"
        return folder if folder.is_dir() else None

    def scorer(self, name: str, *, dtype: torch.dtype, device: torch.device) -> Reward:
        """The reward model called ``name``."""
        return open_scorer(name, self._catalogue_with(name), self.folder / "scorers", dtype=dtype, device=device)

    def feature_folders(self) -> list[tuple[str, Path]]:
        """What kinds of networks give the features that distances compare, with their folders."""
        return feature_folders(self.folder)

    def catalogue(self) -> Catalogue:
        """All scorers that are here by name, with their settings."""
        return {path.stem: read_json(path) for path in sorted((self.folder / "catalogue").glob("*.json"))}

    def scorer_digest(self, name: str) -> str:
        """A digest of the scorer's weights, of its parts' where it is a mixture, or of its kind where it has none."""
        catalogue = self._catalogue_with(name)
        settings = catalogue[name]
        if settings["kind"] == "mixture":
            return digest_of({part: self.scorer_digest(part) for part in settings["weights"]})
        if has_weights(name, catalogue):
            return folder_digest(self.folder / "scorers" / name)
        return str(settings["kind"]) if len(settings) == 1 else digest_of(settings)

    def _catalogue_with(self, name: str) -> Catalogue:
        catalogue = self.catalogue()
        if name not in catalogue:
            raise InputError(f"{self.folder} has no scorer {name!r}; it has: {', '.join(catalogue)}")
        return catalogue
