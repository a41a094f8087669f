"""Sums of parts merge into the sum of all, whatever the parts hold."""

from __future__ import annotations

import math

import torch

from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals
from pyrovae.mixture.kernel.group_sums import Sum
from pyrovae.mixture.kernel.parts import position_in


def of(scores: torch.Tensor) -> Sum:
    total = Sum(len(scores), 0, moments=True, device=scores.device)
    total.add_scores(scores)
    return total


def test_merged_sums_and_entropies_are_those_of_all_scores() -> None:
    scores = 30 * torch.randn(40, 9)
    scores[0] = -1e6 + torch.randn(9)
    scores[1, :4] = -math.inf  # a part without any
    total = Sum(40, 0, moments=True, device=scores.device)
    for part in scores.split(4, 1):
        total.merge(of(part))
    log_sum, _, entropy = total.result()
    share = scores.softmax(1)
    torch.testing.assert_close(log_sum, scores.logsumexp(1), rtol=1e-14, atol=1e-12)
    expected = -torch.where(share > 0, share * share.log(), 0.0).sum(1)
    torch.testing.assert_close(entropy, expected, rtol=1e-9, atol=1e-9)


def test_components_are_found_where_a_part_has_put_them() -> None:
    loc, log_weight = torch.randn(3000, 2), torch.zeros(3000)
    log_weight[5] = -math.inf
    part = DiagonalNormals(loc, torch.ones_like(loc), log_weight)  # reorders them
    number = torch.tensor([99, 100, 105, 3099, 3100])
    position = position_in(part, 100, number)
    assert position[[0, 2, 4]].tolist() == [-1, -1, -1]  # before, without weight, after
    assert torch.equal(part.loc[position[[1, 3]]], loc[[0, 2999]])
