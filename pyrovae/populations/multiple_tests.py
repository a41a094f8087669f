"""p-values of many tests, adjusted for the rate of false discoveries among what is found."""

from __future__ import annotations

from typing import Literal

import torch
from scipy.stats import false_discovery_control
from torch import Tensor

from pyrovae.errors import InputError

Control = Literal["bh", "by"]


def check_control(level: float, control: Control) -> None:
    """Raise unless a false discovery rate lies between 0 and 1, and its control is known."""
    if not 0 < level < 1:
        raise InputError(f"expected a false discovery rate between 0 and 1; got level={level}.")
    if control not in ("bh", "by"):
        raise InputError(f"expected control 'bh' or 'by'; got {control!r}.")


def q_values(p_value: Tensor, control: Control) -> Tensor:
    """The smallest false discovery rate at which each test is found, shape of ``p_value``.

    Args:
        p_value: of each test, shape ``(M,)``.
        control: ``"bh"``, Benjamini & Hochberg 1995, for independent or positively dependent
            p-values; ``"by"``, Benjamini & Yekutieli 2001, for any.
    """
    return torch.from_numpy(false_discovery_control(p_value.numpy(), method=control))
