"""What an aggregated posterior says of the populations its rows come from.

``compare_groups`` says where the codes of two groups lie apart, with errors over replicates, not
over rows: donors, plates or days. It needs encodings only, of any framework. Start with
``groups.py``; the density of each replicate is in ``replicates.py``, what is computed of two groups
of replicates, and permuted, in ``contrast.py``.
"""

from pyrovae.populations.groups import GroupComparison, GroupContrast, compare_groups

__all__ = ["GroupComparison", "GroupContrast", "compare_groups"]
