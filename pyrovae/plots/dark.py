"""A figure in the colours of a page with a dark background."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, PAPER = "#E8E8E8", "#15171A"
#: What each colour of the style becomes; the others are light enough.
ON_DARK = {
    "#000000": INK, "#ffffff": PAPER, "#444444": "#C4C4C4", "#e4e4e4": "#33373D",
    "#555555": "#A8A8A8", "#8a8a8a": "#9A9A9A", "#0072b2": "#56A8E6", "#d55e00": "#F0813A",
    "#009e73": "#2FC79A", "#332288": "#A99CFF", "#4477aa": "#7FB0E0", "#117733": "#44B36B",
    "#6b5fd0": "#9A90F0", "#a65628": "#CE7A48",
}  # fmt: skip


def darken(figure: Figure) -> None:
    """Give everything in a figure, once it has been drawn, the colours for a dark background."""
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    for ax in figure.axes:
        ax.tick_params(which="both", colors=INK)
    for artist in figure.findobj():
        if isinstance(artist, Line2D):
            artist.set_color(_on_dark(artist.get_color()))
            artist.set_markerfacecolor(_on_dark(artist.get_markerfacecolor()))
            artist.set_markeredgecolor(_on_dark(artist.get_markeredgecolor()))
        elif isinstance(artist, Text):
            artist.set_color(_on_dark(artist.get_color()))
        elif isinstance(artist, Patch):
            artist.set_facecolor(_on_dark(artist.get_facecolor()))
            artist.set_edgecolor(_on_dark(artist.get_edgecolor()))
        elif isinstance(artist, Collection) and artist.get_array() is None:
            artist.set_facecolor([_on_dark(colour) for colour in artist.get_facecolor()])
            artist.set_edgecolor([_on_dark(colour) for colour in artist.get_edgecolor()])


def _on_dark(colour: Any) -> Any:
    """A colour as it is, or what it becomes, as transparent as it was."""
    from matplotlib.colors import to_hex, to_rgba

    if isinstance(colour, str) and colour in ("none", "auto"):
        return colour
    rgba = to_rgba(colour)
    other = ON_DARK.get(to_hex(rgba))
    return rgba if other is None else to_rgba(other, alpha=rgba[3])
