"""Any Pyro model and guide, read row by row.

A ``Pair`` answers what the measures ask: q(z | x), p(z), p(x | z), and log p(x, z) at given codes.
It runs the two functions under Pyro's handlers and leaves them as they were, so a pair needs
nothing but its ``pyro.sample`` statements. Start with ``pair.py``; ``trace_reader.py`` reads one
run and decides which plate is the data's; ``weighing.py`` draws codes with the terms of their
weights; ``refinement.py`` climbs a data point's ELBO from where the guide put it.
"""

from pyrovae.pairs.discrete_sites import DiscreteSites
from pyrovae.pairs.encoding import (
    aggregate,
    encode,
    encode_batches,
    encode_rows,
    guide_pair,
    with_row_numbers,
)
from pyrovae.pairs.guide_density import Encoded
from pyrovae.pairs.many_arguments import over_rows
from pyrovae.pairs.nested_arguments import with_arguments
from pyrovae.pairs.observed_data import observe
from pyrovae.pairs.pair import Pair
from pyrovae.pairs.position_parameters import by_place
from pyrovae.pairs.reachable_modules import (
    Variables,
    check_dtypes,
    modules_of,
    parameters_behind,
)
from pyrovae.pairs.refinement import check_refinable, elbo_draws, refine
from pyrovae.pairs.restore import (
    AsFound,
    PyroFunction,
    check_parameters,
    evaluating,
    measuring,
)
from pyrovae.pairs.simulation import simulate, simulate_all
from pyrovae.pairs.site_scores import masked_sites
from pyrovae.pairs.trace_reader import Reader
from pyrovae.pairs.under_prior import UnderPrior
from pyrovae.pairs.weighing import Weighted, drawn_from, elbo_terms, rows_at_once, weigh

__all__ = [
    "AsFound",
    "DiscreteSites",
    "Encoded",
    "Pair",
    "PyroFunction",
    "Reader",
    "UnderPrior",
    "Variables",
    "Weighted",
    "aggregate",
    "by_place",
    "check_dtypes",
    "check_parameters",
    "check_refinable",
    "drawn_from",
    "elbo_draws",
    "elbo_terms",
    "encode",
    "encode_batches",
    "encode_rows",
    "evaluating",
    "guide_pair",
    "masked_sites",
    "measuring",
    "modules_of",
    "observe",
    "over_rows",
    "parameters_behind",
    "refine",
    "rows_at_once",
    "simulate",
    "simulate_all",
    "weigh",
    "with_arguments",
    "with_row_numbers",
]
