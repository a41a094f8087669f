"""Tests of a guide at observed rows: exact under the right guide, and local where it is wrong."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.calibration.classifier import RELABELLINGS, exchange_test
from pyrovae.testing import linear_gaussian_vae

EXACT = linear_gaussian_vae(6, 2)


def wrong_on_one_side(x: Tensor) -> None:
    """The posterior where the first entry of x is below its mean, and twice as wide elsewhere."""
    density = EXACT.posterior(x)
    factor = torch.where(x[:, :1] > EXACT.bias[0], 2.0, 1.0)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(density.mean, factor * density.stddev).to_event(1))


def test_an_exact_guide_passes_and_a_narrow_one_does_not() -> None:
    x = EXACT.sample(3)
    good, bad = EXACT.vae(), EXACT.vae(scale=0.6)
    result = pv.calibrate_locally(good.model, good.guide, x, simulations=500)
    assert result.calibrated and result.replicates.shape == (3, 4)
    assert result.statement.startswith("At none of 3 rows")
    assert (result.effective > 2).all()
    result = pv.calibrate_locally(bad.model, bad.guide, x, simulations=500)
    assert not result.calibrated and "At 3 of 3 rows" in result.statement
    assert len(result.table()) == 3


def test_the_classifier_finds_the_rows_at_which_a_guide_is_wrong() -> None:
    x = EXACT.sample(40)
    first = x[:, 0] - EXACT.bias[0]
    far = torch.cat([x[first.argsort()[:2]], x[first.argsort()[-2:]]])
    vae = EXACT.vae()
    result = pv.calibrate_locally(vae.model, wrong_on_one_side, far, simulations=2000)
    assert (result.classifier[2:] < 0.01).all()  # twice as wide there
    assert not result.calibrated


def test_replicates_reject_a_guide_that_is_the_prior() -> None:
    def ignorant(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    vae, x = EXACT.vae(), EXACT.sample(2)
    result = pv.calibrate_locally(vae.model, ignorant, x, simulations=300)
    assert (result.replicates_adjusted[:, -1] < 0.01).all()  # log p(x | z)


def test_p_values_by_exchanges_are_uniform_where_pairs_can_be_exchanged() -> None:
    p_values = []
    for _ in range(200):
        first, second, summary = (torch.randn(100, 2) for _ in range(3))
        alone, together = exchange_test(
            first, second, summary, torch.randn(50, 3, 2), torch.randn(3, 2)
        )
        assert bool((together > 0).all())
        p_values.append(float(alone[0]))
    values = torch.tensor(p_values)
    for level in (0.1, 0.5):
        error = (level * (1 - level) / 200) ** 0.5
        assert abs(float((values <= level).double().mean()) - level) < 4 * error
    assert float(values.min()) >= 1 / (RELABELLINGS + 1)


@pytest.mark.parametrize("name", ["simulations", "replications"])
def test_too_few_are_refused(name: str) -> None:
    vae = EXACT.vae()
    with pytest.raises(pv.InputError, match=f"at least 100 {name}"):
        pv.calibrate_locally(vae.model, vae.guide, EXACT.sample(2), **{name: 50})
