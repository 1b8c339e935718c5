"""A model that is gone has an address where it is kept; no preset names one that is gone."""

import pytest

from rglcd.config import load_preset, preset_names
from rglcd.errors import InputError
from rglcd.store.hub_mirrors import MIRRORS, alternatives_to
from rglcd.store.model_folders import fetch_model_folder


@pytest.mark.parametrize("repository", MIRRORS)
def test_the_error_for_a_withdrawn_model_names_its_mirror(repository: str) -> None:
    assert MIRRORS[repository] in alternatives_to(repository)
    assert MIRRORS[repository] not in MIRRORS


def test_the_error_for_any_other_model_names_the_other_sources(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"org/name at abc cannot be had .* a mirror, an s3:// folder or a local diffusers folder in its place"
    ) as refusal:
        fetch_model_folder("org/name", tmp_path / "model", revision="abc")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", preset_names())
def test_no_preset_names_a_withdrawn_model(name: str) -> None:
    assert load_preset(name).model.teacher.uri not in MIRRORS
