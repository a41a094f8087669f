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
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.infer.reparam import LocScaleReparam
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
    short = MCMC(NUTS(regression), num_samples=2, warmup_steps=2, disable_progbar=True)
    short.run(*rows)
    with pytest.raises(pv.InputError, match=r"at least 4 draws in each chain.*got 2"):
        pv.to_arviz(regression, rows, mcmc=short)
    with pytest.raises(pv.InputError, match="sample_dims"):
        pv.to_arviz(regression, rows, guide=guide, draws=2, sample_dims=("a", "b", "c"))


# -- models as people write them -----------------------------------------------------------------

Y = torch.tensor([0.5, -1.0, 2.0, 1.5])


def groups_of(model: Any, guide: Any, data: Any = Y, **options: Any) -> Any:
    guide(*(data if isinstance(data, tuple) else (data,)))
    return pv.to_arviz(model, data, guide=guide, draws=4, prior_draws=2, **options)


def grouped(y: Tensor) -> None:
    """With effects of groups, and nothing more than Pyro needs."""
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("group", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, tau))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def test_one_density_of_all_data_without_a_plate_is_one_for_each() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("mean", dist.Normal(0.0, 1.0)), 2.0), obs=y)

    data = groups_of(model, lambda y: pyro.sample("mean", dist.Normal(0.0, 0.1)))
    mean = data["posterior"]["mean"].values.reshape(-1, 1)
    found = data["log_likelihood"]["y"].values.reshape(-1, 4)
    np.testing.assert_allclose(found, normal_log_prob(Y.numpy(), mean, 2.0), rtol=1e-5)
    for name in ("posterior_predictive", "prior_predictive"):
        drawn = data[name]["y"].values.reshape(-1, 4)
        assert len(np.unique(drawn)) == drawn.size
    np.testing.assert_array_equal(data["observed_data"]["y"].values, Y.numpy())


def test_a_reparametrised_site_is_no_observation() -> None:
    model = poutine.reparam(grouped, config={"effect": LocScaleReparam(0.0)})
    data = groups_of(model, AutoNormal(model))
    assert list(data["observed_data"].data_vars) == ["y"]
    assert list(data["log_likelihood"].data_vars) == ["y"]
    posterior = data["posterior"]
    np.testing.assert_allclose(
        posterior["effect"].values,
        posterior["effect_decentered"].values * posterior["tau"].values[..., None],
        rtol=1e-5,
    )


def test_data_in_the_trace_of_a_guide_are_no_latent_site() -> None:
    guide = AutoNormalMessenger(grouped)
    data = groups_of(grouped, guide)
    assert list(data["observed_data"].data_vars) == ["y"]
    assert set(data["posterior"].data_vars) == {"tau", "effect"}
    first = {name: data["posterior"][name].values.reshape(4, -1)[0] for name in ("tau", "effect")}
    values = {"tau": torch.tensor(first["tau"][0]), "effect": torch.tensor(first["effect"])}
    traces = []
    for function in (grouped, guide):
        traces.append(poutine.trace(poutine.condition(function, values)).get_trace(Y))
        traces[-1].compute_log_prob()
    log_guide = sum(traces[1].nodes[name]["log_prob"].sum() for name in values)
    weight = data["sample_stats"]["log_weight"].values.reshape(-1)[0]
    assert weight == pytest.approx(float(traces[0].log_prob_sum() - log_guide), rel=1e-5)


@pytest.mark.parametrize("draws", [1, 4])
def test_points_among_the_sites_of_an_autoguide_have_no_weight(draws: int) -> None:
    some = AutoGuideList(grouped)
    some.append(AutoDelta(poutine.block(grouped, expose=["tau"])))
    some.append(AutoNormal(poutine.block(grouped, expose=["effect"])))
    for guide in (some, AutoLaplaceApproximation(grouped)):
        pyro.clear_param_store()
        guide(Y)
        data = pv.to_arviz(grouped, Y, guide=guide, draws=draws, prior_draws=0)
        assert "sample_stats" not in data
    weighted = pv.to_arviz(grouped, Y, guide=AutoNormal(grouped), draws=draws, prior_draws=0)
    assert "log_weight" in weighted["sample_stats"]


def test_a_scale_of_training_is_not_in_the_densities() -> None:
    scaled = poutine.scale(grouped, scale=0.1)
    guide = AutoNormal(grouped)
    guide(Y)
    ours, theirs = (
        pv.to_arviz(model, Y, guide=guide, draws=4, prior_draws=0) for model in (scaled, grouped)
    )
    for group in ("log_likelihood", "log_prior", "sample_stats"):
        for name in theirs[group].data_vars:
            np.testing.assert_allclose(ours[group][name].values, theirs[group][name].values)


def test_a_mask_is_told_of() -> None:
    def model(y: Tensor, there: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=there)

    there = torch.tensor([True, False, True, True])
    data = groups_of(model, AutoNormal(model), (Y, there))
    values = data["log_likelihood"]["y_observed"].values
    assert (values[..., 1] == 0).all() and (values[..., [0, 2, 3]] != 0).all()
    assert "y_observed is 0 for what a mask leaves out" in data["log_likelihood"].attrs["note"]


def test_chosen_rows_and_labels_in_sequence_are_refused() -> None:
    def chosen(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample=torch.tensor([0, 2])) as index:
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

    def in_sequence(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            label = pyro.sample("label", dist.Bernoulli(0.5), infer={"enumerate": "sequential"})
            pyro.sample("y", dist.Normal(mean * label, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    with pytest.raises(pv.InputError, match="2 of 4 rows in 'row'"):
        pv.to_arviz(chosen, Y, guide=guide, draws=2)
    with pytest.raises(pv.InputError, match="got 'label', in sequence"):
        pv.to_arviz(in_sequence, Y, guide=guide, draws=2)
