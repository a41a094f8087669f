"""Sums of affinities against all pairs: never too small, too large by no more than stated."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyrovae.mixture.kernel import bhattacharyya, diagonal_normals
from pyrovae.mixture.kernel.bhattacharyya import NEGLECTED, log_affinities
from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals


def all_pairs(normals: DiagonalNormals, index: Tensor) -> Tensor:
    """The definition, in float64."""
    loc, scale, log_weight = (
        normals.loc.double(),
        normals.scale.double(),
        normals.log_weight.double(),
    )
    both = scale[index].square().unsqueeze(1) + scale.square()
    square = (loc[index].unsqueeze(1) - loc).square() / both / 4
    distance = square + 0.5 * (both / (2 * scale[index].unsqueeze(1) * scale)).log()
    return (log_weight - distance.sum(-1)).logsumexp(-1)


@st.composite
def sets(draw: st.DrawFn) -> DiagonalNormals:
    """Scales from 1e-6 to 1e3, near and far, with duplicates, weights of zero and tiny ones."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, dim = draw(st.sampled_from([1, 5, 30, 70])), draw(st.integers(1, 6))
    low, high = sorted(draw(st.tuples(*[st.floats(-6, 3)] * 2)))
    offset, spread = draw(st.sampled_from([0.0, 1.0, 1e3])), 10 ** draw(st.floats(-6, 3))
    loc = offset + spread * torch.randn(n, dim, generator=generator)
    scale = 10 ** (low + (high - low) * torch.rand(n, dim, generator=generator))
    if draw(st.booleans()):
        loc[n // 2 :], scale[n // 2 :] = loc[0].clone(), scale[0].clone()
    logits = torch.randn(n, generator=generator) * draw(st.sampled_from([0.0, 1.0, 10.0]))
    if draw(st.booleans()):
        logits[1::3] = -math.inf
    return DiagonalNormals(loc, scale, logits.log_softmax(-1))


@pytest.mark.parametrize("sparse", [1.0, -1.0], ids=["near", "all"])
@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_sums_are_those_of_all_pairs_or_a_little_more(sparse: float, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagonal_normals, "GROUP", 4)
        patch.setattr(diagonal_normals, "SORTED_GROUPS", 2)
        patch.setattr(bhattacharyya, "SORTED_GROUPS", 0)
        patch.setattr(bhattacharyya, "SPARSE", sparse)
        patch.setattr(bhattacharyya, "ROWS", 8)
        patch.setattr(bhattacharyya, "TRIPLES", 24)
        normals = data.draw(sets())
        index = torch.arange(normals.size).repeat(2)[: normals.size + 1]
        actual = log_affinities(normals, index)
    excess = actual - all_pairs(normals, index)
    rounding = 1e-12 * (
        1 + normals.log_weight[index].abs() + normals.scale.log().abs().sum(-1).amax()
    )
    assert (excess >= -rounding).all()
    assert (excess <= NEGLECTED + rounding).all()


@pytest.mark.float32
def test_few_pairs_of_narrow_components_are_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, at realistic sizes; with imprecise matrix products the search is in float64."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(3000, 20, generator=generator)
    scale = 0.05 + 0.25 * torch.rand(3000, 20, generator=generator)
    normals = DiagonalNormals(loc, scale, torch.full((3000,), -math.log(3000)))
    index = torch.arange(0, 3000, 30)
    expected = all_pairs(normals, index)
    monkeypatch.setattr(bhattacharyya, "_sum_all", None)  # must not be called
    for precision in ("highest", "medium"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda p=precision: p)
        torch.testing.assert_close(log_affinities(normals, index), expected, rtol=0, atol=1e-5)
    near = torch.stack([bhattacharyya._near(normals, index, group) for group in range(3)])
    assert 0 < near.double().mean() < 0.05
