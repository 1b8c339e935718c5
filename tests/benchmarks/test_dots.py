"""Runs as rows of dots: every seed has one, and a run far off does not squeeze the others."""

from benchmarks.dots import dots_svg


def test_every_seed_of_every_row_is_a_dot() -> None:
    svg = dots_svg(["one", "two", "three"], {"judge": [[0.90, 0.91], [0.92, 0.94], [0.93, 0.95]]})
    assert svg.count("<circle") == 6
    assert ">0.900<" in svg
    assert ">0.950<" in svg


def test_of_a_row_far_off_the_mean_is_written_and_the_scale_is_the_others() -> None:
    svg = dots_svg(["one", "two", "three", "astray"], {"FID": [[4.0, 4.2], [5.0, 5.4], [4.5, 4.7], [80.0, 60.0]]})
    assert svg.count("<circle") == 6
    assert "70.000: off the scale" in svg
    assert ">5.400<" in svg
