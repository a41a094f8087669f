"""Decoded draws from each density over z, beside real data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrovae.diagnostics import Diagnosis, Pictures, left_out_of
from pyrovae.errors import InputError
from pyrovae.export import ExportedDraws
from pyrovae.plots.grids import Array
from pyrovae.plots.style import (
    BAND,
    COLOURS,
    MUTED,
    WIDTH,
    Canvas,
    canvas,
    colour_of,
    label_of,
    panels_of,
    part_of,
    styled,
    ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

SMALLEST_IMAGE = 3  # an event with fewer rows or columns is not shown as an image
PLANE = 2  # features of a table whose rows are points in the plane
MOST_NAMED = 20  # columns of a table whose names fit below a sheet
IMAGES = 36  # reconstructed ones, at most
CLEAR = 3.0  # standard errors that a clear difference has
FEW = 4  # a table of up to so many features is drawn point by point
LONGEST = 26  # characters of a feature's title that fit above its panel
MOST_CATEGORIES = 5  # whose names fit along an axis
SPREAD = 0.2  # of the points of a category around its place
LIMIT = 2.5  # standard deviations at which colours saturate


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Whether an event is shown as an image: two large axes, perhaps after 1 or 3 channels.

    >>> [is_image(shape) for shape in ((8, 8), (3, 32, 32), (13,), (5, 2))]
    [True, True, False, False]
    """
    channels, image = event_shape[:-2], event_shape[-2:]
    return len(image) == 2 and min(image) >= SMALLEST_IMAGE and channels in ((), (1,), (3,))


