"""How the density of a large mixture is computed: the fused pass, its bound, its gradients.

The scores of all components are one scalar product, searched in float32 for the groups that can
matter, which are then summed in float64. The proved bound on the error is in
``scalar_product.py``. Start with ``search.py``, which runs the pass; docs/mixture.md has the
derivation.
"""

from pyrovae.mixture.kernel.scalar_product import constants, keys, queries

__all__ = [
    "constants",
    "keys",
    "queries",
]
