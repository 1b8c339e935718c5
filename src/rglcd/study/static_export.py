"""A study without a server: a folder that opens from disk or from any web server, and collects answers in a file to send back."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from rglcd.rendering import html_environment
from rglcd.study.assignment import tasks_of
from rglcd.study.exports import exported_to
from rglcd.study.raters import Rater
from rglcd.study.records import Study
from rglcd.study.server import ASSETS, tasks_fields


def export_static(study_folder: Path, study: Study, raters: Sequence[Rater], folder: Path) -> list[Path]:
    """Write a page for each rater, named by its token, and the pictures that they share, to ``folder``; returns the pages.

    Raises :class:`InputError` as :func:`exported_to` does.
    """
    template = html_environment("rglcd.study").get_template("page.html")
    with exported_to(folder, study_folder, study) as staging:
        for name in ASSETS:
            (staging / name).write_bytes((files("rglcd.study") / "templates" / name).read_bytes())
        for rater in raters:
            given = {"study": study.id, "rater": rater.token, **tasks_fields(tasks_of(study, rater.number))}
            # A script, since pages from disk may not fetch; ASCII, so that no prompt can be anything but a string.
            (staging / f"{rater.token}.js").write_text(f"window.RGLCD_STUDY = {json.dumps(given)};\n", encoding="ascii")
            (staging / f"{rater.token}.html").write_text(template.render(static=f"{rater.token}.js"), encoding="utf-8")
    return [folder / f"{rater.token}.html" for rater in raters]
