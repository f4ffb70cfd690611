"""Figures of matplotlib on a dark page."""

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.text import Text

from analyses import dark, looks, style


def luminance(colour: object) -> float:
    """Relative luminance by the formula of WCAG 2."""
    rgb = np.array(colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_every_word_and_line_can_be_told_from_the_ground() -> None:
    lines = [looks.Line(np.arange(3), np.arange(3), label=colour, colour=colour, mark="o") for colour in style.ON_DARK]
    figure, (ax,) = looks.panels()
    looks.Curves(lines, x="step", y="here", title="above", levels={"chance": 1.0}).draw(ax)
    dark.on_dark(figure).draw_without_rendering()
    ground = luminance(dark.GROUND)
    words = [text.get_color() for text in figure.findobj(Text) if text.get_text()]
    drawn = [colour for line in ax.lines for colour in (line.get_color(), line.get_markeredgecolor())]
    ratios = [(luminance(colour) + 0.05) / (ground + 0.05) for colour in (*words, *drawn)]
    assert len(words) > 10 and len(drawn) > 10 and figure.get_facecolor()[3] == ax.get_facecolor()[3] == 0
    assert min(ratios) > 4.5


def test_opacity_and_what_a_map_colours_stay_as_they_are() -> None:
    figure, (ax,) = looks.panels()
    mapped = ax.scatter([0, 1], [0, 1], c=[0.0, 1.0], cmap=style.MAP)
    picture = ax.imshow(np.eye(2), cmap=style.MAP)
    plain = ax.scatter([0, 1], [0, 1], c=[style.INK, "#009e73"], alpha=0.25)
    figure.draw_without_rendering()
    before = mapped.get_facecolor().copy()
    dark.on_dark(figure).draw_without_rendering()
    assert np.array_equal(mapped.get_facecolor(), before) and picture.get_cmap().name == style.MAP
    assert plain.get_facecolor() == pytest.approx(colors.to_rgba_array([style.ON_DARK[style.INK], "#009e73"], 0.25))
