"""`log_prob` and `score` against float64 brute force, in every regime of scales and points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyrovae.mixture.kernel import diagonal_normals, gradients, search
from pyrovae.mixture.kernel.attention import block_log_sum_exp, fallback_log_sum_exp, shares
from pyrovae.mixture.mixture import Mixture

CONTRACT = 1e-4


@dataclass(frozen=True)
class Case:
    mixture: Mixture
    z: Tensor


def brute_force(mixture: Mixture) -> torch.distributions.MixtureSameFamily:
    """torch's own mixture of the same numbers in float64."""
    normal = mixture.component_distribution.base_dist
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=mixture.log_weights.double()),
        torch.distributions.Independent(
            torch.distributions.Normal(normal.loc.double(), normal.scale.double()), 1
        ),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    n, dim = draw(st.sampled_from([1, 2, 7, 16, 40])), draw(st.integers(1, 5))
    low, high = sorted(draw(st.tuples(*[st.floats(-6, 3)] * 2)))
    offset, spread = draw(st.sampled_from([0.0, 1.0, 1e3])), 10 ** draw(st.floats(-6, 3))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    loc = offset + spread * normal(n, dim)
    exponent = low + (high - low) * torch.rand(n, dim, generator=generator, dtype=torch.float64)
    scale = 10**exponent
    if draw(st.booleans()):  # duplicates
        loc[n // 2 :], scale[n // 2 :] = loc[0].clone(), scale[0].clone()
    if draw(st.booleans()):  # a collapsed unit
        loc[:, 0], scale[:, 0] = 0.0, 1.0
    logits = normal(n) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    if draw(st.booleans()):
        logits[1::3] = -math.inf
    near = draw(st.sampled_from([0.0, 1.0, 10.0]))
    chosen = torch.randint(n, (6,), generator=generator)
    far = 10 ** draw(st.floats(0, 4)) * normal(3, dim)
    z = torch.cat([loc[chosen] + near * scale[chosen] * normal(6, dim), far])
    components = dist.Normal(loc.to(dtype), scale.to(dtype)).to_event(1)
    return Case(Mixture(dist.Categorical(logits=logits.to(dtype)), components), z.to(dtype))


@pytest.mark.parametrize("way", ["dense", "searched", "everything"])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=cases())
def test_log_prob_keeps_its_contract(way: str, case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "FEW_TRIPLES", 0)
        patch.setattr(gradients, "DENSE_PAIRS", 1 << 20 if way == "dense" else 0)
        patch.setattr(diagonal_normals, "GROUP", 4)
        patch.setattr(diagonal_normals, "SORTED_GROUPS", 2)
        patch.setattr(search, "BLOCK", 8)
        patch.setattr(search, "PROBE", 3)
        patch.setattr(search, "SPREAD", 1.0 if way == "searched" else -1.0)
        actual = case.mixture.log_prob(case.z)
    exact = brute_force(case.mixture).log_prob(case.z.double())
    # rounding of the result to its dtype, and of the brute force, which sums D rounded squares
    rounding = (torch.finfo(case.z.dtype).eps + 1e-15 * (case.z.shape[-1] + 8)) * exact.abs()
    tolerance = CONTRACT if case.z.dtype == torch.float32 else 1e-8
    assert actual.dtype == case.z.dtype
    assert ((actual.double() - exact).abs() <= tolerance + rounding).all()


@pytest.mark.parametrize("way", ["dense", "searched", "everything"])
@settings(max_examples=200, deadline=None, derandomize=True)
@given(case=cases())
def test_score_is_the_gradient_of_brute_force(way: str, case: Case) -> None:
    """Within the accuracy of the responsibilities, times the largest component score."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagonal_normals, "GROUP", 4)
        patch.setattr(diagonal_normals, "SORTED_GROUPS", 2)
        patch.setattr(gradients, "FEW_TRIPLES", 0)
        patch.setattr(gradients, "DENSE_PAIRS", 1 << 20 if way == "dense" else 0)
        patch.setattr(search, "SPREAD", 1.0 if way == "searched" else -1.0)
        actual = case.mixture.score(case.z).double()
    normal = case.mixture.component_distribution.base_dist
    z = case.z.double().unsqueeze(1)
    pull = (normal.loc.double() - z) / normal.scale.double().square()
    # not by autograd through logsumexp, whose softmax is off by the rounding of the log density
    log_prob = brute_force(case.mixture).component_distribution.log_prob(z)
    share = (log_prob + case.mixture.log_weights.double()).softmax(-1)
    exact = (share.unsqueeze(-1) * pull).sum(1)
    largest = torch.where(share.unsqueeze(-1) > 0, pull, 0.0).abs().amax(1)
    precise = case.z.dtype == torch.float64
    # rounding of the terms pμ and pz, whose difference the expanded form takes
    terms = (normal.loc.double().abs() + z.abs()) / normal.scale.double().square()
    rounding = 1e-14 * torch.where(share.unsqueeze(-1) > 0, terms, 0.0).amax(1)
    tolerance = (1e-7 if precise else CONTRACT) * largest + rounding + 1e-12
    assert ((actual - exact).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_private_operator_and_public_fallback_agree(dtype: torch.dtype) -> None:
    query, key = torch.randn(37, 9, dtype=dtype), torch.randn(5, 130, 9, dtype=dtype)
    for private, public in zip(
        block_log_sum_exp(query, key), fallback_log_sum_exp(query, key), strict=True
    ):
        torch.testing.assert_close(private, public)


def test_shares_are_those_of_torch() -> None:
    scores = torch.randn(7, 5) * 10.0 ** torch.arange(-2, 5).unsqueeze(-1)
    scores[0, :4], scores[1, 2:] = scores[0, 4], -math.inf
    scores.requires_grad_()
    log_sum, share = shares(scores)
    torch.testing.assert_close(log_sum, scores.logsumexp(-1))
    torch.testing.assert_close(share, scores.softmax(-1))
    (slope,) = torch.autograd.grad(log_sum.sum(), scores)
    torch.testing.assert_close(slope, share)
    finite = scores.detach()[2:5].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: shares(x)[0], finite)
    assert (shares(torch.full((2, 3), -math.inf))[0] == -math.inf).all()


def test_no_points_have_no_densities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The private operator would crash the process."""
    components = dist.Normal(torch.randn(20, 2), 0.1).to_event(1)
    mixture = Mixture(dist.Categorical(torch.ones(20)), components, validate_args=False)
    none = torch.zeros(3, 0, 2)
    for pairs in (0, 1 << 20):
        monkeypatch.setattr(gradients, "DENSE_PAIRS", pairs)
        assert mixture.log_prob(none).shape == (3, 0)
    assert mixture.score(none).shape == (3, 0, 2)
    assert mixture.effective_components(none).shape == (3, 0)
    assert mixture.responsibilities(none, top=2).index.shape == (3, 0, 2)
    assert mixture.sample((0,)).shape == (0, 2)


