"""log p(x) of any pair, datum by datum, and how far it can be trusted.

``log_evidence`` estimates it by importance weighting or annealing, with k̂ for each datum, and
``sandwich`` bounds it from both sides on simulated data. k̂ and all that is concluded from it are
in ``result.py``. Start with ``log_evidence.py``.
"""

from pyrovae.evidence.annealed import Annealing, path_for
from pyrovae.evidence.hmc import Path
from pyrovae.evidence.importance import (
    BLOCK,
    compare_priors,
    left_out,
    log_joint_of_draws,
    weighted_draws,
)
from pyrovae.evidence.log_evidence import log_evidence
from pyrovae.evidence.result import Evidence, smooth, summarise
from pyrovae.evidence.sandwich import Sandwich, sandwich

__all__ = [
    "BLOCK",
    "Annealing",
    "Evidence",
    "Path",
    "Sandwich",
    "compare_priors",
    "left_out",
    "log_evidence",
    "log_joint_of_draws",
    "path_for",
    "sandwich",
    "smooth",
    "summarise",
    "weighted_draws",
]
