"""The sections of the configuration, by name and kind; what they must agree on is :mod:`rglcd.config.root`'s."""

from rglcd.config.base import Section
from rglcd.config.distillation import Distillation
from rglcd.config.evaluation import Evaluation
from rglcd.config.monitoring import Monitoring, NoMonitoring
from rglcd.config.preparation import Caching, Model, Preparation
from rglcd.config.pretraining import Pretraining
from rglcd.config.reward import Reward
from rglcd.config.sharding import Sharding


class Sections(Section):
    """Everything that a run computes. Sections only; where a stage runs is the environment's business."""

    preset: str
    sharding: Sharding
    model: Model
    preparation: Preparation
    caching: Caching
    pretraining: Pretraining
    reward: Reward
    distillation: Distillation
    monitoring: Monitoring = NoMonitoring()
    evaluation: Evaluation