@pytest.mark.parametrize("size", [1, 60_000])
@pytest.mark.parametrize("exponent", [-3, -1, 1])
def test_sizes_and_scales_of_practice(size: int, exponent: int) -> None:
    loc = torch.randn(size, 40, dtype=torch.float32)
    scale = 10.0**exponent * (0.5 + torch.rand(size, 40, dtype=torch.float32))
    mixture = Mixture(
        dist.Categorical(logits=torch.zeros(size, dtype=torch.float32)),
        dist.Normal(loc, scale).to_event(1),
    )
    z = torch.cat([mixture.sample((6,)), torch.randn(3, 40, dtype=torch.float32), loc[:1]])
    exact = torch.cat([brute_force(mixture).log_prob(row) for row in z.double().split(1)])
    actual = mixture.log_prob(z.repeat(4, 1))[:10].double()  # enough pairs for the fused path
    assert ((actual - exact).abs() <= CONTRACT + 2**-24 * exact.abs()).all()


def test_far_tail_is_finite_and_right() -> None:
    mixture = Mixture(
        dist.Categorical(logits=torch.zeros(2)),
        dist.Normal(torch.tensor([[0.0], [1.0]]), 1.0).to_event(1),
    )
    z = torch.tensor([[1e4], [-1e4], [1e8]])
    expected = -0.5 * torch.tensor([1e4 - 1, 1e4, 1e8 - 1]) ** 2 - math.log(
        2 * math.sqrt(2 * math.pi)
    )
    torch.testing.assert_close(mixture.log_prob(z), expected, rtol=1e-14, atol=1e-9)


def test_loosened_matrix_products_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may let torch compute float32 products in lower precision; the contract stands."""
    monkeypatch.setattr(gradients, "DENSE_PAIRS", 0)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    used: list[torch.dtype] = []
    original = search._Pass.search

    def noted(self: search._Pass, dtype: torch.dtype) -> Tensor:
        used.append(dtype)
        return original(self, dtype)

    monkeypatch.setattr(search._Pass, "search", noted)
    loc = torch.randn(20, 2, dtype=torch.float32)
    mixture = Mixture(
        dist.Categorical(logits=torch.zeros(20, dtype=torch.float32)),
        dist.Normal(loc, 0.1).to_event(1),
    )
    mixture.log_prob(loc)
    assert used == [torch.float64]


@pytest.mark.parametrize("exponent", [3, 9, 12, 16, 60, 140])
@pytest.mark.parametrize("size", [129, 1000])
def test_points_so_far_away_that_anything_else_looks_near(size: int, exponent: int) -> None:
    """At log densities down to −1e290, the padding of the last group must not win the search."""
    loc, scale = torch.randn(size, 40), 10 ** (-3 + torch.randn(size, 40))
    mixture = Mixture(dist.Categorical(torch.ones(size)), dist.Normal(loc, scale).to_event(1))
    z = torch.randn(3, 40) * 10.0**exponent
    expected = dist.Normal(loc, scale).to_event(1).log_prob(z.unsqueeze(1)).logsumexp(-1)
    expected = expected - math.log(size)
    points = z.repeat_interleave(1200, 0)
    for _ in range(2):
        torch.testing.assert_close(mixture.log_prob(z), expected, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(
            mixture.log_prob(points)[::1200], expected, rtol=1e-12, atol=1e-9
        )
    scores = dist.Normal(loc, scale).to_event(1).log_prob(z.unsqueeze(1))
    best = scores.max(-1).indices
    assert torch.equal(mixture.responsibilities(points, top=1).index[::1200, 0], best)
    n = best.repeat_interleave(1200, 0)
    rest = scores.scatter(1, best.unsqueeze(1), -math.inf).logsumexp(-1) - math.log(size - 1)
    actual = mixture.leave_one_out_log_prob(points, n)[::1200]
    torch.testing.assert_close(actual, rest, rtol=1e-12, atol=1e-9)
