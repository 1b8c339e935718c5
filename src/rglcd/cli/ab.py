"""``rglcd ab``: a blind study of two or more arms, from its pictures to its figures."""

import argparse
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rglcd.cli.files import ARTIFACTS
from rglcd.cli.numbers import positive
from rglcd.errors import InputError

if TYPE_CHECKING:
    from rglcd.study.simulation import Judge
    from rglcd.study.sources import Drawn

_HALF_WIDTH = 0.05


def add_verb(verbs: Any) -> None:
    """``rglcd ab build | serve | export | simulate | score``."""
    ab = verbs.add_parser("ab", help="ask people which pictures they prefer: build, serve and score a blind study (docs/human_study.md)")
    actions = ab.add_subparsers(metavar="ACTION", required=True)
    for add in (_add_build, _add_serve, _add_export, _add_simulate, _add_score):
        add(actions)


# --- build ---------------------------------------------------------------------------------------


def _add_build(actions: Any) -> None:
    build = actions.add_parser("build", help="make a study folder of the pictures of two arms or more")
    _add_study(build)
    build.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME[=DIR]",
        help="an arm of the report (rg-2, teacher-50), or, with =DIR, a folder of pictures of the same names as the others'; twice or more",
    )
    build.add_argument(
        "--report",
        type=Path,
        default=ARTIFACTS / "report",
        metavar="DIR",
        help="a report, of whose pictures it keeps the first 64, or evaluation.grid_prompts (default: artifacts/report)",
    )
    build.add_argument("--prompts", type=Path, metavar="FILE", help="for folders: the prompts one a line, in the order of the names")
    build.add_argument("--num-prompts", type=positive, metavar="N", help="draw N of the prompts at random (default: all there are)")
    build.add_argument(
        "--questions", default="preference", metavar="LIST", help="of preference, appeal, alignment, with commas (default: preference)"
    )
    build.add_argument("--checks", type=_count, default=5, metavar="N", help="attention checks of each rater (default: 5)")
    build.add_argument("--pairs-per-rater", type=positive, metavar="N", help="pairs shown to each rater (default: all)")
    build.add_argument("--side", type=positive, metavar="N", help="resize pictures to N pixels on the longer side (default: as they are)")
    build.add_argument("--seed", type=int, metavar="S", help="of sides, orders and checks (default: drawn at random)")
    build.set_defaults(act=_build)


def _build(options: argparse.Namespace) -> None:
    import secrets

    from rglcd.study.build import Design, build
    from rglcd.study.records import Question
    from rglcd.study.statistics import independent_votes

    words = [word.strip() for word in options.questions.split(",")]
    unknown = [word for word in words if word not in {question.value for question in Question}]
    if unknown or len(set(words)) < len(words):
        raise InputError(
            f"--questions takes some of {', '.join(question.value for question in Question)}, each once, not {options.questions!r}"
        )
    design = Design(
        questions=[Question(word) for word in words],
        seed=secrets.randbits(63) if options.seed is None else options.seed,
        num_checks=options.checks,
        num_prompts=options.num_prompts,
        pairs_per_rater=options.pairs_per_rater,
        side=options.side,
    )
    study = build(options.study, _drawn(options), design)
    asked = len(study.questions)
    print(
        f"{options.study}: {len(study.pairs)} pairs and {len(study.checks)} attention checks; each rater answers "
        f"{study.pairs_per_rater * asked + len(study.checks)} times"
    )
    print(
        f"±{100 * _HALF_WIDTH:g} % takes {independent_votes(_HALF_WIDTH)} votes on a pair of arms and a question, more as raters agree less"
    )
    print(f"who drew what is in {options.study / 'key.json'}: give it to nobody who votes. Next: rglcd ab serve {options.study}")


def _drawn(options: argparse.Namespace) -> "Drawn":
    from rglcd.stages.opened_artifact import opened_artifact
    from rglcd.study.sources import from_folders, from_report, is_of_report

    named = [word.partition("=") for word in options.arm]
    names = [name for name, _, _ in named]
    if len(set(names)) < len(names):
        raise InputError("--arm names the same arm twice")
    folders = {name: Path(folder).expanduser() for name, equals, folder in named if equals}
    if not folders:
        if options.prompts is not None:
            raise InputError("--prompts goes with folders (--arm NAME=DIR); a report has its own")
        with opened_artifact("report", options.report, made_by="evaluate", wanted=partial(is_of_report, arms=names)) as (report, _):
            return from_report(report, names)
    if len(folders) < len(names):
        raise InputError("all arms are of the report, or all are folders (--arm NAME=DIR): the prompts must be the same")
    if options.prompts is None:
        raise InputError("folders of pictures need --prompts FILE, one a line, in the order of the pictures' names")
    return from_folders(folders, options.prompts)


# --- serve and export ----------------------------------------------------------------------------


def _add_serve(actions: Any) -> None:
    serve = actions.add_parser("serve", help="show the study to raters, each by a link of their own, and record their votes")
    _add_study(serve)
    _add_raters(serve)
    serve.add_argument("--host", default="127.0.0.1", help="to listen on (default: 127.0.0.1, this machine alone)")
    serve.add_argument("--port", type=_count, default=8420, metavar="N", help="default: 8420; 0 is any that is free")
    serve.add_argument("--url", metavar="URL", help="how raters reach it from elsewhere (https://study.example.org), for the printed links")
    serve.set_defaults(act=_serve)


