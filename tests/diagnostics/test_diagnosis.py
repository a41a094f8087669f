"""The whole diagnosis on a pair in which the truth is known."""

from typing import Any

import arviz as az
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import pyrovae as pv
from pyrovae.diagnostics.active_units import collapse
from pyrovae.diagnostics.decoded_samples import pictures
from pyrovae.diagnostics.diagnosis import Diagnosis
from pyrovae.diagnostics.draws import moments
from pyrovae.diagnostics.effort import Effort
from pyrovae.models.networks import Standardize
from pyrovae.pairs import Pair, measuring
from pyrovae.testing import LinearGaussian, linear_gaussian_vae

EFFORT = Effort(
    codes=2000, evidence_rows=100, evidence_draws=100, export_rows=8, export_draws=50, pictures=4
)


@pytest.fixture(scope="module")
def exact() -> LinearGaussian:
    return linear_gaussian_vae(6, 3)


@pytest.fixture(scope="module")
def diagnosis(exact: LinearGaussian) -> Diagnosis:
    vae = exact.vae()
    return pv.diagnose(
        vae.model,
        vae.guide,
        exact.sample(1000),
        held_out=exact.sample(300, seed=1),
        validation=exact.sample(300, seed=2),
        effort=EFFORT,
    )


def test_evidence_under_the_models_prior_is_exact(
    diagnosis: Diagnosis, exact: LinearGaussian
) -> None:
    x = exact.sample(300, seed=1)[diagnosis.evidence["prior"].rows]
    assert torch.allclose(diagnosis.evidence["prior"].values, exact.log_prob(x), atol=1e-9)


def test_exact_pair_is_told_to_use_its_own_prior(diagnosis: Diagnosis) -> None:
    # With the exact posterior and data from the model, the population's q_agg is the prior itself,
    # so no density can beat the prior on new data.
    assert diagnosis.advice.startswith("Sample from the model's prior")
    assert diagnosis.memorisation.advantage.value < 0


def test_units_that_carry_nothing_are_named() -> None:
    means = torch.randn(500, 3) * torch.tensor([1.0, 0.3, 0.01])
    encoding = torch.distributions.Independent(torch.distributions.Normal(means, 0.5), 1)
    result = collapse(moments(encoding))
    assert result.active.tolist() == [True, True, False]
    assert result.active_units.value == 2
    assert torch.allclose(result.variance_of_means, means.var(0))
    # of a Gaussian's variance: sd √(2/n)·σ², to 4·20 % at n = 500
    assert float(result.standard_error[0]) == pytest.approx((2 / 500) ** 0.5, rel=0.8)


def test_summary_has_every_estimate_with_its_error(diagnosis: Diagnosis) -> None:
    table = diagnosis.summary()
    assert list(table.columns) == [
        "data", "measure", "label", "value", "standard_error", "size", "over", "bound", "low",
        "high", "unresolved",
    ]  # fmt: skip
    assert np.isfinite(table.value).all()
    assert (table.standard_error >= 0).all()
    assert not table.duplicated(["data", "measure"]).any()
    for data in ("training", "held-out"):
        value = table[table.data == data].set_index("measure").value
        total = value["index_code_mi"] + value["marginal_kl"]
        assert value["rate"] == pytest.approx(total, abs=1e-9)


def test_arviz_reads_it(diagnosis: Diagnosis, tmp_path: object) -> None:
    draws = diagnosis.to_arviz()
    assert dict(draws["posterior"].sizes) == {"chain": 1, "draw": 50, "datum": 8, "unit": 3}
    assert draws["log_likelihood"]["x"].dims == ("chain", "draw", "datum")
    assert draws["observed_data"]["x"].dims == ("datum", "feature")
    assert draws["posterior_predictive"]["x"].dims == ("chain", "draw", "datum", "feature")
    summary = az.summary(draws, var_names=["z"], kind="stats")
    assert len(summary) == 24
    path = f"{tmp_path}/draws.nc"
    draws.to_netcdf(path)
    if az.__version__.startswith("0."):
        again = az.from_netcdf(path)
        assert np.array_equal(again["posterior"]["z"], draws["posterior"]["z"])


def test_posterior_draws_are_of_the_exact_posterior(
    diagnosis: Diagnosis, exact: LinearGaussian
) -> None:
    draws = diagnosis.to_arviz()
    z = torch.as_tensor(draws["posterior"]["z"].values[0])
    posterior = exact.posterior(torch.as_tensor(draws["observed_data"]["x"].values))
    score = (z.mean(0) - posterior.mean) / (posterior.stddev / 50**0.5)
    assert float(score.abs().max()) < 4.5  # 24 standard normals: false alarm below 2e-4


