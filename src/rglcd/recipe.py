"""The choices of a training step, each written once: the configuration validates them, training takes them as they are.

Plain frozen dataclasses, without torch and without pydantic. Bounds stand in the annotations (``annotated_types``), where the
configuration finds them. Alternatives form a union and are told apart by ``kind``. Whoever turns a choice into a function
matches every alternative and ends with ``typing.assert_never``: one that is added here alone fails the type check.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf

Positive = Annotated[int, Gt(0)]
Probability = Annotated[float, Ge(0), Le(1)]

NUM_TIMESTEPS = 1000
"""Timesteps of Stable Diffusion's noise schedules. A grid of DDIM steps skips some of them, so it has fewer."""

NumGridSteps = Annotated[int, Gt(0), Lt(NUM_TIMESTEPS)]

_BY_KIND = {"discriminator": "kind"}
"""Metadata of a field whose type is a union: ``kind`` says which member is meant, so that an error is about that one."""


class Choice:
    """What all have in common when they are read from a file: no unknown keys, and numbers are finite."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}


# --- where on the noise schedule a step trains ---------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class UniformTimesteps(Choice):
    """Every step of the grid as often as another: LCM's and RG-LCD's choice. ``span`` leaves a part of the grid out."""

    kind: Literal["uniform"] = "uniform"
    span: tuple[Probability, Probability] = (0.0, 1.0)
    """From the cleanest end of the grid, 0, to the noisiest, 1."""

    def __post_init__(self) -> None:
        if self.span[0] >= self.span[1]:
            raise ValueError(f"span runs from low to high, not {list(self.span)}")


@dataclass(frozen=True, kw_only=True)
class LognormalTimesteps(Choice):
    """iCT's: the logarithm of the noise in units of the signal is normal, cut into the steps of the grid."""

    kind: Literal["lognormal"] = "lognormal"
    p_mean: float = -1.1
    """iCT's, for data of standard deviation 0.5; latents of Stable Diffusion have about 1, which adds log 2: -0.41."""
    p_std: Annotated[float, Gt(0)] = 2.0
    """Standard deviation of that logarithm."""
    uniform_share: Probability = 0.0
    """This share of the draws is spread evenly: few-step sampling starts at the noisiest steps, else seldom trained."""


Timesteps = UniformTimesteps | LognormalTimesteps


@dataclass(frozen=True, kw_only=True)
class ConstantGrid(Choice):
    """The teacher's ODE is always solved on ``model.num_ddim_steps`` steps."""

    kind: Literal["constant"] = "constant"


@dataclass(frozen=True, kw_only=True)
class DoublingGrid(Choice):
    """iCT's curriculum on the SD grid: start with ``start`` coarse steps and double them, up to ``end``."""

    kind: Literal["doubling"] = "doubling"
    start: NumGridSteps = 10
    """Steps of the grid at first."""
    end: NumGridSteps = 80
    """Steps of the grid at last: best a multiple of ``model.num_ddim_steps``, at whose timesteps students draw; 80 is a few beside 50's."""

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError(f"the curriculum starts with few steps and ends with many, not start {self.start} and end {self.end}")


Grid = ConstantGrid | DoublingGrid

Weighting = Literal["even", "inverse_gap"]
"""What a draw counts for: all the same, or iCT's 1 / (sigma_t - sigma_s), whose mean over the draws is made 1."""


# --- what the student is compared with, and how --------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EmaTarget(Choice):
    """The target network is the student's moving average, which is also what is evaluated: LCM and RG-LCD."""

    kind: Literal["ema"] = "ema"
    decay: Probability = 0.95
    """What a step keeps of the average."""


@dataclass(frozen=True, kw_only=True)
class StopGradientTarget(Choice):
    """The target network is the student itself, without gradient: iCT. Evaluated is the student, or its average."""

    kind: Literal["stop_gradient"] = "stop_gradient"
    evaluation_decay: Probability | None = None
    """Keep a moving average for evaluation alone; null keeps none, and saves a copy of the network."""


Target = EmaTarget | StopGradientTarget

Neighbour = Literal["teacher", "data"]
"""Where a sample's next point on the grid comes from: the guided teacher's ODE (distillation), or the same noise on the
real latents (consistency training, which no teacher guides: omega then has no meaning)."""


