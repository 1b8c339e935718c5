"""The configuration: one class per section, validated once, at one door.

``defaults -> presets/NAME.yaml -> --set a.b=c -> Config -> params.yaml -> sections -> plain values``

A section is the unit of re-running, for DVC and Kubeflow alike: a stage runs again when one of the
sections it reads has changed. This module imports no torch, so a laptop, CI and the pipeline
compiler check any run in milliseconds. Choices are tagged unions (``kind: ...``), not booleans.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from rglcd.errors import InputError


class Section(BaseModel):
    """Frozen, and closed: a key that no section knows is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


# --- what is fetched -----------------------------------------------------------------------------


_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelSource(Section):
    """Where a model folder comes from, and how to know that it is the one meant.

    ``uri`` is a hub id (``org/name``), an object-store folder (``s3://bucket/prefix``) or a local folder, which
    begins with ``./``, ``../`` or ``/``. ``revision`` is the hub commit. ``sha256`` is the folder's digest as
    ``prepare`` prints it; left out, the folder is taken as it comes and its digest recorded in the manifest.
    """

    uri: str
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

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


class FeatureSource(Section):
    """The network whose features FID compares, by the ``kind`` that evaluation knows, with the folder of its weights."""

    kind: str
    source: ModelSource | None = None


# --- reward models -------------------------------------------------------------------------------


class WeightsSource(ModelSource):
    """A model folder, or one published file in it, which ``prepare`` converts to safetensors.

    With ``file`` (``HPS_v2.1_compressed.pt``) that file alone is fetched, and ``sha256`` is the file's own.
    """

    file: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_+][A-Za-z0-9_.+/-]*$")

    @model_validator(mode="after")
    def _inside(self) -> "WeightsSource":
        if self.file is not None and ".." in self.file.split("/"):
            raise ValueError(f"file {self.file!r} climbs out of {self.uri}")
        return self


class Scorer(Section):
    """What every reward model's class says of itself beside its fields.

    ``text`` is what it makes of a caption: a vector that a linear map can read (so that a latent proxy may be
    pretrained on it), token numbers, or nothing at all.
    """

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "vector"

    def settings(self) -> dict[str, Any]:
        """Everything but where its files come from: what the registry is told when the scorer is opened."""
        return self.model_dump(mode="json", exclude={"source", "tokenizer", "head"})

    def sources(self) -> dict[str, ModelSource]:
        """Its files by role: ``source``, ``tokenizer``, ``head``."""
        given = {role: getattr(self, role, None) for role in ("source", "tokenizer", "head")}
        return {role: source for role, source in given.items() if source is not None}


class ClipScorer(Scorer):
    """Any transformers ``CLIPModel`` folder, with the normalisation of its ``preprocessor_config.json``."""

    kind: Literal["clip"]
    source: ModelSource


class PublishedClipScorer(Scorer):
    """HPSv2 and HPSv2.1, CLIPScore (ViT-H/14) and PickScore: the same network, each with its own weights and preprocessing.

    ``tokenizer`` is the folder of the CLIP tokenizer; left out, ``source`` is a folder that has it.
    """

    kind: Literal["hpsv2", "clipscore", "pickscore"]
    source: WeightsSource
    tokenizer: ModelSource | None = None

    @model_validator(mode="after")
    def _complete(self) -> "PublishedClipScorer":
        return _with_tokenizer(self)


class ImageRewardScorer(Scorer):
    """ImageReward: BLIP whose text looks at the image. ``hinge`` is -ReLU(2 - r), flat above 2, as RG-LCD's released code has it."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"

    kind: Literal["imagereward"]
    source: WeightsSource
    tokenizer: ModelSource | None = None
    form: Literal["raw", "hinge"] = "raw"

    @model_validator(mode="after")
    def _complete(self) -> "ImageRewardScorer":
        return _with_tokenizer(self)


class AestheticScorer(Scorer):
    """LAION's aesthetic predictors: a ``head`` (v1 linear, v2 five layers) on CLIP ViT-L/14's image vector. Reads no caption."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "nothing"

    kind: Literal["aesthetic-v1", "aesthetic-v2"]
    source: ModelSource
    head: WeightsSource
    logit_scale: float = Field(default=1.0, gt=0)
    """Inverse temperature of its preferences: the predictor was fitted to ratings and has none of its own."""

    @model_validator(mode="after")
    def _complete(self) -> "AestheticScorer":
        if self.head.file is None:
            raise ValueError("head must name its `file`")
        return self


