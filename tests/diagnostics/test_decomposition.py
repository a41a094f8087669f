"""The terms of the ELBO of a trained model, against two computations that share no code with it."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import pyrovae as pv
from pyrovae.data.datasets import load
from pyrovae.diagnostics.draws import Codes, draw_codes
from pyrovae.diagnostics.elbo_terms import Surgery, surgery

TERMS = ("rate", "index_code_mi", "marginal_kl", "total_correlation", "dimension_wise_kl")


@pytest.fixture(scope="module")
def trained() -> tuple[Tensor, Tensor, Codes, Surgery]:
    """Means, scales, codes and terms of a VAE with two units, trained on 120 digits."""
    dtype = torch.get_default_dtype()  # a fixture of a module is made before those of its tests
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x = load("digits").values[:120].round().double()
    vae = pv.VAE(
        pv.mlp_encoder((8, 8), 2, hidden=(32,)),
        pv.mlp_decoder(2, (8, 8), hidden=(32,)),
        pv.StandardNormal(2),
    ).double()
    pv.fit(vae.model, vae.guide, x, epochs=100, batch_size=20, progress=False)
    agg = pv.aggregate(vae.guide, x)
    codes = draw_codes(agg.encoding, size=10**6)
    prior = vae.prior()
    result = surgery(codes, torch.zeros_like(codes.log_guide), agg, prior)
    torch.set_default_dtype(dtype)
    return agg.encoding.mean, agg.encoding.stddev, codes, result


def test_brute_force_at_the_same_codes(trained: tuple[Tensor, Tensor, Codes, Surgery]) -> None:
    loc, scale, codes, result = trained
    log_n = math.log(len(loc))
    units = Normal(loc, scale).log_prob(codes.z.unsqueeze(-2))  # (m, S, N, D)
    log_q = units.sum(-1).logsumexp(-1) - log_n
    log_units = (units.logsumexp(-2) - log_n).sum(-1)
    log_p = Normal(0.0, 1.0).log_prob(codes.z).sum(-1)
    own = Normal(loc[:, None], scale[:, None]).log_prob(codes.z).sum(-1)
    expected = (own - log_p, own - log_q, log_q - log_p, log_q - log_units, log_units - log_p)
    for name, values in zip(TERMS, expected, strict=True):
        assert getattr(result, name).value == pytest.approx(float(values.mean()), abs=1e-8)
    assert result.index_code_mi.value > 1.0  # it was trained: codes tell data points apart


def test_integration_over_the_plane(trained: tuple[Tensor, Tensor, Codes, Surgery]) -> None:
    loc, scale, _, result = trained
    axis = torch.linspace(-8, 8, 1001)
    step = float(axis[1] - axis[0])
    density = Normal(loc.T.unsqueeze(-1), scale.T.unsqueeze(-1)).log_prob(axis).exp()  # (D, N, G)
    joint = torch.einsum("na,nb->ab", density[0], density[1]) / len(loc)
    assert float(joint.sum()) * step**2 == pytest.approx(1.0, abs=1e-6)
    log_p = Normal(0.0, 1.0).log_prob(axis)
    log_units = density.mean(1).clamp_min(1e-300).log()
    log_q = joint.clamp_min(1e-300).log()

    def mean(values: Tensor) -> float:
        return float((joint * values).sum()) * step**2

    entropy = float((0.5 * math.log(2 * math.pi * math.e) + scale.log()).sum(1).mean())
    rate = float((0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum(1).mean())
    factors = log_units[0][:, None] + log_units[1]
    exact = {
        "rate": rate,
        "index_code_mi": -mean(log_q) - entropy,
        "marginal_kl": mean(log_q - log_p[:, None] - log_p),
        "total_correlation": mean(log_q - factors),
        "dimension_wise_kl": mean(factors - log_p[:, None] - log_p),
    }
    for name, value in exact.items():
        estimate = getattr(result, name)
        assert estimate.value == pytest.approx(value, abs=4 * estimate.standard_error)
