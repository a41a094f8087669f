"""Run folders: what an analysis leaves behind, to go on with in Python or from the shell.

``load_run`` reads one as a ``Run``, which samples, encodes, decodes and scores in the units of the
data. ``finish`` writes one, ``run.toml`` last, so that a folder without it is not finished.
``recipe.py`` is how a VAE of the command line is built, and ``foreign_pair.py`` how a pair of the
user's own is found. Start with ``run.py``.
"""

from pyrovae.runs.compare import Comparison, compare
from pyrovae.runs.folder import (
    FILES,
    Outcome,
    as_in_file,
    codes_table,
    finish,
    named_rows,
    recommended_source,
    unfinish,
    write_array,
)
from pyrovae.runs.foreign_pair import OwnPair, PairOptions, make_pair
from pyrovae.runs.imputation import Imputation
from pyrovae.runs.manifest import NAME, digest_of_data, read
from pyrovae.runs.recipe import (
    COMPONENTS,
    NETWORKS,
    NOISES,
    PRIORS,
    Recipe,
    build,
    in_words,
    location_and_scale,
    table_recipe,
)
from pyrovae.runs.run import SOURCES, Run, colouring, load_run
from pyrovae.runs.scores import Scores

__all__ = [
    "COMPONENTS",
    "FILES",
    "NAME",
    "NETWORKS",
    "NOISES",
    "PRIORS",
    "SOURCES",
    "Comparison",
    "Imputation",
    "Outcome",
    "OwnPair",
    "PairOptions",
    "Recipe",
    "Run",
    "Scores",
    "as_in_file",
    "build",
    "codes_table",
    "colouring",
    "compare",
    "digest_of_data",
    "finish",
    "in_words",
    "load_run",
    "location_and_scale",
    "make_pair",
    "named_rows",
    "read",
    "recommended_source",
    "table_recipe",
    "unfinish",
    "write_array",
]
