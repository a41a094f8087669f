"""Recipes for networks: encoder and decoder of each recipe fit each other and the data."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.models.networks import NormalEncoder

LATENT = 3

Recipe = Callable[[tuple[int, ...], str, int | None], tuple[nn.Module, nn.Module]]


def perceptron(gated: bool) -> Recipe:
    def make(
        shape: tuple[int, ...], likelihood: str, categories: int | None
    ) -> tuple[nn.Module, nn.Module]:
        return (
            pv.mlp_encoder(shape, LATENT, hidden=(6, 5), gated=gated),
            pv.mlp_decoder(
                LATENT, shape, likelihood, hidden=(5, 6), gated=gated, categories=categories
            ),
        )

    return make


def convolutions(
    shape: tuple[int, ...], likelihood: str, categories: int | None
) -> tuple[nn.Module, nn.Module]:
    return (
        pv.conv_encoder(shape, LATENT, channels=(3, 4)),
        pv.conv_decoder(LATENT, shape, likelihood, channels=(4, 3), categories=categories),
    )


RECIPES: dict[str, Recipe] = {
    "plain": perceptron(gated=False),
    "gated": perceptron(gated=True),
    "convolutions": convolutions,
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "shape", [(28, 28), (28, 20), (8, 8), (3, 32, 32), (2, 5, 7), (1, 1, 1), (1, 9)]
)
def test_networks_fit_rows_of_any_size(recipe: str, shape: tuple[int, ...]) -> None:
    encoder, decoder = RECIPES[recipe](shape, "bernoulli", None)
    q = encoder(torch.rand(4, *shape))
    assert (q.batch_shape, q.event_shape) == ((4,), (LATENT,))
    p = decoder(q.rsample())
    assert (p.batch_shape, p.event_shape) == ((4,), shape)
    assert decoder(torch.randn(2, 4, LATENT)).batch_shape == (2, 4)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("likelihood", "categories"), [("logistic", None), ("categorical", 3)])
def test_outputs_of_an_entry_stay_together(
    recipe: str, likelihood: str, categories: int | None
) -> None:
    shape, count = (2, 4, 5), categories or 2
    _, decoder = RECIPES[recipe](shape, likelihood, categories)
    outputs = decoder.network(torch.randn(6, LATENT))
    assert outputs.shape == (6, 40 * count)
    if recipe == "convolutions":
        # Channel c · count + k of the last layer is output k of channel c.
        images = decoder.network.network(z := torch.randn(6, LATENT))
        by_entry = decoder.network(z).view(6, *shape, count)
        assert torch.equal(by_entry[:, 1, :, :, count - 1], images[:, 2 * count - 1])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_pair_of_each_recipe_learns(recipe: str) -> None:
    # Two patterns of 64 pixels: a pair that tells them apart needs log 2, one that doesn't 44 nats.
    torch.manual_seed(0)
    patterns = torch.rand(2, 8, 8).round()
    x = patterns[torch.arange(64) % 2]
    encoder, decoder = RECIPES[recipe]((8, 8), "bernoulli", None)
    vae = pv.VAE(encoder, decoder, pv.StandardNormal(LATENT))
    run = pv.fit(vae.model, vae.guide, x, epochs=60, batch_size=16, optimizer=pv.adam(0.03))
    assert run.history.train[-1] > -8


@pytest.mark.parametrize("shape", [(7,), (), (2, 3, 4, 5)])
def test_convolutions_need_images(shape: tuple[int, ...]) -> None:
    for make in (lambda: pv.conv_encoder(shape, 2), lambda: pv.conv_decoder(2, shape)):
        with pytest.raises(ValueError, match=r"images of shape \(H, W\)"):
            make()


def test_convolutions_need_channels() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        pv.conv_encoder((8, 8), 2, channels=())


def test_gates_are_products() -> None:
    encoder = pv.mlp_encoder((8,), LATENT, hidden=(6,), gated=True)
    assert isinstance(encoder, NormalEncoder)
    gate = encoder.network[1]
    x = torch.randn(4, 8)
    linear, weight = gate.linear.weight.chunk(2)
    a, b = gate.linear.bias.chunk(2)
    expected = (x @ linear.T + a) * (x @ weight.T + b).sigmoid()
    assert torch.allclose(gate(x), expected)


@pytest.mark.parametrize("make", [pv.mlp_decoder, pv.conv_decoder])
@pytest.mark.parametrize(
    ("likelihood", "categories", "message"),
    [
        ("poisson", None, "bernoulli, normal, categorical, logistic, negative_binomial"),
        ("categorical", None, "categories"),
        ("normal", 3, "categories"),
    ],
)
def test_bad_recipe(
    make: Callable[..., nn.Module], likelihood: str, categories: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(LATENT, (2, 4), likelihood, categories=categories)


SIZES = {
    "shape": lambda: pv.mlp_encoder(64, 4),
    "shape of a decoder": lambda: pv.mlp_decoder(4, 64),
    "shape of convolutions": lambda: pv.conv_encoder(8, 4),
    "shape and units changed places": lambda: pv.mlp_decoder((64,), 4),
    "an empty side": lambda: pv.mlp_encoder((8, 0), 4),
    "text": lambda: pv.mlp_encoder("64", 4),
    "no units": lambda: pv.mlp_encoder((64,), 0),
    "half a unit": lambda: pv.mlp_encoder((64,), 2.5),
    "one hidden size": lambda: pv.mlp_encoder((64,), 4, hidden=256),
    "a hidden size of nothing": lambda: pv.mlp_decoder(4, (64,), hidden=(8, 0)),
    "channels": lambda: pv.conv_decoder(4, (8, 8), channels=32),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_that_are_none_are_named(case: str) -> None:
    with pytest.raises(pv.InputError, match=r"whole number.*≥ 1; got"):
        SIZES[case]()


def test_sizes_may_be_numbers_of_numpy_and_shapes_of_torch() -> None:
    encoder = pv.mlp_encoder(torch.Size([6]), np.int64(2), hidden=[4])
    assert encoder(torch.zeros(3, 6)).event_shape == (2,)
    assert pv.mlp_encoder((6,), 2, hidden=())(torch.zeros(3, 6)).event_shape == (2,)
