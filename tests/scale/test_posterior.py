"""A mixture in parts is the mixture: every method gives what it gives for all components at once.

Both are evaluated within 1e-9 in float64 (5e-5 in float32), so that they differ by at most twice
that, whatever the parts.
"""

from __future__ import annotations

import pickle

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.scale import ShardedPosterior

N, D = 3001, 4
BOUND = 2e-9


def encoding(dtype: torch.dtype = torch.float64) -> dist.Distribution:
    loc, scale = torch.randn(N, D, dtype=dtype), 0.05 + 0.25 * torch.rand(N, D, dtype=dtype)
    return dist.Normal(loc, scale).to_event(1)


def weights() -> Tensor:
    """Some components without weight, and a whole part of them."""
    found = torch.rand(N)
    found[7], found[1000:2000] = 0.0, 0.0
    return found


def parts(size: int) -> list[slice]:
    return [slice(start, min(start + size, N)) for start in range(0, N, size)]


@pytest.fixture(params=[None, "unequal"])
def both(request: pytest.FixtureRequest) -> tuple[pv.AggregatedPosterior, ShardedPosterior]:
    q, w = encoding(), None if request.param is None else weights()
    return pv.AggregatedPosterior(q, w), ShardedPosterior(q, parts(500), w)


Both = tuple[pv.AggregatedPosterior, ShardedPosterior]


def far_and_near(agg: pv.AggregatedPosterior, count: int = 400) -> Tensor:
    z = agg.sample((count,))
    z[0] += 30.0
    return z


def test_densities_scores_and_entropies_are_those_of_the_whole(both: Both) -> None:
    whole, sharded = both
    for z in (far_and_near(whole), far_and_near(whole, 2)):
        torch.testing.assert_close(sharded.log_prob(z), whole.log_prob(z), rtol=0, atol=BOUND)
        torch.testing.assert_close(sharded.score(z), whole.score(z), rtol=1e-8, atol=1e-8)
        effective = sharded.effective_components(z)
        torch.testing.assert_close(effective, whole.effective_components(z), rtol=1e-8, atol=0)


