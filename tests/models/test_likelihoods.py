"""One contract for all likelihoods: a name and how to enumerate its rows is all a new one adds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.models.likelihoods import LIKELIHOODS, LogisticDecoder, NormalDecoder, likelihood_of
from pyrovae.models.networks import LogCounts

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
    # fall below the median as often as they should: each within 4 standard errors, so that a
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
        optimizer=pv.adam(0.02),
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
    evidence = pv.log_evidence(vae.model, vae.guide, x, draws=10_000)
    error = (evidence.standard_error.square() + brute_error.square()).sqrt()
    assert bool(((evidence.values - brute).abs() <= 4 * error).all())


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
    """A network whose outputs are all zero."""

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
    vae.decoder.network = Zero()  # x does not depend on z, so the scales are those of the data
    pv.fit(vae.model, vae.guide, x, epochs=80, optimizer=pv.adam(0.01))
    # Up to the last gradient steps of 0.1 on a log scale; the scales of the data are the maximum.
    scales = vae.decoder(torch.zeros(1, 1)).stddev[0]
    assert torch.allclose(scales, x.square().mean(0).sqrt(), rtol=0.1)


def test_no_scale_falls_below_its_floor() -> None:
    x = torch.cat([torch.randn(400, 2), torch.zeros(400, 1)], 1)  # the last entry never varies
    decoder = NormalDecoder(Zero(), torch.Size([3]), per_unit=True, floor=0.03)
    vae = pv.VAE(pv.mlp_encoder((3,), 1, hidden=(4,)), decoder, pv.StandardNormal(1))
    pv.fit(vae.model, vae.guide, x, epochs=200, optimizer=pv.adam(0.01))
    least = vae.decoder(torch.zeros(1, 1)).stddev[0, 2]
    assert 0.03 <= float(least.detach()) < 0.031


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


def bad_row(value: float, position: tuple[int, ...] = (3, 1)) -> Tensor:
    x = torch.ones(30, 3)
    x[position] = value
    return x


BAD = {
    "grey data": ("bernoulli", bad_row(0.3), "zeros and ones.*0.3.*transform=pyrovae.binarise"),
    "a negative count": ("negative_binomial", bad_row(-1.0), "counts.*-1"),
    "a negative total": ("negative_binomial", bad_row(-9.0), "counts.*-9"),
    "negative counts": ("negative_binomial", -torch.ones(30, 3), "counts.*-1"),
    "counts on a log scale": ("negative_binomial", bad_row(0.7), "counts.*0.7.*logarithms"),
    "no counts": ("negative_binomial", bad_row(0.0, (3,)), "positive total.*got 0.*Leave out"),
    "a category too many": ("categorical", bad_row(3.0), "categories.*3"),
    "a category below 0": ("categorical", bad_row(-1.0), "categories.*-1"),
    "grey levels in [0, 1]": ("logistic", bad_row(0.5), "levels.*0.5.*255"),
}


def pair_of(likelihood: str) -> pv.VAE:
    return pv.VAE(
        pv.mlp_encoder((3,), LATENT, hidden=(6,)),
        CASES[likelihood].make((3,)),
        pv.StandardNormal(LATENT),
    )


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_named_with_what_to_do(name: str) -> None:
    likelihood, x, message = BAD[name]
    x = x.to(torch.get_default_dtype())
    for batch in (x, x[:5]):
        with pytest.raises(ValueError, match=message):
            pair_of(likelihood).model(batch)
    vae = pair_of(likelihood)
    for batch_size in (30, 2):  # the row is in the first batch, or in a later one
        with pytest.raises(ValueError, match=message):
            pv.fit(vae.model, vae.guide, x, epochs=1, batch_size=batch_size)
    with pytest.raises(ValueError, match=message):
        pv.fit(vae.model, vae.guide, rows_for(CASES[likelihood], (3,)), validation=x, epochs=1)


def test_an_encoder_of_counts_names_what_is_none() -> None:
    vae = pair_of("negative_binomial")
    vae.encoder.network = nn.Sequential(LogCounts(), vae.encoder.network)
    with pytest.raises(ValueError, match=r"counts 0, 1, 2, … in x; got -9"):
        pv.fit(vae.model, vae.guide, bad_row(-9.0).double(), epochs=1)


def test_grey_levels_are_not_binarised() -> None:
    vae, levels = pair_of("bernoulli"), 200 * torch.ones(30, 3)
    for x, message in (
        (levels, "got 200. Divide levels from 0 to 255 by 255"),
        (levels.to(torch.uint8), "got 200. Divide levels from 0 to 255 by 255"),
        (torch.ones(30, 3, dtype=torch.uint8), r"got torch.uint8.*x.float\(\) / 255"),
        (-levels, "got -200"),
    ):
        with pytest.raises(ValueError, match=message):
            pv.fit(vae.model, vae.guide, x, epochs=1, transform=pv.binarise)


def test_images_of_bytes_are_to_be_converted() -> None:
    vae, x = pair_of("logistic"), torch.randint(0, 256, (30, 3), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"dtype torch.float64; got torch.uint8"):
        pv.fit(vae.model, vae.guide, x, epochs=1)
    run = pv.fit(vae.model, vae.guide, x, epochs=1, transform=lambda x, _: x.double())
    assert run.history.train[0] < 0


@pytest.mark.float32
@pytest.mark.parametrize("output", [-200.0, -88.0, -15.0, -4.5, 0.0])
def test_a_logistic_scale_has_a_floor_and_a_gradient(output: float) -> None:
    raw = torch.tensor([0.3, output], requires_grad=True)
    decoder = LogisticDecoder(nn.Identity(), torch.Size([1]))
    likelihood = decoder(raw.unsqueeze(0))
    scale = likelihood.base_dist.scale.detach()
    if output >= -4.5:  # the range of the paper: the output itself
        assert float(scale.log()) == pytest.approx(math.log(256) + output, abs=4e-5)
    assert float(scale) >= 256 * math.exp(-15.001)
    for level in (0.0, 147.0, 255.0):
        (gradient,) = torch.autograd.grad(
            likelihood.log_prob(torch.tensor([[level]])).sum(), raw, retain_graph=True
        )
        assert bool(gradient.isfinite().all())


def rows_seen(grey: Tensor, **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The rows that the model gets in each of three epochs of one batch: training, validation."""
    vae = pv.VAE(
        pv.mlp_encoder((20,), 2, hidden=(6,)),
        pv.mlp_decoder(2, (20,), hidden=(6,)),
        pv.StandardNormal(2),
    )
    seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def model(x: Tensor) -> Tensor:
        if torch.is_grad_enabled() == vae.training:
            seen[vae.training].append(x)
        return vae.model(x)

    pv.fit(model, vae.guide, grey, validation=grey, epochs=3, batch_size=40, **settings)
    return seen[True][-3:], seen[False][-3:]


def test_grey_data_are_binarised_anew_in_training_and_once_for_validation() -> None:
    grey = torch.full((40, 20), 0.5)
    trained, validated = rows_seen(grey, transform=pv.binarise)
    assert all(bool(((x == 0) | (x == 1)).all()) for x in (*trained, *validated))
    # Totals of columns, which no order of the rows changes: 20 of Binomial(40, 1/2) are all the
    # same in two draws with a probability of 1e-18.
    totals = [x.sum(0) for x in trained]
    assert not any(torch.equal(totals[i], totals[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(torch.equal(x, validated[0]) for x in validated)
    once, _ = rows_seen(torch.bernoulli(grey))  # rows binarised beforehand are only shuffled
    assert all(torch.equal(x.sum(0), once[0].sum(0)) for x in once)
    assert not torch.equal(once[0], once[1])
