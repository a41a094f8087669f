"""What the decoder makes of codes along a line, such as one unit's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.plots.grids import Array
from pyrovae.plots.samples import array_of, checked_names, is_image
from pyrovae.plots.style import LABEL_COLOURS, WIDTH, panels_of, styled, ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

GAP = 1 / 12  # between two images, as a share of their width


@styled
def traversal(
    steps: Tensor | Array, *, values: Any = None, titles: Sequence[str] = (),
    names: Sequence[str] = (), axes: Sequence[Axes] | None = None,
) -> list[Axes]:  # fmt: skip
    """Decoded steps of one unit, or from one code to another: a line of images for each start.

    Of rows of a table the features that change most are drawn as curves, twelve at most.

    Args:
        steps: what ``vae.traverse`` or ``vae.interpolate`` returns, shape ``(B, S, ...)``; several
            units in one picture by ``torch.cat``.
        values: of the unit at each step, shape ``(S,)``; by default the number of the step.
        titles: of each line, such as ``["unit 0", "unit 1"]``.
        names: of all features of a table in their order.
        axes: where to draw, one for each line; by default on a new figure.

    Raises:
        InputError: for steps of another shape, or as many values or titles as don't fit.
    """
    shown = array_of(steps) if isinstance(steps, Tensor | np.ndarray) else np.zeros(0)
    if shown.ndim < 3 or not shown.size:
        raise InputError(
            f"expected steps of shape (B, S, ...); got {tuple(shown.shape)}. Give what "
            "vae.traverse or vae.interpolate returns."
        )
    places = _places(values, shown.shape[1])
    if len(titles) not in (0, len(shown)):
        raise InputError(
            f"expected {len(shown)} titles, one for each line; got {len(titles)}. Give as many, or "
            "none."
        )
    if is_image(shown.shape[2:]):
        panel = panels_of(
            len(shown), axes, columns=1, width=1.4 * WIDTH,
            height=0.4 + 1.5 * WIDTH * len(shown) / shown.shape[1],
        )  # fmt: skip
        _strips(panel.axes, shown, places)
    else:
        panel = panels_of(len(shown), axes, columns=1, height=0.7 + 2.2 * len(shown))
        _curves(panel.axes, shown.reshape(*shown.shape[:2], -1), places, names)
        panel.legend(panel.axes[0], columns=3)
    for ax, title in zip(panel.axes, titles, strict=False):
        ax.set_ylabel(title)
    return panel.axes


def _places(values: Any, steps: int) -> Array:
    """The values at the steps, by default their numbers, shape ``(S,)``."""
    if values is None:
        return np.arange(float(steps))
    try:
        places = array_of(values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected {steps} values, one number for each step; got {values!r}. Give numbers; "
            "words are for titles."
        ) from error
    if places.shape != (steps,):
        raise InputError(
            f"expected {steps} values, one number for each step; got shape {places.shape}. Give "
            "those of one unit."
        )
    return places


def _strips(axes: Sequence[Axes], steps: Array, values: Array) -> None:
    """A line of images on each of the axes, the values of the unit above the first."""
    low, high = float(steps.min()), float(steps.max())
    scaled = (steps - low) / (high - low or 1.0)
    for ax, images in zip(axes, scaled, strict=True):
        for place, image in enumerate(images):
            shown = np.moveaxis(image, 0, -1) if image.ndim == 3 else image
            ratio = image.shape[-2] / image.shape[-1]
            ends = place + GAP / 2, place + 1 - GAP / 2
            ax.imshow(
                shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest",
                extent=(*ends, 0, ratio * (1 - GAP)),
            )  # fmt: skip
        ax.set(xlim=(0, len(images)), xticks=[], yticks=[])
        ax.grid(visible=False)
        for side in ax.spines.values():
            side.set_visible(False)
    axes[0].xaxis.tick_top()
    every = range(0, len(values), -(-len(values) // 11))
    axes[0].set_xticks(
        [n + 0.5 for n in every], [f"{round(values[n], 6) + 0.0:.3g}" for n in every], fontsize=8
    )
    axes[0].tick_params(length=0)


def _curves(axes: Sequence[Axes], steps: Array, values: Array, names: Sequence[str]) -> None:
    """The features that change most, against the values of the unit."""
    features = steps.shape[2]
    called = checked_names(names, features) or [f"feature {n}" for n in range(features)]
    spread = np.ptp(steps, axis=1).max(0)
    chosen = np.sort(np.argsort(-spread, kind="stable")[: len(LABEL_COLOURS)])
    for ax, lines in zip(axes, steps, strict=True):
        for feature, hue in zip(chosen, LABEL_COLOURS, strict=False):
            ax.plot(values, lines[:, feature], color=hue, label=called[feature])
        ticks(ax.yaxis, 4)
    axes[-1].set_xlabel("value of the unit")
