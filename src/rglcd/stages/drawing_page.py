"""A page to draw on: a prompt, steps, seed and guidance; the student's picture, its latency, and the teacher's beside it.

Gradio's, served on loopback. Nothing is sent anywhere: no analytics, no public link, no font of another server.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Final

from PIL import Image

from rglcd.errors import InputError
from rglcd.evaluation.drawing import Asked
from rglcd.evaluation.drawn_files import as_image
from rglcd.evaluation.wording import from_two
from rglcd.stages.studio import Painter, Studio

_MOST_STEPS: Final = 8
_LONGEST_PROMPT: Final = 1_000
_LARGEST_SEED: Final = 2**31 - 1
_SMALLEST_SHOWN: Final = 384
"""Pixels: smaller pictures are shown enlarged, without blur."""

_CLOSED: Final[dict[str, Any]] = {
    "share": False,
    "run_history": False,
    "enable_monitoring": False,
    "mcp_server": False,
    "pwa": False,
    "ssr_mode": False,
    "strict_cors": True,
    "footer_links": [],
    "quiet": True,
}
"""No link for the public, no record of what was drawn, no second server."""


def serve(studio: Studio, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve the page until it is interrupted; ``on_ready`` is called with its address.

    Raises :class:`InputError` if there is no student, or the port is taken, and ``ModuleNotFoundError`` without Gradio.
    """
    port = _free_port(host) if port == 0 else port
    with TemporaryDirectory(prefix="rglcd-page-") as kept:  # Gradio's own place for pictures is one that all users share and nobody clears
        os.environ["GRADIO_TEMP_DIR"] = kept
        page = make_page(studio)
        try:
            _, url, _ = page.launch(server_name=host, server_port=port, prevent_thread_lock=True, **_CLOSED)
        except OSError as error:
            said = " ".join(str(error).split())
            raise InputError(f"{host}:{port} cannot be listened on ({said}): name another --port, 0 for any") from None
        on_ready(url)
        page.block_thread()


def make_page(studio: Studio) -> Any:
    """The page as Gradio's ``Blocks``, not yet served."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    import gradio

    evaluation = studio.evaluation
    names = studio.names
    steps = min(evaluation.num_steps, key=from_two)
    with gradio.Blocks(title="rg-lcd: draw", analytics_enabled=False) as page:
        prompt = gradio.Textbox(label="Prompt", lines=2, max_length=_LONGEST_PROMPT, autofocus=True)
        with gradio.Row():
            arm = gradio.Dropdown(names, value=names[-1], label="Student", interactive=len(names) > 1)
            num_steps = gradio.Slider(1, max(_MOST_STEPS, steps), value=steps, step=1, label="Steps")
            seed = gradio.Number(value=evaluation.seed, precision=0, minimum=-_LARGEST_SEED, maximum=_LARGEST_SEED, label="Seed")
            scale = evaluation.guidance_scale
            guidance = gradio.Slider(1.1, max(15, scale), value=scale, step=0.1, label="Guidance")
            teacher = gradio.Checkbox(value=True, label=f"The teacher too, in {evaluation.all_teacher_steps[0]} steps")
        button = gradio.Button("Draw", variant="primary")
        with gradio.Row():
            # No button to share: that uploads the picture to a server of others.
            image = partial(gradio.Image, format="png", interactive=False, height=440, min_width=300, buttons=["download", "fullscreen"])
            ours, theirs = image(label="Student"), image(label="Teacher")
        said = gradio.Textbox(label="Latency", interactive=False)
        asked = [prompt, arm, num_steps, seed, guidance, teacher]
        gradio.on(
            [button.click, prompt.submit],
            _handler(studio, error=partial(gradio.Error, print_exception=False)),
            asked,
            [ours, theirs, said],
            api_name="draw",
            concurrency_limit=1,
        )
    return page


Shown = tuple[Image.Image, Image.Image | None, str]
"""The student's picture, the teacher's, and what to say of them."""


def _handler(studio: Studio, *, error: Callable[[str], Exception]) -> Callable[[str, str, float, float, float, bool], Shown]:
    """What the button does; what a person can put right is raised as ``error``, which the page shows."""

    def draw(prompt: str, arm: str, steps: float, seed: float, guidance: float, teacher: bool) -> Shown:
        try:
            return drawn_for_page(studio, _asked(prompt, steps=steps, seed=seed, guidance=guidance), arm=arm, beside_teacher=teacher)
        except InputError as refused:
            raise error(str(refused)) from None

    return draw


def _asked(prompt: str, *, steps: float, seed: float, guidance: float) -> Asked:
    # What arrives may not come from the page: its API takes any numbers.
    if not (prompt or "").strip() or len(prompt) > _LONGEST_PROMPT:
        raise InputError(f"say what to draw, in at most {_LONGEST_PROMPT} characters")
    if not isinstance(steps, int | float) or not 1 <= steps <= 1000 or steps != int(steps):
        raise InputError(f"{steps!r} is no number of steps")
    if not isinstance(seed, int | float) or not abs(seed) <= _LARGEST_SEED or seed != int(seed):
        raise InputError(f"{seed!r} is no seed: a whole number")
    if not isinstance(guidance, int | float) or not 1 < guidance <= 100:
        raise InputError(f"{guidance!r} is no guidance scale: a number above 1, 100 at most")
    return Asked(prompt, int(seed), 0, int(steps), float(guidance))


def drawn_for_page(studio: Studio, asked: Asked, *, arm: str, beside_teacher: bool) -> Shown:
    """The pictures of ``asked``, which gets the number that the report has of its prompt. Raises :class:`InputError`."""
    asked = replace(asked, number=studio.numbers(asked.prompt, 1)[0])
    student, ours = _drawn(studio.student(arm), asked)
    if not beside_teacher:
        return student, None, ours
    teacher, theirs = _drawn(studio.teacher, replace(asked, num_steps=studio.evaluation.all_teacher_steps[0]))
    return student, teacher, f"{ours}; {theirs}"


def _drawn(painter: Painter, asked: Asked) -> tuple[Image.Image, str]:
    picture, seconds = painter.timed(asked)
    guided = "" if painter.is_guided else " (it takes no guidance: what it learnt has some)"
    return _enlarged(as_image(picture)), f"{painter.name}, {asked.num_steps} steps: {1000 * seconds:.4g} ms{guided}"


def _enlarged(image: Image.Image) -> Image.Image:
    times = -(-_SMALLEST_SHOWN // image.width)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _free_port(host: str) -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])
