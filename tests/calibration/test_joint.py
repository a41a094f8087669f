"""Ranks of units and of joint quantities: uniform under an exact guide, and what each sees."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.calibration.joint import ALARM, Calibration
from pyrovae.calibration.quantities import BY_X, GUIDE, JOINT, LIKELIHOOD, OWN, RANDOM
from pyrovae.testing import linear_gaussian_vae

EXACT = linear_gaussian_vae(6, 2)
X = EXACT.sample(20)
COVARIANCE = torch.linalg.inv(torch.tensor([[5.0, 4.0], [4.0, 5.0]]))


def correlated(x: Tensor) -> None:
    """z ~ N(0, I) of two units, x | z ~ N(z1 + z2, 0.5²): precision I + 4·11ᵀ given x."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5).to_event(1), obs=x)


def mean_field(x: Tensor) -> None:
    """The posterior's marginals: units alone are calibrated."""
    with pyro.plate("data", len(x)):
        mean = 4 * (x @ COVARIANCE.sum(0, keepdim=True).to(x))
        pyro.sample("z", dist.Normal(mean, COVARIANCE.diagonal().sqrt().to(x)).to_event(1))


def posterior(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        mean = 4 * (x @ COVARIANCE.sum(0, keepdim=True).to(x))
        pyro.sample("z", dist.MultivariateNormal(mean, COVARIANCE.to(x)))


def ignorant(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))


def adjusted(result: Calibration, name: str) -> float:
    return float(result.adjusted[result.units + result.quantities.index(name)])


ROWS = torch.zeros(3, 1)


def test_ranks_of_every_test_are_uniform_under_an_exact_guide() -> None:
    result = pv.calibrate(correlated, posterior, ROWS, simulations=2000)
    assert result.calibrated and result.quantities == OWN and not result.refused
    assert result.ranks.shape == result.pit.shape == (2000, 2 + len(OWN))
    for column in result.pit.unbind(-1):
        assert scipy.stats.kstest(column.numpy(), "uniform").pvalue > 6e-5  # 4 standard errors


def test_a_missing_correlation_is_seen_by_joint_quantities_alone() -> None:
    result = pv.calibrate(correlated, mean_field, ROWS, simulations=500)
    assert result.passed[: result.units].all()
    assert not result.calibrated and adjusted(result, LIKELIHOOD) < ALARM
    assert "none" not in result.statement.lower() and LIKELIHOOD in result.statement


def test_a_guide_that_is_the_prior_is_flagged_and_the_blind_ranks_are_named() -> None:
    result = pv.calibrate(correlated, ignorant, ROWS, simulations=300)
    for name in (BY_X, LIKELIHOOD, JOINT):
        assert adjusted(result, name) < ALARM
    for name in (GUIDE, RANDOM):
        assert adjusted(result, name) >= ALARM
    assert "No power in ranks of units 0, 1" in result.statement


def test_where_x_tells_nothing_the_result_says_that_nothing_can_be_told() -> None:
    def unrelated(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1), obs=x)

    result = pv.calibrate(unrelated, ignorant, ROWS, simulations=300)
    assert result.calibrated  # it is the posterior
    assert "Nothing can be told of this guide" in result.statement


@pytest.mark.parametrize(
    ("fault", "words"),
    [({"scale": 0.5}, "too narrow: 0, 1"), ({"scale": 1.5}, "too wide: 0, 1"),
     ({"shift": 0.5}, "too high: 0, 1")],
)  # fmt: skip
def test_wrong_scales_and_shifts_are_named(fault: dict[str, float], words: str) -> None:
    vae = EXACT.vae(**fault)
    result = pv.calibrate(vae.model, vae.guide, X, simulations=500)
    assert not result.calibrated and words in result.statement


