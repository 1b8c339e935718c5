"""The configuration: one class per section, validated once, and one entry point (``load``).

``defaults -> presets/NAME.yaml -> --set a.b=c -> Config -> params.yaml -> sections -> plain values``

A section is the unit of re-running, for DVC and Kubeflow alike: a stage runs again when one of the sections it reads has
changed. This package imports no torch, so a laptop, CI and the pipeline compiler check any run in milliseconds. Choices are
tagged unions (``kind: ...``), not booleans; those of a training step are :mod:`rglcd.recipe`'s.
"""

from rglcd.config.arms import ArmSettings, arms_of, has_reward, rewards_of
from rglcd.config.base import Section
from rglcd.config.distillation import Distillation
from rglcd.config.edits import edits_in, with_values
from rglcd.config.evaluation import Evaluation
from rglcd.config.hardware import Hardware
from rglcd.config.load import dump, load_params, load_preset, preset_hardware, preset_names, resolve, text_of, validate_section
from rglcd.config.monitoring import Monitoring, NoMonitoring, PanelMonitoring
from rglcd.config.preparation import Caching, Model, Preparation
from rglcd.config.pretraining import Pretraining, ResNetTower, VitTower
from rglcd.config.reward import AnyReward, LatentReward, NoReward, PixelReward, Reward
from rglcd.config.root import SECTIONS, Config
from rglcd.config.scorers import (
    AestheticScorer,
    ClipScorer,
    EntryPointScorer,
    Hpsv2ProcessScorer,
    ImageRewardScorer,
    MixtureScorer,
    OcrScorer,
    ProcessScorer,
    PublishedClipScorer,
    Scorer,
    ScorerSource,
    ToyCheckerScorer,
    ToyJudgeScorer,
    ToyVotesScorer,
)
from rglcd.config.sharding import NoDownload, Sharding, WebDownload
from rglcd.config.sources import FeatureSource, InceptionSource, ModelSource, PromptSource, WeightsSource
from rglcd.recipe import (
    Cauchy,
    ConstantGrid,
    DoublingGrid,
    EmaTarget,
    FrozenProxy,
    FullStudent,
    HardLabels,
    Huber,
    LastBlocks,
    LognormalTimesteps,
    LoraStudent,
    OnlineProxy,
    OwnPrediction,
    PseudoHuber,
    SharedPrediction,
    SoftLabels,
    SquaredL2,
    StopGradientTarget,
    UniformTimesteps,
    WholeProxy,
)

__all__ = [
    "SECTIONS",
    "AestheticScorer",
    "AnyReward",
    "ArmSettings",
    "Caching",
    "Cauchy",
    "ClipScorer",
    "Config",
    "ConstantGrid",
    "Distillation",
    "DoublingGrid",
    "EmaTarget",
    "EntryPointScorer",
    "Evaluation",
    "FeatureSource",
    "FrozenProxy",
    "FullStudent",
    "HardLabels",
    "Hardware",
    "Hpsv2ProcessScorer",
    "Huber",
    "ImageRewardScorer",
    "InceptionSource",
    "LastBlocks",
    "LatentReward",
    "LognormalTimesteps",
    "LoraStudent",
    "MixtureScorer",
    "Model",
    "ModelSource",
    "Monitoring",
    "NoDownload",
    "NoMonitoring",
    "NoReward",
    "OcrScorer",
    "OnlineProxy",
    "OwnPrediction",
    "PanelMonitoring",
    "PixelReward",
    "Preparation",
    "Pretraining",
    "ProcessScorer",
    "PromptSource",
    "PseudoHuber",
    "PublishedClipScorer",
    "ResNetTower",
    "Reward",
    "Scorer",
    "ScorerSource",
    "Section",
    "Sharding",
    "SharedPrediction",
    "SoftLabels",
    "SquaredL2",
    "StopGradientTarget",
    "ToyCheckerScorer",
    "ToyJudgeScorer",
    "ToyVotesScorer",
    "UniformTimesteps",
    "VitTower",
    "WebDownload",
    "WeightsSource",
    "WholeProxy",
    "arms_of",
    "dump",
    "edits_in",
    "has_reward",
    "load_params",
    "load_preset",
    "preset_hardware",
    "preset_names",
    "resolve",
    "rewards_of",
    "text_of",
    "validate_section",
    "with_values",
]
