"""The DAG, written once.

The CLI, ``dvc.yaml``, the Kubeflow pipeline and the TorchX apps are all derived from :data:`STAGES`.
The table imports neither torch nor a stage: ``entry`` is resolved when a stage runs.

An input is read by **parts**: a part is a file or a folder of the artifact, named by its path in it, or :data:`WHOLE`, all of it.
``reads`` says which parts a configuration reads; only these enter the key, only these are DVC's dependencies, and only these does
the stage find in the folder that it is given (:func:`rglcd.stages.computation.opened_inputs`). So a judge that is added after
training costs an evaluation, and one more prompt packs no shard anew.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from rglcd.config import Config, MixtureScorer, rewards_of
from rglcd.errors import InputError

SOURCE = "source"
"""The one artifact that no stage makes: the source index, its images and the prompt sets (``data/``)."""

Parts = tuple[str, ...]
"""Paths within an artifact, POSIX: each a file, or a folder with all that lies in it."""

WHOLE: Parts = (".",)


class Profile(StrEnum):
    """What a stage runs on: no GPU, one, all of one node, or those of several nodes that start together (gang scheduling).

    GPU profiles are launched through TorchX; ``cpu`` runs in its own pod. What each asks for: :mod:`rglcd.launch.resources`.
    """

    CPU = "cpu"
    GPU = "gpu"
    GPU_NODE = "gpu-node"
    GPU_GANG = "gpu-gang"


def _always(config: Config) -> bool:
    return True


def _has_proxy(config: Config) -> bool:
    return any(reward.kind == "latent" for reward in rewards_of(config.reward, config.distillation))


def _no_part_named(config: Config) -> Mapping[str, Parts]:
    return {}


def _models(config: Config, scorers: Iterable[str]) -> Parts:
    """The parts of ``pretrained`` that hold the teacher and ``scorers``, with what mixtures among them are made of."""
    catalogue, parts = config.preparation.scorers, {"teacher": True}
    for name in scorers:
        if name not in catalogue:
            raise InputError(f"scorer {name!r} was not prepared, only {', '.join(catalogue)}; make it: rglcd run prepare")
        scorer = catalogue[name]
        for one in (name, *(scorer.weights if isinstance(scorer, MixtureScorer) else ())):
            parts |= {f"catalogue/{one}.json": True} | ({f"scorers/{one}": True} if catalogue[one].sources() else {})
    return tuple(parts)


def _read_by_distill(config: Config) -> Mapping[str, Parts]:
    initial = () if config.preparation.initial is None else ("initial",)
    return {"pretrained": (*_models(config, config.caching.scorers), *initial)}


def _read_by_evaluate(config: Config) -> Mapping[str, Parts]:
    evaluation = config.evaluation
    # Those that trained the student too: what they have in common with a judge is said on the page.
    scorers = [*evaluation.scorers, *(reward.expert for reward in rewards_of(config.reward, config.distillation) if reward.kind != "none")]
    scorers += [config.pretraining.scorer] if _has_proxy(config) else []
    return {
        SOURCE: (str(PurePosixPath(evaluation.prompt_source.source)), str(PurePosixPath(evaluation.reference).parent)),
        "pretrained": (*_models(config, scorers), "features", "features.json"),
        "reward_model": ("curves.jsonl",),
    }


def _looked_at_by_distill(config: Config) -> Mapping[str, Parts]:
    if config.monitoring.kind == "none":
        return {}
    return {"pretrained": (*_models(config, config.monitoring.scorers), "features", "features.json")}


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    ``sections`` are the configuration sections it reads, hence what re-runs it; ``inputs`` the artifacts it
    reads, hence its edges; ``outputs`` those it writes. ``version`` enters every key: raise it when the same
    inputs give another result. ``when`` says whether a configuration runs the stage at all: where it does not,
    what it would have made is an optional input of the others. ``parts`` names the configuration key that
    gives the number of independent parts of the work.

    ``reads`` gives the parts of each input that the stage reads; of one that it does not name, all. It is asked with the stage's
    own sections and those of the stages before it: another is refused.

    ``unkeyed`` are those of its sections that change no bit of what it makes, and ``reads_unkeyed`` the parts that it reads for their
    sake: neither enters the key nor DVC's dependencies. What comes of them lies in a folder that no digest covers
    (:data:`rglcd.store.manifest.LOOKS_FOLDER`).

    Three fields matter when bytes lie in an object store. ``streams``: inputs whose files are fetched when they are first
    read, not all before the stage begins. ``reuses``: the stage may take parts over from what it published before, which
    is then fetched. ``kept``: patterns of files that stay beside the manifest, because people and DVC read them there.
    """

    name: str
    entry: str
    summary: str
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    profile: Profile
    version: int = 1
    when: Callable[[Config], bool] = _always
    reads: Callable[[Config], Mapping[str, Parts]] = _no_part_named
    unkeyed: tuple[str, ...] = ()
    reads_unkeyed: Callable[[Config], Mapping[str, Parts]] = _no_part_named
    parts: str | None = None
    streams: tuple[str, ...] = ()
    reuses: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def keyed(self) -> tuple[str, ...]:
        """The sections that enter the key."""
        return tuple(section for section in self.sections if section not in self.unkeyed)


