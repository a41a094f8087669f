"""What ArviZ does with the exported draws; ``pyrovae.arviz_adapter`` with plain arrays."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.arviz_adapter import convergence, psis
from pyrovae.testing import linear_gaussian_vae


@pytest.fixture(autouse=True)
def _arviz_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of k̂ > 0.7 in az.loo, and of NumPy's own in its plots
        yield


@pytest.fixture(scope="module")
def draws() -> object:
    exact = linear_gaussian_vae(6, 3)
    vae = exact.vae(scale=1.2)
    effort = pv.Effort(
        codes=400, evidence_rows=10, evidence_draws=10, export_rows=6, export_draws=100, pictures=1
    )
    return pv.diagnose(
        vae.model,
        vae.guide,
        exact.sample(100),
        held_out=exact.sample(100, seed=1),
        validation=exact.sample(50, seed=2),
        effort=effort,
    ).to_arviz()


def test_summary_has_every_unit_of_every_datum(draws: object) -> None:
    assert len(az.summary(draws, var_names=["z"])) == 18


def test_loo_and_its_k_hats(draws: object) -> None:
    loo = az.loo(draws, pointwise=True)
    assert np.isfinite(float(getattr(loo, "elpd_loo", getattr(loo, "elpd", np.nan))))
    assert loo.pareto_k.shape == (6,)
    az.plot_khat(loo)
    plt.gcf().canvas.draw()


def test_pair_plot(draws: object) -> None:
    first = draws["posterior"].coords["datum"].values[:1]  # type: ignore[index]
    az.plot_pair(draws, var_names=["z"], coords={"datum": first})
    plt.gcf().canvas.draw()


def test_posterior_and_prior_predictive_plots(draws: object) -> None:
    if hasattr(az, "plot_ppc"):
        az.plot_ppc(draws, num_pp_samples=10)
        az.plot_ppc(draws, group="prior", num_pp_samples=10)
    else:
        az.plot_ppc_dist(draws)
    plt.gcf().canvas.draw()


def test_psis_keeps_the_order_of_the_weights_and_finds_the_tail() -> None:
    rng = np.random.default_rng(0)
    # weights (1 − u)^−k are Pareto with shape k
    shapes = np.array([[0.2], [0.5], [0.9]])
    weights = -shapes * np.log1p(-rng.random((3, 4000)))
    smoothed, pareto_k = psis(weights)
    assert np.allclose(np.logaddexp.reduce(smoothed, axis=1), 0)
    assert (np.argsort(smoothed[:, :50], 1) == np.argsort(weights[:, :50], 1)).all()
    assert np.allclose(pareto_k, shapes[:, 0], atol=0.3)  # 4 standard errors of a fit to 190 points


def test_psis_without_a_tail_knows_no_shape() -> None:
    for weights in (np.zeros((2, 100)), np.random.default_rng(0).normal(size=(2, 10))):
        smoothed, pareto_k = psis(weights)
        assert np.isinf(pareto_k).all()
        assert np.allclose(smoothed, weights - np.logaddexp.reduce(weights, 1, keepdims=True))


def test_convergence_of_independent_and_of_stuck_chains() -> None:
    draws = np.random.default_rng(0).normal(size=(4, 200, 2, 3))
    r_hat, ess = convergence(draws)
    assert r_hat.shape == ess.shape == (2, 3)
    assert (r_hat < 1.05).all() and (ess > 400).all()
    stuck = draws + 3 * np.arange(4)[:, None, None, None]
    assert (convergence(stuck)[0] > 1.5).all()


# -- names and log p(x) of a user's own pair -------------------------------------------------------

EXACT = linear_gaussian_vae(4, 2)
SMALL = pv.Effort(
    codes=64, evidence_rows=2, evidence_draws=30, export_rows=9, export_draws=7, pictures=1,
    simulations=0,
)  # fmt: skip


def exported(latent: str, observed: str, scale: float = 1.0) -> object:
    def model(a: Tensor) -> None:
        with pyro.plate("rows", len(a)):
            z = pyro.sample(latent, dist.Normal(torch.zeros(len(a), 2), 1.0).to_event(1))
            loc = z @ EXACT.weight.T + EXACT.bias
            pyro.sample(observed, dist.Normal(loc, EXACT.noise).to_event(1), obs=a)

    def guide(a: Tensor) -> None:
        q = EXACT.posterior(a)
        with pyro.plate("rows", len(a)):
            pyro.sample(latent, dist.Normal(q.mean, scale * q.stddev).to_event(1))

    x = EXACT.sample(80)
    diagnosis = pv.diagnose(
        model, guide, x[:40], held_out=x[40:], validation=x[:20], site=latent, effort=SMALL
    )
    return diagnosis.to_arviz()


@pytest.mark.parametrize(
    ("latent", "observed", "z", "x", "datum", "unit"),
    [
        ("z", "counts", "z", "counts", "datum", "unit"),
        ("x", "y", "x", "y", "datum", "unit"),
        ("unit", "y", "unit", "y", "datum", "unit_dim"),
        ("datum", "feature", "datum", "feature", "datum_dim", "unit"),
        ("draw", "chain", "draw_site", "chain_site", "datum", "unit"),
        ("log_weight", "row", "log_weight_site", "row", "datum", "unit"),
        ("encoder/z", "decoder/x", "encoder.z", "decoder.x", "datum", "unit"),
    ],
)
def test_the_user_s_own_names(
    tmp_path: Path, latent: str, observed: str, z: str, x: str, datum: str, unit: str
) -> None:
    result = exported(latent, observed)
    result.to_netcdf(tmp_path / "draws.nc")  # type: ignore[attr-defined]
    groups = az.from_netcdf(tmp_path / "draws.nc")
    feature = "feature_dim" if observed == "feature" else "feature"
    assert groups["posterior"][z].dims == ("chain", "draw", datum, unit)
    assert groups["posterior"][z].shape == (1, 7, 9, 2)
    assert groups["observed_data"][x].dims == (datum, feature)
    assert groups["prior_predictive"][x].dims == ("chain", "draw", datum, feature)
    assert groups["log_likelihood"][x].dims == ("chain", "draw", datum)
    assert groups["sample_stats"]["log_weight"].dims == ("chain", "draw", datum)
    numbers = groups["posterior"].coords[datum].values
    assert np.array_equal(groups["observed_data"][x].values, EXACT.sample(80)[40:][numbers].numpy())


def test_loo_leaves_out_a_row_and_not_its_code() -> None:
    # With the parameters fixed it is log p(x), less about the variance of an estimate of it. That
    # of the mean of 40 weights is var(w)/40, here (1.2⁴/(2·1.2² − 1) − 1)/40 = 0.003 for two units.
    result = exported("z", "x", scale=1.2)
    rows = torch.as_tensor(result["observed_data"]["x"].values)  # type: ignore[index]
    loo = az.loo(result, pointwise=True)
    total = float(getattr(loo, "elpd_loo", getattr(loo, "elpd", np.nan)))
    assert total == pytest.approx(float(EXACT.log_prob(rows).sum()), abs=9 * 4 * 0.06 / 25**0.5)
    assert "parameters as they are" in result["log_likelihood"].attrs["note"]  # type: ignore[index]
    assert "note" not in result["posterior"].attrs  # type: ignore[index]
