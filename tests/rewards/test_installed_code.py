"""What tells one code of an own reward from another: distribution, version and Python files, however it is installed."""

import base64
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.rewards.installed_code import code_of, code_of_reader

CODE = "raise RuntimeError('nothing of a reward is run to find out what it is')\n"

LAYOUTS = {
    "package": ("mine:load", ["mine/__init__.py", "mine/net.py", "mine/deep/colour.py"]),
    "module of a package": ("mine.deep.reward:load", ["mine/__init__.py", "mine/net.py", "mine/deep/__init__.py", "mine/deep/reward.py"]),
    "namespace package": ("ours.mine:load", ["ours/mine/__init__.py", "ours/mine/net.py"]),
    "module of a namespace": ("ours.mine:load", ["ours/mine.py", "ours/net.py"]),
    "plain module": ("mine:load", ["mine.py"]),
    "plain modules": ("mine:load", ["mine.py", "net.py"]),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, as an editable install adds it; beside the reward lies code that is none of its own."""
    site = tmp_path / "site"
    (site / "other").mkdir(parents=True)
    (site / "other" / "__init__.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(site))
    return site


def lay_out(site: Path, layout: str, *, version: str = "0.1", wheel: bool = False, extra: str | None = None) -> list[Path]:
    """Write the distribution my-reward; returns its Python files. As a wheel's it is recorded, otherwise as an editable one's."""
    value, names = LAYOUTS[layout]
    for name in names:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(CODE + f"# {name}\n")
    for old in site.glob("*.dist-info"):
        shutil.rmtree(old)
    metadata = site / f"my_reward-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: my-reward\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[rglcd.rewards]\nmy-reward = {value}\n")
    (metadata / "top_level.txt").write_text("\n".join(sorted({Path(name).parts[0].removesuffix(".py") for name in names})))
    recorded = [*names, *([extra] if extra else [])] if wheel else ["__editable__.my_reward.pth"]
    (metadata / "RECORD").write_text("".join(f"{name},{_recorded(site / name)},\n" for name in [*recorded, f"{metadata.name}/METADATA"]))
    return [site / name for name in names]


def _recorded(path: Path) -> str:
    content = path.read_bytes() if path.is_file() else b""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("wheel", [False, True], ids=["editable", "wheel"])
def test_every_python_file_of_the_reward_and_its_version_count_and_nothing_else_does(site: Path, layout: str, wheel: bool) -> None:
    files = lay_out(site, layout, wheel=wheel)
    before = code_of("my-reward")
    assert (before["distribution"], before["version"]) == ("my-reward", "0.1")
    found = {before["sha256"]}
    for number, path in enumerate(files, start=1):
        path.write_text(path.read_text() + "# another\n")
        found.add(code_of("my-reward")["sha256"])
        assert len(found) == 1 + number, path
    lay_out(site, layout, wheel=wheel)
    for path in files:
        path.touch()
    (site / "other" / "__init__.py").write_text("# another\n")
    assert code_of("my-reward") == before
    lay_out(site, layout, wheel=wheel, version="0.2")
    after = code_of("my-reward")
    assert (after["version"], after["sha256"]) == ("0.2", before["sha256"])


def test_a_data_file_of_a_wheel_counts_as_its_installer_recorded_it(site: Path) -> None:
    (site / "mine").mkdir()
    found = set()
    for content in ("1", "2"):
        (site / "mine" / "gain.json").write_text(content)
        lay_out(site, "package", wheel=True, extra="mine/gain.json")
        found.add(code_of("my-reward")["sha256"])
    assert len(found) == 2


@pytest.mark.parametrize("spoil", [shutil.rmtree, lambda folder: [path.unlink() for path in folder.rglob("*.py")]])
def test_an_entry_point_without_code_is_refused_in_one_line(site: Path, spoil: Callable[[Path], None]) -> None:
    lay_out(site, "package")
    spoil(site / "mine")
    with pytest.raises(InputError, match=r"^the reward 'my-reward' is mine:load, and (no module mine is installed|mine is a folder)"):
        code_of("my-reward")


def test_the_code_of_the_reader_is_every_file_of_its_package_models_included(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rapidocr", raising=False)
    (site / "rapidocr" / "models").mkdir(parents=True)
    (site / "rapidocr" / "__init__.py").write_text(CODE)
    model = site / "rapidocr" / "models" / "reading.onnx"
    model.write_bytes(b"weights")
    (site / "rapidocr-9.9.dist-info").mkdir()
    (site / "rapidocr-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: rapidocr\nVersion: 9.9\n")
    before = code_of_reader()
    assert (before["distribution"], before["version"]) == ("rapidocr", "9.9")
    (site / "rapidocr" / "__init__.pyc").write_bytes(b"compiled")
    assert code_of_reader() == before
    model.write_bytes(b"weighty")
    assert code_of_reader()["sha256"] != before["sha256"]
