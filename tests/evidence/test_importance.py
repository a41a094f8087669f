"""log p(x) by importance sampling against the exact one of the linear-Gaussian VAE."""

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.testing import linear_gaussian_vae


def test_exact_guide_gives_exact_evidence() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(20)
    result = pv.log_evidence(vae.model, vae.guide, x, draws=3)
    assert torch.allclose(result.values, exact.log_prob(x), atol=1e-10)
    assert float(result.standard_error.max()) < 1e-10


def test_wide_guide_is_right_to_its_standard_error() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5, shift=0.3), exact.sample(400)
    result = pv.log_evidence(vae.model, vae.guide, x, draws=2000)
    z = (result.values - exact.log_prob(x)) / result.standard_error
    # 400 independent z-scores: their mean has standard error 0.05, their sd 0.035; 4 of each.
    assert abs(float(z.mean())) < 0.2
    assert float(z.std()) == pytest.approx(1.0, abs=0.15)


def test_bound_holds_in_expectation_and_tightens() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5, shift=0.5), exact.sample(2000)
    bounds = [pv.log_evidence(vae.model, vae.guide, x, draws=k) for k in (2, 20)]
    truth = float(exact.log_prob(x).mean())
    gaps = [truth - float(bound.values.mean()) for bound in bounds]
    gap_errors = [float((bound.values - exact.log_prob(x)).std()) / 2000**0.5 for bound in bounds]
    assert gaps[0] > 4 * gap_errors[0]
    assert gaps[1] > 4 * gap_errors[1]
    assert gaps[0] > 4 * gaps[1]


def test_narrow_guide_is_flagged() -> None:
    exact = linear_gaussian_vae(8, 4)
    x = exact.sample(50)
    narrow, good = exact.vae(scale=0.3), exact.vae(scale=1.2)
    flagged = pv.log_evidence(narrow.model, narrow.guide, x, draws=1000).pareto_k > 0.7
    passed = pv.log_evidence(good.model, good.guide, x, draws=1000).pareto_k < 0.7
    assert float(flagged.double().mean()) > 0.9
    assert bool(passed.all())


def test_result_depends_on_seed_and_data_alone() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5), exact.sample(40)
    before = torch.get_rng_state()
    whole = pv.log_evidence(vae.model, vae.guide, x, draws=10, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again = pv.log_evidence(vae.model, vae.guide, x.numpy(), draws=10, seed=1)
    other = pv.log_evidence(vae.model, vae.guide, x, draws=10, seed=2)
    assert torch.equal(whole.values, again.values)
    assert not torch.equal(whole.values, other.values)


def test_rows_scored_in_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.5), exact.sample(20)
    whole = pv.log_evidence(vae.model, vae.guide, x, draws=50)
    monkeypatch.setattr("pyrovae.evidence.importance.ROWS", 40)
    chunked = pv.log_evidence(vae.model, vae.guide, x, draws=50)
    assert torch.allclose(whole.values, chunked.values, rtol=1e-12)


def test_another_prior_takes_the_place_of_the_models_own() -> None:
    # p(z) = N(m, s²I) makes p(x) = N(Wm + b, s²WWᵀ + noise²I).
    exact = linear_gaussian_vae()
    vae, x = exact.vae(scale=1.3), exact.sample(300)
    prior = dist.Normal(torch.tensor([0.2, -0.1]), 0.8).to_event(1)
    covariance = 0.64 * exact.weight @ exact.weight.T + exact.noise**2 * torch.eye(6)
    truth = dist.MultivariateNormal(exact.weight @ prior.mean + exact.bias, covariance)
    result = pv.log_evidence(vae.model, vae.guide, x, draws=2000, prior=prior)
    z = (result.values - truth.log_prob(x)) / result.standard_error
    assert abs(float(z.mean())) < 4 / 300**0.5


def test_mean_and_paired_difference() -> None:
    exact = linear_gaussian_vae()
    x = exact.sample(33)  # not a multiple of the block of data points
    good = exact.vae()
    one = pv.log_evidence(good.model, good.guide, x, draws=5)
    assert one.mean().value == pytest.approx(float(exact.log_prob(x).mean()))
    assert one.mean().bound == "lower"
    assert one.minus(one).value == 0.0
    with pytest.raises(ValueError, match="same data"):
        one.minus(pv.log_evidence(good.model, good.guide, x[:4], draws=5))


def test_bad_input() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(4)
    with pytest.raises(ValueError, match="at least 2 draws"):
        pv.log_evidence(vae.model, vae.guide, x, draws=1)
    with pytest.raises(ValueError, match="'guess'"):
        pv.log_evidence(vae.model, vae.guide, x, method="guess")  # type: ignore[arg-type]
