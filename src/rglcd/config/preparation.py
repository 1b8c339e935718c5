"""The sections ``model``, ``preparation`` and ``caching``: the frozen networks, and what is computed with them once."""

from typing import Final

from pydantic import Field, model_validator

from rglcd.config.base import Section
from rglcd.config.scorers import MixtureScorer, ScorerSource
from rglcd.config.sources import FeatureSource, FeatureSources, InceptionSource, ModelSource
from rglcd.recipe import NumGridSteps, Positive, Precision

_LONGEST_NAME: Final = 200
"""Of a scorer, in bytes: with an ending it is a file's, of at most 255."""


class Model(Section):
    """The teacher, and what the student's parametrisation adds to it."""

    teacher: ModelSource
    """The diffusion model that is distilled: a pipeline folder in diffusers' layout."""
    resolution: Positive = 512
    """Side of the pictures that are drawn, in pixels; ``sharding.resolution`` must be equal."""
    num_ddim_steps: NumGridSteps = 50
    """Steps of the grid on which the teacher's ODE is solved; no student draws in more."""
    sigma_data: float = Field(default=0.5, gt=0)
    """The data's standard deviation in the boundary scalings (LCM's c_skip and c_out). Without meaning for a flow."""
    timestep_scaling: float = Field(default=10.0, gt=0)
    """The slope in t of the boundary scalings. Without meaning for a flow."""


class Preparation(Section):
    """What is fetched beside the teacher: reward models by name, the networks whose features distances compare, a start."""

    scorers: dict[str, ScorerSource]
    """Reward models by names of your own; other keys refer to the names."""
    features: FeatureSources
    """The networks whose features distances to real images compare."""
    # Left out where it is not given, so that results made before it was there keep their keys.
    initial: ModelSource | None = Field(default=None, exclude_if=lambda source: source is None)
    """A few-step model that whole students start from instead of the teacher: a folder of its kind, or of an LCM-LoRA, which is merged."""

    @property
    def feature_networks(self) -> tuple[FeatureSource | InceptionSource, ...]:
        """``features`` as a list."""
        return self.features if isinstance(self.features, tuple) else (self.features,)

    @property
    def has_several_features(self) -> bool:
        """Whether ``features`` is a list: each network then has a folder of its own in ``features/``."""
        return isinstance(self.features, tuple)

    @model_validator(mode="after")
    def _features_differ(self) -> "Preparation":
        kinds = [network.kind for network in self.feature_networks]
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError(f"features: name one network of each kind, not {', '.join(kinds) or 'none'}")
        if kinds == ["clip"]:
            raise ValueError("features: CMMD (clip) stands beside a Fréchet distance: name auto, inception or dinov2 too")
        return self

    @model_validator(mode="after")
    def _names_are_of_folders(self) -> "Preparation":
        for name in self.scorers:
            if not name.strip() or name.startswith(".") or "/" in name or len(name.encode()) > _LONGEST_NAME:
                raise ValueError(
                    f"scorers: {name!r} names a folder: no '/' in it, no '.' at its beginning, and at most {_LONGEST_NAME} bytes"
                )
        return self

    @model_validator(mode="after")
    def _mixtures_have_parts(self) -> "Preparation":
        for name, scorer in self.scorers.items():
            for part in scorer.weights if isinstance(scorer, MixtureScorer) else ():
                if part not in self.scorers or isinstance(self.scorers[part], MixtureScorer):
                    raise ValueError(f"scorers.{name}.weights names {part!r}, which must be another scorer and no mixture")
        return self


class Caching(Section):
    """Encode once what every epoch would encode again."""

    batch_size: Positive = 32
    """Images encoded at once."""
    scorers: tuple[str, ...] = ("expert",)
    """Scorers whose text features are stored, once per caption."""
    scores: tuple[str, ...] = ()
    """Of these, those whose score of each picture is stored, as the codec gives the picture back: an expert in it need not
    look at the real image in every step that labels (``reward.kind: latent``), a third of what labelling costs."""
    text_embeddings: bool = False
    """Store the text encoder's output too. Of CLIP it is about five times the size of a latent, for 1 % of a step. T5 and Gemma take more
    of a step: where the network has a mask (PixArt-Sigma, SANA, Lumina-Image 2.0) padding is left out; of SD 3 it is fourteen latents."""
    precision: Precision = "float32"
    """Of the VAE's encoder but for its first and last layers; moments are float32 all the same. There is no float16: SDXL's VAE
    overflows it (``force_upcast`` in its config.json; huggingface.co/madebyollin/sdxl-vae-fp16-fix). bfloat16 has float32's range."""
    parts: Positive = 1
    """Independent parts that a cluster may run side by side."""
