"""Where jobs run, as whom and for how long: ``cluster.yaml``, and variables ``RGLCD_*`` that override it. Never enters a key.

A key of the file is its variable's name in small letters, without the prefix. manifests/cluster.example.yaml explains each.
Three settings of an object store are read in :mod:`rglcd.store.environment`, from the environment: :func:`exporting_store` puts them there.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from rglcd.config import text_of
from rglcd.config.plain_values import parsed
from rglcd.config.unicode_text import require_unicode
from rglcd.errors import InputError
from rglcd.launch.child_processes import environment
from rglcd.launch.placement import Accelerators, CpuStages, EarlierAttempts, Owner, Placement
from rglcd.launch.resources import Pool, resources_of
from rglcd.launch.setting_values import Count, HttpAddress, Label, Names, Pairs, SecretKeys, Taints, Url, Volume, WholeNumber, Word
from rglcd.stages.table import Profile, Stage

FILE = Path("cluster.yaml")
PREFIX = "RGLCD_"

TRACKERS = ("tensorboard", "mlflow", "mlflow_experiment")
"""Settings of who else hears how a training goes."""

_RENAMED = {"RGLCD_PATIENCE": "RGLCD_COLLECTIVE_TIMEOUT"}


class Runtime(StrEnum):
    """Where stages with a GPU profile run; those without run in the process that asks."""

    INLINE = "inline"
    LOCAL = "torchx:local_cwd"
    KUBERNETES = "torchx:kubernetes"


class ClusterSettings(BaseSettings):
    """Everything that decides where a stage runs, and nothing of what it computes.

    Defaults are those of nodes with eight A100, in the namespace ``rglcd``.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    runtime: Runtime = Runtime.INLINE
    namespace: Word = Placement.namespace
    queue: Word = Placement.queue
    service_account: Word = Placement.service_account
    image: Word | None = None
    pull_secrets: Names = ()
    priority: Word | None = None
    gpus: Count = Pool.gpus
    gpu_resource: Word = Pool.gpu_resource
    gpu_label: Label = Placement.gpu_label
    any_gpu_label: Label = Placement.any_gpu_label
    cpus: WholeNumber | None = None
    memory_gib: WholeNumber | None = None
    disk_gib: WholeNumber | None = None
    node_selector: Pairs = {}
    tolerations: Taints = ()
    cpu_stages: CpuStages = CpuStages.APART
    cpu_node_selector: Pairs = {}
    cpu_tolerations: Taints = ()
    num_nodes: WholeNumber = 1
    num_processes: WholeNumber | None = None
    devices: Pairs = {}
    store_claim: Volume | None = None
    store: Url | None = None
    cache: Word | None = None
    cache_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    queue_seconds: WholeNumber = Placement.queue_seconds
    start_seconds: WholeNumber = Placement.start_seconds
    run_seconds: WholeNumber = Placement.run_seconds
    grace_seconds: WholeNumber = Placement.grace_seconds
    failures: Count = Placement.num_failures
    collective_timeout: WholeNumber | None = None
    rendezvous_port: WholeNumber = Placement.rendezvous_port
    task_retries: Count = 3
    hand_on: Names = ()
    variables: Pairs = {}
    secrets: SecretKeys = ()
    tensorboard: Word | None = None
    mlflow: HttpAddress | None = None
    mlflow_experiment: Word = "rg-lcd"
    git_commit: Word | None = None
    dvc_lock: Word | None = None
    accelerators: Accelerators = Accelerators.REAL
    earlier_attempts: EarlierAttempts = EarlierAttempts.FORGOTTEN
    run: Word | None = None
    launcher_name: Word | None = None
    launcher_uid: Word | None = None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """First what a command's options say, then the environment, then the file."""
        return init_settings, env_settings, InitSettingsSource(settings_cls, _content_of_file())

    @property
    def volume(self) -> tuple[str, str] | None:
        """The path at which all pods mount the claim of the artifacts, and the claim."""
        if self.store_claim is None:
            return None
        claim, _, path = self.store_claim.partition("=")
        return path, claim

    @property
    def pool(self) -> Pool:
        """The nodes with GPUs, and what training takes of one."""
        return Pool(self.gpus, self.gpu_resource, self.cpus, self.memory_gib, self.disk_gib)

    def as_variables(self, *names: str) -> dict[str, str]:
        """What was set of ``names`` (of everything, without any), as variables for another process; defaults are left out."""
        given = {name: getattr(self, name) for name in self.model_fields_set if not names or name in names}
        return {variable_of(name): _as_text(value) for name, value in sorted(given.items()) if value is not None}


def load_settings(**given: Any) -> ClusterSettings:
    """The settings in force here; ``given`` (what an option does not say is ``None``) goes before environment and file.

    Raises :class:`InputError` that names file or variable, key and value.
    """
    for former, name in _RENAMED.items():
        if former in os.environ:
            raise InputError(f"{former} has another name now: {name}")
    try:
        settings = ClusterSettings(**_said(given))
    except ValidationError as error:
        raise InputError(_explained(error, given)) from None
    for name in sorted(settings.model_fields_set):
        require_unicode(getattr(settings, name), where=_place_of(name, given))
    return settings


