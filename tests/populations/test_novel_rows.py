"""p-values of new rows are uniform where rows are alike, and what is novel is found."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.testing import linear_gaussian_vae

DENSITY = dist.Normal(torch.zeros(2), 1.0).to_event(1)
EXACT = linear_gaussian_vae(6, 2)


@pytest.mark.parametrize("count", [60, 3])
def test_p_values_of_codes_alike_are_uniform(count: int) -> None:
    # 400 repetitions at 1, 5 and 10 %, four errors, of which each has the first p-value only
    values = torch.tensor(
        [
            float(
                pv.novelty(
                    DENSITY, DENSITY.sample((2,)), calibration=DENSITY.sample((count,)), seed=seed
                ).p_value[0]
            )
            for seed in range(400)
        ]
    )
    for level in (0.01, 0.05, 0.1):
        error = math.sqrt(level * (1 - level) / 400)
        assert abs(float((values <= level).double().mean()) - level) <= 4 * error


def test_discoveries_are_false_no_more_often_than_asked_for() -> None:
    shares = []
    for seed in range(100):
        new = torch.cat([DENSITY.sample((80,)), DENSITY.sample((20,)) + 5.0])
        found = pv.novelty(
            DENSITY, new, calibration=DENSITY.sample((400,)), level=0.2, seed=seed
        ).found
        shares.append(float(found[:80].sum() / found.sum().clamp_min(1)))
        assert float(found[80:].double().mean()) > 0.7
    mean = torch.tensor(shares)
    assert float(mean.mean()) <= 0.2 * 0.8 + 4 * float(mean.std()) / 10


def shrunk(x: Tensor) -> None:
    """A guide whose means are too close to 0, by more the farther out they are."""
    exact = EXACT.posterior(x)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.8 * exact.mean, exact.stddev).to_event(1))


@pytest.mark.parametrize("score", ["log_p_x", "regret"])
def test_rows_that_the_pair_has_not_seen_the_like_of_are_found(score: str) -> None:
    x, new = EXACT.sample(80, seed=1), EXACT.sample(10, seed=2)
    new = torch.cat([new, 12.0 * EXACT.sample(5, seed=3)])
    pair = EXACT.vae().model, shrunk
    result = pv.novelty(pair, new, calibration=x, score=score, level=0.2, draws=200)
    assert result.score == score and result.calibrated_on == 80
    assert bool(result.found[10:].all()) and not bool(result.found.all())


def test_auroc_is_the_share_of_pairs_of_rows_in_order() -> None:
    known, new = DENSITY.sample((300,)), 2.0 * DENSITY.sample((200,))
    result = pv.novelty(DENSITY, new, calibration=known)
    wins = (known.norm(dim=1)[:, None] < new.norm(dim=1)).double().mean()
    assert result.auroc.value == pytest.approx(float(wins))
    # squared norms are exponential with means 2 and 8: P(first < second) = 8/10
    assert abs(result.auroc.value - 0.8) < 4 * result.auroc.standard_error


def test_few_rows_of_calibration_are_said() -> None:
    result = pv.novelty(DENSITY, DENSITY.sample((50,)), calibration=DENSITY.sample((99,)))
    assert "about 5 of 50 new rows have to be novel" in result.concerns[0]
    assert (
        pv.novelty(DENSITY, DENSITY.sample((5,)), calibration=DENSITY.sample((99,))).concerns == ()
    )


def test_settings_that_mean_nothing_are_refused() -> None:
    vae, x = EXACT.vae(), EXACT.sample(8, seed=1)
    with pytest.raises(pv.InputError, match="a score of"):
        pv.novelty((vae.model, vae.guide), x, calibration=x, score="entropy")  # type: ignore[arg-type]
    with pytest.raises(pv.InputError, match="level=2"):
        pv.novelty(DENSITY, x, calibration=x, level=2)