def test_the_density_has_the_score_as_its_gradient(both: Both) -> None:
    _, sharded = both
    z = far_and_near(sharded).requires_grad_()
    (gradient,) = torch.autograd.grad(sharded.log_prob(z).sum(), z)
    torch.testing.assert_close(gradient, sharded.score(z.detach()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("top", [1, 7, 60])
def test_responsibilities_are_those_of_the_whole(both: Both, top: int) -> None:
    whole, sharded = both
    z = far_and_near(whole)
    expected, found = whole.responsibilities(z, top=top), sharded.responsibilities(z, top=top)
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=BOUND)
    clear = expected.weight[:, :-1] - expected.weight[:, 1:] > 2 * BOUND  # neighbours in rank
    if top > 1:
        assert bool(((found.index == expected.index)[:, :-1] | ~clear).all())


def test_one_component_is_left_out_exactly(both: Both) -> None:
    whole, sharded = both
    n = torch.randint(N, (300,))
    n[:4] = torch.tensor([0, 7, 499, N - 1])
    z = whole.encoding.mean[n]
    expected = whole.leave_one_out_log_prob(z, n)
    torch.testing.assert_close(sharded.leave_one_out_log_prob(z, n), expected, rtol=0, atol=BOUND)


def test_a_part_that_is_the_component_left_out() -> None:
    q = encoding()
    sharded = ShardedPosterior(q, [slice(0, 1), slice(1, N)])
    n = torch.zeros(3, dtype=torch.long)
    z = q.mean[:3]
    expected = pv.AggregatedPosterior(q).leave_one_out_log_prob(z, n)
    torch.testing.assert_close(sharded.leave_one_out_log_prob(z, n), expected, rtol=0, atol=BOUND)


def test_moments_are_those_of_the_whole(both: Both) -> None:
    whole, sharded = both
    torch.testing.assert_close(sharded.mean, whole.mean)
    torch.testing.assert_close(sharded.variance, whole.variance)


@pytest.mark.parametrize("units", [1, [0, 2], [3, 1], [2], [0, 1, 3]])
def test_marginals_are_those_of_the_whole(both: Both, units: int | list[int]) -> None:
    whole, sharded = both
    expected, found = whole.marginal(units), sharded.marginal(units)
    z = expected.sample((300,))
    assert isinstance(found, ShardedPosterior)
    torch.testing.assert_close(found.log_prob(z), expected.log_prob(z), rtol=0, atol=BOUND)
    torch.testing.assert_close(found.variance, expected.variance)


def test_marginals_of_equal_steps_copy_nothing(both: Both) -> None:
    _, sharded = both
    for units in (1, [0, 2], [1, 2, 3]):
        loc = sharded.marginal(units)._source_tensors()[0]
        assert loc.untyped_storage().data_ptr() == _storage(sharded)


def _storage(sharded: ShardedPosterior) -> int:
    return sharded._source_tensors()[0].untyped_storage().data_ptr()


def test_a_seed_draws_the_same(both: Both) -> None:
    whole, sharded = both
    torch.manual_seed(3)
    z = whole.sample((50,))
    torch.manual_seed(3)
    assert torch.equal(sharded.sample((50,)), z)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_reductions_are_those_of_the_whole(both: Both, covariance: str) -> None:
    expected, found = (
        pv.reduce(agg, 5, covariance=covariance, rounds=3, draws=50)  # type: ignore[arg-type]
        for agg in both
    )
    torch.testing.assert_close(found.bounds, expected.bounds)
    z = both[0].sample((100,))
    torch.testing.assert_close(found.mixture.log_prob(z), expected.mixture.log_prob(z))


def test_a_part_at_a_time_is_laid_out_and_let_go() -> None:
    events: list[str] = []
    sharded = ShardedPosterior(encoding(), parts(1000), done=lambda: events.append("done"))
    sharded.log_prob(far_and_near(sharded))
    assert events == ["done"] * 4


@pytest.mark.float32
def test_in_single_precision_within_its_bound() -> None:
    q = encoding(torch.float32)
    exact = pv.AggregatedPosterior(dist.Normal(q.mean.double(), q.stddev.double()).to_event(1))
    z = far_and_near(ShardedPosterior(q, parts(700)))
    difference = ShardedPosterior(q, parts(700)).log_prob(z) - exact.log_prob(z.double())
    rounding = torch.finfo(torch.float32).eps * exact.log_prob(z.double()).abs()
    assert bool((difference.abs() <= 5e-5 + rounding).all())


def test_functional_transforms_go_through_it(both: Both) -> None:
    _, sharded = both
    for z in (far_and_near(sharded, 3), far_and_near(sharded)):
        values = torch.vmap(sharded.log_prob)(z)
        torch.testing.assert_close(values, sharded.log_prob(z), rtol=0, atol=BOUND)
        gradient = torch.func.grad(lambda points: sharded.log_prob(points).sum())(z)
        torch.testing.assert_close(gradient, sharded.score(z), rtol=1e-8, atol=1e-8)


def test_parts_merge_into_one_in_memory(both: Both) -> None:
    whole, sharded = both
    z = far_and_near(whole, 20)
    merged = ShardedPosterior.merge([sharded, sharded])
    torch.testing.assert_close(merged.log_prob(z), whole.log_prob(z), rtol=0, atol=BOUND)


def test_all_else_of_an_aggregated_posterior_works(both: Both) -> None:
    whole, sharded = both
    z = far_and_near(whole, 20)
    assert len(sharded[torch.arange(10)]) == 10
    torch.testing.assert_close(sharded.component(3).mean, whole.component(3).mean)
    for same in (sharded.expand((20,)), pickle.loads(pickle.dumps(sharded.to(z.dtype)))):
        torch.testing.assert_close(same.log_prob(z), whole.log_prob(z), rtol=0, atol=BOUND)
    assert pv.entropy(sharded, draws=50).value == pytest.approx(pv.entropy(whole, draws=50).value)
    bounds = pv.entropy_bounds(sharded, rows=20)
    assert bounds.lower.value < bounds.upper.value


def test_other_families_are_refused() -> None:
    q = dist.Laplace(torch.zeros(5, 2), 1.0).to_event(1)
    with pytest.raises(pv.InputError, match="diagonal normals"):
        ShardedPosterior(q, [slice(0, 5)])