class MixtureScorer(Scorer):
    """A weighted sum of other scorers of ``preparation.scorers``."""

    # The parts' features side by side are no vector of one space.
    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"

    kind: Literal["mixture"]
    weights: dict[str, float] = Field(min_length=1)
    logit_scale: float = Field(gt=0)
    """Inverse temperature of its preferences: a sum of several scales has none of its own."""


class Hpsv2ProcessScorer(Scorer):
    """The ``hpsv2`` package itself, run by the Python of its own environment. Scores only: no gradient crosses a process."""

    kind: Literal["hpsv2-process"]
    source: WeightsSource
    interpreter: str = "hpsv2-python"
    """The Python that has hpsv2: a command on the PATH, as in the image ``hpsv2``, or a path."""

    @model_validator(mode="after")
    def _complete(self) -> "Hpsv2ProcessScorer":
        if self.source.file is None:
            raise ValueError("source must name its `file`: HPS_v2.1_compressed.pt")
        return self


class EntryPointScorer(Scorer):
    """A user's own: the entry point ``name`` in the group ``rglcd.rewards`` of an installed package."""

    kind: Literal["entry-point"]
    name: str
    source: ModelSource | None = None

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"has_weights": self.source is not None}


class ToyJudgeScorer(Scorer):
    """The toy world's judge."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"

    kind: Literal["toy-judge"]
    source: ModelSource


class ToyCheckerScorer(Scorer):
    """The toy world's checker: it measures, and has no weights."""

    text: ClassVar[Literal["vector", "tokens", "nothing"]] = "tokens"

    kind: Literal["toy-checker"]


ScorerSource = Annotated[
    ClipScorer
    | PublishedClipScorer
    | ImageRewardScorer
    | AestheticScorer
    | MixtureScorer
    | Hpsv2ProcessScorer
    | EntryPointScorer
    | ToyJudgeScorer
    | ToyCheckerScorer,
    Field(discriminator="kind"),
]

_Tokenised = TypeVar("_Tokenised", PublishedClipScorer, ImageRewardScorer)


def _with_tokenizer(scorer: _Tokenised) -> _Tokenised:
    if scorer.source.file is not None and scorer.tokenizer is None:
        raise ValueError(f"{scorer.source.file} holds no tokenizer: name its folder as `tokenizer`")
    return scorer


# --- sections ------------------------------------------------------------------------------------


class NoDownload(Section):
    """Nothing is fetched: rows and shards that lie elsewhere are counted or refused."""

    kind: Literal["none"] = "none"


class WebDownload(Section):
    """Images are fetched from the addresses that rows name, and ready-made shards from theirs."""

    kind: Literal["web"] = "web"
    store: str = "downloads"
    """Folder in which everything fetched is kept by its sha256; another run needs no network."""
    user_agent: str = "Mozilla/5.0 (compatible; rglcd/0.1; fetches images for training, honours X-Robots-Tag)"
    allowed_networks: tuple[str, ...] = ()
    """Networks that may be reached although they are not public (one's own mirrors), such as 10.1.2.0/24."""
    max_bytes: Positive = 20 << 20
    total_seconds: float = Field(default=15.0, gt=0)
    """For one url: resolving, connecting, redirects, retries and body together."""
    min_bytes_per_second: Positive = 4096
    num_connections: Positive = 64
    connections_per_host: Positive = 4
    num_retries: int = Field(default=2, ge=0)
    round: Positive = 1
    """Raise it to ask again for what failed; what was fetched is kept."""


