"""Sums and extremes over component scores of any family, without holding all pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

#: (point, component) pairs that are held at once.
PAIRS = 1 << 21
#: Components in one block of them.
COLUMNS = 8192


class Scores(Protocol):
    """Anything that evaluates log w_n + log q_n(z) for a range of components."""

    size: int

    def rows(self) -> Iterator[slice]:
        """The components in blocks."""

    def scores(self, z: Tensor, rows: slice) -> Tensor:
        """Shape ``(B, n)``."""


def top_scores(components: Scores, z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of log w_n + log q_n(z) for every point, largest first.

    Args:
        components: N of them, with `scores`.
        z: points, shape ``(B, ...)``.
        k: how many.

    Returns:
        component numbers and values, shape ``(B, k)``.
    """
    columns = min(components.size, max(k, COLUMNS))
    found = [_top(components, part, k, columns) for part in z.split(max(1, PAIRS // columns))]
    index, value = zip(*found, strict=True)
    return torch.cat(index), torch.cat(value)


def _top(components: Scores, z: Tensor, k: int, columns: int) -> tuple[Tensor, Tensor]:
    index, value = None, None
    for start in range(0, components.size, columns):
        scores = components.scores(z, slice(start, min(start + columns, components.size)))
        best = scores.topk(min(k, scores.shape[-1]))
        number = best.indices + start
        if index is None or value is None:
            index, value = number, best.values
            continue
        merged = torch.cat([value, best.values], -1)
        value, position = merged.topk(min(k, merged.shape[-1]))
        index = torch.cat([index, number], -1).gather(-1, position)
    if index is None or value is None:
        raise ValueError("expected at least one component; got none.")
    return index, value


def total_scores(
    components: Scores, z: Tensor, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of log w_n + log q_n(z) over n, and its mean under the responsibilities.

    Args:
        components: N of them, with `scores`.
        z: points, shape ``(B, ...)``.
        exclude: for each point a component to leave out, shape ``(B,)``.

    Returns:
        both of shape ``(B,)``.
    """
    total = torch.full((len(z),), -math.inf, device=z.device)
    expected = torch.zeros_like(total)
    for rows in components.rows():
        scores = components.scores(z, rows)
        if exclude is not None:
            number = torch.arange(rows.start, rows.stop, device=z.device)
            scores = scores.masked_fill(number == exclude.unsqueeze(-1), -math.inf)
        merged = torch.logaddexp(total.to(scores.dtype), scores.logsumexp(-1))
        share = (scores - merged.unsqueeze(-1)).exp()
        kept = torch.where(total > -math.inf, (total - merged).exp() * expected, 0.0)
        expected = kept + torch.where(share > 0, share * scores, 0.0).sum(-1)
        total = merged
    return total, expected
