"""Stochastic variational inference on any Pyro pair.

``fit`` trains by minibatches with early stopping, and with checkpoints from which a killed run
goes on as if it had never stopped. The pair is trained in place, in its modules and in the
parameter store alike. Start with ``fit.py``; ``loop.py`` has the epochs and steps.
"""

from pyrovae.training.checks import check_device
from pyrovae.training.fit import adam, fit
from pyrovae.training.history import Fit, History
from pyrovae.training.objectives import elbo

__all__ = [
    "Fit",
    "History",
    "adam",
    "check_device",
    "elbo",
    "fit",
]
