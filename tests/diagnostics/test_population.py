"""Information, holes, two-sample test and unit rates against what is known exactly."""

import math

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.diagnostics.active_units import collapse, unit_rates
from pyrovae.diagnostics.code_densities import memorisation
from pyrovae.diagnostics.draws import draw_codes, moments
from pyrovae.diagnostics.holes import holes
from pyrovae.diagnostics.information import _total_responsibility, information
from pyrovae.diagnostics.two_sample import two_sample_test
from pyrovae.ex_post.candidates import inflate
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.mixture import Mixture
from pyrovae.testing import LinearGaussian, linear_gaussian_vae


def standard_normal(units: int) -> dist.Distribution:
    return dist.Normal(torch.zeros(units), 1.0).to_event(1)


def one_component(loc: float, scale: float, units: int) -> Mixture:
    component = dist.Normal(torch.full((1, units), loc), scale).to_event(1)
    return Mixture(dist.Categorical(torch.ones(1)), component)


def exact_information(exact: LinearGaussian) -> float:
    return float(0.5 * (1 + exact.weight.square().sum(0) / exact.noise**2).log().sum())


@pytest.mark.parametrize("size", [3000, 700])
def test_information_is_bracketed(size: int) -> None:
    exact = linear_gaussian_vae(6, 2)
    encoding = exact.posterior(exact.sample(1500))
    codes = draw_codes(encoding, size=size)
    result = information(codes, AggregatedPosterior(encoding), one_component(0.1, 1.1, 2))
    truth = exact_information(exact)
    assert abs(result.lower.value - truth) < 4 * result.lower.standard_error
    assert result.lower.value < math.log(1500)
    # r = N(0.1, 1.1²): the upper bound is off by KL(N(0, 1)‖r), two units
    slack = 2 * float(
        torch.distributions.kl_divergence(dist.Normal(0.0, 1.0), dist.Normal(0.1, 1.1))
    )
    assert abs(result.upper.value - truth - slack) < 4 * result.upper.standard_error
    assert not result.saturated
    assert result.lower.over == result.upper.over == "data"


def test_standard_error_of_the_lower_bound_is_that_over_data_sets() -> None:
    exact = linear_gaussian_vae(3, 1)
    bounds = []
    for seed in range(60):
        encoding = exact.posterior(exact.sample(200, seed=seed))
        codes = draw_codes(encoding, size=400, seed=seed)
        bounds.append(
            information(codes, AggregatedPosterior(encoding), one_component(0.0, 1.0, 1)).lower
        )
    spread = float(torch.tensor([bound.value for bound in bounds]).std())
    claimed = float(torch.tensor([bound.standard_error for bound in bounds]).mean())
    assert claimed == pytest.approx(spread, rel=4 / math.sqrt(2 * 60))


def test_information_says_when_it_is_saturated() -> None:
    encoding = dist.Normal(100 * torch.arange(50.0).unsqueeze(-1), 1e-3).to_event(1)
    codes = draw_codes(encoding, size=1000)
    result = information(codes, AggregatedPosterior(encoding), one_component(0.0, 1e3, 1))
    assert result.lower.value == pytest.approx(math.log(50))
    assert result.lower.standard_error == pytest.approx(0.0, abs=1e-9)
    assert result.saturated
    assert "cannot exceed log N = 3.91" in result.statement


def test_total_responsibility_is_the_sum_over_points() -> None:
    encoding = dist.Normal(torch.randn(30, 2), 0.5).to_event(1)
    agg, z = AggregatedPosterior(encoding), torch.randn(7, 2, 2)
    direct = agg.responsibilities(z, top=30)
    total = torch.zeros(30).scatter_add(0, direct.index.flatten(), direct.weight.flatten()) / 2
    assert torch.allclose(_total_responsibility(z, agg), total)


def test_equal_densities_have_no_holes_and_a_ring_has_one() -> None:
    same = standard_normal(2)
    held_out = draw_codes(dist.Normal(torch.randn(4000, 2), 1e-6).to_event(1), size=8000)
    result = holes(held_out, one_component(0.0, 1.0, 2), same, draws=4000)
    for share in (result.prior_outside, result.aggregated_outside):
        assert abs(share.value - 0.01) < 4 * share.standard_error
    # codes on a ring of radius 2: the prior reaches all of them, and mostly misses the ring
    angle = 2 * math.pi * torch.rand(3000)
    encoding = dist.Normal(2 * torch.stack([angle.cos(), angle.sin()], -1), 0.05).to_event(1)
    ring = AggregatedPosterior(encoding)
    result = holes(draw_codes(encoding, size=6000), inflate(ring, 0.001), same, draws=4000)
    assert result.prior_outside.value > 0.7
    assert result.aggregated_outside.value < 0.01


