"""Log-sum-exps of blocks of queries and keys, as in attention, without storing all scores.

This is the only file that calls an operator private to torch; `block_log_sum_exp` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Scores in memory at once where public functions do the work: on a CPU (they fit its cache), and
#: elsewhere.
CACHED_SCORES, FALLBACK_SCORES = 1 << 18, 1 << 22
#: Up to this many features, the private operator is fastest even where its means are not needed.
FEW_FEATURES = 8


def block_log_sum_exp(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log-sum-exp of the scores ⟨query, key⟩ of each block of keys, and softmax mean of its keys.

    .. math:: l_{hb} = \log \sum_m e^{⟨q_b, k_{hm}⟩}, \qquad
              v_{hb} = \sum_m e^{⟨q_b, k_{hm}⟩ - l_{hb}} k_{hm}

    On a CPU this is one call of ``aten::_scaled_dot_product_flash_attention_for_cpu`` with the
    blocks as attention heads and the keys as values: the operator streams over the keys and needs
    memory for the results only. It is private to torch; where it is missing, and on other devices,
    `fallback_log_sum_exp` does the same with public functions.

    Args:
        queries: shape ``(B, F)``, float32 or float64; must be finite.
        keys: shape ``(H, M, F)``, same dtype; must be finite.

    Returns:
        log-sum-exps, shape ``(H, B)``, and mean keys, shape ``(H, B, F)``; no gradient.
    """
    operator = _cpu_operator() if queries.device.type == "cpu" else None
    if operator is None or not queries.numel():  # the operator divides by the number of queries
        return fallback_log_sum_exp(queries, keys)
    heads = queries.detach().expand(1, len(keys), *queries.shape)
    values = keys.detach().unsqueeze(0)
    mean, log_sum_exp = operator(heads, values, values, 0.0, False, scale=1.0)
    return log_sum_exp[0], mean[0]


def fallback_log_sum_exp(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """`block_log_sum_exp` by public torch functions, on any device, in blocks of queries."""
    with torch.no_grad():
        heads, size, features = keys.shape
        log_sum_exp = queries.new_empty(heads, len(queries))
        mean = queries.new_empty(heads, len(queries), features)
        step = _rows_at_once(queries, size)
        for head, block in enumerate(keys):
            for start in range(0, len(queries), step):
                rows = slice(start, start + step)
                log_sum_exp[head, rows], share = shares(queries[rows] @ block.mT)
                mean[head, rows] = share @ block
        return log_sum_exp, mean


def block_log_sums(queries: Tensor, keys: Tensor) -> Tensor:
    """The log-sum-exps of `block_log_sum_exp` alone, shape ``(H, B)``.

    The private operator cannot skip the means. With more than a few features, public functions on
    scores that stay in the cache are faster.
    """
    if queries.shape[-1] <= FEW_FEATURES:
        return block_log_sum_exp(queries, keys)[0]
    with torch.no_grad():
        log_sum_exp = queries.new_empty(len(keys), len(queries))
        step = _rows_at_once(queries, keys.shape[1])
        for head, block in enumerate(keys):
            for start in range(0, len(queries), step):
                rows = slice(start, start + step)
                largest, log_mass, _ = peaks(queries[rows] @ block.mT)
                log_sum_exp[head, rows] = largest + log_mass
        return log_sum_exp


def shares(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and softmax over the last dimension, by one pass of exponentials; differentiable.

    Returns:
        log-sum-exps, shape ``(...)``, and shares, shape of ``scores``: NaN if all scores are −∞.
    """
    largest, log_mass, share = peaks(scores)
    return largest + log_mass, share


def peaks(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest score, the log-sum-exp relative to it, and the softmax, over the last dimension.

    The two are kept apart because next to a score like −1e20 the logarithm of a count would be
    rounded away. The largest share is e^−log_mass. ``torch.logsumexp`` is no faster, and 3 to 8
    times slower where exponentials underflow, as most do here.

    Returns:
        largest and log_mass, shape ``(...)``, and shares, shape of ``scores``: NaN if all scores
        are −∞.
    """
    share = scores.softmax(-1)
    best = scores.detach().max(-1, keepdim=True)
    largest, log_mass = scores.gather(-1, best.indices), -share.gather(-1, best.indices).log()
    log_mass = torch.where(best.values == -math.inf, 0.0, log_mass)
    return largest.squeeze(-1), log_mass.squeeze(-1), share


def _rows_at_once(queries: Tensor, size: int) -> int:
    scores = CACHED_SCORES if queries.device.type == "cpu" else FALLBACK_SCORES
    return max(1, scores // size)


def _cpu_operator() -> Callable[..., Any] | None:
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
