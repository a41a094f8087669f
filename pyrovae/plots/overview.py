"""The most telling pictures of a diagnosis or of a training run, together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrovae.diagnostics import Diagnosis
from pyrovae.plots.curves import baselines, held_out_densities, pareto_k, training_curve
from pyrovae.plots.latent import latent_map
from pyrovae.plots.style import panels_of, styled
from pyrovae.training import Fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes


@styled
def overview(
    source: Diagnosis, *, fit: Fit | None = None, colour: Any = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:  # fmt: skip
    """The map of codes, log p(x) beside simple densities, codes of new data, and training.

    What was left out of the diagnosis is left out here.

    Args:
        source: a diagnosis.
        fit: how training went.
        colour: a label or a number for each training row, as for `latent_map`.
        axes: where to draw, one for each picture; by default on a new figure, two in a row.
    """
    draws: list[Any] = [lambda ax: latent_map(source, colour=colour, ax=ax)]
    if source.baselines is not None and source.evidence:
        draws.append(lambda ax: baselines(source, ax=ax))
    draws.append(lambda ax: held_out_densities(source, ax=ax))
    if source.evidence:
        draws.append(lambda ax: pareto_k(source, ax=ax))
    if fit is not None:
        draws.append(lambda ax: training_curve(fit, axes=[ax]))
    rows = -(-len(draws) // 2)
    panel = panels_of(len(draws), axes, columns=2, height=4.2 * rows, width=11.0)
    for ax, draw in zip(panel.axes, draws, strict=True):
        draw(ax)
    return panel.axes
