"""One contract for all likelihoods: a name and how to enumerate its rows is all a new one adds."""

from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.models.likelihoods import LIKELIHOODS, NormalDecoder, likelihood_of

LATENT, ROWS, DRAWS = 3, 5, 4000


@dataclass(frozen=True)
class Case:
    """A likelihood.

    Args:
        make: a decoder for rows of a shape.
        levels: how many whole numbers hold all but 1e-9 of an entry's mass; ``None`` if it takes
            any number.
    """

    make: Callable[[tuple[int, ...]], nn.Module]
    levels: int | None


def recipe(likelihood: str, **options: object) -> Callable[[tuple[int, ...]], nn.Module]:
    return lambda shape: pv.mlp_decoder(LATENT, shape, likelihood, hidden=(6,), **options)  # type: ignore[arg-type]


CASES = {
    "bernoulli": Case(recipe("bernoulli"), 2),
    "normal": Case(recipe("normal"), None),
    "normal, a scale per unit": Case(recipe("normal", per_unit=True), None),
    "categorical": Case(recipe("categorical", categories=3), 3),
    "logistic": Case(recipe("logistic"), 256),
    "negative_binomial": Case(recipe("negative_binomial"), 400),
}


def rows_for(case: Case, shape: tuple[int, ...], rows: int = ROWS) -> Tensor:
    """Rows that any of the likelihoods takes, with totals above zero."""
    if case.levels is None:
        return torch.randn(rows, *shape)
    x = torch.randint(0, min(case.levels, 9), (rows, *shape)).to(torch.get_default_dtype())
    x.flatten(1)[:, 0] = 1.0
    return x


def enumerated(case: Case, likelihood: dist.Distribution) -> tuple[Tensor, Tensor]:
    """Values of a row of one entry, shape ``(V, 1)``, and their probabilities."""
    if case.levels is None:
        values, width = torch.linspace(-40.0, 40.0, 20_001).unsqueeze(-1), 80 / 20_000
    else:
        values, width = torch.arange(float(case.levels)).unsqueeze(-1), 1.0
    with torch.no_grad():
        return values, likelihood.log_prob(values).exp() * width


def test_every_likelihood_is_under_contract() -> None:
    assert {name.split(",")[0] for name in CASES} == set(LIKELIHOODS)


@pytest.mark.parametrize("name", CASES)
def test_shapes_support_and_gradients(name: str) -> None:
    shape, decoder = (2, 4), CASES[name].make((2, 4))
    x = rows_for(CASES[name], shape)
    likelihood = likelihood_of(decoder, torch.randn(ROWS, LATENT), x=x)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((ROWS,), shape)
    drawn = likelihood.sample()
    assert bool(likelihood.support.check(drawn).all())
    likelihood.log_prob(drawn).sum().backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).any()) for p in decoder.parameters())
    z = torch.randn(7, ROWS, LATENT)
    assert likelihood_of(decoder, z, x=x).log_prob(x).shape == (7, ROWS)


@pytest.mark.parametrize("name", CASES)
def test_it_is_normalised(name: str) -> None:
    case = CASES[name]
    likelihood = likelihood_of(case.make((1,)), torch.randn(1, LATENT), x=rows_for(case, (1,), 1))
    _, weights = enumerated(case, likelihood)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_draws_are_of_the_law_of_the_density(name: str) -> None:
    # The mean of log p over draws is the negative entropy, known exactly by enumeration, and draws
    # fall below the law's median as often as it says: each within 4 standard errors, so that a
    # right likelihood fails for 6 of 100,000 seeds.
    case = CASES[name]
    likelihood = likelihood_of(case.make((1,)), torch.randn(1, LATENT), x=rows_for(case, (1,), 1))
    values, weights = enumerated(case, likelihood)
    x = likelihood.sample(torch.Size([DRAWS]))
    with torch.no_grad():
        density = likelihood.log_prob(x)
        expected = (weights * likelihood.log_prob(values)).sum()
    error = 4 * float(density.std()) / DRAWS**0.5
    assert float(density.mean()) == pytest.approx(float(expected), abs=error + 1e-9)
    middle = float(values[int((weights.cumsum(0) < 0.5).sum())])
    below = float(weights[values.flatten() <= middle].sum())
    error = 4 * (below * (1 - below) / DRAWS) ** 0.5
    assert float((x <= middle).double().mean()) == pytest.approx(below, abs=error)