@dataclass(frozen=True, kw_only=True)
class Huber(Choice):
    """Element-wise Huber, mean over elements: the recipe that RG-LCD released."""

    kind: Literal["huber"] = "huber"
    c: Annotated[float, Gt(0)] = 1e-3
    """Where it bends from quadratic to linear."""


@dataclass(frozen=True, kw_only=True)
class SquaredL2(Choice):
    """Mean squared error."""

    kind: Literal["l2"] = "l2"


@dataclass(frozen=True, kw_only=True)
class PseudoHuber(Choice):
    """iCT's per-sample norm; ``c: null`` takes its 0.00054 sqrt(d)."""

    kind: Literal["pseudo_huber"] = "pseudo_huber"
    c: Annotated[float, Gt(0)] | None = None
    """Where it bends from quadratic to linear."""


@dataclass(frozen=True, kw_only=True)
class Cauchy(Choice):
    """log(1 + ||x - y||^2 / 2c^2) per sample, robust to latents' outliers (arXiv 2502.01441); ``c: null`` takes 0.00054 sqrt(d)."""

    kind: Literal["cauchy"] = "cauchy"
    c: Annotated[float, Gt(0)] | None = None
    """Its scale."""


Distance = Huber | SquaredL2 | PseudoHuber | Cauchy


# --- the student ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FullStudent(Choice):
    """A whole network of its own, which is also given the guidance weight omega: a UNet, or a SANA that then is a SANA-Sprint."""

    kind: Literal["full"] = "full"
    omega_embedding_dim: Annotated[int, Ge(4), MultipleOf(2)] = 256
    """Sines and cosines of at least two frequencies; SANA has 256."""


@dataclass(frozen=True, kw_only=True)
class SameInputsStudent(Choice):
    """A whole network of its own with its teacher's inputs and no other: what families of transformers take.

    One whose teacher is given the guidance scale is given it too; others learn the mean over the range of omega.
    """

    kind: Literal["same_inputs"] = "same_inputs"


@dataclass(frozen=True, kw_only=True)
class LoraStudent(Choice):
    """A low-rank adapter on the teacher's own network, in the manner of LCM-LoRA: it has no input for omega that its teacher has not.

    ``targets`` end the names of the layers that get one; the default is what the released LCM-LoRA was trained with.
    """

    kind: Literal["lora"] = "lora"
    rank: Positive = 64
    """Of the two factors."""
    alpha: Positive = 64
    """The adapter's scale is alpha / rank."""
    targets: Annotated[tuple[str, ...], MinLen(1)] = (
        *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
        *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
    )
    """Ends of the names of the layers that get an adapter."""


Student = FullStudent | SameInputsStudent | LoraStudent


# --- the reward ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SharedPrediction(Choice):
    """The reward sees what the student has just predicted for the distillation: no pass more. RG-LCD, Algorithm 3."""

    kind: Literal["shared"] = "shared"
    every: Positive = 1
    """Every n-th sample of the batch is rewarded."""


@dataclass(frozen=True, kw_only=True)
class OwnPrediction(Choice):
    """The reward has noise and timesteps of its own, for the price of another pass of the student."""

    kind: Literal["own"] = "own"
    every: Positive = 1
    """Every n-th sample of the batch is rewarded."""
    timesteps: Timesteps = field(default=UniformTimesteps(), metadata=_BY_KIND)


Prediction = SharedPrediction | OwnPrediction

DecoderActivations = Literal["kept", "recomputed"]
"""Recomputing the decoder's in the backward pass needs less memory than even a chunk of one, and a third more work."""


Ties = Literal["half", "left_out"]
"""Equal scores: a preference of one half for either image, which the proxy is taught, or no opinion, which it is not taught. Of a
counting expert nearly all pairs are ties; taught as halves they flatten the proxy until it hardly guides."""


@dataclass(frozen=True, kw_only=True)
class SoftLabels(Choice):
    """Of two images the expert prefers one with the probability that a softmax over its scores gives."""

    kind: Literal["soft"] = "soft"
    logit_scale: Annotated[float, Gt(0)] | None = None
    """What scores are multiplied by before the softmax: an inverse temperature. Null takes the expert's own."""

    @property
    def ties(self) -> Ties:
        """A softmax over equal scores says one half of itself."""
        return "half"


