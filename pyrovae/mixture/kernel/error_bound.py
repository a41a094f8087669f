r"""The bound on the rounding error of scores that are computed as scalar products.

For every block of components n and every query q, with F features,

.. math:: η = γ \sum_f |q_f| \max_n |k_{nf}|, \qquad γ = (F + 8) u

in any order of summation; u is the unit roundoff. An error η in a block changes the log density by
at most the block's share times (e^η - 1). Blocks for which that matters are evaluated again, first
in float64 and then, where even that cancels, from the differences (z - μ_n)/σ_n, which do not.
docs/explanations/mixture.md has the proof.
"""

from __future__ import annotations

import torch


def roundoff(features: int, dtype: torch.dtype) -> float:
    """γ: the relative error of a scalar product of rounded vectors, in any order of summation."""
    return (features + 8) * torch.finfo(dtype).eps / 2