class Sharding(Section):
    """From the source to webdataset tars."""

    resolution: Positive = 512
    """Side of the training image, in pixels."""
    resize: Literal["center_crop", "border", "keep_ratio", "no"] = "center_crop"
    """img2dataset's modes. The first two make squares, which is what the later stages read."""
    min_side: Positive = 1
    """Images whose short side has fewer pixels are left out."""
    max_aspect: float | None = Field(default=None, ge=1)
    """Images with a longer side ratio are left out; null keeps all."""
    deduplication: Literal["none", "exact", "perceptual"] = "none"
    """Leave out an image that an earlier row gave: the same bytes, or the same 64-bit difference hash of its pixels."""
    image_format: Literal["png", "jpeg", "webp"] = "jpeg"
    samples_per_shard: Positive = 10_000
    """Rows of the index that make a shard; a ready-made shard stays one."""
    max_rows: Positive | None = None
    """Read only the first rows of the index; null reads all."""
    download: Annotated[NoDownload | WebDownload, Field(discriminator="kind")] = NoDownload()
    parts: Positive = 1
    """Independent parts that a cluster may run side by side."""

    @model_validator(mode="after")
    def _sound(self) -> "Sharding":
        if self.deduplication != "none" and self.parts > 1:
            raise ValueError("deduplication compares with every earlier row, so it cannot be split: parts must be 1")
        return self


class Model(Section):
    """The teacher, and what the student's parametrisation adds to it."""

    teacher: ModelSource
    resolution: Positive = 512
    num_ddim_steps: Positive = 50
    sigma_data: float = Field(default=0.5, gt=0)
    timestep_scaling: float = Field(default=10.0, gt=0)


class Preparation(Section):
    """Everything frozen beside the teacher: reward models by name, and the network whose features FID compares."""

    scorers: dict[str, ScorerSource]
    features: FeatureSource

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
    scorers: tuple[str, ...] = ("expert",)
    """Scorers whose text features are stored, once per caption."""
    scores: tuple[str, ...] = ()
    """Of these, those whose score of each picture is stored, as the codec gives the picture back: an expert in it need not
    look at the real image in every step that labels (``reward.kind: latent``), a third of what labelling costs."""
    text_embeddings: bool = False
    """Store the text encoder's output too: about five times the size of a latent, for 1 % of a step."""
    parts: Positive = 1


class VitTower(Section):
    """The LRM's image tower: a vision transformer on latents. The defaults are RG-LCD's latent ViT (38.5 M parameters)."""

    kind: Literal["vit"] = "vit"
    patch: Positive = 4
    width: Positive = 512
    num_layers: Positive = 12
    num_heads: Positive = 8


class ResNetTower(Section):
    """The LRM's image tower: CLIP's modified ResNet on latents. The defaults are RG-LCD's latent RN50 (38.2 M parameters)."""

    kind: Literal["resnet"] = "resnet"
    blocks: tuple[Positive, ...] = Field(default=(3, 4, 6, 3), min_length=1)
    """Bottleneck blocks of each stage; every stage but the first halves the sides and doubles the channels."""
    width: int = Field(default=64, gt=0, multiple_of=32)


class Pretraining(Section):
    """Contrastive pretraining of the latent proxy reward model on cached latents and captions."""

    tower: Annotated[VitTower | ResNetTower, Field(discriminator="kind")] = VitTower()
    scorer: str = "expert"
    """The scorer whose cached text features the LRM reads."""
    num_steps: Positive = 10_000
    batch_size: Positive = 480
    """Over all ranks together; every caption of it is contrasted with every other."""
    learning_rate: float = Field(default=5e-4, gt=0)
    weight_decay: float = Field(default=0.2, ge=0)
    warmup_steps: int = Field(default=500, ge=0)
    num_validation: int = Field(default=1_000, ge=0)
    """The last samples of the cache, never trained on: retrieval accuracy is measured on them ten times a run."""
    checkpoint_every: Positive = 1_000
    seed: int = 0


class UniformTimesteps(Section):
    """Every step of the grid as often as another: LCM's and RG-LCD's choice. ``span`` leaves a part of the grid out."""

    kind: Literal["uniform"] = "uniform"
    span: tuple[Probability, Probability] = (0.0, 1.0)
    """From the cleanest end of the grid, 0, to the noisiest, 1."""

    @model_validator(mode="after")
    def _rises(self) -> "UniformTimesteps":
        if self.span[0] >= self.span[1]:
            raise ValueError(f"span runs from low to high, not {list(self.span)}")
        return self


class LognormalTimesteps(Section):
    """iCT's: the logarithm of the noise in units of the signal is normal, cut into the steps of the grid."""

    kind: Literal["lognormal"] = "lognormal"
    p_mean: float = -1.1
    """iCT's, for data of standard deviation 0.5; latents of Stable Diffusion have about 1, which adds log 2: -0.41."""
    p_std: float = Field(default=2.0, gt=0)
    uniform_share: Probability = 0.0
    """This share of the draws is spread evenly: few-step sampling starts at the noisiest steps, else seldom trained."""


