"""``rglcd run``: one stage, or all of them in order."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rglcd.cli.files import ARTIFACTS, add_params_option, add_set_option, load_params_for
from rglcd.config import Config, load_params
from rglcd.errors import InputError
from rglcd.stages.required_files import require_files
from rglcd.stages.table import SOURCE, STAGES, Stage, inputs_of, stage_named, stages_of

_ARTIFACT_NAMES = (SOURCE, *(output for stage in STAGES for output in stage.outputs))
_Locations = Mapping[str, Path | str]


@dataclass(frozen=True)
class _Job:
    """A stage with its sections and the artifacts that it reads and writes; ``look`` at these refuses before there is work."""

    stage: str
    sections: Mapping[str, Any]
    artifacts: tuple[str, ...]
    look: Callable[[_Locations], None] = lambda _: None


def add_verb(verbs: Any) -> None:
    """``rglcd run STAGE``."""
    stages = "\n".join(f"  {stage.name:10} {stage.summary}" for stage in STAGES)
    run = verbs.add_parser(
        "run",
        help="run one stage, or all of them in order",
        description=f"Run one stage, or `all` in order. What is done already is not done again; a killed run goes on.\n\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("stage", choices=[*(stage.name for stage in STAGES), "all"], metavar="STAGE", help="one of the above, or all")
    add_params_option(run)
    add_set_option(run)
    run.add_argument("--sections", metavar="JSON", help="the stage's sections as JSON instead of --params (a job's own record)")
    add_artifact_option(run)
    run.add_argument(
        "--stage-version", type=int, metavar="N", help="refuse to run if the stage's code has another version (DVC carries it)"
    )
    run.add_argument("--part", type=int, metavar="I", help="only part I, from 0, of a stage that is divided into parts")
    run.add_argument(
        "--rehash", action="store_true", help="read every file of the source and of local model folders again, changed or not by its look"
    )
    run.set_defaults(act=_run)


def add_artifact_option(verb: argparse.ArgumentParser) -> None:
    """``--artifact``: where artifacts are."""
    verb.add_argument(
        "--artifact",
        action="append",
        default=[],
        metavar="NAME=WHERE",
        help="where one artifact is: a folder or a URL (default: artifacts/NAME; source: data, or what data.dvc imports)",
    )


def _run(options: argparse.Namespace) -> None:
    from rglcd.launch.execute import execute
    from rglcd.launch.progress_display import drawing
    from rglcd.progress import reporting_to
    from rglcd.store.artifacts import at_key

    location_of = artifact_locations(options.artifact)
    jobs = _jobs(options, location_of)
    if options.rehash:
        _forget_looks({output: location_of(output) for job in jobs for output in stage_named(job.stage).outputs})
    made: dict[str, Path | str] = {}
    with drawing(sys.stderr) as sink, reporting_to(sink):
        for job in jobs:
            name = job.stage
            # What this run made, not what another run has put in force since.
            locations = {artifact: made.get(artifact) or location_of(artifact) for artifact in job.artifacts}
            before_work = partial(job.look, locations)
            outcome = execute(name, sections=job.sections, artifacts=locations, part=options.part, before_work=before_work)
            if outcome is not None:
                (output,) = stage_named(name).outputs
                made[output] = at_key(locations[output], outcome.manifest.key)
                what = "nothing to do" if outcome.was_done else f"done in {outcome.seconds:.1f} s"
                print(f"{name}: {what}; {outcome.folder} {outcome.manifest.digest[:12]}", flush=True)
                if lost := _lost_rows(outcome.manifest.facts):
                    print(f"{name}: {lost}; each is in {outcome.folder}/*.parquet, by domain in {outcome.folder}/index.html", flush=True)


def _forget_looks(outputs: Mapping[str, Path | str]) -> None:
    from rglcd.store.artifacts import ArtifactLocation
    from rglcd.store.remembered_files import forget, memory_beside

    for artifact, output in outputs.items():
        forget(memory_beside(ArtifactLocation.of(artifact, output).folder))


def _lost_rows(facts: Mapping[str, Any]) -> str:
    """Of a stage that accounts for rows: how many were lost, and why; empty if none was."""
    reasons: Mapping[str, int] = facts.get("reasons", {})
    if not reasons:
        return ""
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])))
    return f"{facts['samples']:,} of {facts['rows']:,} rows became samples; {sum(reasons.values()):,} lost: {counts}"


def _jobs(options: argparse.Namespace, location_of: Callable[[str], Path | str]) -> list[_Job]:
    if options.stage == "all" and options.part is not None:
        raise InputError("--part goes with one stage, not with all")
    if options.stage != "all" and options.stage_version not in (None, stage_named(options.stage).version):
        raise InputError(
            f"{options.stage} is at version {stage_named(options.stage).version}, not {options.stage_version}: run `rglcd dvc render`"
        )
    if options.sections is not None:
        if options.stage == "all":
            raise InputError("--sections goes with one stage, not with all")
        stage = stage_named(options.stage)
        given = {name for name, _, _ in (entry.partition("=") for entry in options.artifact)}
        reads = tuple(artifact for artifact in stage.inputs if artifact in given)
        return [_Job(stage.name, _sections_of(options.sections), (*reads, *stage.outputs))]
    from rglcd.launch.dvc_file import require_current

    if options.stage == "all":
        config = load_params(options.params, overrides=options.set)
        stages = stages_of(config)
    else:
        stages = (stage_named(options.stage),)
        config = load_params_for(stages[0], options.params, overrides=options.set)
        if stages[0] not in stages_of(config):
            raise InputError(f"{options.stage} does not run with reward.kind {config.reward.kind}")
        if options.stage_version is not None:  # as DVC has it
            require_current(options.stage, config, Path())
    _require_files(config, stages, location_of)
    return [
        _Job(
            stage.name,
            {name: config.section(name) for name in stage.sections},
            (*inputs_of(stage, config), *stage.outputs),
            partial(_refuse_students, config, stage),
        )
        for stage in stages
    ]


def _refuse_students(config: Config, stage: Stage, locations: _Locations) -> None:
    """Before the hours that shards and latents take, what ``distill`` would refuse after them."""
    if stage.name in ("distill", "evaluate"):
        return
    from rglcd.planning.check import refuse_students_of_another_family
    from rglcd.store.artifacts import ArtifactLocation

    pretrained = None
    if "pretrained" in stage.inputs:
        pretrained, _ = ArtifactLocation.of("pretrained", locations["pretrained"]).read(made_by="prepare")
    refuse_students_of_another_family(config, pretrained)


def _require_files(config: Config, stages: Sequence[Stage], location_of: Callable[[str], Path | str]) -> None:
    source, pretrained = location_of(SOURCE), location_of("pretrained")
    made = pretrained.parent if isinstance(pretrained, Path) and pretrained.name == "pretrained" else None
    require_files(config, stages, source=source if isinstance(source, Path) else None, made=made)


def _sections_of(text: str) -> Mapping[str, Any]:
    try:
        sections = json.loads(text)
    except ValueError as error:
        raise InputError(f"--sections is not JSON: {error}") from None
    if not isinstance(sections, dict):
        raise InputError("--sections must be a JSON object of sections")
    return sections


def artifact_locations(overrides: Sequence[str]) -> Callable[[str], Path | str]:
    """Where each artifact is, by its name: as ``overrides`` (``NAME=WHERE``) say, or in its usual place."""
    from rglcd.launch.dvc_file import source_place
    from rglcd.store.files import is_remote

    named: dict[str, Path | str] = {}
    for override in overrides:
        name, separator, folder = override.partition("=")
        if not separator or not folder:
            raise InputError(f"--artifact takes name=folder, not {override!r}")
        if name not in _ARTIFACT_NAMES:
            raise InputError(f"--artifact {override}: there is no artifact {name!r}; there are: {', '.join(_ARTIFACT_NAMES)}")
        named[name] = folder if is_remote(folder) else Path(folder)

    def location_of(artifact: str) -> Path | str:
        return named.get(artifact) or (source_place(Path()) if artifact == SOURCE else ARTIFACTS / artifact)

    return location_of
