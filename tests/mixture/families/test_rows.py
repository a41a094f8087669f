"""One contract for all families: rebuilt, they are the same distribution, or a named refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrovae.mixture import families
from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.families import (
    concatenate,
    convert,
    from_state,
    join,
    joinable,
    take,
    to_state,
)
from pyrovae.mixture.mixture import Mixture

N, D = 8, 3
ROWS = torch.tensor([5, 0, 0, 7])


def real(*shape: int) -> Tensor:
    return torch.randn(*(shape or (N, D)))


def positive(*shape: int) -> Tensor:
    return torch.rand(*(shape or (N, D))) + 0.5


def unit(*shape: int) -> Tensor:
    return torch.rand(*(shape or (N, D))) * 0.8 + 0.1


def simplex() -> Tensor:
    return torch.distributions.Dirichlet(torch.ones(D)).sample((N,))


def covariance() -> Tensor:
    factor = real(N, D, D)
    return factor @ factor.mT + torch.eye(D)


def through(*steps: Any, base: dist.Distribution | None = None) -> dist.Distribution:
    return dist.TransformedDistribution(base or dist.Normal(real(), positive()), list(steps))


STEPS = dist.transforms
UNITS: dict[str, Callable[[], dist.Distribution]] = {
    "Normal": lambda: dist.Normal(real(), positive()),
    "Normal of one scale": lambda: dist.Normal(real(), torch.tensor(2.0)).expand((N, D)),
    "LogNormal": lambda: dist.LogNormal(real(), positive()),
    "StudentT": lambda: dist.StudentT(4.0, real(), positive()),
    "Laplace": lambda: dist.Laplace(real(), positive()),
    "Gamma": lambda: dist.Gamma(positive(), positive()),
    "Beta": lambda: dist.Beta(positive(), positive()),
    "AffineBeta": lambda: dist.AffineBeta(positive(), positive(), real(), positive()),
    "VonMises": lambda: dist.VonMises(real(), positive()),
    "Uniform": lambda: dist.Uniform(-positive(), positive()),
    "ContinuousBernoulli": lambda: dist.ContinuousBernoulli(unit(), lims=(0.4, 0.6)),
    "Bernoulli": lambda: dist.Bernoulli(unit()),
    "Binomial": lambda: dist.Binomial(7, logits=real()),
    "BetaBinomial": lambda: dist.BetaBinomial(positive(), positive(), 7),
    "Poisson": lambda: dist.Poisson(positive(), is_sparse=True),
    "NegativeBinomial": lambda: dist.NegativeBinomial(4.0, unit()),
    "ZeroInflatedPoisson": lambda: dist.ZeroInflatedPoisson(positive(), gate=unit()),
    "ZeroInflatedNegativeBinomial": lambda: dist.ZeroInflatedNegativeBinomial(
        positive(), logits=real(), gate_logits=real()
    ),
    "RelaxedBernoulli": lambda: dist.RelaxedBernoulli(torch.tensor(0.7), unit()),
    "RelaxedBernoulli by unit": lambda: dist.RelaxedBernoulli(positive(D), logits=real()),
    "Delta": lambda: dist.Delta(real()),
    "Sigmoid": lambda: through(STEPS.SigmoidTransform(), STEPS.AffineTransform(1.0, 2.0)),
    "Tanh": lambda: through(STEPS.TanhTransform(cache_size=1)),
    "Softplus of Laplace": lambda: through(
        STEPS.SoftplusTransform(), base=dist.Laplace(real(), 1.0)
    ),
}
if hasattr(dist, "StableWithLogProb"):  # since Pyro 1.9.1
    UNITS["Stable"] = lambda: dist.StableWithLogProb(unit(), unit(), coords="S")
VECTORS: dict[str, Callable[[], dist.Distribution]] = {
    "Dirichlet": lambda: dist.Dirichlet(positive()),
    "MultivariateNormal, covariance": lambda: dist.MultivariateNormal(real(), covariance()),
    "MultivariateNormal, one covariance": lambda: dist.MultivariateNormal(real(), torch.eye(D)),
    "MultivariateNormal, precision": lambda: dist.MultivariateNormal(
        real(), precision_matrix=covariance()
    ),
    "MultivariateNormal, Cholesky": lambda: dist.MultivariateNormal(
        real(), scale_tril=torch.linalg.cholesky(covariance())
    ),
    "LowRankMultivariateNormal": lambda: dist.LowRankMultivariateNormal(
        real(), real(N, D, 1), positive()
    ),
    "MultivariateStudentT": lambda: dist.MultivariateStudentT(
        torch.tensor(4.0), real(), torch.eye(D)
    ),
    "OneHotCategorical": lambda: dist.OneHotCategorical(simplex()),
    "OneHotCategorical, logits": lambda: dist.OneHotCategorical(logits=real()),
    "Categorical": lambda: dist.Categorical(simplex()),
    "Multinomial": lambda: dist.Multinomial(5, simplex()),
    "Multinomial, logits": lambda: dist.Multinomial(5, logits=real()),
    "DirichletMultinomial": lambda: dist.DirichletMultinomial(positive(), 5),
    "RelaxedOneHotCategorical": lambda: dist.RelaxedOneHotCategorical(torch.tensor(0.7), simplex()),
    "RelaxedOneHotCategorical, logits": lambda: dist.RelaxedOneHotCategorical(
        torch.tensor([0.7]), logits=real()
    ),
    "Delta": lambda: dist.Delta(real(), log_density=0.5, event_dim=1),
    "LKJCholesky": lambda: dist.LKJCholesky(D, positive(N)),
    "LogisticNormal": lambda: dist.LogisticNormal(real(), positive()),
    "StickBreaking": lambda: through(
        STEPS.StickBreakingTransform(), base=dist.Normal(real(), 1.0).to_event(1)
    ),
    "Ordered": lambda: through(STEPS.OrderedTransform(), base=dist.Normal(real(), 1.0).to_event(1)),
}
FAMILIES: dict[str, Callable[[], dist.Distribution]] = {
    **{f"{name}, units": lambda make=make: make().to_event(1) for name, make in UNITS.items()},
    **VECTORS,
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> dist.Distribution:
    return FAMILIES[request.param]()


def same(actual: dist.Distribution, expected: dist.Distribution, rows: Any = slice(None)) -> None:
    """Type, shapes and log density of each row, exact but for rounding."""
    z = expected.sample((4,)).clone()
    assert type(families.innermost(actual)) is type(families.innermost(expected))
    log_prob = expected.log_prob(z)[:, rows]
    assert actual.batch_shape == log_prob.shape[1:] and actual.event_shape == expected.event_shape
    torch.testing.assert_close(actual.log_prob(z[:, rows]), log_prob, rtol=1e-12, atol=1e-12)


def same_draws(actual: dist.Distribution, expected: dist.Distribution) -> None:
    """The same draws from one seed: an argument that only `sample` reads is preserved too."""
    draws = []
    for density in (actual, expected):
        torch.manual_seed(3)
        draws.append(density.sample((5,)))
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-12, atol=1e-12)


# -- the contract ----------------------------------------------------------------------------------


def test_members_are_those_of_the_batch(family: dist.Distribution) -> None:
    same(take(family, ROWS), family, ROWS)
    same(take(family, slice(2, 5)), family, slice(2, 5))
    same(take(family, torch.tensor(6)), family, 6)
    same(take(take(family, slice(3, None)), torch.tensor([0, 2])), family, torch.tensor([3, 5]))


def test_parts_laid_end_to_end_are_the_whole(family: dist.Distribution) -> None:
    joined = concatenate([take(family, slice(0, 3)), take(family, slice(3, None))])
    same(joined, family)
    same_draws(joined, family)


def test_converted_parameters_are_another_dtype_or_the_same(family: dist.Distribution) -> None:
    same(convert(family, Tensor.clone), family)
    same_draws(convert(family, Tensor.clone), family)
    z = family.sample()
    single = convert(family, lambda t: t.float() if t.is_floating_point() else t)
    assert single.sample().dtype == (torch.float32 if z.is_floating_point() else z.dtype)
    assert families.floating_parameter(single).dtype == torch.float32


def test_state_is_the_same_distribution(family: dist.Distribution) -> None:
    same(from_state(to_state(family)), family)
    same_draws(from_state(to_state(family)), family)


@pytest.mark.parametrize("name", FAMILIES)
def test_mixture_of_a_family_draws_points_of_positive_density(name: str) -> None:
    agg = AggregatedPosterior(FAMILIES[name]())
    z = agg.sample((6,))
    assert bool(agg.log_prob(z).isfinite().all())
    assert z.shape == (6, *agg.event_shape)


# -- arguments other than rows of parameters ------------------------------------------------------


def test_what_the_constructor_was_given_is_kept() -> None:
    assert take(dist.Multinomial(5, simplex()), ROWS).total_count == 5
    assert take(dist.Delta(real(), event_dim=1), ROWS).event_dim == 1
    assert take(dist.Poisson(positive(), is_sparse=True), ROWS).is_sparse
    assert not take(dist.Normal(real(), -positive(), validate_args=False), ROWS)._validate_args
    assert not take(dist.Normal(real(), 1.0).has_rsample_(False), ROWS).has_rsample
    tanh = through(STEPS.TanhTransform(cache_size=1))
    assert from_state(to_state(tanh)).transforms[0]._cache_size == 1


def test_shared_number_goes_where_the_parameters_go() -> None:
    temperature = torch.tensor(0.7, requires_grad=True)
    relaxed = dist.RelaxedOneHotCategorical(temperature, logits=real())
    z = relaxed.sample()
    (slope,) = torch.autograd.grad(take(relaxed, ROWS).log_prob(z[ROWS]).sum(), temperature)
    (expected,) = torch.autograd.grad(relaxed.log_prob(z)[ROWS].sum(), temperature)
    torch.testing.assert_close(slope, expected)
    assert not convert(relaxed, Tensor.detach).temperature.requires_grad
    assert convert(relaxed, Tensor.float).temperature.dtype == torch.float32
    assert take(dist.RelaxedBernoulli(temperature, unit()), slice(0, 0)).sample().shape == (0, D)


@pytest.mark.parametrize("kind", [dist.Categorical, dist.OneHotCategorical, dist.Multinomial])
def test_what_was_impossible_stays_impossible(kind: Any) -> None:
    """Logits would replace a probability of 0 by the smallest float."""
    density = kind(probs=torch.tensor([[0.0, 0.25, 0.75], [0.5, 0.5, 0.0]]))
    density.logits.sum()
    for rebuilt in (take(density, slice(None)), from_state(to_state(density))):
        assert torch.equal(rebuilt.probs, density.probs)


def test_number_of_trials_differs_between_batches() -> None:
    parts = [dist.Multinomial(total, simplex()) for total in (5, 6)]
    with pytest.raises(ValueError, match="expected Multinomial with the same total_count for all"):
        concatenate(parts)
    warm = [dist.RelaxedBernoulli(torch.tensor(t), unit()) for t in (0.5, 0.6)]
    with pytest.raises(ValueError, match="RelaxedBernoulli with the same temperature for all"):
        concatenate(warm)


@pytest.mark.parametrize(
    ("other", "shape"),
    [
        (lambda: dist.Normal(real(N, 2), 1.0).to_event(1), r"\(8,\) with \(2,\)"),
        (lambda: dist.Normal(real(), 1.0), r"\(8, 3\) with \(\)"),
        (lambda: dist.Normal(real(D), 1.0).to_event(1), r"\(\) with \(3,\)"),
    ],
)
def test_other_shapes_are_named(other: Callable[[], dist.Distribution], shape: str) -> None:
    first = dist.Normal(real(), 1.0).to_event(1)
    with pytest.raises(ValueError, match=rf"one event shape; got \(8,\) with \(3,\) and {shape}\."):
        concatenate([first, first, other()])


def test_merge_names_both_event_shapes() -> None:
    parts = [AggregatedPosterior(dist.Normal(real(N, d), 1.0).to_event(1)) for d in (3, 4)]
    with pytest.raises(ValueError, match=r"got \(8,\) with \(3,\) and \(8,\) with \(4,\)\."):
        AggregatedPosterior.merge(parts)


def test_only_vectors_join() -> None:
    vector, matrix = dist.Normal(real(), 1.0).to_event(1), dist.Normal(real(N, D, 2), 1.0)
    assert join([vector, vector]).event_shape == (2 * D,)
    assert not joinable([vector, matrix.to_event(2)]) and not joinable([matrix.to_event(1)] * 2)


# -- families of other people ----------------------------------------------------------------------


class Passing(dist.Multinomial):
    """Passes its arguments on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Keeping(dist.Normal):
    """Keeps an argument of its own."""

    def __init__(self, loc: Tensor, scale: Tensor, power: float = 1.0) -> None:
        super().__init__(loc, scale)
        self.power = power

    def log_prob(self, value: Tensor) -> Tensor:
        return self.power * super().log_prob(value)