@pytest.mark.parametrize("name", CASES)
def test_it_learns_in_a_pair(name: str) -> None:
    shape = (3, 3)
    x = rows_for(CASES[name], shape, 40)
    vae = pv.VAE(
        pv.mlp_encoder(shape, LATENT, hidden=(6,)),
        CASES[name].make(shape),
        pv.StandardNormal(LATENT),
    )
    run = pv.fit(
        vae.model,
        vae.guide,
        x[:30],
        validation=x[30:],
        epochs=10,
        batch_size=10,
        optimizer=pv.training.fit.adam(0.02),
    )
    assert run.history.train[-1] > run.history.train[0]


class Wide(nn.Module):
    """A guide that does not look at the data and is wider than any posterior."""

    def forward(self, x: Tensor) -> dist.Distribution:
        return dist.Normal(torch.zeros(len(x), LATENT), 1.2).to_event(1)


@pytest.mark.parametrize("name", CASES)
def test_log_evidence_is_that_of_the_likelihood(name: str) -> None:
    shape = (3, 3)
    x = rows_for(CASES[name], shape, 2)
    vae = pv.VAE(Wide(), CASES[name].make(shape), pv.StandardNormal(LATENT))
    with torch.no_grad():  # by its definition: the mean of p(x | z) over 100,000 draws from p(z)
        z = torch.randn(100_000, 1, LATENT)
        log_p = likelihood_of(vae.decoder, z, x=x).log_prob(x)
        brute = log_p.logsumexp(0) - torch.tensor(1e5).log()
        brute_error = (log_p - brute).exp().std(0) / 1e5**0.5
    found = pv.log_evidence(vae.model, vae.guide, x, draws=10_000)
    error = (found.standard_error.square() + brute_error.square()).sqrt()
    assert bool(((found.values - brute).abs() <= 4 * error).all())


def test_normal_scale_is_shared_unless_it_is_one_per_unit() -> None:
    shape, z = torch.Size([2, 4]), torch.randn(ROWS, LATENT)
    location, scale = torch.randn(shape), torch.rand(shape) + 0.5
    for per_unit, free in ((False, 1), (True, 8)):
        decoder = NormalDecoder(
            nn.Linear(LATENT, 8), shape, location=location, scale=scale, per_unit=per_unit
        )
        assert decoder.log_scale.numel() == free
        assert torch.allclose(decoder(z).stddev, scale.expand(ROWS, *shape))


