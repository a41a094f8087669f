"""What an aggregated posterior says of the populations that rows come from.

``compare_groups`` says where the codes of two groups lie apart, with errors over replicates, not
over rows: donors, plates or days; ``novelty`` says which new rows are unlike the data. Both need
encodings only, of any framework, or a pair. Start with ``groups.py``: the density of each replicate
is in ``replicates.py``, what is computed of two groups of replicates, and permuted, in
``contrast.py``; p-values by rank are in ``conformal.py``.
"""

from pyrovae.populations.conformal import conformal
from pyrovae.populations.groups import GroupComparison, GroupContrast, compare_groups
from pyrovae.populations.novel_rows import Novelty, novelty

__all__ = [
    "GroupComparison",
    "GroupContrast",
    "Novelty",
    "compare_groups",
    "conformal",
    "novelty",
]
