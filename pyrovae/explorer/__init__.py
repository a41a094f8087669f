"""A run as one page to point into: its codes, densities and decoder, for a browser without network.

``explore`` writes it. ``decoders.py`` says what a decoder computes as a list of steps that the page
can take, ``densities.py`` what a density over codes is, ``arrays.py`` how numbers are packed.
``source/`` has the page's own program, which ``make assets`` bundles into ``assets/``. Start with
``page.py``.
"""

from pyrovae.explorer.page import NAME, explore

__all__ = ["NAME", "explore"]
