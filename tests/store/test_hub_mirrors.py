"""A model that is gone has an address where it is kept; no preset names one that is gone."""

import pytest

from rglcd.config import load_preset, preset_names
from rglcd.errors import InputError
from rglcd.store.files import fetch_model_folder
from rglcd.store.hub_mirrors import MIRRORS, alternatives_to


@pytest.mark.parametrize("repository", MIRRORS)
def test_a_withdrawn_model_is_answered_with_its_mirror(repository: str) -> None:
    assert MIRRORS[repository] in alternatives_to(repository)
    assert MIRRORS[repository] not in MIRRORS


def test_any_other_is_answered_with_the_other_ways(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"org/name at abc cannot be had .* a mirror, an s3:// folder or a local diffusers folder in its place"
    ) as refusal:
        fetch_model_folder("org/name", tmp_path / "model", revision="abc")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", preset_names())
def test_no_preset_names_a_model_that_is_gone(name: str) -> None:
    assert load_preset(name).model.teacher.uri not in MIRRORS