def origin_of(name: str, given: Mapping[str, Any]) -> str:
    """Where the setting's value comes from: ``option``, a variable, ``cluster.yaml`` or ``default``."""
    if name in _said(given):
        return "option"
    if variable_of(name) in (variable.upper() for variable, value in os.environ.items() if value):
        return variable_of(name)
    return str(FILE) if name in _content_of_file() else "default"


def shown(settings: ClusterSettings, **given: Any) -> str:
    """The settings as YAML, with where each comes from; they hold no secret: of what is handed on, names alone."""
    lines = []
    for name in ClusterSettings.model_fields:
        value = json.loads(settings.model_dump_json(include={name}))[name]
        text = yaml.safe_dump({name: value}, default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{text:44}  # {origin_of(name, given)}")
    return "\n".join(lines) + "\n"


def exporting_store(settings: ClusterSettings) -> AbstractContextManager[None]:
    """Within this context, :mod:`rglcd.store.environment` finds the object store's settings where it looks for them."""
    return environment(settings.as_variables("store", "cache", "cache_gib"))


def variable_of(name: str) -> str:
    """The variable that overrides a key of the file."""
    return f"{PREFIX}{name.upper()}"


def placement_of(settings: ClusterSettings, *, stage: Stage, request: Any) -> Placement:
    """Where ``settings`` want ``stage`` to run; a run without an id gets a digest of ``request``, what the stage is asked, as its id.

    Raises :class:`InputError` for a missing image, and as :class:`Placement` does.
    """
    if settings.image is None:
        raise InputError(f"the image of the pods is not known: name it in {variable_of('image')} or as image in {FILE}, by digest")
    _, _, digest = settings.image.partition("@")
    provenance = {"image": digest, "git-commit": settings.git_commit, "dvc-lock": settings.dvc_lock}
    said = settings.as_variables() | os.environ
    missing = [name for name in settings.hand_on if name not in said]
    if missing:
        raise InputError(f"hand_on names {missing[0]}, which is not set here; set it, or name it under variables or secrets")
    is_gang = stage.profile is Profile.GPU_GANG
    return Placement(
        run=settings.run or hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12],
        image=settings.image,
        namespace=settings.namespace,
        queue=settings.queue,
        service_account=settings.service_account,
        pool=settings.pool,
        **{name: getattr(settings, name) for name in _TAKEN_AS_THEY_ARE},
        num_nodes=settings.num_nodes if is_gang else 1,
        processes_per_node=settings.num_processes or max(1, resources_of(stage.profile, settings.pool).gpus),
        store=settings.volume,
        object_store=settings.store,
        queue_seconds=settings.queue_seconds,
        start_seconds=settings.start_seconds,
        run_seconds=settings.run_seconds,
        grace_seconds=settings.grace_seconds,
        collective_timeout_seconds=settings.collective_timeout,
        num_failures=settings.failures,
        devices=settings.devices if is_gang else {},
        rendezvous_port=settings.rendezvous_port,
        accelerators=settings.accelerators,
        earlier_attempts=settings.earlier_attempts,
        owner=Owner(settings.launcher_name, settings.launcher_uid) if settings.launcher_name and settings.launcher_uid else None,
        provenance={name: value for name, value in provenance.items() if value},
        environment={**settings.variables, **settings.as_variables(*TRACKERS), **{name: said[name] for name in settings.hand_on}},
    )


_TAKEN_AS_THEY_ARE = (
    *("gpu_label", "any_gpu_label", "cpu_stages", "node_selector", "tolerations", "cpu_node_selector", "cpu_tolerations"),
    *("pull_secrets", "priority", "secrets"),
)


def _said(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _content_of_file() -> dict[str, Any]:
    if not FILE.is_file():
        return {}
    content = parsed(text_of(FILE), where=str(FILE))
    if not isinstance(content or {}, dict):
        raise InputError(f"{FILE} must be a mapping of settings, not {content!r}")
    return {str(key): value for key, value in (content or {}).items()}


def _explained(error: ValidationError, given: Mapping[str, Any]) -> str:
    """The first thing that is wrong, with file or variable, key and value."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(name, ClusterSettings.model_fields, n=1, cutoff=0.5)
        return f"{FILE}: unknown key {name}" + (f" (did you mean {nearest[0]!r}?)" if nearest else "")
    return f"{_place_of(name, given)} is {first['input']!r}; {_expected(first)}"


def _place_of(name: str, given: Mapping[str, Any]) -> str:
    return f"{FILE}: {name}" if origin_of(name, given) == str(FILE) else variable_of(name)


def _expected(error: Mapping[str, Any]) -> str:
    if error["type"] == "enum":
        return "it is one of: " + str(error["ctx"]["expected"]).replace("'", "").replace(" or ", ", ")
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{text[0].lower()}{text[1:]}".replace("input should be", "it should be")


def _as_text(value: Any) -> str:
    """As a variable holds it; read back it is ``value`` again."""
    match value:
        case dict() if any({",", "="} & set(f"{name}{amount}") for name, amount in value.items()):
            return json.dumps(value)
        case dict():
            return ",".join(f"{name}={amount}" for name, amount in value.items())
        case tuple():
            return ",".join(value)
        case float():
            return str(int(value)) if value.is_integer() else str(value)
    return str(value)