@dataclass(frozen=True, kw_only=True)
class HardLabels(Choice):
    """The better score wins with certainty and equal scores are a tie: for experts that only rank, or only say yes or no."""

    kind: Literal["hard"] = "hard"
    ties: Ties = "half"


Labels = SoftLabels | HardLabels

Pairing = Literal["own", "other_captions", "other_images"]
"""Whose scores an image is labelled with. Two controls: each kind of candidate keeps its scores, but those of other
captions; or the scores of all images of the batch are shuffled."""

RealImage = Literal["candidate", "privileged"]
"""A privileged real image cannot lose: where the expert prefers a generated one, the label becomes one half."""

ProxyStart = Literal["pretrained", "random"]
"""Whether the proxy starts as pretraining left it, or, as a control, with random weights of the same shape."""


@dataclass(frozen=True, kw_only=True)
class WholeProxy(Choice):
    """All of the proxy learns: what the code that RG-LCD released does."""

    kind: Literal["whole"] = "whole"


@dataclass(frozen=True, kw_only=True)
class LastBlocks(Choice):
    """The last blocks of the latent tower learn, with its head and the temperature; the blocks before them stay as they are."""

    kind: Literal["last"] = "last"
    num_blocks: Annotated[int, Ge(0)] = 1
    """Of the latent tower, from its end."""
    text: Literal["learns", "stays"] = "learns"
    """Whether the projection of the caption's features learns too."""


Trains = WholeProxy | LastBlocks


@dataclass(frozen=True, kw_only=True)
class FrozenProxy(Choice):
    """The proxy stays as it was at the start: what is learnt from the expert is measured against it."""

    kind: Literal["frozen"] = "frozen"


@dataclass(frozen=True, kw_only=True)
class OnlineProxy(Choice):
    """The proxy learns the expert's preferences among student, target and real latents as training goes."""

    kind: Literal["online"] = "online"
    learning_rate: Annotated[float, Gt(0)] = 3.3e-6
    """Of the proxy, constant."""
    num_updates: Positive = 1
    """Optimiser steps of the proxy for each of the student's, all on the same labels: the labels are the expensive part."""
    label_every: Positive = 1
    """The expert labels every n-th sample of a batch: its decodes are the most expensive part of a step."""
    labels: Labels = field(default=SoftLabels(), metadata=_BY_KIND)
    pairing: Pairing = "own"
    real_image: RealImage = "candidate"
    trains: Trains = field(default=WholeProxy(), metadata=_BY_KIND)


Tuning = FrozenProxy | OnlineProxy


# --- when it goes wrong ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StopGuard(Choice):
    """A figure that is not finite ends the run; its last checkpoint is kept."""

    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, kw_only=True)
class RollBackGuard(Choice):
    """A figure that is not finite, or a spike of the gradient's norm, takes the run back to a checkpoint and on without the batch.

    As PaLM was trained (arXiv 2204.02311, section 5.1), which left out some hundred batches at a time. The run stays as many
    batches long; those left out are not trained on. When ``most`` roll-backs were not enough, it ends as ``stop`` does.
    """

    kind: Literal["roll_back"] = "roll_back"
    spike: Annotated[float, Gt(1)] = 10.0
    """A gradient norm is a spike above this multiple of the median of the ``window`` before it; before there are so many, none is."""
    window: Annotated[int, Ge(2)] = 50
    """How many norms the median is of."""
    skip: Positive = 1
    """How many batches are left out, up to the one in which it showed; never one from before the last regular checkpoint."""
    most: Positive = 3
    """Roll-backs of a run."""


Guard = StopGuard | RollBackGuard

# --- how it is computed --------------------------------------------------------------------------

Schedule = Literal["constant", "cosine"]
"""The learning rate after the warm-up."""

Precision = Literal["float32", "bfloat16"]

Activations = Literal["kept", "recomputed"]
"""What the student's forward pass leaves for its backward pass: everything, or only the inputs of its blocks, which then run
twice (arXiv 1604.06174). Seven times less memory and a sixth more work; the gradient is the same."""

ExecutionMode = Literal["eager", "compiled"]
"""``compiled`` takes minutes before the first step, and never got through them on a GPU here (150 s were not enough).
It rounds otherwise, so it names another result."""

MemoryFormat = Literal["contiguous", "channels_last"]
"""``channels_last`` was a tenth slower than ``contiguous`` where it was tried: Stable Diffusion 2.1 in bfloat16 on an H200, 32 samples."""
