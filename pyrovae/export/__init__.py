"""What Pyro inferred, as ArviZ data.

The groups are those of ArviZ's schema, under the user's own names of sites, rows and units.
ArviZ's two dialects are told apart in ``pyrovae/arviz_adapter.py`` alone. Start with
``groups.py``.
"""

from pyrovae.export.groups import Labelled, label

__all__ = [
    "Labelled",
    "label",
]