STAGES: tuple[Stage, ...] = (
    Stage(
        name="shard",
        entry="rglcd.stages.shard:shard",
        summary="pack the source index's images and captions into verified webdataset tars",
        sections=("sharding",),
        inputs=(SOURCE,),
        outputs=("shards",),
        profile=Profile.CPU,
        # 2: a line for each row, a survival report; 3: in ready-made tars, samples of one name in two folders are two; 4: damaged JPEGs are
        # refused, profiles and transparent colours followed in every mode, captions read by their encoding, all members of a tar counted;
        # 5: a row's line has the class of the exception, UTF-32 is read by its mark
        version=5,
        reads=lambda config: {SOURCE: ("index.tsv", "images", "shards.json")},  # what `rglcd data use` makes
        parts="sharding.parts",
    ),
    Stage(
        name="prepare",
        entry="rglcd.stages.prepare:prepare",
        summary="fetch the teacher, the reward models and the feature network; verify and lay them out",
        sections=("model", "preparation"),
        inputs=(),
        outputs=("pretrained",),
        profile=Profile.CPU,
        version=2,  # 2: a file for each scorer in catalogue/, so that one more leaves the others' alone
    ),
    Stage(
        name="cache",
        entry="rglcd.stages.cache:cache",
        summary="encode images and captions once: VAE mean and log-variance, token ids, reward text features",
        sections=("model", "caching"),
        inputs=("shards", "pretrained"),
        outputs=("latents",),
        profile=Profile.GPU,
        version=2,
        parts="caching.parts",
        reads=lambda config: {"pretrained": _models(config, config.caching.scorers)},
        streams=("shards",),
    ),
    Stage(
        name="pretrain",
        entry="rglcd.stages.pretrain:pretrain",
        summary="pretrain the latent proxy reward model (LRM) contrastively on the cached latents",
        sections=("model", "pretraining"),
        inputs=("latents", "pretrained"),
        outputs=("reward_model",),
        profile=Profile.GPU_NODE,
        version=3,  # 3: draws by sample
        when=_has_proxy,
        reads=lambda config: {"pretrained": _models(config, config.caching.scorers)},
        streams=("latents",),
    ),
    Stage(
        name="distill",
        entry="rglcd.stages.distill:distill",
        summary="distil the teacher into a latent consistency model, guided by the reward",
        sections=("model", "reward", "distillation", "monitoring"),
        inputs=("latents", "pretrained", "reward_model"),
        outputs=("student",),
        profile=Profile.GPU_GANG,
        # 3: a CPU's fused attention counts as operations, so a control's length is another; 4: draws by sample; 5: retrieval in the curve
        version=5,
        reads=_read_by_distill,
        unkeyed=("monitoring",),
        reads_unkeyed=_looked_at_by_distill,
        streams=("latents",),
        reuses=("student",),
    ),
    Stage(
        name="evaluate",
        entry="rglcd.stages.evaluate:evaluate",
        summary="draw with teacher and students, score, and write the report",
        sections=("model", "evaluation"),
        inputs=(SOURCE, "pretrained", "student", "reward_model"),
        outputs=("report",),
        profile=Profile.GPU_NODE,
        # 3: metrics/, a file for each model under evaluation; the proxy's curve on the page; 4: scores as tables; 5: kernel distances, and
        # what distances are measured with beside them; 6: intervals over prompts, each with all of its images
        version=6,
        reads=_read_by_evaluate,
        reuses=("report",),
        kept=("metrics.json", "metrics/*.json", "quality.csv", "draws/*/scores.csv", "index.html", "report.md"),
    ),
)


def stage_named(name: str) -> Stage:
    """The row called ``name``; ``KeyError`` for another word."""
    return {stage.name: stage for stage in STAGES}[name]


def maker_of(artifact: str) -> Stage:
    """The stage that writes ``artifact``; ``KeyError`` for :data:`SOURCE`, which nothing makes."""
    return {output: stage for stage in STAGES for output in stage.outputs}[artifact]


def may_be_absent(artifact: str) -> bool:
    """Whether some configurations do not make ``artifact`` at all, so that its readers do without."""
    return artifact != SOURCE and maker_of(artifact).when is not _always


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages that ``config`` runs, in order."""
    return tuple(stage for stage in STAGES if stage.when(config))


def inputs_of(stage: Stage, config: Config) -> tuple[str, ...]:
    """The artifacts that ``stage`` reads under ``config``: those whose maker does not run are left out."""
    made = {output for running in stages_of(config) for output in running.outputs} | {SOURCE}
    return tuple(name for name in stage.inputs if name in made)


def parts_read(stage: Stage, config: Config) -> dict[str, Parts]:
    """The parts that ``stage`` reads of each of its inputs. Raises :class:`InputError` for a scorer that nobody prepares."""
    named = stage.reads(config)
    return {artifact: named.get(artifact, WHOLE) for artifact in stage.inputs}


def parts_read_unkeyed(stage: Stage, config: Config) -> dict[str, Parts]:
    """The parts that ``stage`` also reads of its inputs, for the sake of what enters no key. Raises as :func:`parts_read` does."""
    named = stage.reads_unkeyed(config)
    return {artifact: named.get(artifact, ()) for artifact in stage.inputs}


def is_read(name: str, parts: Parts) -> bool:
    """Whether the file called ``name`` lies in one of ``parts``."""
    return parts == WHOLE or any(part in (name, ".") or name.startswith(f"{part}/") for part in parts)
