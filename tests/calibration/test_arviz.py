"""ArviZ's own plots of a calibration: a curve for each test, and the one that is drawn here."""

from __future__ import annotations

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.calibration import CELLS, Calibration, counts_below

FIRST = az.__version__.startswith("0.")
CODE = "encoder/z"  # a slash would be a group of its own


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(x.new_full((len(x),), 0.5)))
        z = pyro.sample(CODE, dist.Normal(2 * k.unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    """Half as wide as the posterior given k, and k a fair coin."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(x.new_full((len(x),), 0.5)))
        pyro.sample(CODE, dist.Normal(k.unsqueeze(-1) + x / 2, 0.35).to_event(1))


@pytest.fixture(scope="module")
def result() -> Calibration:
    return pv.calibrate(model, guide, torch.zeros(3, 2), site=CODE, simulations=150)


def test_each_test_is_a_variable_of_the_group_that_arviz_looks_for(result: Calibration) -> None:
    group = result.to_arviz()["prior_sbc"]
    assert set(group.data_vars) == {"encoder.z", *result.quantities}
    assert dict(group.sizes) == {"chain": 1, "draw": 150, "unit": 2}
    assert np.array_equal(group["k"].values[0], result.pit[:, 2].numpy())


@pytest.mark.skipif(FIRST, reason="plot_ecdf_pit, which takes the result, is in ArviZ 1.x")
@pytest.mark.parametrize("coverage", [False, True])
def test_plot_ecdf_pit_takes_the_result_as_it_is(result: Calibration, coverage: bool) -> None:
    panels = az.plot_ecdf_pit(result.to_arviz(), coverage=coverage, backend="matplotlib")
    lines = panels.viz["ecdf_lines"]
    assert set(lines.data_vars) == {"encoder.z", *result.quantities}
    x, y = lines["k"].item().get_data()
    values = result.pit[:, 2].numpy()
    values = 2 * np.abs(values - 0.5) if coverage else values
    ecdf = (values[:, None] <= x).mean(0)
    assert np.abs(ecdf - x - y).max() < 1e-9
    plt.close("all")


@pytest.mark.skipif(not FIRST, reason="plot_ecdf, for a unit at a time, is in ArviZ 0.x")
def test_plot_ecdf_draws_the_curve_that_is_drawn_here(result: Calibration) -> None:
    uniform, edges = scipy.stats.uniform(0, 1), np.linspace(0, 1, CELLS + 1)
    for values in result.pit.unbind(-1):
        ax = az.plot_ecdf(
            values.numpy(), cdf=uniform.cdf, eval_points=edges, difference=True,
            confidence_bands=True,
        )  # fmt: skip
        y = ax.lines[0].get_ydata()
        ours = np.array([0, *counts_below(values), len(values)]) / len(values) - edges
        assert np.abs(y - ours).max() < 1e-9
        plt.close("all")
