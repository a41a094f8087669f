"""A classifier of (z, x) that is trained on hundreds of relabellings at the cost of one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RANDOM = 300  # cosines of random projections
MOST_PRODUCTS = 500  # of two numbers, above which the cosines alone see interactions
RELABELLINGS = 499  # so that a p-value can be as small as 1/500
PENALTY = 0.1  # of the ridge, times N: features have unit variance


@dataclass(frozen=True)
class Features:
    """Functions of a code u, in units of the guide at x, and of a summary c of x.

    What depends on x alone is no help, since both classes have the same x.

    Args:
        frequencies, phases: of the cosines.
        products: whether products of two numbers are among them.
        shift, scale: of the features, so that they are centred and of unit variance.
    """

    frequencies: Tensor
    phases: Tensor
    products: bool
    shift: Tensor
    scale: Tensor

    @classmethod
    def drawn(cls, u: Tensor, c: Tensor) -> Features:
        """Features for codes of both classes, shape ``(2N, D)``, and summaries ``(2N, C)``."""
        units, total = u.shape[1], u.shape[1] + c.shape[1]
        raw = cls(
            torch.randn(total, RANDOM, dtype=u.dtype, device=u.device) / total**0.5,
            2 * torch.pi * torch.rand(RANDOM, dtype=u.dtype, device=u.device),
            units * (units - 1) // 2 + units * c.shape[1] <= MOST_PRODUCTS,
            u.new_zeros(()), u.new_ones(()),
        )  # fmt: skip
        values = raw(u, c)
        deviation = values.std(0)
        scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        return cls(raw.frequencies, raw.phases, raw.products, values.mean(0), scale)

    def __call__(self, u: Tensor, c: Tensor) -> Tensor:
        """Features, shape ``(..., F)``."""
        waves = (torch.cat([u, c], -1) @ self.frequencies + self.phases).cos()
        parts = [u, u.square(), waves]
        if self.products:
            first, second = torch.triu_indices(u.shape[-1], u.shape[-1], 1, device=u.device)
            parts += [u[..., first] * u[..., second]]
            parts += [(u.unsqueeze(-1) * c.unsqueeze(-2)).flatten(-2)]
        return (torch.cat(parts, -1) - self.shift) / self.scale


def train(first: Tensor, second: Tensor, signs: Tensor) -> Tensor:
    """Weights of ridge classifiers that tell the second of each pair from the first.

    Args:
        first, second: features of the pairs, shape ``(N, F)``.
        signs: 1, or −1 for a pair that is exchanged, shape ``(N, H)``.

    Returns:
        one column for each relabelling, shape ``(F, H)``.
    """
    features = torch.cat([first, second])
    gram = features.T @ features
    gram.diagonal().add_(PENALTY * len(features))
    return torch.linalg.solve(gram, (second - first).T @ signs)


def exchange_test(
    first: Tensor, second: Tensor, summary: Tensor, codes: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """P-values of a local classifier test by 499 random exchanges within pairs.

    The statistic at a row is the mean square of the classifier's value, 0 where it guesses, in
    units of its mean over all exchanges.

    Args:
        first, second: true codes and draws of the guide at the same x, shape ``(N, D)``.
        summary: of that x, shape ``(N, C)``.
        codes: draws of the guide at observed rows, shape ``(K, R, D)``.
        known: summaries of these rows, shape ``(R, C)``.

    Returns:
        for each row by itself, and for all rows together by the largest statistic, each ``(R,)``.
    """
    features = Features.drawn(torch.cat([first, second]), torch.cat([summary, summary]))
    signs = 2 * torch.randint(0, 2, (len(first), RELABELLINGS + 1), device=first.device) - 1
    signs[:, 0] = 1  # as they are
    weights = train(features(first, summary), features(second, summary), signs.to(first.dtype))
    statistics = torch.stack(
        [
            (features(drawn, row.expand(len(drawn), -1)) @ weights).square().mean(0)
            for drawn, row in zip(codes.unbind(1), known, strict=True)
        ]
    )
    statistics = (statistics / statistics.mean(-1, keepdim=True)).cpu()
    largest = statistics.amax(0)
    alone = (statistics[:, 1:] >= statistics[:, :1]).sum(-1)
    together = (largest[1:] >= statistics[:, :1]).sum(-1)
    return (1.0 + alone) / (RELABELLINGS + 1), (1.0 + together) / (RELABELLINGS + 1)
