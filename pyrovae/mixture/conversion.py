"""Turn mixtures of torch and Pyro into `Mixture`."""

from __future__ import annotations

import torch

from pyrovae.errors import InputError
from pyrovae.mixture.mixture import Mixture


def as_mixture(mixture: torch.distributions.MixtureSameFamily) -> Mixture:
    """A mixture of torch or Pyro as a `Mixture`; a `Mixture` is returned as it is.

    Raises:
        InputError: if it is not a ``MixtureSameFamily``, or a batch of several.
    """
    if isinstance(mixture, Mixture):
        return mixture
    if not isinstance(mixture, torch.distributions.MixtureSameFamily):
        raise InputError(
            "expected a mixture: a MixtureSameFamily, or what pyrovae.aggregate returns; got "
            f"{type(mixture).__name__}. Build one from your components and weights."
        )
    return Mixture(mixture.mixture_distribution, mixture.component_distribution)
