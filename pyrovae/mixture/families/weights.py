"""Logarithms of weights, some of which may be zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def safe_log(weights: Tensor) -> Tensor:
    """log w, −inf where a weight is zero, which then has the gradient 0 and not NaN."""
    positive = weights > 0
    return torch.where(positive, torch.where(positive, weights, 1.0).log(), -math.inf)
