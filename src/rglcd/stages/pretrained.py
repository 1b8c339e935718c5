"""What ``prepare`` laid out, opened: the models that several stages share."""

from dataclasses import dataclass
from pathlib import Path

import torch

from rglcd.errors import InputError
from rglcd.models.loading import read_json
from rglcd.rewards.protocol import Reward
from rglcd.rewards.registry import Catalogue, has_weights, open_scorer
from rglcd.store.manifest import digest_of, folder_digest, read_verified, write_json


def write_catalogue(folder: Path, scorers: Catalogue, *, features: str) -> None:
    """Say in ``folder`` what kind each scorer is, a file each, so that another scorer is another file; and what ``features`` is."""
    (folder / "catalogue").mkdir(exist_ok=True)
    for name, settings in scorers.items():
        write_json(folder / "catalogue" / f"{name}.json", dict(settings))
    write_json(folder / "features.json", {"kind": features})


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

    def features_kind(self) -> str:
        """What kind of network gives the features that the Fréchet distance compares."""
        return str(read_json(self.folder / "features.json")["kind"])

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
