"""The guide against the best of its family, the exact posterior, and its own simulations."""

from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.calibration import calibrate
from pyrovae.diagnostics.gaps import inference_gaps
from pyrovae.diagnostics.nuts import beside_nuts
from pyrovae.evidence import Evidence
from pyrovae.runs.recipe import Recipe, build
from pyrovae.testing import linear_gaussian_vae


def correlated(x: Tensor) -> None:
    """z ~ N(0, I) of two units, x | z ~ N(z1 + z2, 0.5²): a posterior with correlated units."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5).to_event(1), obs=x)


def diagonal(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.3 * x.expand(-1, 2), 0.9).to_event(1))


def error_of(result: Evidence) -> float:
    """The standard error of the mean over these data points, by their draws."""
    return float(result.standard_error.square().sum().sqrt()) / len(result.values)


def test_gap_of_an_exact_family_is_all_amortization() -> None:
    exact = linear_gaussian_vae(6, 3)
    vae, x = exact.vae(scale=0.5, shift=0.3), exact.sample(5)
    gaps = inference_gaps(vae.model, vae.guide, x, steps=300)
    # KL(N(0.3σ, σ²/4)‖N(0, σ²)) for each of three units
    kl = 3 * float(torch.distributions.kl_divergence(dist.Normal(0.3, 0.5), dist.Normal(0.0, 1.0)))
    amortization = gaps.amortization()
    assert amortization.value == pytest.approx(kl, abs=4 * amortization.standard_error + 0.02)
    assert torch.allclose(gaps.family.values, exact.log_prob(x), atol=1e-3)
    assert gaps.approximation().value == pytest.approx(0.0, abs=4 * error_of(gaps.evidence) + 1e-3)
    off = (gaps.evidence.values - exact.log_prob(x)).abs()
    assert bool((off < 4 * gaps.evidence.standard_error).all())
    assert gaps.evidence.rungs == ("refined",) * 5 and not gaps.concerns
    assert gaps.inference().bound == gaps.amortization().bound == "lower"
    assert gaps.inference().value == pytest.approx(
        amortization.value + gaps.approximation().value, abs=1e-9
    )


def test_gap_of_a_diagonal_family_is_what_full_covariance_recovers() -> None:
    # Posterior precision I + 4·11ᵀ = [[5, 4], [4, 5]]. The best diagonal Gaussian has variances
    # 1/5, and loses KL = ½(log det Λ⁻¹ − log det diag) = ½ log(25/9).
    x = torch.tensor([[1.0], [-2.0], [0.5]])
    gaps = inference_gaps(correlated, diagonal, x, steps=300, draws=4000)
    loss = 0.5 * float(torch.tensor(25 / 9).log())
    approximation = gaps.approximation()
    error = error_of(gaps.family) + error_of(gaps.evidence)
    assert approximation.value == pytest.approx(loss, abs=4 * error + 2e-3)
    assert gaps.amortization().value > 0.5
    remainder = gaps.beyond_gaussian()
    assert remainder is not None
    truth = dist.Normal(0.0, 2.25**0.5).log_prob(x[:, 0])
    assert gaps.full is not None and torch.allclose(gaps.full.values, truth, atol=1e-3)
    assert remainder.value == pytest.approx(0.0, abs=4 * error_of(gaps.evidence) + 1e-3)


def test_gaps_of_positive_codes_and_of_draws_without_gradient() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Exponential(torch.ones(len(x), 1)).to_event(1))
            pyro.sample("x", dist.Poisson(z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros(len(x), 1), 1.0).to_event(1))

    def transformed(x: Tensor) -> None:
        steps = [dist.transforms.ExpTransform()]
        with pyro.plate("data", len(x)):
            normal = dist.Normal(torch.zeros(len(x), 1), 1.0)
            pyro.sample("z", dist.TransformedDistribution(normal, steps).to_event(1))

    x = torch.arange(4.0).unsqueeze(-1)
    gaps = inference_gaps(model, guide, x, steps=200)
    same = inference_gaps(model, transformed, x, steps=200)
    assert torch.allclose(same.family.values, gaps.family.values)
    assert gaps.full is None and gaps.beyond_gaussian() is None
    truth = -(x[:, 0] + 1) * torch.tensor(2.0).log()
    z = (gaps.evidence.values - truth) / gaps.evidence.standard_error
    assert float(z.square().sum()) < 24  # χ² with 4 degrees of freedom: false alarm 1e-4
    assert gaps.amortization().value > 0

    def angle(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(torch.ones(len(x), 2), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"reparametrised draws; got VonMises.*beside_nuts"):
        inference_gaps(correlated, angle, x)
    assert beside_nuts(correlated, angle, x, draws=20, warmup=60, chains=2).kl.isfinite().all()


@pytest.fixture(scope="module")
def simulated() -> Tensor:
    return torch.zeros(1, 6, dtype=torch.float64)


def test_exact_guide_is_calibrated_and_halved_scales_are_caught(simulated: Tensor) -> None:
    exact = linear_gaussian_vae(6, 3)
    good = exact.vae()
    result = calibrate(good.model, good.guide, simulated)
    assert result.calibrated
    assert result.statement.startswith("None of 3 units and 5 joint quantities departs")
    for distortion, fault in (({"scale": 0.5}, "narrow"), ({"scale": 1.5}, "wide")):
        bad = exact.vae(**distortion)
        result = calibrate(bad.model, bad.guide, simulated)
        assert not result.calibrated
        assert f"too {fault}: 0" in result.statement
    shifted = exact.vae(shift=0.5)
    statement = calibrate(shifted.model, shifted.guide, simulated).statement
    assert "1" in statement.partition("too high: ")[2]


def test_arviz_plots_the_transforms(simulated: Tensor) -> None:
    exact = linear_gaussian_vae(6, 3)
    vae = exact.vae()
    result = calibrate(vae.model, vae.guide, simulated, simulations=200)
    assert len(result.table()) == 8
    exported = result.to_arviz()
    assert dict(exported["prior_sbc"].sizes) == {"chain": 1, "draw": 200, "unit": 3}
    if hasattr(az, "plot_ecdf_pit"):
        az.plot_ecdf_pit(exported)
    else:
        uniform = scipy.stats.uniform(0, 1)
        az.plot_ecdf(
            result.pit[:, 0].numpy(),
            eval_points=torch.linspace(0, 1, 101).numpy(),
            cdf=uniform.cdf,
            rvs=uniform.rvs,
            difference=True,
            confidence_bands=True,
        )
        plt.gcf().canvas.draw()
    with pytest.raises(ValueError, match="at least 100 simulations"):
        calibrate(vae.model, vae.guide, simulated, simulations=50)


def test_nuts_finds_the_exact_posterior_and_the_guide_s_distance() -> None:
    exact = linear_gaussian_vae(6, 2)
    vae, x = exact.vae(scale=0.5), exact.sample(3)
    result = beside_nuts(vae.model, vae.guide, x, draws=200, warmup=60, chains=2)
    posterior = exact.posterior(x)
    error = posterior.stddev / result.ess.sqrt()
    assert bool(((result.mean - posterior.mean).abs() < 4.5 * error).all())
    assert torch.allclose(result.sd, posterior.stddev, rtol=0.25)
    kl = 2 * float(torch.distributions.kl_divergence(dist.Normal(0.0, 0.5), dist.Normal(0.0, 1.0)))
    assert bool(((result.kl - kl).abs() < 4.5 * result.kl_error).all())
    assert torch.allclose(result.evidence.values, exact.log_prob(x), atol=0.05)
    assert any("k̂ > 0." in concern for concern in result.concerns)
    assert len(result.table()) == 6
    assert dict(result.to_arviz()["posterior"].sizes) == {
        "chain": 2, "draw": 200, "datum": 3, "unit": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least 2 chains"):
        beside_nuts(vae.model, vae.guide, x, chains=1)


def test_what_nuts_says_of_trainable_networks_has_no_gradients() -> None:
    vae = pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2))
    result = beside_nuts(vae.model, vae.guide, torch.ones(1, 4), draws=20, warmup=60, chains=2)
    assert not any(value.requires_grad for value in vars(result).values() if torch.is_tensor(value))
    assert len(result.table()) == 2
    pv.plots.beside(result)


def test_nuts_that_does_not_mix_is_named() -> None:
    # x | z ~ N(z², 0.1²): two modes far apart, between which no chain goes.
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 3.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.1).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sqrt(), 0.02).to_event(1))

    x = torch.full((6, 1), 9.0)
    result = beside_nuts(model, guide, x, draws=30, warmup=30, chains=2)
    assert any("r-hat exceeds 1.01" in concern for concern in result.concerns)


def test_a_diagnosis_says_which_numbers_not_to_believe() -> None:
    exact = linear_gaussian_vae(8, 4)
    vae = exact.vae(scale=0.2)
    effort = pv.Effort(
        codes=400, evidence_rows=50, evidence_draws=200, export_rows=2, export_draws=2, pictures=1,
        method="importance",
    )  # fmt: skip
    result = pv.diagnose(
        vae.model,
        vae.guide,
        exact.sample(100),
        held_out=exact.sample(100, seed=1),
        validation=exact.sample(50, seed=2),
        effort=effort,
    )
    concerns = " ".join(result.each_concern)
    assert "Index-code MI is saturated" in concerns
    assert "log p(x) under the model's prior: for " in concerns and "k̂ > 0." in concerns


def two_sites(x: Tensor) -> None:
    """The same model with a site for each of its units, and a second plate of as many rows."""
    with pyro.plate("rows", len(x), dim=-1):
        first = pyro.sample("one", dist.Normal(torch.zeros(len(x)), 1.0))
        second = pyro.sample("two", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(first.unsqueeze(-1) + second, 0.5).to_event(1), obs=x)


def two_sites_guide(x: Tensor) -> None:
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("one", dist.Normal(0.3 * x[:, 0], 0.9))
        pyro.sample("two", dist.Normal(0.3 * x, 0.9).to_event(1))


def test_several_sites_are_checked_as_one_vector() -> None:
    x = torch.tensor([[1.0], [-2.0]])
    pair: dict[str, Any] = {"site": ("one", "two"), "data_plate": "rows"}
    gaps = inference_gaps(two_sites, two_sites_guide, x, steps=20, draws=200, **pair)
    same = inference_gaps(correlated, diagonal, x, steps=20, draws=200)
    assert torch.allclose(gaps.guide.values, same.guide.values)
    comparison = beside_nuts(
        two_sites, two_sites_guide, x, draws=20, warmup=60, chains=2, progress=False, **pair
    )
    assert comparison.mean.shape == (2, 2) and comparison.site == "one_two"
    calibration = calibrate(two_sites, two_sites_guide, x, simulations=2000, **pair)
    assert calibration.ranks.shape == (2000, 7)
    assert not calibration.calibrated  # 0.9 is too wide


def test_nuts_that_never_moves_is_an_error_in_words() -> None:
    def no_gradient(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            root = (0 * z).sqrt()  # its gradient at 0 is not a number
            pyro.sample("x", dist.Normal((z + root).sum(-1, keepdim=True), 0.5).to_event(1), obs=x)

    with pytest.raises(ValueError, match="expected NUTS to move; got 2 of 2 chains"):
        beside_nuts(no_gradient, diagonal, torch.zeros(1, 1), draws=5, warmup=3, chains=2)


def test_a_pair_of_fixed_size_is_refused_in_words() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(3, 1), 1.0).to_event(1))

    for check in (inference_gaps, beside_nuts, calibrate):
        with pytest.raises(ValueError, match="any number of rows"):
            check(model, guide, torch.zeros(3, 1))


@pytest.mark.float32
def test_nuts_takes_double_data_of_a_single_pair() -> None:
    x = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).view(2, 3)
    vae = build(Recipe("normal", (3,), 2, (4,), "standard", double=True), x)
    found = beside_nuts(vae.model, vae.guide, x, draws=20, warmup=20, chains=2)
    assert found.draws.dtype == torch.float32
    assert found.kl.isfinite().all()
