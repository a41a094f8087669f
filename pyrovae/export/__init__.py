"""Results of Pyro as ArviZ data.

The groups are those of ArviZ's schema, with the user's own names of sites, rows and units. Which
version of ArviZ is installed matters only in ``pyrovae/arviz_adapter.py``. Start with
``groups.py``.
"""

from pyrovae.export.groups import ExportedDraws, export_draws

__all__ = [
    "ExportedDraws",
    "export_draws",
]
