"""The second edition's models that lie in the repository: so far its codec."""

from pathlib import Path

import pytest

from rglcd.toy.model_folder import read_codec, read_ledger
from rglcd.toy.world.build import BuildSettings, parts
from rglcd.toy.world.gates import gate
from rglcd.toy.world.measuring import codec_figures

MODELS = Path(__file__).parents[3] / "toy" / "second"


def test_the_codec_was_trained_as_the_recipe_says_so_that_a_build_goes_on_from_it() -> None:
    recipe = parts(MODELS, BuildSettings())[0]
    assert read_ledger(MODELS)[recipe.name]["settings"] == recipe.resolved_settings


def test_neat_pictures_through_the_codec_are_right_and_told_from_flawed_ones() -> None:
    figures = codec_figures(read_codec(MODELS), count=150)
    assert gate("codec: neat pictures read right", figures["right"]).met
    assert gate("codec: neat and flawed pictures told apart", figures["told apart"]).met
    recorded = read_ledger(MODELS)["codec"]["figures"]
    assert figures["untidiness"] == pytest.approx(recorded["untidiness"], rel=0.1)
