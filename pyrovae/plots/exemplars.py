"""Samples or new rows, each beside the training rows that its code lies nearest to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.diagnostics import Attributions, Diagnosis, left_out_of
from pyrovae.display import brief
from pyrovae.errors import InputError
from pyrovae.mixture import Responsibilities
from pyrovae.plots.grids import Array
from pyrovae.plots.samples import array_of, is_image
from pyrovae.plots.style import COLOURS, panels_of, part_of, styled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

SIDE = 0.62  # of a picture, in inches


@styled
def attributions(
    source: Diagnosis | Attributions, *, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Decoded samples, each beside the training rows that carry its code, with their shares.

    Rows of a table are drawn as bars, one for each feature.

    Args:
        source: a diagnosis with pictures, or its ``attributions``.
        axes: where to draw, one for each sample and each row beside it; by default on a new figure.
    """
    found = part_of(
        source, Attributions, lambda d: d.attributions, lambda: left_out_of("samples", "pictures")
    )
    samples, rows, shares = (array_of(part) for part in (found.samples, found.rows, found.weight))
    return _beside(samples, rows, shares, "sample", axes)


@styled
def neighbours(
    near: Responsibilities, new: Any, train: Any, *, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """New rows, each beside the training rows that explain its code best, with their shares.

    Args:
        near: what ``agg.nearest`` returns for the codes of M rows, k training rows for each.
        new: the M rows themselves, shape ``(M, ...)``.
        train: the rows that q_agg is of, shape ``(N, ...)``.
        axes: where to draw, one for each new row and each row beside it; by default on a new
            figure.

    Raises:
        InputError: for other rows than ``near`` is about.
    """
    if not isinstance(near, Responsibilities) or near.index.dim() != 2:
        raise InputError(
            f"expected the nearest rows to codes of shape (M, D); got {brief(near)}. Give what "
            "agg.nearest returns."
        )
    shown, rows, index = array_of(new), array_of(train), near.index.cpu().numpy()
    if len(shown) != len(index) or index.max(initial=0) >= len(rows):
        raise InputError(
            f"expected {len(index)} new rows, and all {index.max(initial=0) + 1:,} training rows "
            f"or more; got {len(shown)} and {len(rows):,}. Give the rows whose codes were asked "
            "about, and those that were aggregated."
        )
    return _beside(shown, rows[index], array_of(near.weight), "new", axes)


def _beside(
    samples: Array, rows: Array, shares: Array, word: str, given: Sequence[Axes] | None
) -> list[Axes]:
    """Samples ``(M, ...)``, each with the rows ``(M, k, ...)`` beside it under their shares."""
    columns = 1 + rows.shape[1]
    panel = panels_of(
        len(samples) * columns, given, columns=columns, height=len(samples) * (SIDE + 0.2),
        width=columns * SIDE,
    )  # fmt: skip
    every = [row for n, sample in enumerate(samples) for row in (sample, *rows[n])]
    titles = [
        title for line in shares for title in (word, *(f"{100 * share:.0f} %" for share in line))
    ]
    low, high = float(np.nanmin(rows)), float(np.nanmax(rows))
    for ax, row, title in zip(panel.axes, every, titles, strict=True):
        if is_image(row.shape):
            image = np.moveaxis(row, 0, -1) if row.ndim == 3 else row
            shown = np.clip((image - low) / (high - low or 1.0), 0.0, 1.0)
            ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        else:
            ax.bar(range(row.size), row.flatten(), color=COLOURS["data"])
        ax.set_axis_off()
        ax.set_title(title, fontsize=8)
    return panel.axes