Timesteps = Annotated[UniformTimesteps | LognormalTimesteps, Field(discriminator="kind")]


class SharedPrediction(Section):
    """The reward sees what the student has just predicted for the distillation: no pass more. RG-LCD, Algorithm 3."""

    kind: Literal["shared"] = "shared"
    every: Positive = 1
    """Every n-th sample of the batch is rewarded."""


class OwnPrediction(Section):
    """The reward has noise and timesteps of its own, for the price of another pass of the student."""

    kind: Literal["own"] = "own"
    every: Positive = 1
    """Every n-th sample of the batch is rewarded."""
    timesteps: Timesteps = UniformTimesteps()


Prediction = Annotated[SharedPrediction | OwnPrediction, Field(discriminator="kind")]


class NoReward(Section):
    """Plain latent consistency distillation."""

    kind: Literal["none"] = "none"


class PixelReward(Section):
    """The reward's gradient through the VAE decoder: RG-LCD, Algorithm 3. Differentiable experts only."""

    kind: Literal["pixel"] = "pixel"
    expert: str = "expert"
    weight: float = Field(default=1.0, ge=0)
    chunk_size: Positive = 4
    """Images decoded with gradient at a time: bounds the memory, changes nothing else."""
    activations: Literal["kept", "recomputed"] = "kept"
    """Recomputing the decoder's in the backward pass needs less memory than even a chunk of one, and a third more work."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the decoder and the expert, whatever the networks that train are in."""
    prediction: Prediction = SharedPrediction()


class SoftLabels(Section):
    """Of two images the expert prefers one with the probability that a softmax over its scores gives."""

    kind: Literal["soft"] = "soft"
    logit_scale: float | None = Field(default=None, gt=0)
    """What scores are multiplied by before the softmax: an inverse temperature. Null takes the expert's own."""


class HardLabels(Section):
    """The better score wins with certainty and equal scores are a tie: for experts that only rank, or only say yes or no."""

    kind: Literal["hard"] = "hard"


class WholeProxy(Section):
    """All of the proxy learns: what the code that RG-LCD released does."""

    kind: Literal["whole"] = "whole"


class LastBlocks(Section):
    """The last blocks of the latent tower learn, with its head and the temperature; the blocks before them stay as they are."""

    kind: Literal["last"] = "last"
    num_blocks: int = Field(default=1, ge=0)
    text: Literal["learns", "stays"] = "learns"


class FrozenProxy(Section):
    """The proxy stays as it was at the start: what is learnt from the expert is measured against it."""

    kind: Literal["frozen"] = "frozen"


class OnlineProxy(Section):
    """The proxy learns the expert's preferences among student, target and real latents as training goes."""

    kind: Literal["online"] = "online"
    learning_rate: float = Field(default=3.3e-6, gt=0)
    num_updates: Positive = 1
    """Optimiser steps of the proxy for each of the student's, all on the same labels: these are the dear part."""
    label_every: Positive = 1
    """The expert labels every n-th sample of a batch: its decodes are the dearest part of a step."""
    labels: Annotated[SoftLabels | HardLabels, Field(discriminator="kind")] = SoftLabels()
    pairing: Literal["own", "other_captions", "other_images"] = "own"
    """Whose scores an image is labelled with. Two controls: each kind of candidate keeps its scores, but those of other
    captions; or all images of a batch draw theirs from one hat."""
    real_image: Literal["candidate", "privileged"] = "candidate"
    """A privileged real image cannot lose: where the expert prefers a generated one, the label becomes one half."""
    trains: Annotated[WholeProxy | LastBlocks, Field(discriminator="kind")] = WholeProxy()


