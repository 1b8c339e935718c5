"""Golden digests hold on every machine: drawings and flaws are integer arithmetic."""

import hashlib

import numpy as np
import pytest

from rglcd.toy.drawing import draw, draw_batch
from rglcd.toy.flaws import EACH, Flaw
from rglcd.toy.scene import SUBJECTS, Scene, all_scenes, split
from rglcd.toy.sprites import ALL_SIDES, sprites
from rglcd.toy.web import NEAT, WEB, Mixture, Row, draw_rows, rows_of, web_rows, world_digest

SPRITES = "cc2ed9f12a0cfcdf"
NEAT_64 = "c371ebf837353d64"
FLAWS = {
    Flaw.PALE: "b2757df8318bca2f",
    Flaw.UNEVEN: "6fe0b23cf8e4b2d1",
    Flaw.CAST: "c641eb738e1febb5",
    Flaw.STAMP: "7bc5e43a7cd3dfd6",
    Flaw.BLUR: "664424de1f1031a7",
    Flaw.WOBBLE: "8db417d65447dada",
}
WORLD = "f37224593d2f3f2c"


def digest(pictures: np.ndarray) -> str:
    return hashlib.sha256(pictures.tobytes()).hexdigest()[:16]


def spread(count: int) -> list[Scene]:
    """Scenes of every subject, place and ground."""
    return [all_scenes()[number * 37 % 600] for number in range(count)]


def test_every_subject_has_a_sprite_in_every_side_and_no_colour_above_its_alpha() -> None:
    assert set(sprites()) == {(subject, side) for subject in range(len(SUBJECTS)) for side in ALL_SIDES}
    for (_, side), sprite in sprites().items():
        assert sprite.shape == (side, side, 4)
        assert (sprite[..., :3] <= sprite[..., 3:]).all()
        assert sprite[..., 3].max() > 240
    assert digest(np.concatenate([sprites()[key].ravel() for key in sorted(sprites())])) == SPRITES


def test_neat_pictures_are_the_same_bytes_on_every_machine() -> None:
    assert digest(draw_batch(spread(64), range(64))) == NEAT_64


@pytest.mark.parametrize("flaw", EACH)
def test_flawed_pictures_are_the_same_bytes_on_every_machine(flaw: Flaw) -> None:
    rows = [Row(scene, scene, flaw) for scene in spread(32)]
    pictures = draw_rows(rows, range(32))
    assert digest(pictures) == FLAWS[flaw]
    neat = draw_batch(spread(32), range(32))
    assert all((picture != clean).any() for picture, clean in zip(pictures, neat, strict=True))


def test_world_has_one_digest() -> None:
    assert world_digest()[:16] == WORLD


def test_a_drawing_depends_on_its_scene_and_seed_alone() -> None:
    scenes = spread(5)
    together = draw_batch(scenes, range(5))
    assert all(np.array_equal(draw(scene, seed), together[seed]) for seed, scene in enumerate(scenes))
    assert not np.array_equal(draw(scenes[0], 0), draw(scenes[0], 1))


def test_the_mean_of_a_captions_pictures_is_not_one_of_them() -> None:
    pictures = draw_batch([Scene("large", "rocket", "left", "white")] * 200, range(200)).astype(float)
    nearest = np.abs(pictures - pictures.mean(0)).mean((1, 2, 3)).min()
    assert nearest > 8


def test_web_has_the_shares_that_its_mixture_says() -> None:
    rows = rows_of(split().train, count=4500, first_seed=7, mixture=WEB)
    flawed = sum(row.flaws != Flaw.NONE for row in rows) / len(rows)
    wrong = sum(row.claimed != row.shown for row in rows) / len(rows)
    assert flawed == pytest.approx(0.40, abs=0.025)
    assert wrong == pytest.approx(0.15, abs=0.02)
    assert all(row.flaws.bit_count() <= 2 for row in rows)
    assert {row.shown for row in rows} == {row.claimed for row in rows} == set(split().train)


def test_a_wrong_caption_is_no_flaw_and_a_neat_mixture_has_neither() -> None:
    assert all(row.flaws == Flaw.NONE or row.claimed == row.shown for row in web_rows(all_scenes(), range(600), WEB))
    assert all(row == Row(row.shown, row.shown, Flaw.NONE) for row in web_rows(all_scenes(), range(600), NEAT))
    assert all(row.flaws != Flaw.NONE for row in web_rows(all_scenes(), range(600), Mixture(flawed=100, wrong=0)))
