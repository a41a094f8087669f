"""Stochastic variational inference on any Pyro pair.

``fit`` trains on minibatches, with early stopping and with checkpoints from which a killed run
resumes as if it had never stopped, and with the mean of the parameters over all steps of some
more epochs if asked. The pair is trained in place, both its modules and its
parameters in Pyro's store. Start with ``fit.py``; ``loop.py`` has the epochs and steps, and
``distributed.py`` what several processes exchange.
"""

from pyrovae.training.checks import OptimizerFactory, check_device
from pyrovae.training.distributed import processes_started
from pyrovae.training.fit import adam, fit
from pyrovae.training.history import Fit, History
from pyrovae.training.objectives import elbo

__all__ = [
    "Fit",
    "History",
    "OptimizerFactory",
    "adam",
    "check_device",
    "elbo",
    "fit",
    "processes_started",
]
