"""One switch for every golden file: ``pytest --update-golden``."""

from collections.abc import Callable
from pathlib import Path

import pytest

# The control plane is shared: tests of the launcher and of the manifests ask for it by name.
pytest_plugins = ["tests.cluster.fixtures"]

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing with them")


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``check_golden(name, text)``: ``text`` equals ``tests/golden/<name>``."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing; pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8"), f"{name} has changed; if that is meant: pytest --update-golden"

    return check
