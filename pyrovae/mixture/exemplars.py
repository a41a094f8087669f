"""The components that explain a point best, found without holding all pairs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

#: (point, component) pairs that are held at once.
PAIRS = 1 << 21


class Scores(Protocol):
    """Anything that evaluates log w_n + log q_n(z) for a range of components."""

    size: int

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
    columns = min(components.size, max(k, 8192))
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
