"""A plane of two units: the encodings as ellipses, and densities as shades."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro.distributions as dist
import torch

from pyrovae.diagnostics import Diagnosis
from pyrovae.errors import InputError
from pyrovae.mixture import AggregatedPosterior, families
from pyrovae.plots.grids import Array, line, mass_levels, pair_density
from pyrovae.plots.latent import GRID, SHARES, View, colours_of, view_of
from pyrovae.plots.style import COLOURS, MUTED, WIDTH, canvas, styled
from pyrovae.randomness import seeded

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ELLIPSES = 100  # encodings that are drawn, at most
OF_AN_ENCODING = (0.68, 0.95)  # shares of its mass that the ellipses enclose
DRAWS = 4000  # of a density, for the range that is shown


@styled
def ellipses(
    source: Diagnosis | AggregatedPosterior, *, colour: Any = None,
    units: tuple[int, int] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    r"""Each q(z | x) as the two ellipses that enclose 68 and 95 % of its mass in two units.

    Their radii are r = \sqrt{-2 \log(1 - share)} standard deviations: 1.51 and 2.45. Of many
    encodings 100 are drawn, evenly spread over the rows.

    Args:
        source: a diagnosis, or q_agg, of normals.
        colour: a label or a number for each row, shape ``(N,)``, as for `latent_map`.
        units: which two; by default the most active ones.
        ax: where to draw; by default on a new figure.

    Raises:
        InputError: for encodings that are no normals, or of a single unit.
    """
    from matplotlib.collections import EllipseCollection

    view = view_of(source, None)
    first, second = chosen = two_units(units, view)
    agg = source.aggregated if isinstance(source, Diagnosis) else source
    rows = torch.linspace(0, agg.size - 1, min(agg.size, MOST_ELLIPSES)).long()
    centre, covariance = _moments_of(agg, chosen, rows)
    values, vectors = np.linalg.eigh(covariance)
    angles = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))
    panel = canvas(ax, height=WIDTH)
    ax = panel.axes[0]
    hues, handles = colours_of(colour, view.population, rows)
    for share in OF_AN_ENCODING:
        radius = math.sqrt(-2 * math.log(1 - share))
        widths = 2 * radius * np.sqrt(values.clip(min=0.0))
        ax.add_collection(
            EllipseCollection(
                widths[:, 1], widths[:, 0], angles, units="xy", offsets=centre,
                offset_transform=ax.transData, facecolors="none", edgecolors=hues,
                linewidths=0.9 if share == OF_AN_ENCODING[0] else 0.4,
            ),
            autolim=False,
        )  # fmt: skip
    reach = radius * np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    low, high = (centre - reach).min(0), (centre + reach).max(0)
    ax.update_datalim([low, high])
    ax.autoscale_view()
    ax.set(xlabel=f"unit {first}", ylabel=f"unit {second}")
    ax.set_aspect("equal", adjustable="datalim")
    if handles:
        panel.show_legend(handles, list(handles), columns=5)
    return ax


@styled
def density_plane(
    density: Diagnosis | dist.Distribution, *, units: tuple[int, int] = (0, 1),
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """The exact density of two units as shades, with contours around 50 and 90 % of its mass.

    Shades are square roots of the density, so that low ones are seen, too. The numbers themselves
    are those of `pair_density`.

    Args:
        density: over z, event shape ``(D,)`` with D ≥ 2: q_agg, a prior, the ``distribution`` of an
            ex-post prior; of a diagnosis its q_agg.
        units: which two.
        ax: where to draw; by default on a new figure.

    Raises:
        InputError: for a density of which two units have no known density, such as a point.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    if isinstance(density, Diagnosis):
        density = density.aggregated
    if not isinstance(density, torch.distributions.Distribution):
        raise InputError(
            f"expected a Diagnosis or a density over codes; got {type(density).__name__}. Give a "
            "distribution, such as what pyrovae.aggregate returns."
        )
    if len(density.event_shape) != 1 or density.batch_shape.numel() != 1:
        raise InputError(
            "expected one density over vectors, batch shape () and event shape (D,); got "
            f"{tuple(density.batch_shape)} and {tuple(density.event_shape)}. Declare its units by "
            "to_event(1)."
        )
    first, second = _checked(units, density.event_shape[0])
    with torch.no_grad(), seeded(0, "draws of a plot"):
        draws = density.sample(torch.Size([DRAWS])).reshape(DRAWS, -1)
    x, y = (line(draws[:, unit], GRID) for unit in (first, second))
    heights = pair_density(density, (first, second), x, y)
    if heights is None or not np.isfinite(heights).all() or not heights.any():
        raise InputError(
            f"expected a density whose two units have a known density; got {density!r}. Draw "
            "unit_marginals, which shows draws of such a one."
        )
    ax, hue = canvas(ax, height=WIDTH).axes[0], to_rgb(COLOURS["q_agg"])
    across, up = x.double().cpu().numpy(), y.double().cpu().numpy()
    extent = (across[0], across[-1], up[0], up[-1])
    shades = LinearSegmentedColormap.from_list("", [(*hue, 0), (*hue, 1)])  # on any paper
    ax.imshow(np.sqrt(heights), origin="lower", extent=extent, cmap=shades, aspect="auto")
    ax.contour(
        across, up, heights, levels=mass_levels(heights, SHARES), colors=MUTED,
        linewidths=0.8,
    )  # fmt: skip
    ax.set(xlabel=f"unit {first}", ylabel=f"unit {second}")
    ax.grid(visible=False)
    return ax


def two_units(units: tuple[int, int] | None, view: View) -> tuple[int, int]:
    """The units that are asked for, or the two most active ones."""
    size = view.z.shape[-1]
    if units is None and size > 1:
        first, second = sorted(view.order[:2])
        return first, second
    return _checked((0, 1) if units is None else units, size)


def _checked(units: tuple[int, int], size: int) -> tuple[int, int]:
    """Two different units out of so many."""
    numbers = tuple(units)
    whole = all(isinstance(unit, Integral) and 0 <= unit < size for unit in numbers)
    if len(numbers) != 2 or len(set(numbers)) != 2 or not whole:
        raise InputError(
            f"expected two units out of {size}, counted from 0; got {numbers}. A single unit is "
            "drawn by unit_marginals."
        )
    return numbers[0], numbers[1]


def _moments_of(
    agg: AggregatedPosterior, units: tuple[int, int], rows: torch.Tensor
) -> tuple[Array, Array]:
    """Means ``(n, 2)`` and covariances ``(n, 2, 2)`` of two units of some encodings."""
    encoding = agg.encoding
    if (diagonal := families.diagonal_normal(encoding)) is not None:
        loc, root = diagonal[0][rows][:, units], diagonal[1][rows][:, units].diag_embed()
    elif (full := families.full_normal(encoding)) is not None:
        loc, root = full[0][rows][:, units], full[1][rows][:, units]
    else:
        raise InputError(
            f"expected encodings that are normals; got {families.family(encoding)}. Draw "
            "latent_map, which shows draws of them."
        )
    covariance = (root @ root.mT).detach().double().cpu().numpy()
    return loc.detach().double().cpu().numpy(), covariance
