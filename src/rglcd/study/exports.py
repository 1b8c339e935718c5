"""A study for raters elsewhere: a folder of its own with the pictures, and no word of whose they are."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rglcd.errors import InputError
from rglcd.store.disk_space import disk_space_for
from rglcd.store.staging import STAGING, publish_folder
from rglcd.study.records import PICTURES, Study, picture_names, verify_pictures


@contextmanager
def exported_to(folder: Path, study_folder: Path, study: Study) -> Iterator[Path]:
    """A staging folder that holds the pictures, to write the rest to; it becomes ``folder`` when the block ends well.

    Raises :class:`InputError` if there is something already, and if a picture is not what the study's manifest says.
    """
    if folder.exists():
        raise InputError(f"{folder} exists already; name another folder")
    verify_pictures(study_folder, study)
    staging = folder.with_name(f".{folder.name}{STAGING}")
    shutil.rmtree(staging, ignore_errors=True)
    (staging / PICTURES).mkdir(parents=True)
    with disk_space_for(folder):
        for name in picture_names(study):
            shutil.copy2(study_folder / PICTURES / name, staging / PICTURES / name)  # with its date, which is the same for all
        yield staging
        publish_folder(staging, folder)
