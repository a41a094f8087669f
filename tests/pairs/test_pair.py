"""Any Pyro pair: exact log densities, and errors that say where to look."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.pairs import Pair, measuring, observe
from pyrovae.testing import linear_gaussian_vae


def test_log_joint_is_exact_and_unscaled() -> None:
    exact = linear_gaussian_vae()
    vae, x = exact.vae(), exact.sample(5)
    z = exact.posterior(x).sample()
    pair = Pair(poutine.scale(lambda x: vae.model(x, size=50), scale=3.0), vae.guide)
    likelihood, prior = pair.log_joint(x, z)
    # Bayes: log p(x|z) + log p(z) = log p(x) + log p(z|x)
    expected = exact.log_prob(x) + exact.posterior(x).log_prob(z)
    assert torch.allclose(likelihood + prior, expected, rtol=1e-12)
    assert torch.allclose(prior, dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z))


def guide_named(*names: str) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name in names:
                pyro.sample(name, dist.Normal(x[:, :2], 1.0).to_event(1))

    return guide


def model_with(**sites: bool) -> Callable[[Tensor], None]:
    """A model with the latent site z and other sites: name=True for an observed one."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            for name, observed in sites.items():
                obs = x[:, 0] if observed else None
                pyro.sample(name, dist.Normal(z[:, 0], 1.0), obs=obs)

    return model


X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Pair(model_with(y=True), guide_named("w")).encode(X), r"\['w'\].*site="),
        (lambda: Pair(model_with(y=True, w=True), guide_named("z")).decode(X, X[:, :2]), "obs"),
        (lambda: Pair(model_with(), guide_named("z")).log_joint(X, X[:, :2]), "observed="),
        (
            lambda: Pair(model_with(y=True), guide_named("z"), observed="u").decode(X, X[:, :2]),
            r"'u'.*\['y'\]",
        ),
        (
            lambda: Pair(model_with(y=True, w=False), guide_named("z", "w")).log_joint(X, X[:, :2]),
            r"site=\('z', 'w'\)",
        ),
    ],
)
def test_pair_that_cannot_work_says_where_to_look(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("site", [("z", "z"), ("z", "w", "z"), (), "", ("z", 1), None, 3])
def test_sites_that_name_nothing(site: Any) -> None:
    guide, model = guide_named("z", "w"), model_with(y=True, w=False)
    for measure in (
        lambda: pv.encode(guide, X, site=site),
        lambda: pv.aggregate(guide, X, site=site),
        lambda: pv.log_evidence(model, guide, X, site=site, draws=4),
        lambda: pv.diagnose(model, guide, X, held_out=X, site=site),
        lambda: pv.calibrate(model, guide, X, site=site),
    ):
        with pytest.raises(pv.InputError, match=r"site=.*; got .*(Give one|Name each once)"):
            measure()


@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_a_data_plate_that_is_not_there() -> None:
    guide, model = guide_named("z"), model_with(y=True)
    measures: list[Callable[[str], Any]] = [
        lambda name: pv.encode(guide, X, data_plate=name),
        lambda name: pv.log_evidence(model, guide, X, data_plate=name, draws=4),
        lambda name: pv.log_evidence(model, guide, X, data_plate=name, method="prior", draws=4),
        lambda name: Pair(model, guide, data_plate=name).decode(X, X[:, :2]),
        lambda name: observe(Pair(model, guide, data_plate=name), X),
    ]
    for measure in measures:
        with pytest.raises(
            pv.InputError, match=r"plate 'nope' in the \w+; got \['data'\].*data_pl"
        ):
            measure("nope")
        measure("data")


def test_a_data_plate_may_stand_around_some_sites_only() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("codes", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z[:, 0], 1.0), obs=x[:, 0])

    def guide(x: Tensor) -> None:
        with pyro.plate("codes", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    pair = Pair(model, guide, data_plate="codes")
    likelihood, _ = pair.log_joint(X, X[:, :2])
    assert torch.allclose(likelihood, dist.Normal(0.0, 1.0).log_prob(X[:, 0]))


def test_event_dimension_that_was_forgotten() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0))

    with pytest.raises(ValueError, match="to_event"):
        pv.encode(guide, X)


def test_prior_that_depends_on_the_data_is_not_one_prior() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    with pytest.raises(ValueError, match="depends on the data"):
        Pair(model, guide_named("z")).prior(torch.randn(4, 3))


def data_kinds() -> dict[str, Callable[[Tensor], Any]]:
    return {
        "tensor": lambda x: x,
        "array": lambda x: x.numpy(),
        "dataset": TensorDataset,
        "loader": lambda x: DataLoader(TensorDataset(x), batch_size=7),
    }


@pytest.mark.parametrize("kind", data_kinds())
@pytest.mark.parametrize("batch_size", [1, 6, 100])
def test_encoding_does_not_depend_on_how_data_come(kind: str, batch_size: int) -> None:
    exact = linear_gaussian_vae()
    x = exact.sample(20)
    encoding = pv.encode(exact.vae().guide, data_kinds()[kind](x), batch_size=batch_size)
    assert encoding.batch_shape == (20,)
    assert torch.allclose(encoding.mean, exact.posterior(x).mean, atol=1e-12)
    assert torch.allclose(encoding.stddev, exact.posterior(x).stddev, atol=1e-12)


def test_encoding_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    vae = pv.VAE(
        pv.models.networks.NormalEncoder(network),
        pv.mlp_decoder(2, (4,)),
        pv.StandardNormal(2),
    )
    statistics = network[2].running_mean.clone()
    first, second = (pv.encode(vae.guide, np.random.rand(9, 4)) for _ in range(2))
    assert first.batch_shape == second.batch_shape
    assert network.training
    assert network[1].training
    assert torch.equal(network[2].running_mean, statistics)


def test_networks_of_plain_functions_are_found() -> None:
    network = nn.Dropout(0.5)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x), 1.0).to_event(1))

    with measuring(guide):
        assert not network.training
    assert network.training
    assert torch.equal(pv.encode(guide, torch.ones(5, 2)).mean, torch.ones(5, 2))


def test_no_data() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        pv.encode(guide_named("z"), torch.zeros(0, 4))


def test_an_error_of_the_pair_s_own_is_not_taken_for_a_fixed_number_of_rows() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ torch.ones(5, 2), 1.0).to_event(1))

    vae = pv.VAE(pv.mlp_encoder((4,), 2), pv.mlp_decoder(2, (4,)), pv.StandardNormal(2)).double()
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        pv.log_evidence(vae.model, guide, torch.zeros(5, 4))


def test_sites_that_depend_on_each_other_are_encoded_in_few_runs_of_the_guide() -> None:
    runs = 0

    def guide(x: Tensor) -> None:
        nonlocal runs
        runs += 1
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x, 1.0).to_event(1))
            pyro.sample("v", dist.Normal(u + x[:, :1], 1.0).to_event(1))

    pv.encode(guide, torch.randn(12, 4), site=("u", "v"))
    # One for the draws, one for whether they matter, two to try other numbers of rows, and two for
    # whether the joint density is the same in every run. None only to learn how many units it has.
    assert runs == 6