@styled
def sample_sheets(
    source: Diagnosis | Pictures,
    *,
    columns: int = 4,
    names: Sequence[str] = (),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Data beside E[x | z] for z from each density: images, or the rows of a table.

    A table of two features is drawn as points in the plane, one of up to four features point by
    point, a wider one as rows of colours in the order of the data's first principal axis.

    Args:
        source: a diagnosis with pictures, or its ``pictures``.
        columns: number of sheets side by side.
        names: of all features in their order; without them each is called by its number.
        axes: where to draw, one for the data and for each density; by default on a new figure.
    """
    pictures = _pictures(source)
    return _sheets({"data": pictures.data, **pictures.samples}, columns, names, axes)


@styled
def pseudo_inputs(
    source: Diagnosis | Pictures,
    *,
    names: Sequence[str] = (),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Data beside the pseudo-inputs of a VampPrior, in the style of `sample_sheets`.

    Args:
        source, names: as for `sample_sheets`.
        axes: where to draw, two; by default on a new figure.

    Raises:
        InputError: if the prior is another one.
    """
    pictures = _pictures(source)
    data, inputs = pictures.data, pictures.pseudo_inputs
    if inputs is None:
        raise InputError(
            "expected the diagnosis of a pair whose prior is a VampPrior; got another prior. Plot "
            "sample_sheets instead."
        )
    shaped_inputs = inputs.reshape(len(inputs), *data.shape[1:])
    sheets = {"data": data[: len(inputs)], "pseudo-inputs": shaped_inputs}
    return _sheets(sheets, 2, names, axes)


@styled
def reconstructions(
    source: Diagnosis | ExportedDraws,
    *,
    most: int = 6,
    names: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] = MappingProxyType({}),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Held-out data against the mean of x decoded from their own codes.

    Images, and rows of two features, stand side by side; of a wider table each of the first
    features is drawn, with the line on which a perfect reconstruction lies. Of a feature of
    categories it is the one that is decoded most often, and rows are spread around their places.

    Args:
        source: a diagnosis with draws, or its ``exported``.
        most: features that are drawn at most.
        names: of all features in their order; without them each is called by its number.
        categories: what the categories of features of texts are called, by the feature's name, as
            ``run.table.categories`` has them.
        axes: where to draw: two, or one for each feature; by default on a new figure.

    Raises:
        InputError: if the diagnosis holds no draws.
    """
    observed, draws = observed_and_draws(source, "posterior_predictive")
    means = draws.mean(0)
    features = math.prod(observed.shape[1:])
    if not is_image(observed.shape[1:]):
        names = checked_names(names, features)
    of_texts = [n for n in range(features) if _categories_of(n, names, categories)]
    for feature in of_texts:
        means[:, feature] = _most_often(draws[..., feature])
    if is_image(observed.shape[1:]) or features <= PLANE:
        shown = {"held-out data": observed, "reconstructions": means}
        if features > PLANE:
            shown = {name: images[:IMAGES] for name, images in shown.items()}
        return _sheets(shown, 2, names, axes)
    data, means = _table(observed), _table(means)
    panel = _feature_panels(min(most, data.shape[1]), axes)
    for feature, ax in enumerate(panel.axes):
        known = _categories_of(feature, names, categories)
        pairs = [data[:, feature], means[:, feature]]
        pairs = _spread(*pairs) if known else pairs
        ax.plot(*pairs, ".", color=COLOURS["data"], markersize=4)
        ax.axline((float(np.nanmean(data[:, feature])),) * 2, slope=1, color=MUTED, linestyle="--")
        _name_feature(ax, feature, names)
        for axis in (ax.xaxis, ax.yaxis):
            _name_categories(axis, known) if known else ticks(axis, 4)
    for ax in panel.axes[::2]:
        ax.set_ylabel("reconstructed")
    return panel.axes


@styled
def feature_marginals(
    source: Diagnosis | ExportedDraws,
    *,
    most: int = 6,
    names: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] = MappingProxyType({}),
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Histograms of the first features: held-out data and draws of x with z from the prior.

    Args:
        source: a diagnosis with draws, or its ``exported``.
        most: features that are drawn at most.
        names: of all features in their order; without them each is called by its number.
        categories: as for `reconstructions`; their shares are drawn.
        axes: where to draw, one for each feature; by default on a new figure.

    Raises:
        InputError: if the diagnosis holds no draws.
    """
    observed, predictive = observed_and_draws(source, "prior_predictive")
    data = _table(observed)
    draws = _table(predictive.reshape(-1, *predictive.shape[2:]))
    names = checked_names(names, data.shape[1])
    panel = _feature_panels(min(most, data.shape[1]), axes)
    for feature, ax in enumerate(panel.axes):
        known = _categories_of(feature, names, categories)
        _histograms(ax, data[:, feature], draws[:, feature], known)
        _name_feature(ax, feature, names)
    panel.legend(panel.axes[0], columns=2)
    return panel.axes


@styled
def predictive_check(
    source: Diagnosis | ExportedDraws, *, names: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] = MappingProxyType({}), ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """How far mean and standard deviation of each feature differ between draws and held-out data.

    In standard errors of the difference; draws of x are from p(x), z from the prior. Features that
    are constant in the data are left out. Of a feature of categories the mean is the share of the
    most frequent one.

    Args:
        source: a diagnosis with draws, or its ``exported``.
        names: of all features in their order; without them each is called by its number.
        categories: as for `reconstructions`.
        ax: where to draw; by default on a new figure.

    Raises:
        InputError: if the diagnosis holds no draws.
    """
    panel = canvas(ax)
    ax = panel.axes[0]
    measures = predictive_errors(source, names=names, categories=categories)
    ax.axhspan(-CLEAR, CLEAR, color=BAND, label=f"within {CLEAR:g} standard errors")
    marks = (("mean", "o", COLOURS["prior"]), ("standard deviation", "s", COLOURS["q_agg"]))
    for (name, marker, colour), values in zip(marks, measures, strict=True):
        ax.plot(values, marker, color=colour, markersize=4, linestyle="none", label=name)
    ax.set_ylabel("draws − data, standard errors")
    _features_below(ax, names, len(measures[0]))
    panel.legend(ax, columns=3)
    return ax


def predictive_errors(
    source: Diagnosis | ExportedDraws, *, names: Sequence[str] = (),
    categories: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> tuple[Array, Array]:  # fmt: skip
    """Differences of mean and of log standard deviation by feature, in standard errors, ``(J,)``.

    NaN for a feature that is constant in the data. Missing cells count on neither side. The mean of
    a feature of categories is the share of the one that is most frequent in the data, and its
    deviation, which says the same, is NaN.

    Args:
        source, names, categories: as for `predictive_check`.
    """
    observed, predictive = observed_and_draws(source, "prior_predictive")
    data = _table(observed)
    draws = _table(predictive.reshape(-1, *predictive.shape[2:]))
    names = checked_names(names, data.shape[1])
    of_texts = [n for n in range(data.shape[1]) if _categories_of(n, names, categories)]
    data, draws = (data.copy(), draws.copy()) if of_texts else (data, draws)
    for feature in of_texts:
        data[:, feature], draws[:, feature] = _shares(data[:, feature], draws[:, feature])
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, sd, fourth, rows = _moments(data)
        mean_drawn, sd_drawn, fourth_drawn, size = _moments(draws)
        # draws share no rows with the data, and are as many times more
        error = np.sqrt(sd**2 / rows + sd_drawn**2 / size)
        error_of_log = np.sqrt(
            (fourth / sd**4 - 1) / (4 * rows) + (fourth_drawn / sd_drawn**4 - 1) / (4 * size)
        )
        off = (mean_drawn - mean) / error, (np.log(sd_drawn) - np.log(sd)) / error_of_log
    varied = np.where(sd > 0, off[1], np.nan)
    varied[of_texts] = np.nan
    return np.where(sd > 0, off[0], np.nan), varied


def _shares(data: Array, draws: Array) -> tuple[Array, Array]:
    """1 where the most frequent category of the data stands, 0 elsewhere, NaN where none does."""
    there = ~np.isnan(data)
    most = np.bincount(data[there].astype(int)).argmax() if there.any() else 0
    return np.where(there, data == most, np.nan), (draws == most).astype(float)


def _moments(table: Array) -> tuple[Array, Array, Array, Array]:
    """Mean, standard deviation, fourth central moment and number of each feature's known cells."""
    known = ~np.isnan(table)
    size = known.sum(0)
    mean = np.where(known, table, 0.0).sum(0) / size
    off = np.where(known, table - mean, 0.0)
    return mean, np.sqrt((off**2).sum(0) / size), (off**4).sum(0) / size, size


def observed_and_draws(source: Diagnosis | ExportedDraws, group: str) -> tuple[Array, Array]:
    """Held-out rows ``(N, ...)`` and draws ``(S, N, ...)`` of one group of the exported draws."""
    exported = part_of(
        source, ExportedDraws, lambda diagnosis: diagnosis.exported,
        lambda: left_out_of("draws of x", "export_rows"),
    )  # fmt: skip
    ((name, observed),) = exported.groups["observed_data"].items()
    return array_of(observed), array_of(exported.groups[group][name])[0]


def _feature_panels(count: int, given: Sequence[Axes] | None) -> Canvas:
    columns = min(2, count)
    rows = -(-count // columns)
    height = 0.7 + (2.6 if rows == 1 else 1.6 * rows)
    return panels_of(count, given, columns=columns, height=height)


def checked_names(names: Sequence[str], count: int) -> list[str]:
    """The names of all features, or none.

    Raises:
        InputError: if there are some, but not one for each feature.
    """
    if len(names) not in (0, count):
        raise InputError(
            f"expected names of all {count} features, or none; got {len(names)}. Give them in the "
            "order of the features."
        )
    return list(names)


def _name_feature(ax: Axes, feature: int, names: Sequence[str]) -> None:
    title = names[feature] if names else f"feature {feature}"
    ax.set_title(_shortened(title), parse_math=False)


def _pictures(source: Diagnosis | Pictures) -> Pictures:
    return part_of(
        source, Pictures, lambda diagnosis: diagnosis.pictures,
        lambda: left_out_of("decoded draws", "pictures"),
    )  # fmt: skip


def _sheets(
    sheets: dict[str, Any], columns: int, names: Sequence[str], given: Sequence[Axes] | None
) -> list[Axes]:
    columns = min(columns, len(sheets))
    rows = -(-len(sheets) // columns)
    side = WIDTH / 2
    first = next(iter(sheets.values()))
    images = is_image(tuple(first.shape[1:]))
    height = rows * (side + (0.2 if images else 0.6))
    panel = panels_of(len(sheets), given, columns=columns, height=height, width=columns * side)
    if images:
        _image_sheets(panel.axes, {name: array_of(x) for name, x in sheets.items()})
    else:
        tables = {name: _table(x) for name, x in sheets.items()}
        _table_sheets(panel.axes, tables, checked_names(names, _table(first).shape[1]))
    for ax, name in zip(panel.axes, sheets, strict=True):
        ax.set_title(label_of(name), color=colour_of(name), fontsize=11)
    return panel.axes


def _shortened(title: str, longest: int = LONGEST) -> str:
    return title if len(title) <= longest else f"{title[: longest - 1]}…"


def _histograms(ax: Axes, data: Array, draws: Array, categories: Sequence[str]) -> None:
    data = data[~np.isnan(data)]  # missing cells
    if categories:
        edges = [place - 0.5 for place in range(len(categories) + 1)]
    else:
        low_draw, high_draw = np.quantile(draws, [0.002, 0.998])  # the tails may be far out
        low = min(data.min(initial=low_draw), low_draw)
        high = max(data.max(initial=high_draw), high_draw)
        edges = list(np.linspace(low, high if high > low else low + 1.0, 21))
    ax.hist(data, edges, density=True, color=COLOURS["data"], alpha=0.3, label="held-out data")
    ax.hist(
        draws, edges, density=True, histtype="step", linewidth=1.6, linestyle="--",
        color=COLOURS["prior"], label="draws of x, z from the prior",
    )  # fmt: skip
    _name_categories(ax.xaxis, categories) if categories else ticks(ax.xaxis, 5)
    ticks(ax.yaxis, 4)


def _categories_of(
    feature: int, names: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> Sequence[str]:
    return categories.get(names[feature], ()) if names else ()


def _name_categories(axis: Axis, categories: Sequence[str]) -> None:
    """The categories' names at their numbers, as many as have room."""
    places = range(0, len(categories), -(-len(categories) // MOST_CATEGORIES))
    axis.set_ticks(list(places))
    short = [_shortened(categories[place], 10) for place in places]
    axis.set_ticklabels(short, parse_math=False)


def _most_often(draws: Array) -> Array:
    """The category that most draws of each row have, shape ``(N,)``, of draws ``(S, N)``."""
    return np.array([np.bincount(row.astype(int)).argmax() for row in draws.T], dtype=float)


def _spread(*columns: Array) -> list[Array]:
    """Numbers of categories with points of one place side by side, always in the same way."""
    random = np.random.default_rng(0)
    return [column + random.uniform(-SPREAD, SPREAD, len(column)) for column in columns]


def _image_sheets(axes: list[Axes], sheets: dict[str, Array]) -> None:
    data = next(iter(sheets.values()))
    low, high = float(data.min()), float(data.max())
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
    if channels:  # a channel of opacity, since a colour can't be NaN, which is drawn as nothing
        images = np.concatenate([images, np.ones((*images.shape[:3], 1))], -1)
    size = rows * row_step - gap, columns * column_step - gap
    mosaic = np.zeros((*size, 4)) if channels else np.full(size, np.nan)
    for index, image in enumerate(images):
        top, left = index // columns * row_step, index % columns * column_step
        mosaic[top : top + height, left : left + width] = image
    return mosaic


def _table_sheets(axes: list[Axes], sheets: dict[str, Array], names: Sequence[str]) -> None:
    data = np.ma.masked_invalid(next(iter(sheets.values())))  # NaN stands for a missing cell
    if data.shape[1] == PLANE:
        _plane_sheets(axes, sheets, names or [str(number) for number in range(PLANE)])
        return
    centre, scale = data.mean(0).filled(0.0), data.std(0).filled(0.0)
    scale[scale == 0] = 1.0
    standardised = {name: (table - centre) / scale for name, table in sheets.items()}
    if data.shape[1] <= FEW:
        _point_sheets(axes, standardised)
    else:
        _row_sheets(axes, standardised)
    for ax in axes:
        ax.grid(visible=False)
        _features_below(ax, names, data.shape[1])


def _features_below(ax: Axes, names: Sequence[str], count: int) -> None:
    """The features' names below a picture, if they have any and there is room, or their numbers."""
    if names and count <= MOST_NAMED:
        short = [_shortened(name, 16) for name in names]
        ax.set_xticks(range(count), short, rotation=90, fontsize=8, parse_math=False)
    else:
        ax.set_xlabel("feature")
        ticks(ax.xaxis, 8, integer=True)


def _plane_sheets(axes: list[Axes], sheets: dict[str, Array], features: Sequence[str]) -> None:
    """Rows of two features as points in the plane, all sheets with the same limits."""
    data = next(iter(sheets.values()))
    low, high = np.nanmin(data, 0), np.nanmax(data, 0)
    margin = 0.15 * np.maximum(high - low, 1e-9)
    for ax, (name, table) in zip(axes, sheets.items(), strict=True):
        ax.plot(*table.T, ".", color=colour_of(name), markersize=3, alpha=0.6)
        ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
        ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
        ax.set_xlabel(_shortened(features[0]), parse_math=False)
        ticks(ax.xaxis, 4)
        ticks(ax.yaxis, 4)
    axes[0].set_ylabel(_shortened(features[1]), parse_math=False)


def _row_sheets(axes: list[Axes], sheets: dict[str, Array]) -> None:
    filled = {name: np.nan_to_num(table) for name, table in sheets.items()}
    principal_axis = np.linalg.svd(next(iter(filled.values())), full_matrices=False)[2][0]
    for ax, (name, table) in zip(axes, sheets.items(), strict=False):
        rows = table[(filled[name] @ principal_axis).argsort()]
        image = ax.imshow(
            rows, cmap="RdBu_r", vmin=-LIMIT, vmax=LIMIT, aspect="auto", interpolation="nearest"
        )
        ax.set_yticks([])
    bar = axes[0].figure.colorbar(image, ax=axes, location="bottom", fraction=0.05, aspect=40)
    bar.set_label("in standard deviations of the data from its mean")


def _point_sheets(axes: list[Axes], sheets: dict[str, Array]) -> None:
    furthest = max(float(np.nanmax(np.abs(table))) for table in sheets.values()) * 1.1
    for ax, (name, table) in zip(axes, sheets.items(), strict=False):
        spread = np.linspace(-0.3, 0.3, len(table))
        for feature, column in enumerate(table.T):
            ax.plot(feature + spread, column, ".", color=colour_of(name), markersize=5)
        ax.set(ylim=(-furthest, furthest), xlim=(-0.6, table.shape[1] - 0.4))
        ax.set_ylabel("standard deviations")


def _table(values: Tensor | Array) -> Array:
    array = array_of(values)
    return array.reshape(len(array), -1)


def array_of(values: Tensor | Array) -> Array:
    """Numbers as NumPy has them, in double precision."""
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
