"""Decoded draws from each density over z, beside real data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pyrovae.diagnostics import Diagnosis, Pictures, left_out_of
from pyrovae.errors import InputError
from pyrovae.plots.grids import Array
from pyrovae.plots.style import (
    COLOURS,
    WIDTH,
    colour_of,
    label_of,
    legend_above,
    panels,
    styled,
    ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_IMAGE = 3  # an event with fewer rows or columns is not shown as an image
FEW = 4  # a table of up to so many features is drawn point by point
LONGEST = 26  # characters of a feature's title that fit above its panel
LIMIT = 2.5  # standard deviations at which colours saturate


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Whether an event is shown as an image: two large axes, perhaps after 1 or 3 channels.

    >>> [is_image(shape) for shape in ((8, 8), (3, 32, 32), (13,), (5, 2))]
    [True, True, False, False]
    """
    channels, image = event_shape[:-2], event_shape[-2:]
    return len(image) == 2 and min(image) >= SMALLEST_IMAGE and channels in ((), (1,), (3,))


@styled
def sample_sheets(diagnosis: Diagnosis, *, columns: int = 4) -> Figure:
    """Data beside E[x | z] for z from each density: images, or the rows of a table.

    A table of up to four features is drawn point by point, a wider one as rows of colours in the
    order of the data's first principal axis.

    Args:
        diagnosis: a diagnosis with pictures.
        columns: number of sheets side by side.
    """
    pictures = _pictures(diagnosis)
    return _sheets({"data": pictures.data, **pictures.samples}, columns)


@styled
def pseudo_inputs(diagnosis: Diagnosis) -> Figure:
    """Data beside the pseudo-inputs of a VampPrior, in the style of `sample_sheets`."""
    pictures = _pictures(diagnosis)
    data, inputs = pictures.data, pictures.pseudo_inputs
    if inputs is None:
        raise InputError(
            "expected the diagnosis of a pair whose prior is a VampPrior; got another prior. Plot "
            "sample_sheets instead."
        )
    shaped_inputs = inputs.reshape(len(inputs), *data.shape[1:])
    return _sheets({"data": data[: len(inputs)], "pseudo-inputs": shaped_inputs}, 2)


def _pictures(diagnosis: Diagnosis) -> Pictures:
    if diagnosis.pictures is None:
        raise left_out_of("decoded draws", "pictures")
    return diagnosis.pictures


