"""Standard errors are what they say: the spread over repetitions of the sampling named."""

import math

import pytest
import torch

from pyrovae.estimates import Estimate, mean_estimate, two_stage_mean
from pyrovae.randomness import seeded


@pytest.mark.parametrize(("points", "draws"), [(40, 2), (10, 2), (10, 5)])
def test_two_stage_error_is_the_spread_over_repetitions(points: int, draws: int) -> None:
    # 40 strata of means spread by 1 and noise 0.5; of 2,000 repetitions the variance is known to
    # 1/√1000 ≈ 3.2 %; four of those are the tolerance.
    centres = torch.randn(40)
    found, errors = [], []
    for _ in range(2000):
        index = torch.randperm(40)[:points]
        values = centres[index, None] + 0.5 * torch.randn(points, draws)
        estimate = two_stage_mean(values, population=40)
        found.append(estimate.value)
        errors.append(estimate.standard_error**2)
    spread = float(torch.tensor(found).var())
    assert sum(errors) / 2000 == pytest.approx(spread, rel=4 / math.sqrt(1000))
    assert sum(found) / 2000 == pytest.approx(
        float(centres.mean()), abs=4 * math.sqrt(spread / 2000)
    )


def test_mean_estimate_is_the_textbook_one() -> None:
    assert mean_estimate(torch.tensor([1.0, 2.0, 3.0])) == Estimate(
        2.0, 1 / math.sqrt(3), 3, "data"
    )


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan]])
def test_no_error_bar_is_invented(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        mean_estimate(torch.tensor(values))
    with pytest.raises(ValueError, match="expected"):
        two_stage_mean(torch.tensor([values]), population=2)


def test_streams_do_not_meet_and_leave_no_trace() -> None:
    before = torch.get_rng_state()
    draws = []
    for seeds in [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1)]:
        with seeded(*seeds):
            draws.append(torch.rand(4))
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(draw.tolist()) for draw in draws}) == 5
