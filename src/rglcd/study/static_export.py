"""A study without a server: a folder that opens from disk or from any web server, and collects answers in a file to send back."""

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from rglcd.errors import InputError
from rglcd.rendering import html_environment
from rglcd.store.disk_space import disk_space_for
from rglcd.store.staging import STAGING, publish_folder
from rglcd.study.assignment import tasks_of
from rglcd.study.raters import Rater
from rglcd.study.records import PICTURES, Study, picture_names, verify_pictures
from rglcd.study.server import ASSETS, tasks_fields


def export_static(study_folder: Path, study: Study, raters: Sequence[Rater], folder: Path) -> list[Path]:
    """Write a page for each rater, named by its token, and the pictures that they share, to ``folder``; returns the pages.

    Nothing in it says whose a picture is. Raises :class:`InputError` if there is something already.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; name another folder")
    verify_pictures(study_folder, study)
    staging = folder.with_name(f".{folder.name}{STAGING}")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / PICTURES).mkdir(parents=True)
    template = html_environment("rglcd.study").get_template("page.html")
    with disk_space_for(folder):
        for name in picture_names(study):
            shutil.copy2(study_folder / PICTURES / name, staging / PICTURES / name)  # with its date, which is the same for all
        for name in ASSETS:
            (staging / name).write_bytes((files("rglcd.study") / "templates" / name).read_bytes())
        for rater in raters:
            given = {"study": study.id, "rater": rater.token, **tasks_fields(tasks_of(study, rater.number))}
            # A script, since pages from disk may not fetch; ASCII, so that no prompt can be anything but a string.
            (staging / f"{rater.token}.js").write_text(f"window.RGLCD_STUDY = {json.dumps(given)};\n", encoding="ascii")
            (staging / f"{rater.token}.html").write_text(template.render(static=f"{rater.token}.js"), encoding="utf-8")
        publish_folder(staging, folder)
    return [folder / f"{rater.token}.html" for rater in raters]
