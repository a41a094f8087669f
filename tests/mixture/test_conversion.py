"""Mixtures built by torch and Pyro, wherever the library takes one; and torch's own KL."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.mixture.conversion import as_mixture
from pyrovae.mixture.mixture import Mixture

T = torch.distributions


def of_torch(families: object = T, *, size: int = 6) -> T.MixtureSameFamily:
    """A mixture built with torch's distributions only, or with Pyro's."""
    package = families
    normal = package.Normal(torch.randn(size, 2), 0.3 + torch.rand(size, 2))  # type: ignore[attr-defined]
    weights = package.Categorical(torch.rand(size))  # type: ignore[attr-defined]
    return package.MixtureSameFamily(weights, package.Independent(normal, 1))  # type: ignore[attr-defined, no-any-return]


def full() -> T.MixtureSameFamily:
    components = T.MultivariateNormal(torch.randn(6, 2), torch.eye(2).expand(6, 2, 2))
    return T.MixtureSameFamily(T.Categorical(torch.ones(6)), components)


USES: dict[str, Callable[[T.MixtureSameFamily], object]] = {
    "reduce": lambda m: pv.reduce(m, 2).bounds,
    "reduce to full": lambda m: pv.reduce(m, 2, covariance="full").bounds,
    "variational divergence": lambda m: pv.variational_divergence(m, m),
    "variational divergence, second": lambda m: pv.variational_divergence(
        pv.AggregatedPosterior(dist.Normal(torch.ones(3, 2), 1.0).to_event(1)), m
    ),
    "entropy bounds": lambda m: pv.entropy_bounds(m),
    "entropy": lambda m: pv.entropy(m).value,
    "divergence": lambda m: pv.divergence(m, dist.Normal(torch.zeros(2), 1.0).to_event(1)).size,
    "log density": lambda m: as_mixture(m).log_prob(torch.zeros(2)).item(),
    "marginal": lambda m: as_mixture(m).marginal(0).cdf(torch.tensor(0.1)).item(),
}


@pytest.mark.parametrize("families", [T, dist])
@pytest.mark.parametrize("use", USES)
def test_torch_s_own_mixtures_are_taken(use: str, families: object) -> None:
    theirs = of_torch(families)
    ours = Mixture(theirs.mixture_distribution, theirs.component_distribution)
    torch.manual_seed(0)
    actual = USES[use](theirs)
    torch.manual_seed(0)
    expected = USES[use](ours)
    if use == "entropy":  # the two sample in different ways
        assert actual == pytest.approx(expected, abs=0.2)
    else:
        assert actual == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_normals_of_full_covariance_are_reduced() -> None:
    theirs = full()
    z = theirs.sample((5,))
    torch.testing.assert_close(as_mixture(theirs).log_prob(z), theirs.log_prob(z))
    assert pv.reduce(theirs, 6, covariance="full").divergence.value == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("use", ["reduce", "variational divergence", "entropy bounds"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), "expected a mixture.*got Independent"),
        (torch.zeros(3, 2), "expected a mixture.*got Tensor"),
        (
            T.MixtureSameFamily(
                T.Categorical(torch.ones(4, 3)),
                T.Independent(T.Normal(torch.zeros(4, 3, 2), torch.ones(4, 3, 2)), 1),
            ),
            r"batch shape \(N,\); got \(4, 3\)",
        ),
        (
            T.MixtureSameFamily(
                T.Categorical(torch.ones(1, 3)),
                T.Independent(T.Normal(torch.zeros(3, 2), torch.ones(3, 2)), 1),
            ),
            r"one set of weights.*got \(1,\)",
        ),
    ],
)
def test_what_is_no_mixture_is_named(use: str, value: T.MixtureSameFamily, message: str) -> None:
    with pytest.raises(pv.InputError, match=message):
        USES[use](value)


AGG = Mixture(
    dist.Categorical(torch.ones(3)),
    dist.Normal(torch.tensor([[0.0], [1.0], [2.0]]).double(), 1.0).to_event(1),
)
NORMAL = dist.Normal(torch.zeros(1).double(), 1.0).to_event(1)


@pytest.mark.parametrize(
    ("q", "p"),
    [(AGG, NORMAL), (NORMAL, AGG), (AGG, AGG), (AGG, of_torch()), (AGG.expand((4,)), NORMAL)],
)
def test_no_closed_form_says_what_to_use(q: dist.Distribution, p: dist.Distribution) -> None:
    with pytest.raises(NotImplementedError, match=r"Use pyrovae\.divergence\(q, p\)"):
        kl_divergence(q, p)


def test_the_divergences_that_are_named_work() -> None:
    for q, p in ((AGG, NORMAL), (NORMAL, AGG)):
        z = q.sample((200_000,))
        difference = q.log_prob(z) - p.log_prob(z)
        estimate = pv.divergence(q, p)
        error = (estimate.standard_error**2 + float(difference.var()) / 200_000) ** 0.5
        assert abs(estimate.value - float(difference.mean())) < 4.5 * error
    assert -1e-9 < pv.variational_divergence(AGG, AGG, rounds=60).value < 0.01
    with pytest.raises(pv.InputError, match=r"batch shape \(\); got \(4,\)"):
        pv.divergence(dist.Normal(torch.zeros(4, 1), 1.0).to_event(1), AGG)


def test_closed_forms_of_others_stay() -> None:
    point = torch.tensor([0.5], dtype=torch.float64)
    torch.testing.assert_close(
        kl_divergence(dist.Delta(point, event_dim=1), AGG), -AGG.log_prob(point)
    )
    assert float(kl_divergence(NORMAL, NORMAL)) == 0.0


def test_an_elbo_that_wants_closed_forms_takes_draws() -> None:
    def model() -> None:
        pyro.sample("z", NORMAL)

    def guide() -> None:
        pyro.sample("z", AGG)

    losses = torch.tensor([TraceMeanField_ELBO().loss(model, guide) for _ in range(400)])  # type: ignore[no-untyped-call]
    exact = pv.divergence(AGG, NORMAL, draws=100_000)
    error = (exact.standard_error**2 + float(losses.var()) / 400) ** 0.5
    assert abs(float(losses.mean()) - exact.value) < 4.5 * error