class Packed(dist.Normal):
    def __init__(self, both: Tensor) -> None:
        super().__init__(*both.chunk(2, -1))


class Forgetful(dist.Normal):
    def __init__(self, loc: Tensor, scale: Tensor, sharpness: float) -> None:
        super().__init__(loc, scale / sharpness)


class Halved(dist.Normal):
    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(loc, scale / 2)


class Later(dist.Normal):
    power = 1.0


def later() -> dist.Distribution:
    density = Later(real(), positive())
    density.power = 2.0
    return density


def test_subclasses_that_keep_what_they_are_given() -> None:
    passing, keeping = Passing(5, simplex()), Keeping(real(), positive(), power=3.0)
    assert take(passing, ROWS).total_count == 5
    for density in (passing, keeping):
        same(take(density, ROWS), density, ROWS)
        same(concatenate([take(density, slice(0, 3)), take(density, slice(3, None))]), density)


REFUSED: dict[str, Callable[[], dist.Distribution]] = {
    r"Packed: it keeps no tensor or number loc, scale, both\.": lambda: Packed(positive(N, 2 * D)),
    r"Forgetful: it keeps no tensor or number sharpness\.": lambda: Forgetful(
        real(), positive(), 2.0
    ),
    r"Halved: its constructor changes scale\.": lambda: Halved(real(), positive()),
    r"Later: its constructor does not take power\.": later,
    r"MaskedDistribution: it has no parameter tensors": lambda: dist.Normal(real(), 1.0).mask(True),
    r"ZeroInflatedDistribution: it keeps no tensor or number base_dist": lambda: (
        dist.ZeroInflatedDistribution(dist.Poisson(positive()), gate=unit())
    ),
    r"CoalescentTimes: it has a parameter of shape \(5,\)": lambda: dist.CoalescentTimes(
        torch.arange(5.0), positive(N)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_family_that_cannot_be_rebuilt_is_named(message: str) -> None:
    density = REFUSED[message]()
    with pytest.raises(ValueError, match=f"rebuilt from its parameters; got {message}.*Use "):
        take(density, slice(0, 1))


# -- transforms and names --------------------------------------------------------------------------


def test_transforms_with_rows_of_their_own_are_refused() -> None:
    own = through(STEPS.SigmoidTransform(), STEPS.AffineTransform(0.0, positive()))
    with pytest.raises(
        ValueError, match=r"TransformedDistribution of Normal by SigmoidTransform, "
    ):
        take(own, ROWS)
    parts = [through(STEPS.AffineTransform(0.0, scale)) for scale in (1.0, 2.0)]
    with pytest.raises(ValueError, match="leave what differs from row to row to the base"):
        concatenate(parts)


def test_name_of_a_family_says_what_is_transformed() -> None:
    squashed = through(STEPS.SigmoidTransform(), STEPS.AffineTransform(0.0, 2.0)).to_event(1)
    name = "TransformedDistribution of Normal by SigmoidTransform, AffineTransform"
    assert families.family(squashed) == name
    assert f"family={name}" in repr(AggregatedPosterior(squashed))
    assert families.family(dist.LogNormal(real(), 1.0).to_event(1)) == "LogNormal"


def test_marginals_pick_units_and_not_what_a_unit_is_made_of() -> None:
    """Also where there are as many categories as units."""
    for units in (2, 4):
        logits = torch.randn(6, units, 4)
        components = {
            "logits": dist.Categorical(logits=logits),
            "probs": dist.Categorical(probs=logits.softmax(-1)),
        }
        for base in components.values():
            mixture = Mixture(dist.Categorical(torch.ones(6)), base.to_event(1))
            for d in range(units):
                actual = mixture.marginal(d).log_prob(torch.arange(4)).exp()
                torch.testing.assert_close(actual, logits[:, d].softmax(-1).mean(0))
            pair = mixture.marginal([units - 1, 0])
            z = torch.tensor([[1, 3], [0, 2]])
            expected = base.log_prob(z.flip(1).unsqueeze(1)) if units == 2 else None
            assert pair.event_shape == (2,)
            if expected is not None:
                torch.testing.assert_close(pair.log_prob(z), expected.sum(-1).exp().mean(1).log())
    mixed = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.randn(6, 4, 4)), dist.Normal(torch.randn(6, 4, 4), 1.0)
    )
    with pytest.raises(ValueError, match="MixtureSameFamily"):  # refused, instead of wrong units
        families.marginal(mixed.to_event(1), 1)


def test_marginals_of_units_with_an_order_of_their_own() -> None:
    """Each unit has a parameter with a dimension of its own: cut points."""
    predictor, cuts = torch.randn(6, 3), torch.randn(6, 3, 3).sort(-1).values
    components = dist.OrderedLogistic(predictor, cuts).to_event(1)
    mixture = Mixture(dist.Categorical(torch.ones(6)), components)
    for d in range(3):
        expected = dist.OrderedLogistic(predictor[:, d], cuts[:, d])
        actual = mixture.marginal(d).log_prob(torch.arange(4)).exp()
        expected_probability = expected.log_prob(torch.arange(4).unsqueeze(-1)).exp().mean(-1)
        torch.testing.assert_close(actual, expected_probability)
