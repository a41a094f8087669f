"""How the density of a large mixture is computed: the fused pass, its bound, its gradients.

The score of every component is a scalar product. A search in float32 finds the groups of components
that can matter, and these are summed in float64. The proved bound on the error is in
``error_bound.py``. Start with ``search.py``, which runs the pass;
docs/explanations/mixture.md has the derivation.
"""

from pyrovae.mixture.kernel.diagonal_normals import DiagonalNormals
from pyrovae.mixture.kernel.group_sums import Sum
from pyrovae.mixture.kernel.parts import NormalsInParts
from pyrovae.mixture.kernel.scalar_product import (
    constants,
    full_keys,
    full_queries,
    keys,
    queries,
)

__all__ = [
    "DiagonalNormals",
    "NormalsInParts",
    "Sum",
    "constants",
    "full_keys",
    "full_queries",
    "keys",
    "queries",
]
