"""A figure of matplotlib as a dark page shows it; `looks.on_dark` does the same for plotly's."""

from typing import Any

from matplotlib import colors
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from analyses import style

GROUND, INK = "#171614", style.ON_DARK[style.INK]  # the ground is Streamlit's
IN_PLACE_OF = {"#000000": INK, "#ffffff": GROUND} | style.ON_DARK
KINDS = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def on_dark(figure: Figure) -> Figure:
    """The figure with light ink and no ground of its own; it is changed itself. What a colour map colours stays."""
    figure.set_facecolor("none")
    for ax in figure.axes:
        ax.set_facecolor("none")
        ax.tick_params(which="both", colors=INK, grid_color=INK)
    for artist in figure.findobj(lambda artist: not isinstance(artist, ScalarMappable) or artist.get_array() is None):
        for kind in KINDS:
            if hasattr(artist, f"get_{kind}") and hasattr(artist, f"set_{kind}"):
                getattr(artist, f"set_{kind}")(recoloured(getattr(artist, f"get_{kind}")()))
    return figure


def recoloured(colour: Any) -> Any:
    """A colour, or several, with those that a dark ground swallows replaced; each as opaque as it was."""
    if isinstance(colour, str) and colour in ("none", "auto", "inherit"):
        return colour
    rgba = colors.to_rgba_array(colour)
    changed = [colors.to_rgba(IN_PLACE_OF.get(colors.to_hex(one), tuple(one[:3])), one[3]) for one in rgba]
    return changed[0] if len(changed) == 1 else changed