class LatentReward(Section):
    """The reward's gradient from a latent proxy (LRM) that is tuned against the expert as training goes: Algorithm 4."""

    kind: Literal["latent"] = "latent"
    expert: str = "expert"
    weight: float = Field(default=1.0, ge=0)
    chunk_size: Positive = 4
    """Images decoded without gradient at a time, for the expert's labels."""
    initial: Literal["pretrained", "random"] = "pretrained"
    """Whether the proxy starts as pretraining left it, or, as a control, with random weights of the same shape."""
    tuning: Annotated[FrozenProxy | OnlineProxy, Field(discriminator="kind")] = OnlineProxy()
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the decoder and the expert, whatever the networks that train are in."""
    prediction: Prediction = SharedPrediction()


Reward = Annotated[NoReward | PixelReward | LatentReward, Field(discriminator="kind")]


class Huber(Section):
    """Element-wise Huber, mean over elements: the recipe that RG-LCD released."""

    kind: Literal["huber"] = "huber"
    c: float = Field(default=1e-3, gt=0)


class SquaredL2(Section):
    """Mean squared error."""

    kind: Literal["l2"] = "l2"


class PseudoHuber(Section):
    """iCT's per-sample norm; ``c: null`` takes its 0.00054 sqrt(d)."""

    kind: Literal["pseudo_huber"] = "pseudo_huber"
    c: float | None = Field(default=None, gt=0)


class Cauchy(Section):
    """log(1 + ||x - y||^2 / 2c^2) per sample, robust to latents' outliers (arXiv 2502.01441); ``c: null`` takes 0.00054 sqrt(d)."""

    kind: Literal["cauchy"] = "cauchy"
    c: float | None = Field(default=None, gt=0)


class EmaTarget(Section):
    """The target network is the student's moving average, which is also what is evaluated: LCM and RG-LCD."""

    kind: Literal["ema"] = "ema"
    decay: Probability = 0.95


class StopGradientTarget(Section):
    """The target network is the student itself, without gradient: iCT. Evaluated is the student, or its average."""

    kind: Literal["stop_gradient"] = "stop_gradient"
    evaluation_decay: Probability | None = None
    """Keep a moving average for evaluation alone; null keeps none, and saves a copy of the network."""


class ConstantGrid(Section):
    """The teacher's ODE is always solved on ``model.num_ddim_steps`` steps."""

    kind: Literal["constant"] = "constant"


class DoublingGrid(Section):
    """iCT's curriculum on the SD grid: start with ``start`` coarse steps and double them, up to ``end``."""

    kind: Literal["doubling"] = "doubling"
    start: Positive = 10
    end: Positive = 80


class FullStudent(Section):
    """A whole UNet of its own, which is also told the guidance weight omega."""

    kind: Literal["full"] = "full"
    omega_embedding_dim: Positive = 256


class LoraStudent(Section):
    """A low-rank adapter on the teacher's own UNet, in the manner of LCM-LoRA: it is not told omega.

    ``targets`` end the names of the layers that get one; the default is what the released LCM-LoRA was trained with.
    """

    kind: Literal["lora"] = "lora"
    rank: Positive = 64
    alpha: Positive = 64
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
    )


