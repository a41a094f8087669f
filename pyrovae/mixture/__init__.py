"""Large finite mixtures as distributions: their density, draws, views, entropies and reductions.

``Mixture`` is a ``MixtureSameFamily`` with a fast, exact density, and ``AggregatedPosterior`` is
the mixture of a guide's distributions over a data set. Nothing here knows a model, a guide or a
Pyro statement. Start with ``mixture.py``. The fast evaluation is in ``kernel/``; taking components
apart and rebuilding them is in ``families/``.
"""

from pyrovae.mixture.aggregated import AggregatedPosterior
from pyrovae.mixture.by_label import ClassMeans
from pyrovae.mixture.divergence import (
    Bounds,
    divergence,
    entropy,
    entropy_bounds,
    variational_divergence,
)
from pyrovae.mixture.kernel.component_scores import Responsibilities
from pyrovae.mixture.kernel.support import no_numbers
from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.reduction import Reduction, fewer_components, reduce

__all__ = [
    "AggregatedPosterior",
    "Bounds",
    "ClassMeans",
    "Mixture",
    "Reduction",
    "Responsibilities",
    "divergence",
    "entropy",
    "entropy_bounds",
    "fewer_components",
    "no_numbers",
    "reduce",
    "variational_divergence",
]
