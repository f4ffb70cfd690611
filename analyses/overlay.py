"""A picture under a map of attention as pixels, drawn in a millisecond where a figure would take a hundred."""

from io import BytesIO

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from analyses import style

ALPHA = 0.5  # of the map


def png(picture: np.ndarray, values: np.ndarray, mask: np.ndarray | None = None, *, size: int = 210) -> bytes:
    """A picture [y x channel] uint8 under a map [row column], what is 1 in the mask [y x] outlined in white, a cross at
    the maximum: a square PNG of so many pixels.
    """
    shown = Image.fromarray(picture).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    scaled = Image.fromarray((values / max(float(values.max()), 1e-12)).astype(np.float32))
    smooth = np.asarray(scaled.resize((size, size), Image.Resampling.BILINEAR))
    glow = Image.fromarray((255 * colormaps[style.ATTENTION](smooth)[:, :, :3]).round().astype(np.uint8))
    shown = Image.blend(shown, glow, ALPHA)
    pixels = np.asarray(shown).copy()
    if mask is not None:
        inside = np.asarray(
            Image.fromarray((mask == 1).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
        )
        edge = np.zeros_like(inside, bool)
        edge[1:] |= inside[1:] != inside[:-1]
        edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
        pixels[edge] = 255
    shown, content = Image.fromarray(pixels), BytesIO()
    row, column = np.unravel_index(values.argmax(), values.shape)
    x, y = (column + 0.5) * size / values.shape[1], (row + 0.5) * size / values.shape[0]
    r = size / 40
    for dx in (-r, r):
        ImageDraw.Draw(shown).line((x - dx, y - r, x + dx, y + r), fill="cyan", width=2)
    shown.save(content, "PNG", compress_level=1)  # more would take most of the time
    return content.getvalue()
