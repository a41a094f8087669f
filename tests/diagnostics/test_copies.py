"""Samples that one training row carries, where it is known how many."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.diagnostics.copies import attributions
from pyrovae.pairs import Pair
from pyrovae.testing import linear_gaussian_vae


def pairs_of_equal_rows(distance: float) -> pv.AggregatedPosterior:
    """Rows at multiples of a distance on a line, of which the first is there twice."""
    means = distance * torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0]).unsqueeze(1)
    return pv.AggregatedPosterior(dist.Normal(means, 1.0).to_event(1))


def test_rows_far_apart_carry_their_draws_alone_unless_there_are_two() -> None:
    agg = pairs_of_equal_rows(30.0)
    found = pv.sample_copies(agg, {"q_agg": agg}, draws=4000).shares["q_agg"]
    error = math.sqrt(0.6 * 0.4 / 4000)
    assert abs(found.value - 0.6) < 4 * error
    assert found.standard_error == pytest.approx(error, rel=0.02)
    assert found.over == "draws" and found.size == 4000


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_share_of_two_rows_is_that_in_closed_form(threshold: float) -> None:
    # r_1 > t where 2z > log(t/(1−t)) for means ±1: z ~ N(1, 1) with this probability, and N(−1, 1)
    agg = pv.AggregatedPosterior(dist.Normal(torch.tensor([[1.0], [-1.0]]), 1.0).to_event(1))
    edge = torch.tensor(math.log(threshold / (1 - threshold)) / 2)
    normal = dist.Normal(0.0, 1.0)
    truth = float(normal.cdf(1 - edge) + normal.cdf(-1 - edge))
    found = pv.sample_copies(agg, {"q_agg": agg}, threshold=threshold, draws=8000)
    share = found.shares["q_agg"]
    assert abs(share.value - truth) < 4 * max(share.standard_error, 1e-3)


def test_held_out_codes_are_the_reference_for_codes_far_from_all_rows() -> None:
    agg = pairs_of_equal_rows(1.0)
    far = torch.full((50, 1), 40.0)
    found = pv.sample_copies(agg, {"wide": dist.Normal(0.0, 99.0).expand([1]).to_event(1)},
                             held_out=far)  # fmt: skip
    assert found.shares["held_out"].value == 1.0 and found.shares["wide"].value > 0.2
    assert found.shares["held_out"].over == "data"


def test_settings_that_mean_nothing_are_refused() -> None:
    agg = pairs_of_equal_rows(1.0)
    for options in ({"threshold": 0.3}, {"threshold": 1.0}, {"draws": 0}):
        with pytest.raises(pv.InputError, match="a threshold from"):
            pv.sample_copies(agg, {"q_agg": agg}, **options)


def test_attributions_are_the_rows_most_responsible() -> None:
    exact = linear_gaussian_vae(6, 2)
    vae, x = exact.vae(), exact.sample(20, seed=1)
    agg = pv.aggregate(vae.guide, x)
    found = attributions(Pair(vae.model, vae.guide), x, "q_agg", agg, agg, seed=0)
    assert found is not None and found.samples.shape == (5, 6) and found.rows.shape == (5, 3, 6)
    assert torch.equal(found.rows, x[found.index])
    assert bool((found.weight.diff(dim=1) <= 0).all())
    # samples are E[x | z], so that the codes can be read off them
    z = (found.samples - exact.bias) @ torch.linalg.pinv(exact.weight).T
    again = agg.responsibilities(z, top=3)
    assert torch.equal(again.index, found.index)
    torch.testing.assert_close(again.weight, found.weight)
