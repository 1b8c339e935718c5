"""Stage ``prepare``: fetch every frozen model, verify it, lay it out. Nothing is trained here."""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rglcd import progress
from rglcd.config import Model, ModelSource, Preparation, WeightsSource
from rglcd.errors import InputError
from rglcd.models.checkpoint_import import read_checkpoint
from rglcd.models.features import load_features
from rglcd.models.inception import convert_inception
from rglcd.models.single_file import SUFFIX, convert_single_file
from rglcd.models.trial import CAPTION, refuse_weights_that_are_not_finite, try_features, try_scorer, try_teacher
from rglcd.rewards.conversion import CONVERTERS, Converter
from rglcd.rewards.protocol import Reward
from rglcd.rewards.registry import Catalogue, open_scorer
from rglcd.stages.model_roles import ModelRole, model_roles
from rglcd.stages.outside import reward_code, reward_facts
from rglcd.stages.pretrained import feature_folders, features_record, write_catalogue
from rglcd.stages.run import Output
from rglcd.store.manifest import folder_digest, sha256_of
from rglcd.store.model_folders import TOKENIZER_FILES, fetch_model_folder, fetch_named_files


def prepare(model: Model, preparation: Preparation, *, pretrained: Output) -> Mapping[str, Any]:
    """Lay out ``teacher/``, ``initial/`` if there is one, ``scorers/<name>/``, ``features/``, and ``catalogue/``: what kind each is.

    Raises :class:`InputError` for a model that cannot be had, is not the one pinned, or cannot be opened.
    """
    folder = pretrained.folder
    for network in preparation.feature_networks:
        if network.source is None:
            raise InputError("preparation.features needs a source")
    fetches = [_fetch(role) for role in model_roles(model, preparation)]
    digests = {fetch.what: fetch(folder) for fetch in progress.track(fetches, task="fetch models", unit="models")}
    code = reward_code(preparation)
    catalogue = {name: scorer.settings() | ({"code": code[name]} if name in code else {}) for name, scorer in preparation.scorers.items()}
    write_catalogue(folder, catalogue, features=features_record(preparation))
    _open_each(folder, model, preparation, catalogue=catalogue)
    return {"models": digests, "rewards": reward_facts(preparation)}


@dataclass(frozen=True)
class _Folder:
    """A model folder, copied as it is."""

    what: str
    source: ModelSource

    def __call__(self, root: Path) -> str:
        destination = _emptied(root / self.what)
        fetch_model_folder(self.source.uri, destination, revision=self.source.revision)
        return _pinned(self.what, self.source, folder_digest(destination))


@dataclass(frozen=True)
class _SingleFile:
    """A teacher in one file, converted to a pipeline folder. Its pin is the file's own digest."""

    what: str
    source: ModelSource

    def __call__(self, root: Path) -> str:
        uri, staging = self.source.uri, _emptied(root / ".single")
        folder, _, name = uri.rpartition("/")
        path = Path(uri) if self.source.is_local else staging / name
        if not self.source.is_local:
            fetch_named_files(folder, [name], staging, revision=None)
        elif not path.is_file():
            raise InputError(f"model file {path} is missing (looked in {Path.cwd()})")
        digest = _pinned(self.what, self.source, sha256_of(path))
        print(f"prepare: {convert_single_file(path, _emptied(root / self.what))}", file=sys.stderr)
        shutil.rmtree(staging, ignore_errors=True)
        return digest


@dataclass(frozen=True)
class _Published:
    """One file as its authors published it: verified, converted, and let go. Every later stage sees safetensors."""

    what: str
    source: WeightsSource
    convert: Converter
    into: str
    """The scorer's folder; another role may have put its files there before."""

    def __call__(self, root: Path) -> str:
        assert self.source.file is not None
        staging, destination = _emptied(root / ".published"), root / self.into
        fetch_named_files(self.source.uri, [self.source.file], staging, revision=self.source.revision)
        digest = _pinned(self.what, self.source, sha256_of(staging / self.source.file))
        destination.mkdir(parents=True, exist_ok=True)
        try:
            self.convert(read_checkpoint(staging / self.source.file), destination)
        except InputError as error:
            raise InputError(f"{self.what} from {self.source.uri}: {error}") from None
        shutil.rmtree(staging)
        return digest


@dataclass(frozen=True)
class _Tokenizer:
    """The tokenizer of a folder that may hold a model too, which stays there."""

    what: str
    source: ModelSource
    into: str

    def __call__(self, root: Path) -> str:
        staging = _emptied(root / ".tokenizer")
        fetch_named_files(self.source.uri, TOKENIZER_FILES, staging, revision=self.source.revision)
        digest = _pinned(self.what, self.source, folder_digest(staging))
        for path in staging.iterdir():
            if path.is_file():
                path.replace(root / self.into / path.name)
        shutil.rmtree(staging)
        return digest


_Fetch = _Folder | _SingleFile | _Published | _Tokenizer


def _fetch(role: ModelRole) -> _Fetch:
    place = role.what if role.role == "source" else role.what.rpartition("/")[0]
    if role.role == "tokenizer":
        return _Tokenizer(role.what, role.source, into=place)
    if role.scorer is None and role.file is not None:
        assert isinstance(role.source, WeightsSource)
        return _Published(role.what, role.source, convert_inception, into=role.what)
    if role.scorer is not None and role.file is not None:
        assert isinstance(role.source, WeightsSource)
        return _Published(role.what, role.source, CONVERTERS[role.scorer.settings()["kind"]], into=place)
    if role.what == "teacher" and role.source.uri.endswith(SUFFIX):
        return _SingleFile(role.what, role.source)
    return _Folder(role.what, role.source)


def _emptied(folder: Path) -> Path:
    """``folder`` without what a killed run left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _pinned(what: str, source: ModelSource, digest: str) -> str:
    if source.sha256 is not None and digest != source.sha256:
        raise InputError(f"{what} from {source.uri} has digest {digest}, and sha256 pins {source.sha256}: it is not the model meant")
    return digest


def _open_each(folder: Path, model: Model, preparation: Preparation, *, catalogue: Catalogue) -> None:
    """What cannot be opened, or used on a caption and a drawn picture, is refused here, not after an hour of caching."""
    device = torch.device("cpu")
    try_teacher(folder / "teacher", resolution=model.resolution, num_ddim_steps=model.num_ddim_steps)
    if (folder / "initial").is_dir():
        refuse_weights_that_are_not_finite(folder / "initial")
    for name in catalogue:
        refuse_weights_that_are_not_finite(folder / "scorers" / name)
        try_scorer(name, _score_of_one(open_scorer(name, catalogue, folder / "scorers", dtype=torch.float32, device=device)))
    for kind, place in feature_folders(folder):
        features = load_features(kind, place, device=device)
        refuse_weights_that_are_not_finite(place)
        try_features(place, features)


def _score_of_one(reward: Reward) -> Callable[[Tensor], Tensor]:
    return lambda pixels: reward.score(pixels, reward.encode_text([CAPTION]))
