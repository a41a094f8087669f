"""Results of Pyro as ArviZ data.

The groups are those of ArviZ's schema, with the user's own names of sites, rows and units. Which
version of ArviZ is installed matters only in ``pyrovae/arviz_adapter.py``. Start with
``groups.py``, which holds the draws of a diagnosis; ``svi_and_mcmc.py`` takes any Pyro model.
"""

from pyrovae.export.groups import ExportedDraws, export_draws
from pyrovae.export.svi_and_mcmc import to_arviz

__all__ = [
    "ExportedDraws",
    "export_draws",
    "to_arviz",
]
