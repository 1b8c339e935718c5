"""``rglcd config``, ``dvc``, ``adopt`` and ``show``: what a project is made of, and what came out of it."""

import argparse
from pathlib import Path
from typing import Any

from rglcd.cli.files import ARTIFACTS, DVC_FILE, PARAMS, add_set_option
from rglcd.config import Config, dump, edits_in, load_params, load_preset, preset_names, text_of, with_values
from rglcd.errors import InputError

_SHOWN_EDITS = 4


def add_config(verbs: Any) -> None:
    """``rglcd config use | set | show``."""
    config = verbs.add_parser("config", help="choose, change and show the configuration")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    use = actions.add_parser("use", help="write params.yaml (and dvc.yaml) from a preset")
    use.add_argument("preset", metavar="PRESET", help=f"one of: {', '.join(preset_names())}")
    add_set_option(use)
    use.add_argument("--force", action="store_true", help="overwrite a params.yaml that was edited")
    use.set_defaults(act=_config_use)
    change = actions.add_parser("set", help="change values of params.yaml, and keep the rest and its comments")
    change.add_argument("values", nargs="+", metavar="KEY=VALUE", help="as section.key=value")
    change.set_defaults(act=_config_set)
    show = actions.add_parser("show", help="print a preset, or the configuration in force, with every value spelled out")
    which = show.add_mutually_exclusive_group()
    which.add_argument("preset", nargs="?", metavar="PRESET", help="a preset (default: what params.yaml says)")
    which.add_argument("--preset", dest="named", metavar="PRESET", help="the same, by name")
    add_set_option(show)
    show.set_defaults(act=_config_show)


def _config_use(options: argparse.Namespace) -> None:
    config = load_preset(options.preset, overrides=options.set)
    text = dump(config, overrides=options.set)
    if not options.force:
        _refuse_to_lose_edits(text)
    _write(PARAMS, text)
    _write_dvc_file(config)
    print(f"{PARAMS} and {DVC_FILE} now say: {config.preset}")


def _refuse_to_lose_edits(text: str) -> None:
    found = PARAMS.read_text(encoding="utf-8", errors="replace") if PARAMS.is_file() else text
    edits = edits_in(found, where=str(PARAMS)) if found != text else []
    if edits:
        more = f"; and {len(edits) - _SHOWN_EDITS} more" if len(edits) > _SHOWN_EDITS else ""
        raise InputError(
            f"{PARAMS} was edited, and would lose: {'; '.join(edits[:_SHOWN_EDITS])}{more}. To change single values: "
            "rglcd config set KEY=VALUE; to overwrite it: --force"
        )


def _config_set(options: argparse.Namespace) -> None:
    if not PARAMS.is_file():
        raise InputError(f"{PARAMS} is missing; write it with: rglcd config use toy")
    text, config = with_values(text_of(PARAMS), options.values, where=str(PARAMS))
    _write(PARAMS, text)
    if DVC_FILE.is_file():
        _write_dvc_file(config)
    print(f"{PARAMS} now says: {', '.join(options.values)}")


def _config_show(options: argparse.Namespace) -> None:
    preset, overrides = options.preset or options.named, options.set
    config = load_params(PARAMS, overrides=overrides) if preset is None else load_preset(preset, overrides=overrides)
    print(dump(config), end="")


def add_dvc(verbs: Any) -> None:
    """``rglcd dvc render`` and ``rglcd adopt``."""
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
    from rglcd.launch.settings import exporting_store, load_settings

    _require_dvc_repository()
    with exporting_store(load_settings()):
        adopt(load_params(PARAMS), Path.cwd())
    print("dvc.lock records this run; `dvc repro` has nothing to do")


def _require_dvc_repository() -> None:
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        Repo.find_root()
    except NotDvcRepoError:
        raise InputError(f"{Path.cwd()} is no DVC repository: make it one with `git init && dvc init`, then run this again") from None


def add_show(verbs: Any) -> None:
    """``rglcd show``."""
    show = verbs.add_parser("show", help="print the results table and where the report is")
    show.add_argument("--artifacts", type=Path, default=ARTIFACTS, metavar="DIR", help="where the artifacts are (default: artifacts)")
    show.set_defaults(act=_show)


def _show(options: argparse.Namespace) -> None:
    from rglcd.store.manifest import read_manifest

    folder = options.artifacts / "report"
    read_manifest(folder, made_by="evaluate")
    print((folder / "report.md").read_text(encoding="utf-8"))
    print(f"report: {folder / 'index.html'}")


def _write(path: Path, text: str) -> None:
    """Replace the file at ``path`` in one step, so that nobody reads half of it."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