def test_diagnosing_leaves_no_trace(exact: LinearGaussian) -> None:
    vae = exact.vae()
    x = exact.sample(60)
    state = torch.get_rng_state()
    first, second = (
        pv.diagnose(vae.model, vae.guide, x, held_out=x[:40], effort=EFFORT) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert first.summary().equals(second.summary())


def test_grey_images_are_measured_in_bits_too() -> None:
    x = torch.randint(0, 256, (60, 3, 3)).double()
    encoder = pv.mlp_encoder((3, 3), 2, hidden=(8,))
    standard = Standardize(torch.tensor(127.5), torch.tensor(75.0))
    encoder.network = nn.Sequential(standard, encoder.network)
    vae = pv.VAE(
        encoder,
        pv.mlp_decoder(2, (3, 3), hidden=(8,), likelihood="logistic"),
        pv.StandardNormal(2),
    )
    effort = Effort(
        codes=60, evidence_rows=10, evidence_draws=30, export_rows=3, export_draws=5, simulations=0,
        two_sample=40,
    )  # fmt: skip
    diagnosis = pv.diagnose(vae.model, vae.guide, x[:30], held_out=x[30:], effort=effort)
    table = diagnosis.summary().set_index(["data", "measure"])
    for name in ("prior", "q_agg", "ex_post"):
        nats, bits = (
            table.loc[("held-out", f"{measure}.{name}")]
            for measure in ("log_p_x", "bits_per_dimension")
        )
        assert bits.value == pytest.approx(-nats.value / 9 / np.log(2))
        assert (nats.bound, bits.bound) == ("lower", "upper")
    # 256 equally likely levels, not yet learned
    assert table.loc[("held-out", "bits_per_dimension.prior"), "value"] > 8 - 1e-6


def test_pseudo_inputs_are_shown_only_of_the_prior_that_the_model_draws_from() -> None:
    x = torch.bernoulli(torch.full((40, 6), 0.4))
    encoder = pv.mlp_encoder((6,), 2, hidden=(8,))
    top = pv.VampPrior.from_data(encoder, x, 5, bounds=(0.0, 1.0))
    inner = pv.Branches((nn.Identity(), nn.Identity()), pv.mlp_encoder((8,), 3, hidden=(8,)))
    vamp = pv.HierarchicalVAE(
        encoder,
        pv.Branches((nn.Identity(), nn.Identity()), pv.mlp_decoder(5, (6,), hidden=(8,))),
        top,
        inner_encoder=inner,
        conditional=pv.mlp_encoder((2,), 3, hidden=(8,)),
    )
    both = ("z2", "z1")
    ex_post = pv.fit_ex_post_prior(
        pv.aggregate(vamp.guide, x, site="z2"),
        held_out=pv.encode(vamp.guide, x, site="z2"),
        candidates=[pv.Reduced(3)],
        progress=False,
    )

    def shown(model: Any, site: Any) -> Tensor | None:
        pair = Pair(model, vamp.guide, site)
        with measuring(model, vamp.guide):
            return pictures(pair, x[:4], {}, seed=0).pseudo_inputs

    for site in ("z2", both):
        assert torch.equal(shown(vamp.model, site), top.inputs[:4])
        assert shown(ex_post.in_model(vamp.model, site="z2"), site) is None
        assert shown(vamp.with_prior(ex_post).model, site) is None
    effort = Effort(
        codes=40, evidence_rows=4, evidence_draws=30, export_rows=2, export_draws=5, pictures=4,
        simulations=0, two_sample=20,
    )  # fmt: skip
    model = ex_post.in_model(vamp.model, site="z2")
    diagnosis = pv.diagnose(model, vamp.guide, x, held_out=x, site="z2", effort=effort)
    assert diagnosis.pictures.pseudo_inputs is None


class Counting(Dataset[Tensor]):
    """A data set that counts how often each row is read."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.reads = x, torch.zeros(len(x), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        self.reads[index] += 1
        return self.x[index]


def test_every_row_is_read_once() -> None:
    exact = linear_gaussian_vae(4, 2)
    vae = exact.vae()
    train, held_out = Counting(exact.sample(60)), Counting(exact.sample(60, seed=1))
    effort = Effort(
        codes=60, evidence_rows=20, evidence_draws=50, export_rows=2, export_draws=5, pictures=4,
        simulations=100, two_sample=20,
    )  # fmt: skip
    pv.diagnose(vae.model, vae.guide, train, held_out=held_out, effort=effort)
    assert train.reads.eq(1).all()
    assert held_out.reads.eq(1).all()
