"""What an aggregated posterior says of the populations that rows come from.

``compare_groups`` says where the codes of two groups lie apart, with errors over replicates, not
over rows: donors, plates or days; ``novelty`` says which new rows are unlike the data;
``memorisation`` which training rows a model knows by heart, by training without them, and
``memorisation_screen`` which ones are on their own among the codes. All but the refits take
encodings of any framework, or a pair. Start with ``groups.py``: the density of each replicate is in
``replicates.py``, what is computed of two groups of replicates, and permuted, in ``contrast.py``;
p-values by rank are in ``conformal.py``, and how well a score tells two kinds of rows apart in
``ranking.py``.
"""

from pyrovae.populations.conformal import conformal
from pyrovae.populations.groups import GroupComparison, GroupContrast, compare_groups
from pyrovae.populations.novel_rows import Novelty, novelty, ranked
from pyrovae.populations.ranking import auroc
from pyrovae.populations.refits import RefitMemorisation, memorisation
from pyrovae.populations.screen import MemorisationScreen, memorisation_screen

__all__ = [
    "GroupComparison",
    "GroupContrast",
    "MemorisationScreen",
    "Novelty",
    "RefitMemorisation",
    "auroc",
    "compare_groups",
    "conformal",
    "memorisation",
    "memorisation_screen",
    "novelty",
    "ranked",
]
