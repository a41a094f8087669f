"""Padded sequences whose steps depend on each other: a deep Markov model with linear networks."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyrovae as pv
from pyrovae.evidence.annealed import Annealing
from pyrovae.pairs.pair import Pair

ROWS, STEPS = 24, 3
STEP_MASK = torch.arange(STEPS) < (torch.arange(ROWS) % STEPS + 1)[:, None]
JUNK = (7.0, 0.1)  # location and scale of what the guide adds after the end
X = 2 * torch.randn(ROWS, STEPS, generator=torch.Generator().manual_seed(0)).double()
PULL, NOISE = 0.8, 0.5


def step(style: str, name: str, fn: dist.Distribution, there: Tensor, obs: Any = None) -> Tensor:
    """A sample statement of one step, shape ``(B,)``, masked where the sequence has ended."""
    if style == "handler":
        with poutine.mask(mask=there):
            return pyro.sample(name, fn, obs=obs)
    wide = dist.Normal(fn.loc.unsqueeze(-1), fn.scale.unsqueeze(-1))
    obs = None if obs is None else obs.unsqueeze(-1)
    return pyro.sample(name, wide.mask(there.unsqueeze(-1)).to_event(1), obs=obs).squeeze(-1)


def markov_pair(style: str, junk: tuple[float, float] = JUNK) -> tuple[Any, Any]:
    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x))
            for t in range(STEPS):
                there = mask[:, t]
                z = step(style, f"z_{t}", dist.Normal(PULL * z, torch.ones_like(z)), there)
                noise = torch.full_like(z, NOISE)
                step(style, f"x_{t}", dist.Normal(z, noise), there, x[:, t])

    def guide(x: Tensor, mask: Tensor) -> None:
        """q(z_t | z_{t-1}, x_{t:T}) by the backward information filter; junk after the end."""
        precision, linear = x.new_zeros(len(x)), x.new_zeros(len(x))
        messages = []
        for t in reversed(range(STEPS)):
            linear = PULL * linear / (1 + precision) + mask[:, t] * x[:, t] / NOISE**2
            precision = PULL**2 * precision / (1 + precision) + mask[:, t] / NOISE**2
            messages.append((precision, linear))
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x))
            for t, (precision, linear) in enumerate(reversed(messages)):
                there = mask[:, t]
                loc = torch.where(there, (PULL * z + linear) / (1 + precision), z + junk[0])
                scale = torch.where(there, (1 + precision) ** -0.5, junk[1])
                z = step(style, f"z_{t}", dist.Normal(loc, scale), there)

    return model, guide


def markov_evidence(x: Tensor, mask: Tensor) -> Tensor:
    chain = torch.linalg.inv(torch.eye(STEPS) - PULL * torch.diag(torch.ones(STEPS - 1), -1))
    covariance = chain @ chain.T + NOISE**2 * torch.eye(STEPS)
    return torch.stack(
        [
            dist.MultivariateNormal(torch.zeros(n), covariance[:n, :n]).log_prob(row[:n])
            for row, n in zip(x, mask.sum(1).tolist(), strict=True)
        ]
    )


SITES = tuple(f"z_{t}" for t in range(STEPS))
each_style = pytest.mark.parametrize("style", ["handler", "method"])


@each_style
@pytest.mark.parametrize("site", ["z_0", "z_2", SITES, SITES[::-1]])
def test_padded_sequences(style: str, site: str | tuple[str, ...]) -> None:
    evidence = pv.log_evidence(*markov_pair(style), (X, STEP_MASK), site=site, draws=4)
    truth = markov_evidence(X, STEP_MASK)
    assert torch.allclose(evidence.values, truth, rtol=0, atol=1e-9)


@each_style
def test_padded_sequences_annealed(style: str) -> None:
    batch = (X[:6], STEP_MASK[:6])
    short = Annealing(temperatures=3, leapfrog=1, progress=False)
    evidence = pv.log_evidence(*markov_pair(style), batch, site=SITES, method=short, draws=30)
    assert torch.allclose(evidence.values, markov_evidence(*batch), rtol=0, atol=1e-9)


@each_style
def test_padded_sequences_as_one_code(style: str) -> None:
    model, guide = markov_pair(style)
    encoding = pv.encode(guide, (X, STEP_MASK), site=SITES, model=model, batch_size=7)
    z = encoding.sample((500,))
    # After the end the chain goes on under the prior.
    steps = z[..., 1:] - PULL * z[..., :-1]
    beyond = steps[:, ~STEP_MASK[:, 1:]]
    error = 4 / beyond.numel() ** 0.5
    assert abs(float(beyond.mean())) < error
    assert abs(float(beyond.var()) - 1) < error * 2**0.5
    # log p(x) = log p(x, z) − log q(z | x) at every code, as the guide is exact
    pair = Pair(model, guide, SITES)
    joint = sum(pair.log_joint((X, STEP_MASK), z[0]))
    truth = markov_evidence(X, STEP_MASK)
    assert torch.allclose(joint - encoding.log_prob(z[0]), truth, rtol=0, atol=1e-9)
    agg = pv.aggregate(guide, (X, STEP_MASK), site=SITES, model=model)
    by_row = encoding.log_prob(z[0].unsqueeze(1)).logsumexp(-1) - math.log(ROWS)
    assert torch.allclose(agg.log_prob(z[0]), by_row, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:(?s).*k̂:UserWarning")
def test_a_step_that_what_is_left_out_feeds_into() -> None:
    gap = torch.ones_like(STEP_MASK)
    gap[:, 1] = False
    model, guide = markov_pair("handler", (0.0, 1.0))
    with pytest.raises(pv.InputError, match=r"to have no effect on what it leaves in.*single site"):
        pv.encode(guide, (X, gap), site=SITES, model=model).sample()
    evidence = pv.log_evidence(model, guide, (X, gap), site="z_0", draws=4000)
    # the middle step is part of the chain, and unobserved
    chain = torch.linalg.inv(torch.eye(STEPS) - PULL * torch.diag(torch.ones(STEPS - 1), -1))
    covariance = (chain @ chain.T + NOISE**2 * torch.eye(STEPS))[::2, ::2]
    truth = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(X[:, ::2])
    usable = evidence.pareto_k < 0.7
    z = ((evidence.values - truth) / evidence.standard_error)[usable]
    assert len(z) > ROWS / 2
    assert z.abs().max() < 5