def test_contraction_recovery_and_z_scores_are_those_of_the_exact_posterior() -> None:
    vae = EXACT.vae()
    result = pv.calibrate(vae.model, vae.guide, X, simulations=2000)
    variance = EXACT.posterior(X).variance[0]
    for found, exact in zip(result.contraction(), 1 - variance, strict=True):
        assert abs(found.value - float(exact)) < 4 * found.standard_error
    # The mean of 99 draws has a further variance of s²/99.
    exact_correlation = ((1 - variance) / (1 - variance + variance / 99).sqrt()).tolist()
    for found, exact in zip(result.recovery(), exact_correlation, strict=True):
        assert abs(found.value - exact) < 4 * found.standard_error
    scores = result.z_scores()
    assert scores is not None
    assert (scores.mean(0).abs() < 4 * (1.03 / 2000) ** 0.5).all()
    table = result.table()
    assert list(table["unit"]) == [0, 1, *OWN] and table["contraction"].notna().sum() == 2


def test_quantities_of_the_user_are_ranked_and_ties_broken_at_random() -> None:
    def sum_of_units(x: Tensor, z: Tensor) -> Tensor:
        assert x.shape == (len(z), 1)
        return z.sum(-1)

    def positive(_: Tensor, z: Tensor) -> Tensor:
        return (z[:, 0] > 0).double()

    own = {"sum": sum_of_units, "sign": positive}
    good = pv.calibrate(correlated, posterior, ROWS, simulations=1000, quantities=own)
    assert good.calibrated and good.quantities == (*OWN, "sum", "sign")
    bad = pv.calibrate(correlated, mean_field, ROWS, simulations=500, quantities=own)
    assert adjusted(bad, "sum") < ALARM  # the posterior's sum is far narrower
    again = pv.calibrate(correlated, mean_field, ROWS, simulations=500, quantities=own)
    assert torch.equal(again.ranks, bad.ranks)


@pytest.mark.parametrize(
    ("own", "words"),
    [({"square": lambda x, z: z.square()}, r"one number for each code; got \("),
     ({"root": lambda x, z: z[:, 0].sqrt()}, "got nan"),
     ({LIKELIHOOD: lambda x, z: z[:, 0]}, "Rename")],
)  # fmt: skip
def test_quantities_that_are_no_numbers_are_refused(own: dict[str, Any], words: str) -> None:
    with pytest.raises(pv.InputError, match=words):
        pv.calibrate(correlated, posterior, ROWS, simulations=100, quantities=own)


def test_a_picture_and_arviz_have_every_test() -> None:
    result = pv.calibrate(correlated, ignorant, ROWS, simulations=100)
    texts = [text.get_text() for text in pv.plots.calibration(result).figure.legends[0].texts]
    assert LIKELIHOOD in texts and "2 units calibrated" in texts
    exported = result.to_arviz()["prior_sbc"]
    assert set(OWN) | {"z"} == set(exported.data_vars)


def test_the_verdict_is_reached_in_a_few_simulations_whatever_their_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyrovae.calibration.joint.rows_at_once", lambda x: 700)
    result = pv.calibrate(correlated, posterior, ROWS, simulations=103)
    assert result.ranks.shape[0] == 103 and result.calibrated


def by_class(x: Tensor) -> None:
    """k ~ Bernoulli(0.3), z | k ~ N(4k − 2, 1), x | z, k ~ N(z + 3k, 1)."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(x.new_full((len(x),), 0.3)))
        z = pyro.sample("z", dist.Normal((4 * k - 2).unsqueeze(-1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + 3 * k.unsqueeze(-1), 1.0).to_event(1), obs=x)


def posterior_by_class(x: Tensor) -> None:
    """x | k ~ N(7k − 2, 2), and z | x, k has the mean of 4k − 2 and x − 3k."""
    k = torch.tensor([0.0, 1.0]).to(x)
    weights = dist.Normal(7 * k - 2, 2**0.5).log_prob(x) + torch.tensor([0.7, 0.3]).to(x).log()
    means = (4 * k - 2 + x - 3 * k).unsqueeze(-1) / 2
    with pyro.plate("data", len(x)):
        units = dist.Normal(means, 0.5**0.5).to_event(1)
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=weights), units))


def test_a_discrete_site_beside_the_code_is_simulated_with_it() -> None:
    result = pv.calibrate(by_class, posterior_by_class, ROWS, simulations=500)
    assert result.calibrated and result.quantities == OWN
    with pytest.raises(pv.InputError, match="expected a model that draws z first; got k before"):
        pv.calibrate_locally(by_class, posterior_by_class, ROWS)