def test_memorised_codes_belong_to_one_component() -> None:
    means = torch.randn(200, 2)
    narrow = dist.Normal(means, 1e-4).to_event(1)
    other = dist.Normal(torch.randn(100, 2), 1e-4).to_event(1)
    agg = AggregatedPosterior(narrow)
    codes = [draw_codes(encoding, size=400) for encoding in (narrow, other)]
    result = memorisation(codes[0], codes[1], {"prior": standard_normal(2), "q_agg": agg}, agg)
    assert result.components["training"].value == pytest.approx(1.0, abs=1e-6)
    same = AggregatedPosterior(dist.Normal(torch.zeros(200, 2), 1.0).to_event(1))
    result = memorisation(codes[0], codes[1], {"prior": standard_normal(2), "q_agg": same}, same)
    assert result.components["held-out"].value == pytest.approx(200.0)


def test_classifier_tells_a_shift_from_nothing() -> None:
    first, second = torch.randn(800, 2), torch.randn(800, 2)
    equal = two_sample_test(first, second, size=800)
    assert not equal.differ
    assert abs(equal.auc.value - 0.5) < 4 * equal.auc.standard_error
    shifted = two_sample_test(first, second + torch.tensor([2.0, 0.0]), size=800)
    best = float(torch.special.ndtr(torch.tensor(1.0)))  # of two normals two sd apart
    assert shifted.differ
    assert 0.75 < shifted.accuracy.value < best + 4 * shifted.accuracy.standard_error
    assert shifted.accuracy.bound == "lower"
    with pytest.raises(ValueError, match="at least 10 points"):
        two_sample_test(first[:5], second, size=800)


def test_unit_rates_in_closed_form_and_from_codes() -> None:
    loc, scale = torch.randn(3000, 3) * torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.3, 0.9, 1.0])
    encoding = dist.Normal(loc, scale.expand(3000, 3)).to_event(1)
    codes = draw_codes(encoding, size=6000)
    closed = unit_rates(encoding, standard_normal(3), codes)
    drawn = unit_rates(encoding, one_component(0.0, 1.0, 3), codes)
    assert closed is not None and drawn is not None
    exact = 0.5 * (loc**2 + scale**2 - 1) - scale.log()
    assert torch.allclose(closed, exact)
    difference = drawn - closed[codes.index]
    error = difference.std(0) / 3000**0.5
    assert bool((difference.mean(0).abs() <= 4.5 * error + 1e-12).all())
    result = collapse(moments(encoding), closed)
    assert result.collapsed == (2,)
    assert result.active_by_rate is not None
    assert result.active_by_rate.tolist() == [True, True, False]
    correlated = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    assert unit_rates(encoding, correlated, codes) is None


def test_a_full_covariance_guide_is_measured_too() -> None:
    tril = torch.tensor([[0.5, 0.0], [0.3, 0.4]])
    encoding = dist.MultivariateNormal(torch.randn(400, 2), scale_tril=tril.expand(400, 2, 2))
    codes = draw_codes(encoding, size=800)
    rates = unit_rates(encoding, standard_normal(2), codes)
    assert rates is not None and rates.shape == (400, 2)
    result = information(codes, AggregatedPosterior(encoding), one_component(0.0, 1.1, 2))
    assert result.lower.value < result.upper.value


def test_diagnosis_carries_them_all() -> None:
    exact = linear_gaussian_vae(6, 3)
    vae = exact.vae()
    effort = pv.Effort(
        codes=1000, evidence_rows=20, evidence_draws=20, export_rows=2, export_draws=2, pictures=1
    )
    diagnosis = pv.diagnose(
        vae.model,
        vae.guide,
        exact.sample(800),
        held_out=exact.sample(800, seed=1),
        validation=exact.sample(300, seed=2),
        effort=effort,
    )
    truth = exact_information(exact)
    lower, upper = diagnosis.information.lower, diagnosis.information.upper
    assert lower.value - 4 * lower.standard_error < truth
    assert upper.value + 4 * upper.standard_error > truth
    assert not diagnosis.two_sample.differ  # the exact pair's aggregated posterior is the prior
    table = diagnosis.summary().set_index("measure").value
    for row in ("information.lower", "holes.prior_outside"):
        assert row in table
