"""A picture under a map of attention as pixels: what is bright, outlined and crossed lies where it should."""

from io import BytesIO

import numpy as np
from PIL import Image

from analyses import looks, overlay, style


def test_the_cross_the_outline_and_the_glow_lie_where_they_should():
    values, mask = np.zeros((4, 4)), np.zeros((8, 8))
    values[0, 3], mask[4:, :4] = 1.0, 1
    drawn = np.asarray(Image.open(BytesIO(overlay.png(np.zeros((8, 8, 3), np.uint8), values, mask, size=160))))
    assert drawn.shape == (160, 160, 3)
    cyan, white = (np.argwhere((drawn == colour).all(-1)) for colour in ((0, 255, 255), (255, 255, 255)))
    assert np.allclose(cyan.mean(0), (20, 140), atol=1.5)
    assert set(white[:, 0].tolist()) == set(range(80, 160)) and set(white[:, 1].tolist()) == set(range(81))
    assert drawn[10, 150].astype(int).sum() > 300 > 30 > drawn[150, 150].astype(int).sum()


def test_on_a_dark_page_dark_ink_is_replaced_and_the_figure_itself_stays():
    figure = looks.Curves([looks.Line([1, 2], [3, 4], label="a", colour=style.MAIN)]).interactive()
    dark = looks.on_dark(figure)
    assert dark.data[0].line.color == style.ON_DARK[style.MAIN] and figure.data[0].line.color == style.MAIN
    assert dark.layout.paper_bgcolor == "rgba(0, 0, 0, 0)" and list(dark.data[0].y) == [3, 4]
