"""Figures of the measures, drawn with matplotlib.

Each function draws one figure from a diagnosis, a fit or a part of them. Colours and sizes are in
``style.py``. ``import pyrovae`` doesn't import this room, so matplotlib is loaded only to plot.
Start with ``latent.py``.
"""

from pyrovae.plots.curves import (
    evidence,
    ex_post_candidates,
    held_out_densities,
    pareto_k,
    training_curve,
)
from pyrovae.plots.guide import beside, calibration, gaps
from pyrovae.plots.latent import latent_map, unit_activity, unit_marginals
from pyrovae.plots.samples import feature_marginals, is_image, pseudo_inputs, sample_sheets
from pyrovae.plots.style import STYLE

__all__ = [
    "STYLE",
    "beside",
    "calibration",
    "evidence",
    "ex_post_candidates",
    "feature_marginals",
    "gaps",
    "held_out_densities",
    "is_image",
    "latent_map",
    "pareto_k",
    "pseudo_inputs",
    "sample_sheets",
    "training_curve",
    "unit_activity",
    "unit_marginals",
]
