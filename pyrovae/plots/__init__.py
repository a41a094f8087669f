"""Figures of the measures, drawn with matplotlib.

Each function draws one figure from a diagnosis, a fit, another result or a part of them, on the
axes that it is given or on a new figure, and returns the axes. ``overview`` draws the most telling
ones together; ``diagnosis.plot()``, ``fit.plot()`` and ``run.plot()`` call it. Colours and sizes
are in ``style.py``. ``import pyrovae`` doesn't import this room, so matplotlib is loaded only to
plot. Start with ``latent.py``.
"""

from pyrovae.plots.curves import (
    baselines,
    evidence,
    ex_post_candidates,
    held_out_densities,
    pareto_k,
    training_curve,
)
from pyrovae.plots.dark import darken
from pyrovae.plots.exemplars import attributions, neighbours
from pyrovae.plots.grids import pair_density
from pyrovae.plots.guide import beside, calibration, gaps, local_calibration
from pyrovae.plots.latent import latent_map, unit_activity, unit_marginals
from pyrovae.plots.overview import overview
from pyrovae.plots.planes import density_plane, ellipses
from pyrovae.plots.populations import group_contrast, novel_rows
from pyrovae.plots.samples import (
    CLEAR,
    feature_marginals,
    is_image,
    predictive_check,
    predictive_errors,
    pseudo_inputs,
    reconstructions,
    sample_sheets,
)
from pyrovae.plots.style import LABEL_COLOURS, STYLE, off_screen
from pyrovae.plots.traversals import traversal

__all__ = [
    "CLEAR",
    "LABEL_COLOURS",
    "STYLE",
    "attributions",
    "baselines",
    "beside",
    "calibration",
    "darken",
    "density_plane",
    "ellipses",
    "evidence",
    "ex_post_candidates",
    "feature_marginals",
    "gaps",
    "group_contrast",
    "held_out_densities",
    "is_image",
    "latent_map",
    "local_calibration",
    "neighbours",
    "novel_rows",
    "off_screen",
    "overview",
    "pair_density",
    "pareto_k",
    "predictive_check",
    "predictive_errors",
    "pseudo_inputs",
    "reconstructions",
    "sample_sheets",
    "training_curve",
    "traversal",
    "unit_activity",
    "unit_marginals",
]
