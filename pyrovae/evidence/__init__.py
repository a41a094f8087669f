"""log p(x) of any pair, datum by datum, and how far it can be trusted.

``log_evidence`` estimates it by importance weighting or annealing, with k̂ for each datum, and
``sandwich`` bounds it from both sides on simulated data. Where draws from the guide are not enough,
``refined.py`` weighs those from a proposal of its own for each datum, which ``tuning.py`` finds:
``target.py`` is what it has to resemble, ``modes.py`` and ``tilted.py`` are where it begins,
``full_covariance.py`` improves it, ``proposal.py`` is the density itself. Where that is not enough
either, ``proposal_path.py`` anneals from there; ``automatic.py`` decides. k̂ is computed in
``pareto_k.py``, and what is concluded from it stands in ``result.py``. Start with
``log_evidence.py``.
"""

from pyrovae.evidence.annealed import Annealing, path_for
from pyrovae.evidence.automatic import automatic_evidence
from pyrovae.evidence.hmc import Path
from pyrovae.evidence.importance import (
    BLOCK,
    as_density,
    compare_priors,
    latent_units,
    left_out,
    weighted_draws,
)
from pyrovae.evidence.log_evidence import log_evidence
from pyrovae.evidence.pareto_k import k_limit, smooth
from pyrovae.evidence.refined import proposal_for, refined_evidence
from pyrovae.evidence.result import Evidence, join, paired, summarise
from pyrovae.evidence.sandwich import Sandwich, sandwich

__all__ = [
    "BLOCK",
    "Annealing",
    "Evidence",
    "Path",
    "Sandwich",
    "as_density",
    "automatic_evidence",
    "compare_priors",
    "join",
    "k_limit",
    "latent_units",
    "left_out",
    "log_evidence",
    "paired",
    "path_for",
    "proposal_for",
    "refined_evidence",
    "sandwich",
    "smooth",
    "summarise",
    "weighted_draws",
]
