"""The families of teachers that are read, by the ``_class_name`` of a pipeline folder; others are named and refused."""

from pathlib import Path
from typing import Final

from rglcd.errors import InputError
from rglcd.models.families.flux import Flux
from rglcd.models.families.lumina2 import Lumina2
from rglcd.models.families.pixart import PixArtSigma
from rglcd.models.families.protocol import Family
from rglcd.models.families.sana import Sana
from rglcd.models.families.sd3 import StableDiffusion3
from rglcd.models.families.stable_diffusion import StableDiffusion
from rglcd.models.loading import read_json

STABLE_DIFFUSION: Final = StableDiffusion()

FAMILIES: Final[tuple[Family, ...]] = (STABLE_DIFFUSION, StableDiffusion3(), PixArtSigma(), Sana(), Lumina2(), Flux())

_TITLES: Final = [family.title for family in FAMILIES]
NAME_ANOTHER: Final = f"name a teacher of {', '.join(_TITLES[:-1])}, or of {_TITLES[-1]}"
"""What to do about a teacher that is refused."""

_OTHERS: Final = {
    "StableDiffusion3": "another pipeline of Stable Diffusion 3 (this needs text to image: StableDiffusion3Pipeline)",
    "Flux": "another pipeline of FLUX (this needs text to image: FluxPipeline)",
    "StableCascade": "Stable Cascade",
    "Wuerstchen": "Würstchen",
    "Kandinsky": "Kandinsky",
    "PixArt": "PixArt-Alpha (a transformer)",
    "HunyuanDiT": "Hunyuan-DiT (a transformer)",
    "Sana": "another pipeline of SANA",
    "AuraFlow": "AuraFlow (flow matching, a transformer)",
    "IFPipeline": "DeepFloyd IF (it draws pixels)",
}
"""By the beginning of a pipeline's ``_class_name``."""


def family_of(folder: Path) -> Family:
    """The family of the pipeline in ``folder``; :class:`InputError` for one that is not read, by its ``_class_name`` or its parts."""
    index = read_json(folder / "model_index.json")
    named = str(index.get("_class_name", ""))
    if (found := _named(named)) is not None:
        return found
    for beginning, title in _OTHERS.items():
        if named.startswith(beginning):
            raise InputError(f"{folder} is a {named}, {title}: {NAME_ANOTHER}")
    if "unet" not in index and "transformer" in index:
        raise InputError(f"{folder} is a {named or 'pipeline'} whose network is a transformer: {NAME_ANOTHER}")
    # Any pipeline of a UNet and CLIP: a student's, which is refused as a teacher; community pipelines have names of their own, and indexes
    # made by hand none.
    return STABLE_DIFFUSION


def family_named(pipeline: str) -> Family:
    """The family of pipelines of class ``pipeline``; Stable Diffusion for a name that no family has."""
    return _named(pipeline) or STABLE_DIFFUSION


def _named(pipeline: str) -> Family | None:
    return next((family for family in FAMILIES if pipeline in family.pipelines), None)
