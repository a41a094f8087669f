"""What ArviZ does with the exported draws; ``pyrovae.arviz_adapter`` with plain arrays."""

import warnings
from collections.abc import Iterator

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest

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
    az.plot_pair(draws, var_names=["z"], coords={"datum": draws["posterior"]["datum"].values[:1]})
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