class Distillation(Section):
    """The distillation run. Each arm is a student: ``rg`` as the reward section says, ``lcm`` with no reward."""

    arms: tuple[Literal["lcm", "rg"], ...] = ("rg",)
    student: Annotated[FullStudent | LoraStudent, Field(discriminator="kind")] = FullStudent()
    match_compute: bool = False
    """Give the ``lcm`` arm as many more steps as the reward costs, counted in floating point operations."""
    num_steps: Positive = 10_000
    batch_size: Positive = 16
    """Over all ranks together: the world size changes the speed, not the run."""
    learning_rate: float = Field(default=1e-6, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    target: Annotated[EmaTarget | StopGradientTarget, Field(discriminator="kind")] = EmaTarget()
    neighbour: Literal["teacher", "data"] = "teacher"
    """Where a sample's next point on the grid comes from: the guided teacher's ODE (distillation), or the same noise on
    the real latents (consistency training, which no teacher guides: omega then has no meaning)."""
    omega: tuple[float, float] = (5.0, 15.0)
    """Guidance weights are drawn uniformly from this range (LCM notation: cond + omega (cond - uncond))."""
    caption_dropout: Probability = 0.0
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """In the residual blocks; student and target drop the same."""
    distance: Annotated[Huber | SquaredL2 | PseudoHuber | Cauchy, Field(discriminator="kind")] = Huber()
    timesteps: Timesteps = UniformTimesteps()
    weighting: Literal["even", "inverse_gap"] = "even"
    """What a draw counts for: all the same, or iCT's 1 / (sigma_t - sigma_s), whose mean over the draws is made 1."""
    grid: Annotated[ConstantGrid | DoublingGrid, Field(discriminator="kind")] = ConstantGrid()
    precision: Literal["float32", "bfloat16"] = "float32"
    execution: Literal["eager", "compiled"] = "eager"
    """``compiled`` pays on a GPU after minutes of compilation; it rounds otherwise, so it names another result."""
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """``channels_last`` pays on a GPU with bfloat16."""
    checkpoint_every: Positive = 1_000
    seed: int = 0

    @model_validator(mode="after")
    def _sound(self) -> "Distillation":
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError("arms must name at least one arm, each once")
        if self.omega[0] > self.omega[1]:
            raise ValueError(f"omega runs from low to high, not {list(self.omega)}")
        return self


class Evaluation(Section):
    """What is drawn, with how many steps, and who scores it."""

    prompts: str = "prompts/heldout.txt"
    """One prompt a line, within the source folder; drawn in turn until ``num_images``."""
    reference: str = "reference/index.tsv"
    """Index of the real images that FID compares with, within the source folder."""
    num_images: Positive = 3_200
    num_steps: tuple[Positive, ...] = (1, 2, 4, 8)
    teacher_steps: Positive = 50
    guidance_scale: float = Field(default=7.5, gt=1)
    """As diffusers counts it: omega + 1."""
    scorers: tuple[str, ...] = ("expert",)
    batch_size: Positive = 32
    grid_prompts: Positive = 8
    seed: int = 0


class Config(Section):
    """Everything a run is told. Sections only; where a stage runs is the environment's business."""

    preset: str
    sharding: Sharding
    model: Model
    preparation: Preparation
    caching: Caching
    pretraining: Pretraining
    reward: Reward
    distillation: Distillation
    evaluation: Evaluation

    @model_validator(mode="after")
    def _agree(self) -> "Config":
        if self.sharding.resolution != self.model.resolution:
            raise ValueError(
                f"sharding.resolution is {self.sharding.resolution} and model.resolution {self.model.resolution}: they must be equal"
            )
        for where, names in self._scorers_named().items():
            for name in names:
                if name not in self.preparation.scorers:
                    raise ValueError(f"{where} names {name!r}; preparation.scorers has {', '.join(self.preparation.scorers)}")
        for name in self.caching.scores:
            if name not in self.caching.scorers:
                raise ValueError(f"caching.scores names {name!r}, which scores pictures for captions; add it to caching.scorers")
        if self.reward.kind == "latent" and self.pretraining.scorer not in self.caching.scorers:
            raise ValueError(f"pretraining.scorer is {self.pretraining.scorer!r}; add it to caching.scorers")
        proxy = self.preparation.scorers[self.pretraining.scorer]
        if self.reward.kind == "latent" and proxy.text != "vector":
            raise ValueError(
                f"pretraining.scorer is {self.pretraining.scorer!r}, of kind {proxy.kind}, which makes no vector of a caption: "
                "name one that does (clip, hpsv2, clipscore, pickscore)"
            )
        if self.reward.kind != "none" and self.reward.expert not in self.caching.scorers:
            raise ValueError(f"reward.expert is {self.reward.expert!r}; add it to caching.scorers")
        return self

    def _scorers_named(self) -> dict[str, tuple[str, ...]]:
        named = {"caching.scorers": self.caching.scorers, "evaluation.scorers": self.evaluation.scorers}
        return named | {"caching.scores": self.caching.scores, "pretraining.scorer": (self.pretraining.scorer,)}

    def section(self, name: str) -> Section:
        """The section called ``name``."""
        section = getattr(self, name)
        assert isinstance(section, Section), name
        return section


SECTIONS: dict[str, Any] = {name: field for name, field in Config.model_fields.items() if name != "preset"}


# --- the door ------------------------------------------------------------------------------------


def preset_names() -> list[str]:
    """The presets that ship with the package, smallest first."""
    order = {"micro": 0, "toy": 1}
    names = [Path(entry.name).stem for entry in resources.files("rglcd.presets").iterdir() if entry.name.endswith(".yaml")]
    return sorted(names, key=lambda name: (order.get(name, 2), name))


def load_preset(name: str, *, overrides: Sequence[str] = ()) -> Config:
    """The preset called ``name`` with ``section.key=value`` overrides, resolved.

    Raises :class:`InputError` for an unknown preset or key (naming the nearest) or a value of the wrong kind.
    """
    if name not in preset_names():
        raise InputError(f"unknown preset {name!r}{_nearest(name, preset_names())}; there are: {', '.join(preset_names())}")
    text = resources.files("rglcd.presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return resolve({**_mapping(text, where=f"preset {name}"), "preset": name}, overrides=overrides, where=f"preset {name}")


def load_params(path: Path, *, overrides: Sequence[str] = ()) -> Config:
    """The configuration in force: ``params.yaml`` as ``rglcd config use`` wrote it."""
    if not path.is_file():
        raise InputError(f"{path} is missing; write it with: rglcd config use toy")
    return resolve(_mapping(path.read_text(encoding="utf-8"), where=str(path)), overrides=overrides, where=str(path))


def resolve(values: Mapping[str, Any], *, overrides: Sequence[str] = (), where: str) -> Config:
    """Validate ``values`` with ``overrides`` applied; ``where`` begins every message."""
    merged = dict(values)
    for override in overrides:
        merged = _overridden(merged, override)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, merged)}") from None


