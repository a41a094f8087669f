"""Simple densities: exact where the answer is known, in the units of the rows, and paired."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.errors import InputError
from pyrovae.testing import linear_gaussian_vae


def rows_of(likelihood: str, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    if likelihood == "normal":
        return torch.randn(size, 6, generator=generator)
    levels = {"bernoulli": 2, "categorical": 5, "logistic": 256, "negative_binomial": 9}
    return torch.randint(levels[likelihood], (size, 6), generator=generator).float()


@pytest.mark.parametrize(
    "likelihood", ["normal", "bernoulli", "categorical", "logistic", "negative_binomial"]
)
def test_every_likelihood_has_baselines_with_names(likelihood: str) -> None:
    found = pv.baselines(
        rows_of(likelihood, 200), rows_of(likelihood, 40), likelihood=likelihood, latent=2
    )
    assert set(found.values) == set(found.names) and len(found.values) >= 2
    assert all(
        values.shape == (40,) and values.isfinite().all() for values in found.values.values()
    )
    assert ("gaussian" in found.values) == (likelihood == "normal")
    assert ("gaussian" in found.left_out) == (likelihood != "normal")
    again = pv.baselines(
        rows_of(likelihood, 200), rows_of(likelihood, 40), likelihood=likelihood, latent=2
    )
    assert all(torch.equal(found.values[name], again.values[name]) for name in found.values)


def test_ppca_and_the_gaussian_come_near_the_density_of_linear_gaussian_rows() -> None:
    # Rows of such a VAE have the density of PPCA with as many units, whose log p(x) is known.
    vae = linear_gaussian_vae(8, 2)
    train, new = vae.sample(4000, seed=1), vae.sample(400, seed=2)
    exact = vae.log_prob(new)
    # Two axes: as images, whose entries have one unit, and so one noise, as PPCA supposes.
    found = pv.baselines(train.unflatten(1, (2, 4)), new.unflatten(1, (2, 4)), latent=2)
    for name in ("gaussian", "ppca"):
        lost = exact - found.values[name]
        error = float(lost.std() / math.sqrt(len(lost)))
        # At most 44 parameters are fitted to 4,000 rows: 44 / 2 / 4,000 nats are lost on average.
        assert abs(float(lost.mean())) < 4 * error + 44 / 2 / 4000


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e8])
def test_densities_are_in_the_units_of_the_rows(factor: float) -> None:
    train, new = rows_of("normal", 300).double(), rows_of("normal", 50).double()
    one = pv.baselines(train, new, latent=2)
    other = pv.baselines(factor * train + factor, factor * new + factor, latent=2)
    for name, values in one.values.items():
        assert torch.allclose(values - 6 * math.log(factor), other.values[name], atol=1e-4)


@pytest.mark.parametrize(("likelihood", "levels"), [("bernoulli", 2), ("categorical", 3)])
def test_probabilities_of_all_rows_sum_to_one(likelihood: str, levels: int) -> None:
    train = torch.randint(levels, (60, 3), generator=torch.Generator().manual_seed(0)).float()
    everything = torch.cartesian_prod(*[torch.arange(levels).float()] * 3)
    found = pv.baselines(train, everything, likelihood=likelihood)
    for values in found.values.values():
        assert float(values.exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_counts_are_rated_by_negative_binomials() -> None:
    torch.manual_seed(3)
    mean = torch.tensor([50.0, 30.0, 20.0])
    density = dist.NegativeBinomial(3.0, logits=(mean / 3.0).log())
    x = density.sample(torch.Size([6000]))
    found = pv.baselines(x[:5000], x[5000:], likelihood="negative_binomial")
    lost = density.log_prob(x).sum(1)[5000:] - found.values["independent"]
    error = float(lost.std()) / math.sqrt(1000)
    assert abs(float(lost.mean())) < 4 * error + 6 / 2 / 5000 * 4  # moments lose more than ML


def test_totals_that_are_given_are_not_paid_for() -> None:
    torch.manual_seed(4)
    x = torch.poisson(torch.tensor([0.5, 0.3, 0.2]) * 10 ** torch.linspace(1, 4, 800)[:, None])
    x = x[torch.randperm(800)] + 1
    given, alone = (
        pv.baselines(x[:600], x[600:], likelihood="negative_binomial", totals=totals)
        for totals in (True, False)
    )
    assert given.means()["independent"].value > alone.means()["independent"].value + 3


def test_a_mixture_finds_clusters_that_independent_entries_miss() -> None:
    torch.manual_seed(0)
    profiles = torch.tensor([[0.9] * 10, [0.1] * 10])
    x = torch.bernoulli(profiles[torch.randint(2, (1500,))])
    found = pv.baselines(x[:1000], x[1000:], likelihood="bernoulli")
    gain = found.values["mixture"] - found.values["independent"]
    exact = torch.stack([dist.Bernoulli(p).to_event(1).log_prob(x[1000:]) for p in profiles])
    best = exact.logsumexp(0) - math.log(2) - 10 * math.log(0.5)
    assert float((best - gain).mean()) == pytest.approx(0.0, abs=0.1)
    assert found.best == "mixture"


def test_gains_are_paired_bounded_and_told_only_where_k_allows() -> None:
    vae = linear_gaussian_vae(5, 2)
    train, new = vae.sample(200, seed=1), vae.sample(60, seed=2)
    model = pv.log_evidence(vae.vae().model, vae.vae().guide, new, draws=50)
    found = pv.baselines(train, new, latent=2)
    for name, gain in found.gains(model).items():
        paired = model.values - found.values[name].to(model.values)
        assert gain.value == pytest.approx(float(paired.mean()))
        assert gain.standard_error == pytest.approx(float(paired.std() / math.sqrt(60)))
        assert gain.bound == model.bound
    rejected = replace(model, pareto_k=torch.full_like(model.pareto_k, 2.0))
    assert all("k̂ rejects 60" in gain.unresolved for gain in found.gains(rejected).values())


def test_input_that_does_not_fit_is_refused() -> None:
    x = rows_of("normal", 50)
    with pytest.raises(InputError, match="expected one of normal"):
        pv.baselines(x, x, likelihood="gaussian process")
    with pytest.raises(InputError, match="whole numbers"):
        pv.baselines(x, x, likelihood="bernoulli")
    with pytest.raises(InputError, match="at least 10 training rows"):
        pv.baselines(x[:5], x)


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli", "negative_binomial"])
def test_ten_rows_are_enough(likelihood: str) -> None:
    found = pv.baselines(rows_of(likelihood, 10), rows_of(likelihood, 3), likelihood=likelihood)
    assert all(values.isfinite().all() for values in found.values.values())
