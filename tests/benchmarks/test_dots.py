"""Runs as rows of dots: every seed has one, and a run far off does not squeeze the others."""

from benchmarks.dots import dots_svg


def test_plot_has_a_dot_for_every_seed() -> None:
    svg = dots_svg(["one", "two", "three"], {"judge": [[0.90, 0.91], [0.92, 0.94], [0.93, 0.95]]})
    assert svg.count("<circle") == 6
    assert ">0.900<" in svg
    assert ">0.950<" in svg


def test_outlying_row_is_written_as_its_mean_and_does_not_set_the_scale() -> None:
    svg = dots_svg(["one", "two", "three", "astray"], {"FID": [[4.0, 4.2], [5.0, 5.4], [4.5, 4.7], [80.0, 60.0]]})
    assert svg.count("<circle") == 6
    assert "70.000: off the scale" in svg
    assert ">5.400<" in svg