class Zero(nn.Module):
    """A network that has nothing to say."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.zeros(*z.shape[:-1], 3)


def test_scales_per_unit_are_learned() -> None:
    torch.manual_seed(0)
    truth = torch.tensor([0.1, 1.0, 3.0])
    x = truth * torch.randn(400, 3)
    vae = pv.VAE(
        pv.mlp_encoder((3,), 1, hidden=(4,)),
        pv.mlp_decoder(1, (3,), "normal", hidden=(), per_unit=True),
        pv.StandardNormal(1),
    )
    vae.decoder.network = Zero()  # nothing is said by z, so the scales are the data's own
    pv.fit(vae.model, vae.guide, x, epochs=80, optimizer=pv.training.fit.adam(0.1))
    # The last gradient steps of 0.1 on a log scale; the data's own scales are exact maxima.
    assert torch.allclose(vae.decoder.log_scale.exp(), x.square().mean(0).sqrt(), rtol=0.1)


def test_negative_binomial_is_the_mixture_of_poissons_that_it_is_named_for() -> None:
    # NB(mean m, inverse dispersion θ) = ∫ Poisson(x; λ) Gamma(λ; θ, θ/m) dλ, by quadrature.
    decoder = pv.mlp_decoder(LATENT, (4,), "negative_binomial", hidden=(6,))
    with torch.no_grad():
        decoder.log_inverse_dispersion.copy_(torch.tensor([-0.5, 0.0, 0.7, 2.0]))
    z, total = torch.randn(1, LATENT), torch.tensor([20.0])
    likelihood = decoder(z, total)
    mean = total * decoder.network(z).softmax(-1)
    assert torch.allclose(likelihood.mean, mean)
    theta = decoder.log_inverse_dispersion.exp()
    assert torch.allclose(likelihood.variance, mean + mean.square() / theta)
    log_rate = torch.linspace(-40.0, 6.0, 40_001).unsqueeze(-1)
    x = torch.tensor([0.0, 3.0, 5.0, 12.0])
    density = dist.Gamma(theta, theta / mean[0]).log_prob(log_rate.exp()) + log_rate
    terms = density + dist.Poisson(log_rate.exp()).log_prob(x)
    brute = terms.logsumexp(0) + torch.tensor(46 / 40_000).log()
    assert torch.allclose(likelihood.base_dist.log_prob(x)[0], brute, atol=1e-6)


def test_shares_do_not_depend_on_the_library_size() -> None:
    decoder = pv.mlp_decoder(LATENT, (4,), "negative_binomial", hidden=(6,))
    z = torch.randn(2, LATENT)
    one, ten = decoder(z, torch.ones(2)), decoder(z, torch.full((2,), 10.0))
    assert torch.allclose(10 * one.mean, ten.mean)
    assert torch.allclose(one.mean.sum(-1), torch.ones(2))


BAD = {
    "grey data": ("bernoulli", 0.3, "zeros and ones.*0.3.*transform=pyrovae.binarise"),
    "negative counts": ("negative_binomial", -1.0, "counts.*-1"),
    "counts on a log scale": ("negative_binomial", 0.7, "counts.*0.7.*logarithms"),
    "a category too many": ("categorical", 3.0, "categories.*3"),
    "grey levels in [0, 1]": ("logistic", 0.5, "levels.*0.5.*255"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_named_with_what_to_do(name: str) -> None:
    likelihood, value, message = BAD[name]
    x = torch.ones(30, 3)
    x[3, 1] = value
    vae = pv.VAE(
        pv.mlp_encoder((3,), LATENT, hidden=(6,)),
        CASES[likelihood].make((3,)),
        pv.StandardNormal(LATENT),
    )
    with pytest.raises(ValueError, match=message):
        vae.model(x)
    if likelihood != "categorical":  # where torch looks for the category before it is checked
        with pytest.raises(ValueError, match=message):
            pv.fit(vae.model, vae.guide, x, epochs=1)


def test_rows_without_counts_are_named() -> None:
    vae = pv.VAE(
        pv.mlp_encoder((3,), LATENT, hidden=(6,)),
        CASES["negative_binomial"].make((3,)),
        pv.StandardNormal(LATENT),
    )
    with pytest.raises(ValueError, match="positive total"):
        vae.model(torch.zeros(4, 3))


def test_grey_data_are_binarised_anew_in_training_and_once_for_validation() -> None:
    grey = torch.full((40, 5), 0.5)
    vae = pv.VAE(
        pv.mlp_encoder((5,), 2, hidden=(6,)),
        pv.mlp_decoder(2, (5,), hidden=(6,)),
        pv.StandardNormal(2),
    )
    seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def model(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() == vae.training:
            seen[vae.training].append(x)
        return vae.model(x)

    pv.fit(model, vae.guide, grey, validation=grey, epochs=3, batch_size=40, transform=pv.binarise)
    for draws in seen.values():
        assert all(bool(((x == 0) | (x == 1)).all()) for x in draws)
    first, second, third = seen[True][-3:]
    assert not torch.equal(first.sum(0), second.sum(0)) or not torch.equal(first, third)
    evaluated = seen[False][-3:]
    assert all(torch.equal(x, evaluated[0]) for x in evaluated)