def validate_section(name: str, values: Mapping[str, Any]) -> Section:
    """One section by its name, from plain values (as Kubeflow and TorchX carry them)."""
    if name not in SECTIONS:
        raise InputError(f"unknown section {name!r}{_nearest(name, SECTIONS)}")
    if not isinstance(values, Mapping):
        raise InputError(f"section {name} must be a mapping, not {values!r}")
    adapter: TypeAdapter[Section] = TypeAdapter(Config.__annotations__[name])
    try:
        return adapter.validate_python(dict(values))
    except ValidationError as error:
        raise InputError(f"section {_explain(error, {name: values}, within=(name,))}") from None


def dump(config: Config) -> str:
    """``params.yaml``: every value spelled out, in the order of the classes, as :func:`load_params` reads it."""
    head = f"# The configuration in force. Written by `rglcd config use {config.preset}`; edit freely, every key is checked.\n"
    return head + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=110)


def _mapping(text: str, *, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping of sections")
    return values


def _overridden(values: Mapping[str, Any], override: str) -> dict[str, Any]:
    path, separator, text = override.partition("=")
    if not separator:
        raise InputError(f"--set takes section.key=value, not {override!r}")
    keys = path.split(".")
    root: dict[str, Any] = dict(values)
    node = root
    for key in keys[:-1]:
        child = node.get(key)
        node[key] = dict(child) if isinstance(child, Mapping) else {}
        node = node[key]
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: {text!r} is not a YAML value") from None
    return root


def _explain(error: ValidationError, values: Mapping[str, Any], *, within: tuple[str, ...] = ()) -> str:
    """The first problem in one line; an unknown key comes with its nearest neighbour."""
    first = error.errors()[0]
    location = (*within, *first["loc"])
    # A tagged union's location holds the tag too: it is not a key of the user's file.
    path = [str(part) for position, part in enumerate(location) if not _is_tag(location, position, values)]
    if first["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(path)}{_nearest(path[-1], _known_keys(location))}"
    message = first["msg"].removeprefix("Value error, ")
    found = "" if isinstance(first["input"], Mapping) or first["type"] == "missing" else f" (found {first['input']!r})"
    return f"{'.'.join(path)}: {message}{found}" if path else message


def _is_tag(location: tuple[Any, ...], position: int, values: Any) -> bool:
    node = values
    for step in location[:position]:
        node = node.get(step, node) if isinstance(node, Mapping) else node
    part = location[position]
    return isinstance(node, Mapping) and node.get("kind") == part and part not in node


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The keys allowed where ``location`` (of an unknown key) points."""
    models: list[type[BaseModel]] = [Config]
    for part in location[:-1]:
        models = [child for model in models for child in _children(model, str(part))] or models
    return sorted({key for model in models for key in model.model_fields})


def _children(model: type[BaseModel], key: str) -> Iterator[type[BaseModel]]:
    if key in model.model_fields:
        yield from _models_in(model.model_fields[key].annotation)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _nearest(word: str, known: Any) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
