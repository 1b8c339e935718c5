"""The files that stages read and no stage makes, looked for before the first stage starts: a missing one is not found out after days.

Nothing heavy is imported, so that the light image, which submits, looks too.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rglcd.config import Config, WebDownload
from rglcd.errors import InputError
from rglcd.stages.model_roles import model_roles
from rglcd.stages.prompts import prompts_to_draw
from rglcd.stages.table import Stage

INDEX: Final = "index.tsv"
LISTING: Final = "shards.json"
"""Named here too (:mod:`rglcd.sharding.source`, :mod:`rglcd.sharding.third_party_tars`): importing those takes their libraries."""

_HELD_OUT: Final = "`rglcd data use WHAT --reference N` holds them out of your data"


@dataclass(frozen=True)
class _Wanted:
    """A file or folder, and what to say if it is not there. ``instead`` does as well."""

    path: Path
    rule: str
    instead: Path | None = None

    @property
    def is_there(self) -> bool:
        return self.path.exists() or (self.instead is not None and self.instead.exists())


def require_files(config: Config, stages: Iterable[Stage], *, source: Path | None, made: Path | None = None, in_pods: bool = False) -> None:
    """Raise :class:`InputError` for the first file that one of ``stages`` reads and that is missing: its path, and the rule.

    ``source`` is the source folder, ``None`` if it is out of reach from here. ``made`` is the folder of the artifacts: model
    folders that ``prepare`` has laid out there already are not looked for, nor are those of pods (``in_pods``).
    """
    for stage in stages:
        if in_pods and stage.name == "prepare":
            continue
        for wanted in _wanted_by(stage, config, source, made):
            if not wanted.is_there:
                raise InputError(f"{wanted.path} is missing: {stage.name} reads {wanted.rule}")
        if stage.name == "evaluate" and source is not None:
            prompts_to_draw(config.evaluation, source)


def _wanted_by(stage: Stage, config: Config, source: Path | None, made: Path | None) -> Iterator[_Wanted]:
    if stage.name == "shard" and source is not None:
        rule = "the source index, one row a line (url TAB caption); `rglcd data use WHAT` writes it from what you have"
        yield _Wanted(source / INDEX, f"{rule}, `rglcd toy data` the toy's", instead=source / LISTING)
    if stage.name == "evaluate" and source is not None:
        evaluation = config.evaluation
        yield _Wanted(
            source / evaluation.prompt_source.source,
            f"the prompts to draw, one a line; `rglcd data use WHAT --prompts FILE` writes it, and {_HELD_OUT} with their captions",
        )
        yield _Wanted(
            source / evaluation.reference,
            "the real images to compare with, one row a line (url TAB caption), each url a path below "
            f"{(source / evaluation.reference).parent}; {_HELD_OUT}",
        )
    if stage.name == "prepare" and (made is None or not (made / "pretrained" / "manifest.json").is_file()):
        for role in model_roles(config.model, config.preparation):
            if role.source.is_local:
                uri = role.source.uri
                toys = "; the toy's models lie in the checkout of rg-lcd, `rglcd toy build` trains them anew (70 minutes of CPU)"
                yield _Wanted(
                    Path(uri), f"the model folder of {role.key} (looked in {Path.cwd()}){toys if uri.startswith('./toy/') else ''}"
                )


def warn_of_models_no_pod_sees(config: Config, stages: Iterable[Stage]) -> None:
    """Say which model folders are named from where one stands: a pod stands elsewhere, and sees its claim and its image alone."""
    roles = model_roles(config.model, config.preparation) if any(stage.name == "prepare" for stage in stages) else []
    near = [f"{role.key} is {role.source.uri}" for role in roles if role.source.uri.startswith(("./", "../"))]
    if near:
        advice = "Put it on the claim and name its path (/store/...), or an s3:// folder"
        print(f"rglcd: {'; '.join(near)}: of this machine, no pod sees it. {advice}", file=sys.stderr)


def warn_of_downloads_no_pod_keeps(config: Config, stages: Iterable[Stage]) -> None:
    """Say it if pods would download into folders of their own: small, and gone with the pod."""
    download = config.sharding.download
    if isinstance(download, WebDownload) and not Path(download.store).is_absolute() and any(stage.name == "shard" for stage in stages):
        advice = "Name one on the claim, which all pods mount (/store/downloads)"
        print(f"rglcd: sharding.download.store is {download.store}: a pod's own folder, which goes with it. {advice}", file=sys.stderr)


def source_at_hand(root: Path, location: Path | str | None = None) -> Path | None:
    """The source folder to look into from this machine for one that pods read: ``location`` if it is here too, else ``root``'s ``data``.

    That is what ``data.dvc`` versions. ``None`` if neither is here: a source that is imported from a store, say.
    """
    places = [Path(location)] if isinstance(location, Path) else []
    return next((place for place in (*places, root / "data") if place.is_dir()), None)
