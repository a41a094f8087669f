"""The test of uniform transforms is exact, and its band is its verdict."""

import numpy as np
import pytest
import scipy.stats
import torch

from pyrovae.calibration.uniformity import (
    CELLS,
    _outside,
    counts_below,
    ecdf_band,
    uniformity_p_value,
)


def test_p_values_of_uniform_transforms_are_at_most_as_small_as_stated() -> None:
    p_values = torch.tensor([uniformity_p_value(torch.rand(100)) for _ in range(2000)])
    for level in (0.01, 0.05, 0.2):
        error = (level * (1 - level) / 2000) ** 0.5
        rate = float((p_values <= level).double().mean())
        assert level * 0.75 - 4 * error < rate < level + 4 * error  # counts are whole numbers


def test_all_of_the_ecdf_lies_in_the_band_as_often_as_stated() -> None:
    lower, upper = ecdf_band(150, 0.1)
    inside = 0
    for _ in range(4000):
        counts = counts_below(torch.rand(150))
        inside += bool(((counts >= lower) & (counts <= upper)).all())
    assert abs(inside / 4000 - 0.9) < 0.01 + 4 * (0.09 / 4000) ** 0.5  # whole numbers: at least 0.9


@pytest.mark.parametrize("power", [1.0, 1.15, 1.4])
def test_the_p_value_is_at_most_the_level_exactly_outside_of_the_band(power: float) -> None:
    lower, upper = ecdf_band(200, 0.05)
    for _ in range(100):
        transforms = torch.rand(200) ** power
        counts = counts_below(transforms)
        outside = bool(((counts < lower) | (counts > upper)).any())
        assert outside == (uniformity_p_value(transforms) <= 0.05)


def test_one_transform_has_the_p_value_of_its_place() -> None:
    # With N = 1 the number below an edge is 0 or 1, and the smallest tail is one minus the place
    # of the last edge above, or of the first below: by symmetry twice the nearer tail.
    for place in (0.005, 0.205, 0.495):
        cell = int(place * CELLS)
        assert uniformity_p_value(torch.tensor([place])) == pytest.approx(2 * (cell + 1) / CELLS)


def test_gross_departures_have_a_small_p_value_and_not_one() -> None:
    assert uniformity_p_value(torch.zeros(1000)) < 1e-100
    assert uniformity_p_value(torch.full((50,), 0.999)) < 1e-20


def test_the_probability_to_leave_the_band_is_that_of_simulated_counts() -> None:
    generator = np.random.default_rng(0)
    counts = generator.multinomial(60, np.full(CELLS, 1 / CELLS), 20_000).cumsum(-1)[:, :-1]
    edges = np.arange(1, CELLS) / CELLS
    tails = np.minimum(
        scipy.stats.binom.cdf(counts, 60, edges), scipy.stats.binom.sf(counts - 1, 60, edges)
    ).min(-1)
    for tail in (0.0005, 0.003, 0.02):
        exact = _outside(60, tail)
        assert abs((tails <= tail).mean() - exact) < 4 * (exact * (1 - exact) / 20_000) ** 0.5
