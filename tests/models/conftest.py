from pathlib import Path

import pytest

from tests.tiny_models import write_tiny_teacher, write_tiny_xl


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher's pipeline folder; read it, do not write it."""
    folder = tmp_path_factory.mktemp("teacher")
    write_tiny_teacher(folder)
    return folder


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny SDXL teacher's pipeline folder; read it, do not write it."""
    folder = tmp_path_factory.mktemp("xl")
    write_tiny_xl(folder)
    return folder
