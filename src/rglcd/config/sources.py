"""Where model folders and published files come from, and how to know that they are the ones meant."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from rglcd.config.base import Section, SourcePath
from rglcd.recipe import Positive

_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelSource(Section):
    """Where a model folder comes from, and how to know that it is the one meant.

    ``uri`` is a hub id (``org/name``), an object-store folder (``s3://bucket/prefix``) or a local folder, which
    begins with ``./``, ``../`` or ``/``. ``revision`` is the hub commit. ``sha256`` is the folder's digest as
    ``prepare`` prints it; left out, the folder is taken as it comes and its digest recorded in the manifest.
    A string stands for the ``uri`` alone.
    """

    uri: str
    """A hub id, ``s3://bucket/prefix``, or a local folder; a teacher's may be the path or url of one ``.safetensors`` file."""
    revision: str | None = None
    """The hub's commit."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The digest that it must have."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"uri": value} if isinstance(value, str) else value

    @property
    def is_local(self) -> bool:
        return self.uri.startswith(("./", "../", "/"))

    @model_validator(mode="after")
    def _pinned(self) -> "ModelSource":
        is_hub = not self.is_local and "://" not in self.uri
        if is_hub and self.uri.count("/") != 1:
            raise ValueError(f"{self.uri!r} is neither a hub id (org/name), s3://bucket/prefix, nor a path beginning with ./ ../ or /")
        if is_hub and self.revision is None:
            raise ValueError(f"{self.uri!r} is a hub id: name the revision (commit) too")
        # A tag moves: what it meant when the models were fetched is not what it means today, and nothing would tell.
        if is_hub and self.sha256 is None and not _COMMIT.fullmatch(str(self.revision)):
            raise ValueError(f"{self.uri!r} at {self.revision!r} may move: name its commit (40 hexadecimal digits), or the sha256 too")
        return self


class WeightsSource(ModelSource):
    """A model folder, or one published file in it, which ``prepare`` converts to safetensors.

    With ``file`` (``HPS_v2.1_compressed.pt``) that file alone is fetched, and ``sha256`` is the file's own.
    """

    file: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_+][A-Za-z0-9_.+/-]*$")
    """The one file that is read, by its path in the folder."""

    @model_validator(mode="after")
    def _inside(self) -> "WeightsSource":
        if self.file is not None and ".." in self.file.split("/"):
            raise ValueError(f"file {self.file!r} climbs out of {self.uri}")
        return self


class FeatureSource(Section):
    """A network whose features distances compare, by the ``kind`` that evaluation knows, with the folder of its weights.

    ``auto`` is any vision model, ``dinov2`` DINOv2 ViT-L/14 (FD-DINOv2), ``clip`` CLIP ViT-L/14 at 336 pixels (CMMD).
    """

    kind: str
    """``auto``, ``dinov2`` or ``clip``."""
    source: ModelSource | None = None


class InceptionSource(Section):
    """FID's Inception-v3: the one file that torch-fidelity publishes (``weights-inception-2015-12-05-6726825d.pth``), or its tensors."""

    kind: Literal["inception"]
    source: WeightsSource

    @model_validator(mode="after")
    def _complete(self) -> "InceptionSource":
        if self.source.file is None:
            raise ValueError("source must name its `file`: weights-inception-2015-12-05-6726825d.pth")
        return self


def _features_form(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "several networks"
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return "one file" if kind == "inception" else "a folder"


_OneNetwork = Annotated[
    Annotated[FeatureSource, Tag("a folder")] | Annotated[InceptionSource, Tag("one file")], Discriminator(_features_form)
]

FeatureSources = Annotated[
    Annotated[FeatureSource, Tag("a folder")]
    | Annotated[InceptionSource, Tag("one file")]
    | Annotated[tuple[_OneNetwork, ...], Tag("several networks")],
    Discriminator(_features_form),
]
"""One network, or several: the first that a Fréchet distance is taken by is the one in plots and headlines."""


PromptKind = Literal["lines", "hpsv2", "parti", "geneval", "dpg", "compbench"]


class PromptSource(Section):
    """A published set of prompts, or lines of one's own, within the source folder; each prompt carries the groups of its set.

    ``sha256`` pins what ``rglcd data prompts`` prints. With ``per_prompt`` the number of images must be that many of each prompt;
    left out, prompts are drawn in turn until ``num_images``.
    """

    kind: PromptKind
    """Which published format it has."""
    source: SourcePath
    """File or folder, within the source folder."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The digest that it must have."""
    per_prompt: Positive | None = None
    """Images of each prompt; null: as ``num_images`` gives."""
