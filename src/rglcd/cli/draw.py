"""``rglcd draw``: pictures of a prompt, by a student and its teacher, as files or on a page."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rglcd.cli.files import ARTIFACTS, PARAMS, add_params_option
from rglcd.cli.numbers import positive
from rglcd.config import Evaluation, load_params
from rglcd.errors import InputError

if TYPE_CHECKING:
    from rglcd.stages.draw import Drawn
    from rglcd.stages.studio import Studio

_OUT = ARTIFACTS / "drawings"
_PORT = 7860


def add_verb(verbs: Any) -> None:
    """``rglcd draw PROMPT`` and ``rglcd draw --page``."""
    draw = verbs.add_parser(
        "draw",
        help="draw a prompt with a student, and with its teacher beside it, as files or on a page (--page)",
        description="Draw a prompt with the student in force, or with any folder of one, by the sampler and from the noise of the report: "
        "of a prompt that the report has, with its seed, guidance and steps, the first picture is the report's.",
    )
    draw.add_argument("prompt", nargs="?", metavar="PROMPT", help="what to draw")
    draw.add_argument("--arm", metavar="NAME", help="which student (default: the one that the report is about)")
    draw.add_argument("--student", type=Path, metavar="DIR", help="a diffusers folder of a consistency model, or of an adapter, instead")
    draw.add_argument("--steps", type=positive, metavar="N", help="sampling steps (default: of evaluation.num_steps the nearest to 2)")
    draw.add_argument("--seed", type=int, metavar="S", help="of the noise (default: evaluation.seed)")
    draw.add_argument("--count", type=positive, default=1, metavar="K", help="pictures, each from other noise (default: 1)")
    draw.add_argument("--guidance", type=_guidance, metavar="G", help="as diffusers counts it (default: evaluation.guidance_scale)")
    draw.add_argument(
        "--teacher", action="store_true", help="the teacher too, in evaluation.teacher_steps (the first), and one sheet of both"
    )
    draw.add_argument("--out", type=Path, default=_OUT, metavar="DIR", help=f"where the PNG files go (default: {_OUT})")
    draw.add_argument("--artifacts", type=Path, default=ARTIFACTS, metavar="DIR", help="where the artifacts are (default: artifacts)")
    add_params_option(draw)
    draw.add_argument("--page", action="store_true", help="a page to draw on, in the browser (needs the extra `page`)")
    draw.add_argument("--host", default="127.0.0.1", help="for --page, to listen on (default: 127.0.0.1, this machine alone)")
    draw.add_argument("--port", type=_port, default=_PORT, metavar="N", help=f"for --page (default: {_PORT}; 0 is any that is free)")
    draw.set_defaults(act=_draw)


def _draw(options: argparse.Namespace) -> None:
    if options.page == (options.prompt is not None):
        raise InputError(
            "say what to draw (rglcd draw 'a red circle'), or --page, not both" if options.page else "say what to draw, or --page"
        )
    if options.student is not None and options.arm is not None:
        raise InputError("--arm names a student in force, and --student a folder: give one of them")
    evaluation = _settings(options)
    if options.page:
        _show_page(options, evaluation)
        return
    from rglcd.evaluation.drawing import Asked
    from rglcd.evaluation.wording import from_two
    from rglcd.stages.draw import draw

    studio = _studio(options, evaluation)
    arm = studio.names[-1] if options.arm is None else options.arm
    asked = Asked(options.prompt, evaluation.seed, 0, min(evaluation.num_steps, key=from_two), evaluation.guidance_scale)
    teacher_steps = evaluation.all_teacher_steps[0] if options.teacher else None
    made = draw(studio, asked, arm=arm, count=options.count, teacher_steps=teacher_steps, out=options.out, on_drawn=_print_picture)
    for who, steps in dict.fromkeys((one.who, one.num_steps) for one in made.pictures):
        print(f"{who}, {steps} steps, guidance {asked.guidance_scale:g}, seed {asked.seed}: {1000 * made.seconds_of(who):.4g} ms a picture")
    if made.sheet is not None:
        print(f"side by side: {made.sheet}")


def _studio(options: argparse.Namespace, evaluation: Evaluation) -> "Studio":
    from rglcd.stages.studio import Studio

    return Studio(options.artifacts, options.student, evaluation)


def _settings(options: argparse.Namespace) -> Evaluation:
    """The section in force with what the command says instead; of a folder, where no project is, the section's own defaults."""
    is_nowhere = options.student is not None and options.params == PARAMS and not PARAMS.is_file()
    found = Evaluation() if is_nowhere else load_params(options.params).evaluation
    said = {"num_steps": options.steps and (options.steps,), "seed": options.seed, "guidance_scale": options.guidance}
    return found.model_copy(update={name: value for name, value in said.items() if value is not None})


def _print_picture(drawn: "Drawn") -> None:
    print(f"{drawn.path}  {1000 * drawn.seconds:.4g} ms", flush=True)


def _show_page(options: argparse.Namespace, evaluation: Evaluation) -> None:
    from rglcd.stages.drawing_page import serve

    if options.host not in ("127.0.0.1", "::1", "localhost"):
        print(f"note: whoever reaches {options.host} can draw here: there is no password, and nothing is encrypted")

    def on_ready(url: str) -> None:
        print(f"draw at {url}; Ctrl-C ends", flush=True)

    serve(_studio(options, evaluation), host=options.host, port=options.port, on_ready=on_ready)


def _port(word: str) -> int:
    if not word.isdecimal() or int(word) > 65535:
        raise argparse.ArgumentTypeError(f"{word!r} is no port, 0 to 65535")
    return int(word)


def _guidance(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 1 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{word!r} is no number above 1: it is omega + 1")
    return value
