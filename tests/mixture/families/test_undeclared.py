"""Distributions without a support or a sample method: being callable is enough, everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor
from torch.distributions import constraints

import pyrovae as pv
from pyrovae.evidence.annealed import Annealing
from pyrovae.mixture.families.undeclared import Declared, declared
from pyrovae.pairs.under_prior import UnderPrior
from pyrovae.testing import linear_gaussian_vae


class NoSupport(dist.TorchDistribution):
    """Everything but a support."""

    has_rsample = True

    def __init__(self, base: Any) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        drawn: Tensor = self.base.rsample(torch.Size(sample_shape))
        return drawn

    def log_prob(self, value: Tensor) -> Tensor:
        log_density: Tensor = self.base.log_prob(value)
        return log_density

    def expand(self, batch_shape: Any, _instance: Any = None) -> NoSupport:
        return type(self)(self.base.expand(batch_shape))


class OnlyCalled(NoSupport):
    """Samples only by being called."""

    rsample = dist.TorchDistribution.rsample

    def __call__(self, sample_shape: Any = ()) -> Tensor:
        drawn: Tensor = self.base.sample(torch.Size(sample_shape))
        return drawn


class UnitsWithoutSupport(dist.Normal):
    """A family with parameter tensors but without a support."""

    @property
    def support(self) -> Any:
        raise NotImplementedError

    def expand(self, batch_shape: Any, _instance: Any = None) -> UnitsWithoutSupport:
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return UnitsWithoutSupport(loc, scale, validate_args=False)


class WithSupport(OnlyCalled):
    """The same with the support that the error message asks for."""

    support = constraints.real_vector


def by_units(normal: Any) -> dist.Distribution:
    loc, scale = normal.mean, normal.stddev
    return UnitsWithoutSupport(loc, scale, validate_args=False).to_event(1)


KINDS = {
    "no support": NoSupport,
    "called only": OnlyCalled,
    "zuko's bridge": ZukoToPyro,
    "units without support": by_units,
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))

EXACT = linear_gaussian_vae(4, 2)
X = EXACT.sample(40)
PRIOR = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
Kind = Callable[[Any], Any]


def same(distribution: Any) -> Any:
    return distribution


def pair_of(*, prior: Kind = same, guide: Kind = same) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(PRIOR))
            mean = z @ EXACT.weight.T + EXACT.bias
            pyro.sample("x", dist.Normal(mean, EXACT.noise).to_event(1), obs=x)

    def q(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", guide(EXACT.posterior(x)))

    return model, q


@kinds
def test_log_evidence(kind: Kind) -> None:
    truth = EXACT.log_prob(X)
    for names in ({"prior": kind}, {"guide": kind}, {"prior": kind, "guide": kind}):
        evidence = pv.log_evidence(*pair_of(**names), X, draws=4)
        assert torch.allclose(evidence.values, truth, rtol=0, atol=1e-9)
        assert not evidence.concerns
    under_named_prior = pv.log_evidence(*pair_of(), X, prior=kind(PRIOR), draws=4)
    assert torch.allclose(under_named_prior.values, truth, rtol=0, atol=1e-9)
    model, guide = pair_of()
    under = pv.log_evidence(UnderPrior(model, kind(PRIOR)), guide, X, draws=4)
    assert torch.allclose(under.values, truth, rtol=0, atol=1e-9)


@kinds
@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_the_prior_as_proposal(kind: Kind) -> None:
    named = pv.log_evidence(*pair_of(prior=kind), X[:3], method="prior", draws=50)
    plain = pv.log_evidence(*pair_of(), X[:3], method="prior", draws=50)
    assert torch.allclose(named.values, plain.values)


@kinds
def test_annealing_needs_a_support(kind: Kind) -> None:
    short = Annealing(temperatures=3, leapfrog=1, progress=False)
    with pytest.raises(pv.InputError, match=r"support such as constraints.real_vector, or use"):
        pv.log_evidence(*pair_of(prior=kind), X[:3], method=short, draws=30)
    evidence = pv.log_evidence(*pair_of(prior=WithSupport), X[:3], method=short, draws=30)
    assert torch.allclose(evidence.values, EXACT.log_prob(X[:3]), rtol=0, atol=1e-9)


@kinds
def test_calibration(kind: Kind) -> None:
    assert pv.calibrate(*pair_of(prior=kind, guide=kind), X, simulations=200).calibrated


@kinds
def test_the_aggregated_posterior(kind: Kind) -> None:
    agg = pv.aggregate(pair_of(guide=kind)[1], X)
    z = agg.sample((5,))
    assert torch.allclose(agg.log_prob(z), pv.aggregate(pair_of()[1], X).log_prob(z))
    assert agg.support.check(z).all()
    assert agg.score(z).isfinite().all()


@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_diagnose() -> None:
    effort = pv.Effort(
        codes=64, evidence_rows=6, evidence_draws=30, export_rows=3, export_draws=30, pictures=4,
        simulations=0,
    )  # fmt: skip
    model, guide = pair_of(prior=ZukoToPyro, guide=OnlyCalled)
    diagnosis = pv.diagnose(model, guide, X[:25], held_out=X[25:], effort=effort)
    truth = EXACT.log_prob(X[:25]).mean()
    assert diagnosis.training.elbo.value == pytest.approx(float(truth), abs=1e-9)


def test_a_support_that_is_not_declared_is_where_the_density_is() -> None:
    for kind in (NoSupport, OnlyCalled, ZukoToPyro):
        positive = declared(kind(dist.LogNormal(torch.zeros(3), 1.0).to_event(1)))
        z = torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0]])
        assert positive.support.check(z).tolist() == [True, False]
        assert not positive.support.is_discrete
        assert positive.sample((7,)).shape == (7, 3)
        assert (positive.rsample((7,)) > 0).all()

    def guide(x: Tensor) -> None:
        q = dist.LogNormal(torch.zeros(len(x), 2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", OnlyCalled(q))

    with pytest.warns(UserWarning, match=r"support leaves out 7\d%"):
        pv.log_evidence(pair_of()[0], guide, X[:4], draws=50, method="importance")


def test_what_declares_everything_is_left_alone() -> None:
    normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    assert declared(normal) is normal
    once = declared(NoSupport(normal))
    assert isinstance(once, Declared)
    assert declared(once) is once
    assert declared(WithSupport(normal)).support is constraints.real_vector
