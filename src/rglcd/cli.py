"""The command line: parsing and printing, no work."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from rglcd import __version__
from rglcd.config import Config, dump, load_params, load_preset, preset_names
from rglcd.errors import InputError
from rglcd.stages.table import SOURCE, STAGES, inputs_of, stage_named, stages_of

PARAMS = Path("params.yaml")
ARTIFACTS = Path("artifacts")
DATA = Path("data")
DVC_FILE = Path("dvc.yaml")
IMAGES = Path("images/lock.yaml")
_MOUNT = Path("/store")
"""Where pods mount the claim of the artifacts, or of unfinished work where those lie in an object store."""
_ARTIFACT_NAMES = (SOURCE, *(output for stage in STAGES for output in stage.outputs))

_EPILOG = """\
first run       make demo
stage by stage  rglcd run shard && rglcd run prepare && ... && rglcd run evaluate
your own sizes  rglcd config use toy --set distillation.num_steps=800

exit codes: 0 done; 2 bad input, configuration or data; 3 training diverged; 75 state saved, run the same command again
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    from rglcd.launch.boundary import process_boundary

    with process_boundary():
        options = _parser().parse_args(arguments)
        act: Callable[[argparse.Namespace], None] = options.act
        act(options)
    return 0


class _Parser(argparse.ArgumentParser):
    """A wrong word is bad input like any other: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see: {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rglcd",
        description="Reward guided latent consistency distillation: a teacher in, a student that draws in 1 to 8 steps out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rglcd {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_run(verbs)
    _add_launch(verbs)
    _add_config(verbs)
    _add_dvc(verbs)
    _add_data(verbs)
    _add_toy(verbs)
    show = verbs.add_parser("show", help="print the results table and where the report is")
    show.add_argument("--artifacts", type=Path, default=ARTIFACTS, metavar="DIR", help="where the artifacts are (default: artifacts)")
    show.set_defaults(act=_show)
    return parser


# --- run -----------------------------------------------------------------------------------------


def _add_run(verbs: Any) -> None:
    stages = "\n".join(f"  {stage.name:10} {stage.summary}" for stage in STAGES)
    run = verbs.add_parser(
        "run",
        help="run one stage, or all of them in order",
        description=f"Run one stage, or `all` in order. What is done already is not done again; a killed run goes on.\n\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("stage", choices=[*(stage.name for stage in STAGES), "all"], metavar="STAGE", help="one of the above, or all")
    run.add_argument("--params", type=Path, default=PARAMS, metavar="FILE", help="the configuration in force (default: params.yaml)")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value, as section.key=value")
    run.add_argument("--sections", metavar="JSON", help="the stage's sections as JSON instead of --params (a job's own record)")
    run.add_argument(
        "--artifact",
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help="where one artifact is: a folder or a URL (default: artifacts/NAME; source: data, or what data.dvc imports)",
    )
    run.add_argument(
        "--stage-version", type=int, metavar="N", help="refuse to run if the stage's code has another version (DVC carries it)"
    )
    run.add_argument("--part", type=int, metavar="I", help="only part I, from 0, of a stage that is divided into parts")
    run.set_defaults(act=_run)


def _run(options: argparse.Namespace) -> None:
    from rglcd.launch.execute import execute
    from rglcd.launch.progress_display import drawing
    from rglcd.progress import reporting_to

    places_of = _artifact_places(options.artifact)
    jobs = _jobs(options)
    with drawing(sys.stderr) as sink, reporting_to(sink):
        for name, sections, artifacts in jobs:
            places = {artifact: places_of(artifact) for artifact in artifacts}
            outcome = execute(name, sections=sections, artifacts=places, part=options.part)
            if outcome is not None:
                what = "nothing to do" if outcome.was_done else f"done in {outcome.seconds:.1f} s"
                print(f"{name}: {what}; {outcome.folder} {outcome.manifest.digest[:12]}", flush=True)


def _jobs(options: argparse.Namespace) -> list[tuple[str, Mapping[str, Any], tuple[str, ...]]]:
    """Stage name, its sections, and the artifacts it reads and writes."""
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
        return [(stage.name, _sections_of(options.sections), (*reads, *stage.outputs))]
    config = load_params(options.params, overrides=options.set)
    if options.stage == "all":
        stages = stages_of(config)
    else:
        stages = (stage_named(options.stage),)
        if stages[0] not in stages_of(config):
            raise InputError(f"{options.stage} does not run with reward.kind {config.reward.kind}")
    return [
        (stage.name, {name: config.section(name) for name in stage.sections}, (*inputs_of(stage, config), *stage.outputs))
        for stage in stages
    ]


def _sections_of(text: str) -> Mapping[str, Any]:
    try:
        sections = json.loads(text)
    except ValueError as error:
        raise InputError(f"--sections is not JSON: {error}") from None
    if not isinstance(sections, dict):
        raise InputError("--sections must be a JSON object of sections")
    return sections


def _artifact_places(overrides: Sequence[str]) -> Callable[[str], Path | str]:
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

    def place_of(artifact: str) -> Path | str:
        return named.get(artifact) or (source_place(Path()) if artifact == SOURCE else ARTIFACTS / artifact)

    return place_of


# --- launch --------------------------------------------------------------------------------------


def _add_launch(verbs: Any) -> None:
    launch = verbs.add_parser(
        "launch",
        help="run one stage as a job in a Kubernetes cluster with Volcano",
        description="Submit one stage as a Volcano Job, follow its log and progress, and end as it ends. Killed and started again, it "
        "follows the same job; interrupted, it deletes the job, whose pods save their state. The rest of where and how: RGLCD_* "
        "variables (docs/operations.md).",
    )
    launch.add_argument("stage", choices=[stage.name for stage in STAGES], metavar="STAGE", help="shard, cache, distill, ...")
    launch.add_argument("--params", type=Path, default=PARAMS, metavar="FILE", help="the configuration in force (default: params.yaml)")
    launch.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value, as section.key=value")
    launch.add_argument(
        "--store", default=str(_MOUNT), metavar="WHERE", help=f"where the pods find the artifacts: a folder (default: {_MOUNT}) or a URL"
    )
    launch.add_argument(
        "--claim", default="rglcd-store", metavar="NAME", help=f"the volume claim mounted there, or at {_MOUNT} (default: rglcd-store)"
    )
    launch.add_argument("--source", metavar="WHERE", help="where the pods find the source (default: STORE/data)")
    launch.add_argument("--image", help="what the pods run, by digest (default: train in images/lock.yaml)")
    launch.add_argument("--run", help="the run's id (default: a digest of what the stage is asked)")
    launch.add_argument("--nodes", type=int, metavar="N", help="nodes of a gang (default: 1)")
    launch.add_argument("--dry-run", action="store_true", help="print the job as YAML, for `kubectl apply -f -`, and do nothing")
    launch.set_defaults(act=_launch)


def _launch(options: argparse.Namespace) -> None:
    from rglcd.launch.cluster_job import job_manifest, launch
    from rglcd.launch.progress_display import drawing
    from rglcd.progress import reporting_to

    stage, config = stage_named(options.stage), load_params(options.params, overrides=options.set)
    if stage not in stages_of(config):
        raise InputError(f"{stage.name} does not run with reward.kind {config.reward.kind}")
    names = (*inputs_of(stage, config), *stage.outputs)
    request: dict[str, Any] = {
        "sections": {name: config.section(name) for name in stage.sections},
        "artifacts": {name: _place_in_cluster(name, options) for name in names},
        "variables": _variables(options),
    }
    if options.dry_run:
        print(yaml.safe_dump(job_manifest(stage.name, **request), sort_keys=False, width=110), end="")
        return
    with drawing(sys.stderr) as sink, reporting_to(sink):
        launch(stage.name, **request)
    print(f"{stage.name}: done; {_place_in_cluster(stage.outputs[0], options)}")


def _place_in_cluster(artifact: str, options: argparse.Namespace) -> Path | str:
    from rglcd.launch.artifact_reference import artifact_location
    from rglcd.store.files import is_remote

    if artifact != SOURCE:
        return artifact_location(options.store, artifact)
    if options.source is None:
        return artifact_location(options.store, "data")
    return options.source if is_remote(options.source) else Path(options.source)


def _variables(options: argparse.Namespace) -> dict[str, str]:
    """What the options say, as the environment would."""
    from rglcd.store.files import is_remote

    said = {
        "RGLCD_IMAGE": options.image or _locked_image(),
        "RGLCD_RUN": options.run,
        "RGLCD_NUM_NODES": str(options.nodes) if options.nodes is not None else None,
        "RGLCD_STORE_CLAIM": f"{options.claim}={_MOUNT if is_remote(options.store) else options.store}",
    }
    return {name: value for name, value in said.items() if value is not None}


def _locked_image() -> str | None:
    if not IMAGES.is_file():
        return None
    image: str | None = yaml.safe_load(IMAGES.read_text(encoding="utf-8")).get("train")
    return image


# --- config --------------------------------------------------------------------------------------


def _add_config(verbs: Any) -> None:
    config = verbs.add_parser("config", help="choose, show and check the configuration")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    use = actions.add_parser("use", help="write params.yaml (and dvc.yaml) from a preset")
    use.add_argument("preset", metavar="PRESET", help=f"one of: {', '.join(preset_names())}")
    use.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value, as section.key=value")
    use.set_defaults(act=_config_use)
    show = actions.add_parser("show", help="print a preset, or the configuration in force, with every value spelled out")
    which = show.add_mutually_exclusive_group()
    which.add_argument("preset", nargs="?", metavar="PRESET", help="a preset (default: what params.yaml says)")
    which.add_argument("--preset", dest="named", metavar="PRESET", help="the same, by name")
    show.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value, as section.key=value")
    show.set_defaults(act=_config_show)


def _config_use(options: argparse.Namespace) -> None:
    config = load_preset(options.preset, overrides=options.set)
    _write(PARAMS, dump(config))
    _write_dvc_file(config)
    print(f"{PARAMS} and {DVC_FILE} now say: {config.preset}")


def _config_show(options: argparse.Namespace) -> None:
    preset, overrides = options.preset or options.named, options.set
    config = load_params(PARAMS, overrides=overrides) if preset is None else load_preset(preset, overrides=overrides)
    print(dump(config), end="")


# --- dvc -----------------------------------------------------------------------------------------


def _add_dvc(verbs: Any) -> None:
    dvc = verbs.add_parser("dvc", help="what DVC needs from the stage table")
    actions = dvc.add_subparsers(metavar="ACTION", required=True)
    render = actions.add_parser("render", help="write dvc.yaml from the stage table and params.yaml")
    render.set_defaults(act=lambda _options: _write_dvc_file(load_params(PARAMS)))
    adopt = verbs.add_parser("adopt", help="record a finished run in dvc.lock, so that `dvc repro` finds nothing to do")
    adopt.set_defaults(act=_adopt)


def _write_dvc_file(config: Config) -> None:
    from rglcd.launch.dvc_file import render, source_place

    _write(DVC_FILE, render(config, source=source_place(Path())))


def _adopt(options: argparse.Namespace) -> None:
    from rglcd.launch.dvc_file import adopt

    adopt(load_params(PARAMS), Path.cwd())
    print("dvc.lock records this run; `dvc repro` has nothing to do")


# --- data ----------------------------------------------------------------------------------------


def _add_data(verbs: Any) -> None:
    data = verbs.add_parser("data", help="make a source folder of what you have")
    actions = data.add_subparsers(metavar="ACTION", required=True)
    use = actions.add_parser("use", help="take a TSV (url TAB caption), webdataset tars, img2dataset's output or a folder of images")
    use.add_argument("what", metavar="WHAT", help="a .tsv, .tar files ('s3://bucket/{00000..01242}.tar'), or a folder of tars or images")
    use.add_argument("--folder", type=Path, default=DATA, metavar="DIR", help="the source folder to make (default: data)")
    use.set_defaults(act=_data_use)


def _data_use(options: argparse.Namespace) -> None:
    from rglcd.sharding.import_source import use

    print(use(options.what, options.folder))


# --- toy -----------------------------------------------------------------------------------------


def _add_toy(verbs: Any) -> None:
    toy = verbs.add_parser("toy", help="the toy world: draw its images, train its frozen models")
    actions = toy.add_subparsers(metavar="ACTION", required=True)
    data = actions.add_parser("data", help="draw the source index, its images and the prompt sets")
    data.add_argument("folder", nargs="?", type=Path, default=DATA, metavar="DIR", help="where to (default: data)")
    data.set_defaults(act=_toy_data)
    build = actions.add_parser("build", help="train the teacher, the expert, the judge and the feature network (about an hour of CPU)")
    build.add_argument("folder", nargs="?", type=Path, default=Path("toy"), metavar="DIR", help="where to (default: toy)")
    build.set_defaults(act=_toy_build)


def _toy_data(options: argparse.Namespace) -> None:
    from rglcd.toy.corpus import write_corpus

    write_corpus(options.folder)
    print(f"{options.folder} holds the toy corpus")


def _toy_build(options: argparse.Namespace) -> None:
    from rglcd.launch.progress_display import drawing
    from rglcd.progress import reporting_to
    from rglcd.toy.build import build

    with drawing(sys.stderr) as sink, reporting_to(sink):
        build(options.folder)


# --- show ----------------------------------------------------------------------------------------


def _show(options: argparse.Namespace) -> None:
    from rglcd.store.manifest import read_manifest

    folder = options.artifacts / "report"
    read_manifest(folder, made_by="evaluate")
    print((folder / "report.md").read_text(encoding="utf-8"))
    print(f"report: {folder / 'index.html'}")


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.aside")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
