"""Mixtures of torch and Pyro as this library's."""

from __future__ import annotations

import torch

from pyrovae.errors import InputError
from pyrovae.mixture.mixture import Mixture


def as_mixture(mixture: torch.distributions.MixtureSameFamily) -> Mixture:
    """The same weights and components as a `Mixture`; one stays what it is.

    Raises:
        InputError: for something else than a mixture of one family, or a batch of mixtures.
    """
    if isinstance(mixture, Mixture):
        return mixture
    if not isinstance(mixture, torch.distributions.MixtureSameFamily):
        raise InputError(
            "expected a mixture: a MixtureSameFamily, or what pyrovae.aggregate returns; got "
            f"{type(mixture).__name__}. Put components and weights into one."
        )
    return Mixture(mixture.mixture_distribution, mixture.component_distribution)
