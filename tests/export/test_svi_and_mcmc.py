"""Any Pyro inference as ArviZ data: five models by their own names, against densities by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import Tensor

import pyrovae as pv
from pyrovae.testing import linear_gaussian_vae

pytestmark = pytest.mark.float32  # as in a script of a user's
CHAIN = ("chain", "draw")  # under either version


@pytest.fixture(autouse=True)
def _arviz_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of k̂ > 0.7 in az.loo, and of NumPy's own
        yield


def normal_log_prob(value: Any, mean: Any, scale: Any) -> Any:
    return -((value - mean) ** 2) / (2 * scale**2) - np.log(scale) - math.log(2 * math.pi) / 2


# -- eight schools, by NUTS ----------------------------------------------------------------------

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SPREADS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SCHOOLS = ["Choate", "Deerfield", "Andover", "Exeter", "Hotchkiss", "Lawrence", "Paul", "Hermon"]


def eight_schools(spreads: Tensor, effects: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(spreads)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("effect", dist.Normal(theta, spreads), obs=effects)


@pytest.fixture(scope="module")
def schools() -> Any:
    pyro.set_rng_seed(0)
    mcmc = MCMC(
        NUTS(eight_schools), num_samples=40, warmup_steps=40, num_chains=1, disable_progbar=True
    )
    mcmc.run(SPREADS, EFFECTS)
    return pv.to_arviz(
        eight_schools,
        {"spreads": SPREADS, "effects": EFFECTS},
        mcmc=mcmc,
        prior_draws=20,
        coords={"school": SCHOOLS},
    )


def test_chains_keep_their_shape_and_plates_give_names(schools: Any) -> None:
    posterior = schools["posterior"]
    assert posterior["theta"].dims == (*CHAIN, "school")
    assert dict(posterior.sizes) == {"chain": 1, "draw": 40, "school": 8}
    assert list(posterior["school"].values) == SCHOOLS
    assert schools["sample_stats"]["diverging"].shape == (1, 40)
    assert schools["prior_predictive"]["effect"].shape == (1, 20, 8)
    np.testing.assert_array_equal(schools["observed_data"]["effect"], EFFECTS)


def test_densities_of_eight_schools_are_those_by_hand(schools: Any) -> None:
    posterior = {name: array.values for name, array in schools["posterior"].data_vars.items()}
    mu, tau = posterior["mu"][..., None], posterior["tau"][..., None]
    np.testing.assert_allclose(posterior["theta"], mu + tau * posterior["eta"], rtol=1e-5)
    expected = normal_log_prob(EFFECTS.numpy(), posterior["theta"], SPREADS.numpy())
    np.testing.assert_allclose(schools["log_likelihood"]["effect"], expected, atol=1e-4)
    expected = normal_log_prob(posterior["mu"], 0.0, 5.0)
    np.testing.assert_allclose(schools["log_prior"]["mu"], expected, atol=1e-5)
    assert schools["log_prior"]["eta"].dims == (*CHAIN, "school")


def test_leave_one_out_takes_it(schools: Any) -> None:
    loo = az.loo(schools, pointwise=True)
    assert loo.pareto_k.shape == (8,)


# -- a linear regression, by SVI -----------------------------------------------------------------


def regression(x: Tensor, y: Tensor) -> None:
    with pyro.plate("coefficient", x.shape[1]):
        slopes = pyro.sample("slopes", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(x @ slopes, scale), obs=y)


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=generator)
    return x, x @ torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(30, generator=generator)


def trained(guide: Any, model: Any, *args: Tensor) -> Any:
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    for _ in range(200):
        svi.step(*args)
    return guide


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_weights_of_a_guide_are_joint_over_guide(
    autoguide: Any, rows: tuple[Tensor, Tensor]
) -> None:
    guide = trained(autoguide(regression), regression, *rows)
    data = pv.to_arviz(regression, rows, guide=guide, draws=50, prior_draws=0, sample_dims=CHAIN)
    assert "prior" not in (data.groups() if callable(data.groups) else data.groups)
    assert data["posterior"]["slopes"].dims == (*CHAIN, "coefficient")
    total = sum(
        array.sum([dim for dim in array.dims if dim not in CHAIN])
        for group in ("log_prior", "log_likelihood")
        for array in data[group].data_vars.values()
    )
    log_weight = data["sample_stats"]["log_weight"]
    log_guide = (total - log_weight).values  # log q of each draw
    slopes, scale = (torch.tensor(data["posterior"][name].values) for name in ("slopes", "scale"))
    if autoguide is AutoNormal:
        with torch.no_grad():
            locs, scales = guide.locs, guide.scales
            q = dist.Normal(locs.slopes, scales.slopes).log_prob(slopes).sum(-1)
            q += dist.LogNormal(locs.scale, scales.scale).log_prob(scale)
    else:
        with torch.no_grad():
            joint = torch.cat([slopes, scale.log()[..., None]], -1)
            q = guide.get_posterior().log_prob(joint) - scale.log()
    np.testing.assert_allclose(log_guide, q.numpy(), atol=1e-3)


def test_draws_of_a_guide_name_their_dimension_as_the_version_does(
    rows: tuple[Tensor, Tensor],
) -> None:
    guide = trained(AutoNormal(regression), regression, *rows)
    data = pv.to_arviz(regression, rows, guide=guide, draws=10, prior_draws=5)
    lead = CHAIN if az.__version__.startswith("0.") else ("sample",)
    assert data["posterior"]["slopes"].dims == (*lead, "coefficient")
    single = pv.to_arviz(
        regression, rows, guide=guide, draws=10, prior_draws=5, sample_dims=("sample",)
    )
    assert single["posterior_predictive"]["y"].dims == ("sample", "row")


def test_a_point_has_no_weight(rows: tuple[Tensor, Tensor]) -> None:
    guide = trained(AutoDelta(regression), regression, *rows)
    data = pv.to_arviz(regression, rows, guide=guide, draws=5, prior_draws=0)
    assert "sample_stats" not in (data.groups() if callable(data.groups) else data.groups)


def test_the_seed_names_all_draws(rows: tuple[Tensor, Tensor]) -> None:
    guide = trained(AutoNormal(regression), regression, *rows)
    first, second, other = (
        pv.to_arviz(regression, rows, guide=guide, draws=5, prior_draws=5, seed=seed)
        for seed in (3, 3, 4)
    )
    for group in ("posterior", "posterior_predictive", "prior"):
        name = next(iter(first[group].data_vars))
        np.testing.assert_array_equal(first[group][name], second[group][name])
        assert not np.array_equal(first[group][name], other[group][name])


# -- a hierarchical model with two plates --------------------------------------------------------


def clinics(y: Tensor) -> None:
    base = pyro.sample("base", dist.Normal(0.0, 2.0))
    with pyro.plate("clinic", y.shape[0], dim=-2):
        level = pyro.sample("level", dist.Normal(base, 1.0))
        with pyro.plate("visit", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(level, 1.0).expand(y.shape), obs=y)


def test_room_for_an_inner_plate_is_no_dimension() -> None:
    y = torch.arange(12.0).view(3, 4) / 6
    guide = trained(AutoNormal(clinics), clinics, y)
    data = pv.to_arviz(clinics, y, guide=guide, draws=20, prior_draws=10, sample_dims=CHAIN)
    assert data["posterior"]["level"].dims == (*CHAIN, "clinic")
    assert data["log_likelihood"]["y"].dims == (*CHAIN, "clinic", "visit")
    level = data["posterior"]["level"].values[..., None]
    expected = normal_log_prob(y.numpy(), level, 1.0)
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected, atol=1e-5)


# -- an autoencoder ------------------------------------------------------------------------------


def test_a_vae_is_a_model_like_any_other(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    exact = linear_gaussian_vae(6, 3)
    vae, x = exact.vae(), exact.sample(5)
    data = pv.to_arviz(vae.model, x, guide=vae.guide, draws=30, prior_draws=10, sample_dims=CHAIN)
    assert data["posterior"]["z"].dims[-1] == "z_dim_0"
    assert data["posterior"]["z"].shape == (1, 30, 5, 3)
    # the guide is exact: each weight is the sum of log p(x) over the rows
    expected = float(exact.log_prob(x).sum())
    np.testing.assert_allclose(data["sample_stats"]["log_weight"], expected, atol=1e-3)
    data.to_netcdf(str(tmp_path / "vae.nc"))


# -- a mixture whose labels are summed over ------------------------------------------------------


def clusters(y: Tensor) -> None:
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    with pyro.plate("component", 2):
        centre = pyro.sample("centre", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0))
    with pyro.plate("row", len(y)):
        label = pyro.sample(
            "label",
            dist.Categorical(torch.stack([share, 1 - share])),
            infer={"enumerate": "parallel"},
        )
        mean = pyro.deterministic("mean", centre[label])
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_labels_are_summed_over_in_the_likelihood_and_drawn_given_the_data() -> None:
    y = torch.tensor([-2.5, -0.3, 0.1, 2.2])
    guide = trained(AutoNormal(poutine.block(clusters, hide=["label"])), clusters, y)
    data = pv.to_arviz(clusters, y, guide=guide, draws=400, prior_draws=10, sample_dims=CHAIN)
    posterior = data["posterior"]
    centre, share = posterior["centre"].values, posterior["share"].values
    both = np.stack([np.log(share), np.log(1 - share)], -1)[..., None, :]
    both = both + normal_log_prob(y.numpy()[:, None], centre[..., None, :], 1.0)
    expected = np.logaddexp(both[..., 0], both[..., 1])
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected, atol=1e-5)
    assert "label" not in data["log_prior"]
    drawn = np.take_along_axis(centre, posterior["label"].values, -1)
    np.testing.assert_array_equal(posterior["mean"], drawn)
    second = np.exp(both[..., 1] - expected)  # probability of label 1
    drawn = posterior["label"].values
    error = np.sqrt((second * (1 - second)).mean((0, 1)) / second.shape[1])
    assert (np.abs((drawn - second).mean((0, 1))) < 4 * error + 1e-9).all()
    assert az.loo(data, pointwise=True).pareto_k.shape == (4,)


def test_a_label_shared_by_rows_leaves_no_likelihood_of_a_row() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        side = pyro.sample("side", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean + side, 1.0), obs=y)

    y = torch.zeros(3)
    guide = trained(AutoNormal(poutine.block(model, hide=["side"])), model, y)
    data = pv.to_arviz(model, y, guide=guide, draws=5, prior_draws=0)
    assert "log_likelihood" not in (data.groups() if callable(data.groups) else data.groups)
    assert "summed over" in data["posterior"].attrs["note"]
    assert set(data["posterior"].data_vars) == {"mean", "side"}


# -- what depends on other observed values, names, and what is refused ---------------------------


def test_predictions_are_drawn_along_a_chain_of_observed_sites() -> None:
    def walk(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        last = torch.tensor(0.0)
        for number in pyro.markov(range(3)):
            last = pyro.sample(f"y_{number}", dist.Normal(last, 0.01 * scale), obs=y[number])

    y = torch.tensor([100.0, 100.0, 100.0])
    guide = trained(AutoNormal(walk), walk, y)
    data = pv.to_arviz(walk, y, guide=guide, draws=20, prior_draws=0)
    # from 0, and not from the value observed before
    assert np.abs(data["posterior_predictive"]["y_2"]).max() < 1


def test_factors_are_kept_and_names_are_allowed_in_files(tmp_path: Path) -> None:
    def model(x: Tensor) -> None:
        draw = pyro.sample("draw", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -draw.abs())
        with pyro.plate("chain", len(x)):
            pyro.sample("net/x", dist.Normal(draw, 1.0), obs=x)

    guide = trained(AutoNormal(model), model, torch.zeros(4))
    data = pv.to_arviz(
        model, torch.zeros(4), guide=guide, draws=10, prior_draws=10, sample_dims=CHAIN
    )
    assert data["log_likelihood"]["net.x"].dims == (*CHAIN, "chain_dim")
    penalty = data["sample_stats"]["penalty"].values
    np.testing.assert_allclose(penalty, -np.abs(data["posterior"]["draw_site"].values), atol=1e-6)
    data.to_netcdf(str(tmp_path / "names.nc"))


def test_what_is_refused_says_what_to_do(rows: tuple[Tensor, Tensor]) -> None:
    def part(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample_size=2) as index:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

    def improper(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mean, 1.0).expand([3]).to_event(1), obs=y)

    guide = AutoNormal(regression)
    with pytest.raises(pv.InputError, match="got neither"):
        pv.to_arviz(regression, rows)
    svi = SVI(regression, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    with pytest.raises(pv.InputError, match=r"Pyro guide; got SVI.*guide=svi\.guide"):
        pv.to_arviz(regression, rows, guide=svi)
    with pytest.raises(pv.InputError, match=r"Pyro model; got MCMC.*mcmc=mcmc"):
        pv.to_arviz(MCMC(NUTS(regression), num_samples=1))
    with pytest.raises(pv.InputError, match="2 of 5 rows in 'row'"):
        pv.to_arviz(part, torch.zeros(5), guide=AutoNormal(part))
    with pytest.raises(pv.InputError, match="draws of every latent site; got none of 'scale'"):
        pv.to_arviz(regression, rows, guide=AutoNormal(poutine.block(regression, hide=["scale"])))
    with pytest.raises(pv.InputError, match="prior_draws=0"):
        pv.to_arviz(
            improper,
            torch.zeros(3),
            guide=lambda y: pyro.sample("mean", dist.Normal(0.0, 1.0)),
            draws=2,
        )
    with pytest.raises(pv.InputError, match="3 labels for 'row'"):
        pv.to_arviz(regression, rows, guide=guide, draws=2, coords={"row": [1, 2, 3]})
    with pytest.raises(pv.InputError, match="all dimensions of 'y'"):
        pv.to_arviz(regression, rows, guide=guide, draws=2, dims={"y": ["a", "b"]})
    with pytest.raises(pv.InputError, match="dims of sites out of"):
        pv.to_arviz(regression, rows, guide=guide, draws=2, dims={"w": ["a"]})
    with pytest.raises(pv.InputError, match="has run"):
        pv.to_arviz(regression, rows, mcmc=MCMC(NUTS(regression), num_samples=2))
    with pytest.raises(pv.InputError, match="sample_dims"):
        pv.to_arviz(regression, rows, guide=guide, draws=2, sample_dims=("a", "b", "c"))
