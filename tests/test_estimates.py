"""Standard errors are what they say: the spread over repetitions of the sampling named."""

import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.estimates import Over, _skewness_within, mean_estimate, two_stage_mean
from pyrovae.models.discretized_logistic import bits_per_dimension
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
    estimate = mean_estimate(torch.arange(11.0))
    assert (estimate.value, estimate.standard_error) == (5.0, pytest.approx(1.0))
    assert (estimate.size, estimate.over, estimate.unresolved) == (11, "data", "")
    # values that are symmetric have Student's interval
    quantile = float(scipy.stats.t.ppf(0.975, 10))
    assert estimate.interval == pytest.approx((5 - quantile, 5 + quantile))


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda n: torch.randn(n), 0.0),
        (lambda n: -torch.rand(n).log(), 1.0),
        (lambda n: torch.randn(n).exp(), math.exp(0.5)),
        (lambda n: -torch.randn(n).square(), -1.0),
    ],
    ids=["normal", "exponential", "lognormal", "chi-squared"],
)
@pytest.mark.parametrize("rows", [10, 30, 100])
def test_intervals_of_few_and_skewed_values_hold(
    draw: Callable[[int], Tensor], mean: float, rows: int
) -> None:
    # 600 intervals, of which 90 % of 10 rows and 92 % of more hold in long runs: four errors less
    held = 0
    for _ in range(600):
        low, high = mean_estimate(draw(rows)).interval
        held += low <= mean <= high
    assert held / 600 > (0.90 - 4 * 0.0122 if rows == 10 else 0.92 - 4 * 0.0111)


def test_intervals_move_and_stretch_with_the_values() -> None:
    values = torch.randn(40).exp()
    low, high = mean_estimate(values).interval
    assert mean_estimate(3 - 2 * values).interval == pytest.approx((3 - 2 * high, 3 - 2 * low))
    assert mean_estimate(torch.full((20,), 4.0)).interval == (4.0, 4.0)


@pytest.mark.parametrize(("points", "draws"), [(10, 4), (30, 3), (50, 8)])
def test_intervals_of_skewed_draws_at_a_few_points_hold(points: int, draws: int) -> None:
    # exponentials of different scales: 600 intervals, of which 94 % hold in long runs; four errors
    # of 1 % less
    scale = torch.rand(points, 1) + 0.1
    held = 0
    for _ in range(600):
        values = -scale * torch.rand(points, draws).log()
        low, high = two_stage_mean(values, population=points).interval
        held += low <= float(scale.mean()) <= high
    assert held / 600 > 0.94 - 4 * 0.01


def test_the_skewness_of_draws_is_seen_from_three_of_them() -> None:
    values = -torch.rand(4000, 3).log() + torch.randn(4000, 1)
    # of an exponential it is 2; 0.37 is four times its standard deviation over repetitions
    assert _skewness_within(values) == pytest.approx(2.0, abs=0.37)
    mirrored = two_stage_mean(-values, population=4000).interval
    assert mirrored == pytest.approx(
        [-e for e in two_stage_mean(values, population=4000).interval][::-1]
    )
    two = two_stage_mean(values[:, :2], population=4000)
    assert sum(two.interval) / 2 == pytest.approx(two.value)


@pytest.mark.parametrize(("over", "words"), [("data", "rows"), ("draws", "draws")])
def test_too_few_values_are_not_told(over: Over, words: str) -> None:
    estimate = mean_estimate(torch.randn(9), over=over)
    assert estimate.unresolved == f"too few {words} to tell" == str(estimate)
    assert estimate.interval == (-math.inf, math.inf)
    assert not estimate.excludes(0.0)
    assert two_stage_mean(torch.randn(2, 3), population=2).unresolved == "too few draws to tell"
    assert bits_per_dimension(estimate, (3,)).unresolved == estimate.unresolved


def test_bits_turn_the_interval_round() -> None:
    nats = mean_estimate(torch.randn(40).exp(), bound="lower")
    bits = bits_per_dimension(nats, (2, 3))
    unit = 6 * math.log(2)
    assert bits.interval == pytest.approx(tuple(-end / unit for end in reversed(nats.interval)))


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


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_value_is_named_and_nothing_is_built_on_it(value: float) -> None:
    values = torch.randn(40, 2)
    values[9, 1] = value
    rows = torch.arange(40) + 100
    for estimate in (
        mean_estimate(values.mean(1), rows=rows),
        two_stage_mean(values, population=40, rows=rows),
    ):
        assert estimate.value == value and estimate.standard_error == math.inf
        assert estimate.unresolved == "a log density is infinite in row 109"
    values[9, 1] = math.nan
    with pytest.raises(InputError, match="NaN in row 9"):
        two_stage_mean(values, population=40)
