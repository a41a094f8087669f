"""The mean of a likelihood is shown, in closed form or from draws; without draws it is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.diagnostics.decoded_samples import DRAWS, expected
from pyrovae.testing import linear_gaussian_vae

EXACT = linear_gaussian_vae(4, 2)
U = EXACT.sample(60)
TINY = pv.Effort(
    codes=64, evidence_rows=6, evidence_draws=30, export_rows=3, export_draws=30, pictures=4,
    simulations=0,
)  # fmt: skip


def squashed(loc: Tensor, scale: float) -> dist.Distribution:
    steps = [dist.transforms.SigmoidTransform()]
    return dist.TransformedDistribution(dist.Normal(loc, scale), steps).to_event(1)


@pytest.mark.parametrize("masked", [False, True])
def test_a_column_of_categories_shows_the_most_probable_one(masked: bool) -> None:
    normal = dist.Normal(torch.tensor([[0.3]]), 1.0)
    several = dist.Categorical(torch.tensor([[[0.4, 0.0, 0.3, 0.3]]]))
    row: dist.Distribution = pv.models.MixedColumns((0, 4), normal, None, several)
    shown = expected((row.mask(torch.tensor([[True, False]])) if masked else row).to_event(1))
    assert shown.tolist() == [[pytest.approx(0.3), 0.0]]  # the mean of their numbers is 1.5


def test_a_mean_without_a_closed_form_is_that_of_draws() -> None:
    loc = torch.linspace(-2, 2, 200)[:, None].expand(-1, 4)
    shown = expected(squashed(loc, 0.5))
    draws = squashed(loc, 0.5).sample((4000,))
    error = draws.std(0) * (1 / DRAWS + 1 / 4000) ** 0.5
    z = (shown - draws.mean(0)) / error
    assert abs(float(z.mean())) < 4 / z.numel() ** 0.5
    assert z.abs().max() < 5.5


@pytest.mark.parametrize(
    "distribution",
    [
        dist.Cauchy(torch.full((5, 3), 2.0), 0.1).to_event(1),
        dist.StudentT(torch.tensor([0.5, 1.0, 30.0]), 2.0, 0.1).expand([5, 3]).to_event(1),
        dist.Pareto(torch.full((5, 3), 2.0), torch.tensor([0.9, 5.0, 50.0])).to_event(1),
    ],
)
def test_where_there_is_no_mean_the_median_is_shown(distribution: dist.Distribution) -> None:
    shown = expected(distribution)
    assert shown.isfinite().all()
    known = distribution.mean.isfinite()
    assert torch.equal(shown[known], distribution.mean[known])
    if not isinstance(distribution.base_dist, dist.Pareto):
        assert (shown - 2).abs().max() < 0.2


def pair_of(likelihood: Any) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", likelihood(z @ EXACT.weight.T + EXACT.bias), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", EXACT.posterior(x.logit()))

    return model, guide


@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_diagnose_without_a_mean() -> None:
    x = U.sigmoid()
    pair = pair_of(lambda mean: squashed(mean, EXACT.noise))
    diagnosis = pv.diagnose(*pair, x[:30], held_out=x[30:], effort=TINY)
    for shown in diagnosis.pictures.samples.values():
        assert ((shown > 0) & (shown < 1)).all()


class NoSample(dist.TorchDistribution):
    """A likelihood with a density and nothing else."""

    def __init__(self, base: Any) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        log_density: Tensor = self.base.log_prob(value)
        return log_density

    def expand(self, batch_shape: Any, _instance: Any = None) -> NoSample:
        return NoSample(self.base.expand(batch_shape))


def test_a_likelihood_that_cannot_be_drawn_from_is_refused_before_the_work() -> None:
    x = U.sigmoid()
    pair = pair_of(lambda mean: NoSample(squashed(mean, EXACT.noise)))
    with pytest.raises(pv.InputError, match=r"can be drawn from.*NoSample.*pyrovae.log_evidence"):
        pv.diagnose(*pair, x[:30], held_out=x[30:], effort=TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evidence = pv.log_evidence(*pair, x, draws=4)
    truth = EXACT.log_prob(U) - (x.log() + (1 - x).log()).sum(1)
    assert torch.allclose(evidence.values, truth, rtol=0, atol=1e-9)
