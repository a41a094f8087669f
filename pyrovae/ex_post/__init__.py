"""Densities fitted to the aggregated posterior after training, to use in the prior's place.

``fit_ex_post_prior`` tries inflated, reduced and flow densities and returns the simplest of those
under which held-out codes are most likely. ``ExPostPrior.in_model`` puts it into any model.
Start with ``selection.py``; the candidates are in ``candidates.py``.
"""

from pyrovae.ex_post.candidates import Flow, Inflated, InflatedByUnit, Reduced
from pyrovae.ex_post.selection import Candidate, ExPostPrior, fit_ex_post_prior

__all__ = [
    "Candidate",
    "ExPostPrior",
    "Flow",
    "Inflated",
    "InflatedByUnit",
    "Reduced",
    "fit_ex_post_prior",
]