def _serve(options: argparse.Namespace) -> None:
    from rglcd.study.raters import read_raters, with_raters
    from rglcd.study.records import read_study
    from rglcd.study.server import listen, serve

    study = read_study(options.study)
    raters = with_raters(options.study, options.raters, simulated=False)
    sock = listen(options.host, options.port)
    host, port = sock.getsockname()[:2]
    base = (options.url or f"http://{f'[{host}]' if ':' in host else host}:{port}").rstrip("/")

    def on_ready() -> None:
        for rater in raters:
            print(f"rater {rater.number + 1}: {base}/r/{rater.token}/")
        if not host.startswith("127.") and host != "::1" and not base.startswith("https://"):
            print(
                "note: this is not encrypted; whoever can read the network can vote. Put it behind a proxy with TLS, and name that by --url"
            )
        print(f"votes are appended to {options.study / 'votes.jsonl'}; Ctrl-C ends, and the same command goes on", flush=True)

    serve(options.study, study, read_raters(options.study), sock, on_ready=on_ready)


def _add_export(actions: Any) -> None:
    export = actions.add_parser("export", help="write the study for raters without a server, or for Label Studio")
    _add_study(export)
    export.add_argument("folder", type=Path, metavar="DIR", help="where to")
    which = export.add_mutually_exclusive_group(required=True)
    which.add_argument("--static", action="store_true", help="pages that open from disk; raters send their file of answers back")
    which.add_argument("--label-studio", action="store_true", help="tasks.json, config.xml and pictures of a Label Studio project")
    _add_raters(export)
    export.add_argument("--picture-url", metavar="URL", help="for Label Studio: what precedes a picture's name (default: its local files)")
    export.set_defaults(act=_export)


def _export(options: argparse.Namespace) -> None:
    from rglcd.study.records import read_study

    study = read_study(options.study)
    if options.static:
        from rglcd.study.raters import with_raters
        from rglcd.study.static_export import export_static

        for page in export_static(options.study, study, with_raters(options.study, options.raters, simulated=False), options.folder):
            print(page)
        print(f"give each rater one page with {options.folder}'s other files; then: rglcd ab score {options.study} FILE...")
        return
    from rglcd.study.label_studio import LOCAL_FILES, export_label_studio

    export_label_studio(options.study, study, options.folder, url=LOCAL_FILES if options.picture_url is None else options.picture_url)
    print(f"{options.folder}: import tasks.json into a project whose labeling interface is config.xml")
    print(f"export its answers as JSON; then: rglcd ab score {options.study} FILE")


# --- simulate and score --------------------------------------------------------------------------


def _add_simulate(actions: Any) -> None:
    simulate = actions.add_parser("simulate", help="let the toy world's panel vote on its pictures: simulated raters, no people")
    _add_study(simulate)
    _add_raters(simulate)
    simulate.set_defaults(act=_simulate)


def _simulate(options: argparse.Namespace) -> None:
    from rglcd.study.raters import read_raters, with_raters
    from rglcd.study.records import read_study
    from rglcd.study.simulation import simulate
    from rglcd.toy.raters import GROUP_SIZE

    if options.raters > GROUP_SIZE:
        raise InputError(f"the panel has {GROUP_SIZE} simulated raters, not {options.raters}")
    study = read_study(options.study)
    judge = _panel(pair.prompt for pair in (*study.pairs, *study.checks))
    voters = with_raters(options.study, options.raters, simulated=True)
    count = simulate(options.study, study, read_raters(options.study), voters=voters, judge=judge)
    print(f"{count} simulated votes of {len(voters)} simulated raters; no person was asked. Next: rglcd ab score {options.study}")


def _panel(prompts: Iterable[str]) -> "Judge":
    """The toy's panel as a judge. Raises :class:`InputError` for a prompt that is not of the toy world."""
    import numpy as np
    import torch

    from rglcd.study.records import Answer
    from rglcd.study.simulation import Shown
    from rglcd.toy.raters import Question, answer
    from rglcd.toy.scene import CANVAS, parse

    for prompt in prompts:
        parse(prompt)
    questions = {"preference": Question.GENERAL_PREFERENCE, "appeal": Question.VISUAL_APPEAL, "alignment": Question.PROMPT_ALIGNMENT}

    def judge(shown: Shown) -> Answer:
        if {shown.left.size, shown.right.size} != {(CANVAS, CANVAS)}:
            raise InputError(f"the panel sees pictures of {CANVAS} x {CANVAS} pixels only")
        left, right = (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 for image in (shown.left, shown.right))
        return Answer(answer(shown.prompt, left, right, questions[shown.question.value], rater=shown.rater).value)

    return judge


def _add_score(actions: Any) -> None:
    score = actions.add_parser("score", help="win rates with intervals, sign test, agreement, and votes needed")
    _add_study(score)
    score.add_argument(
        "returned",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="answers that raters of a static study sent back, or Label Studio's JSON export",
    )
    score.add_argument("--half-width", type=_share, default=_HALF_WIDTH, metavar="X", help="say how many votes give ±X (default: 0.05)")
    score.add_argument("--seed", type=_count, default=0, metavar="S", help="of the resamples (default: 0)")
    score.add_argument("--json", action="store_true", help="print every figure as JSON")
    score.set_defaults(act=_score)


def _score(options: argparse.Namespace) -> None:
    import json

    from rglcd.study.score import score
    from rglcd.study.wording import as_json, as_text

    found = score(options.study, options.returned, half_width=options.half_width, seed=options.seed)
    print(json.dumps(as_json(found), indent=1) if options.json else as_text(found))


# --- words ---------------------------------------------------------------------------------------


def _add_study(action: argparse.ArgumentParser) -> None:
    action.add_argument("study", type=Path, metavar="STUDY", help="the study's folder")


def _add_raters(action: argparse.ArgumentParser) -> None:
    action.add_argument("--raters", type=positive, default=1, metavar="N", help="how many (default: 1)")


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is no whole number from 0 on")
    return int(word)


def _share(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"{word!r} is no number between 0 and 0.5")
    return value
