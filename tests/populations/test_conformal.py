"""The p-value of a row that is like the held-out ones is uniform, with ties and without."""

from __future__ import annotations

import math

import pytest
import torch

from pyrovae.errors import InputError
from pyrovae.populations.conformal import conformal

REPEATS, HELD_OUT = 4000, 19


@pytest.mark.parametrize("values", [None, 3, 1])
def test_p_values_of_exchangeable_rows_are_uniform(values: int | None) -> None:
    """P(p ≤ a) = a exactly, over draws of all rows and of the ties; also where all are equal."""
    scores = torch.randn(REPEATS, HELD_OUT + 1)
    if values is not None:
        scores = torch.randint(values, scores.shape).double()
    found = torch.cat(
        [conformal(row[:1], row[1:], seed=number) for number, row in enumerate(scores)]
    )
    for a in (0.01, 0.05, 0.3, 0.5, 0.9):
        error = math.sqrt(a * (1 - a) / REPEATS)
        assert abs(float((found <= a).double().mean()) - a) <= 4 * error


def test_a_lower_score_is_rarer_and_the_lowest_is_as_rare_as_it_can_be() -> None:
    held_out = torch.arange(1.0, 100.0)
    p = conformal(torch.tensor([-math.inf, 0.0, 50.5, 1000.0]), held_out)
    assert float(p[0]) < 0.01 and float(p[1]) < 0.01  # 1 / (n + 1)
    assert 0.5 <= float(p[2]) <= 0.51 and float(p[3]) >= 0.99
    assert torch.equal(p, conformal(torch.tensor([-math.inf, 0.0, 50.5, 1000.0]), held_out))


@pytest.mark.parametrize("part", ["scores", "held_out"])
def test_what_is_no_number_has_no_rank(part: str) -> None:
    numbers = {"scores": torch.zeros(3), "held_out": torch.zeros(4)}
    numbers[part][1] = torch.nan
    with pytest.raises(InputError, match="scores that are numbers; got NaN"):
        conformal(**numbers)