def _sheets(sheets: dict[str, Tensor], columns: int) -> Figure:
    columns = min(columns, len(sheets))
    rows = -(-len(sheets) // columns)
    side = WIDTH / 2
    images = is_image(tuple(sheets["data"].shape[1:]))
    height = rows * (side + (0.2 if images else 0.6))
    figure, axes = panels(rows, columns, height=height, width=columns * side)
    if images:
        _image_sheets(axes, {name: _array(x) for name, x in sheets.items()})
    else:
        _table_sheets(axes, {name: _table(x) for name, x in sheets.items()})
    for ax, name in zip(axes, sheets, strict=False):
        ax.set_title(label_of(name), color=colour_of(name), fontsize=11)
    for ax in axes[len(sheets) :]:
        ax.set_axis_off()
    return figure


@styled
def feature_marginals(diagnosis: Diagnosis, *, most: int = 6, names: Sequence[str] = ()) -> Figure:
    """Histograms of the first features: held-out data and draws of x with z from the prior.

    Args:
        diagnosis: the measures, with draws.
        most: features that are drawn at most.
        names: of all features in their order; without them each is called by its number.

    Raises:
        InputError: if the diagnosis holds no draws.
    """
    if diagnosis.exported is None:
        raise left_out_of("draws of x", "export_rows")
    groups = diagnosis.exported.groups
    ((name, observed),) = groups["observed_data"].items()
    data = _table(observed)
    predictive = groups["prior_predictive"][name]
    draws = _table(predictive.reshape(-1, *predictive.shape[3:]))
    feature_count = min(most, data.shape[1])
    columns = min(2, feature_count)
    rows = -(-feature_count // columns)
    figure, axes = panels(rows, columns, height=0.7 + (2.6 if rows == 1 else 1.6 * rows))
    for feature, ax in enumerate(axes[:feature_count]):
        _histograms(ax, data[:, feature], draws[:, feature])
        named = len(names) == data.shape[1]
        title = f"{feature}: {names[feature]}" if named else f"feature {feature}"
        ax.set_title(_shortened(title), parse_math=False)
    for ax in axes[feature_count:]:
        ax.set_axis_off()
    legend_above(figure, axes[0], columns=2)
    return figure


def _shortened(title: str) -> str:
    return title if len(title) <= LONGEST else f"{title[: LONGEST - 1]}…"


def _histograms(ax: Axes, data: Array, draws: Array) -> None:
    low_draw, high_draw = np.quantile(draws, [0.002, 0.998])  # the tails may be far out
    low, high = min(data.min(), low_draw), max(data.max(), high_draw)
    edges = list(np.linspace(low, high if high > low else low + 1.0, 21))
    ax.hist(data, edges, density=True, color=COLOURS["data"], alpha=0.3, label="held-out data")
    ax.hist(
        draws, edges, density=True, histtype="step", linewidth=1.6, linestyle="--",
        color=COLOURS["prior"], label="draws of x, z from the prior",
    )  # fmt: skip
    ticks(ax.xaxis, 5)
    ticks(ax.yaxis, 4)


def _image_sheets(axes: list[Axes], sheets: dict[str, Array]) -> None:
    low, high = float(sheets["data"].min()), float(sheets["data"].max())
    span = high - low or 1.0
    for ax, images in zip(axes, sheets.values(), strict=False):
        mosaic = _mosaic(np.clip((images - low) / span, 0.0, 1.0))
        ax.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_axis_off()


def _mosaic(images: Array) -> Array:
    """Images ``(n, [channels,] rows, columns)`` in [0, 1] as one square grid."""
    if images.ndim == 4:
        images = np.moveaxis(images, 1, -1)
        images = images[..., 0] if images.shape[-1] == 1 else images
    count, height, width, *channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    gap = max(1, height // 16)
    row_step, column_step = height + gap, width + gap
    mosaic = np.ones((rows * row_step - gap, columns * column_step - gap, *channels))
    for index, image in enumerate(images):
        top, left = index // columns * row_step, index % columns * column_step
        mosaic[top : top + height, left : left + width] = image
    return mosaic


def _table_sheets(axes: list[Axes], sheets: dict[str, Array]) -> None:
    data = sheets["data"]
    centre, scale = data.mean(0), data.std(0)
    scale[scale == 0] = 1.0
    standardised = {name: (table - centre) / scale for name, table in sheets.items()}
    if data.shape[1] <= FEW:
        _point_sheets(axes, standardised)
    else:
        _row_sheets(axes, standardised)
    for ax in axes[: len(sheets)]:
        ax.set_xlabel("feature")
        ticks(ax.xaxis, 6, integer=True)
        ax.grid(visible=False)


def _row_sheets(axes: list[Axes], sheets: dict[str, Array]) -> None:
    principal_axis = np.linalg.svd(sheets["data"], full_matrices=False)[2][0]
    for ax, table in zip(axes, sheets.values(), strict=False):
        rows = table[(table @ principal_axis).argsort()]
        image = ax.imshow(
            rows, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto", interpolation="nearest"
        )
        ax.set_yticks([])
    bar = axes[0].figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, aspect=40)
    bar.set_label("in standard deviations of the data from its mean")


def _point_sheets(axes: list[Axes], sheets: dict[str, Array]) -> None:
    furthest = max(float(np.abs(table).max()) for table in sheets.values()) * 1.1
    for ax, (name, table) in zip(axes, sheets.items(), strict=False):
        spread = np.linspace(-0.3, 0.3, len(table))
        for feature, column in enumerate(table.T):
            ax.plot(feature + spread, column, ".", color=colour_of(name), markersize=5)
        ax.set(ylim=(-furthest, furthest), xlim=(-0.6, table.shape[1] - 0.4))
        ax.set_ylabel("standard deviations")


def _table(values: Tensor | Array) -> Array:
    array = _array(values)
    return array.reshape(len(array), -1)


def _array(values: Tensor | Array) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
