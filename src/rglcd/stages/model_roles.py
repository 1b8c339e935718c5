"""The models that ``prepare`` fetches, by the settings that name them. Nothing heavy is imported: the light image asks, too."""

from collections.abc import Iterator
from dataclasses import dataclass

from rglcd.config import Model, ModelSource, Preparation, Scorer, WeightsSource


@dataclass(frozen=True)
class ModelRole:
    """One thing that ``prepare`` fetches: where it goes in ``pretrained``, the ``key`` of params.yaml that names it, what it is of."""

    what: str
    key: str
    role: str
    """``source``, ``tokenizer`` or ``head``."""
    source: ModelSource
    scorer: Scorer | None = None

    @property
    def file(self) -> str | None:
        """The one published file that it is, if it is one."""
        return self.source.file if isinstance(self.source, WeightsSource) else None


def model_roles(model: Model, preparation: Preparation) -> Iterator[ModelRole]:
    """Everything to fetch, in order; of one scorer, the folder that others add to first."""
    yield ModelRole("teacher", "model.teacher", "source", model.teacher)
    if preparation.initial is not None:
        yield ModelRole("initial", "preparation.initial", "source", preparation.initial)
    for name, scorer in preparation.scorers.items():
        for role, source in scorer.sources().items():
            what = f"scorers/{name}" if role == "source" else f"scorers/{name}/{role}"
            yield ModelRole(what, f"preparation.scorers.{name}.{role}", role, source, scorer)
    for number, network in enumerate(preparation.feature_networks):
        if network.source is not None:
            what, key = (
                ("features", "features") if not preparation.has_several_features else (f"features/{network.kind}", f"features.{number}")
            )
            yield ModelRole(what, f"preparation.{key}.source", "source", network.source)
