"""Logarithms of weights, some of which may be zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def safe_log(weights: Tensor) -> Tensor:
    """log w; where a weight is zero it is −inf, with gradient 0 instead of NaN."""
    positive = weights > 0
    return torch.where(positive, torch.where(positive, weights, 1.0).log(), -math.inf)
