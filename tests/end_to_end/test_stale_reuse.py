"""A Kubeflow run after inputs changed behind unchanged addresses: stale results are not reused."""

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ARTIFACTS, Checkout

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(unbroken: Checkout, tmp_path: Path) -> Checkout:
    """A checkout of its own in which the whole pipeline was run."""
    return Checkout(Path(shutil.copytree(unbroken.root, tmp_path / "checkout")))


def kubeflow(checkout: Checkout, *words: str, ends_with: int = 0) -> str:
    done = checkout.run("python", "-m", "pipelines", *words, "run")
    assert done.returncode == ends_with, done.stderr
    return done.stderr


def test_changed_inputs_behind_the_same_address_are_not_reused(checkout: Checkout, unbroken: Checkout) -> None:
    latents = checkout.root / "artifacts" / "latents"
    deleted = max(latents.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    deleted.unlink()
    kubeflow(checkout)
    assert deleted.is_file()
    assert checkout.digests() == unbroken.digests()

    said = kubeflow(checkout, "--set", "model.teacher={uri: org/name, revision: v1.0}", ends_with=2)
    assert "'v1.0' may move: name its commit" in said

    index = checkout.root / "data" / "index.tsv"
    first, second, *rest = index.read_text().splitlines(keepends=True)
    captions = [line.partition("\t")[2] for line in (first, second)]
    assert captions[0] != captions[1]
    swapped = [f"{line.partition(chr(9))[0]}\t{caption}" for line, caption in zip((first, second), reversed(captions), strict=True)]
    index.write_text("".join([*swapped, *rest]))  # and data.dvc names the md5 that it had before
    kubeflow(checkout)
    same = {name for name, digest in checkout.digests().items() if digest == unbroken.digests()[name]}
    assert same == {"pretrained"}, "what does not come of the source stands, everything else is made anew"
    assert same < set(ARTIFACTS)
