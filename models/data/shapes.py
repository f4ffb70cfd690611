"""What does a vision model look at when the truth is known? An embedded data set, rendered from a seed, without files.

One target object per image; its class is *shape x fill* (5 x 4 = 20), so every class needs a global cue (the outline)
and a local one (the texture). Hue, position, size, rotation and clutter vary and are known (`factors`), and the mask
of every object is exact. `clutter`, uniform in [0, 1], is an image's difficulty: contrast of the background, number of
distractor objects of other classes, occlusion by a bar, pixel noise. `shapes-easy` has 32 px, large objects, nothing
else.

Item i is a pure function of (seed, split, i): every random number is a splitmix64 hash (Steele, Lea & Flood 2014) of
them and a column number. Only IEEE-exact elementwise arithmetic decides geometry (angles come from a table), so
labels, factors and masks are the same on every machine. Lengths are in units of the image, x to the right, y down.
Rendering costs a quarter of a millisecond per 64 px image, on one core (NumPy uses no more).
"""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.errors import InputError

VERSION = 1  # part of every fingerprint; raise it with any change of the pixels
SHAPES = ("disc", "square", "triangle", "cross", "ring")
FILLS = ("plain", "stripes", "checks", "dots")
CLASSES = tuple(f"{shape} {fill}" for shape in SHAPES for fill in FILLS)
FACTORS = ("shape", "fill")  # what a class is made of
DEFAULT_N = {"train": 50_000, "val": 5_000}
MAX_DISTRACTORS = 3
DISTRACTOR_SCALE = 0.06, 0.085  # radius, in units of the image
NOISE_GRIDS = (4, 9)  # cells per side of the two scales of the background
CHUNK = 64  # images rendered together: what fits into the cache of a core

TURN = 2 * np.pi * np.arange(256) / 256
COS, SIN = np.round(np.cos(TURN), 6), np.round(np.sin(TURN), 6)

# Outlines in units of the radius of the disc of the same area (pi), so that area does not tell the shape.
SQUARE = np.float32(0.886227)  # half side
TRIANGLE = np.float32(0.777560)  # radius of the inscribed circle
CROSS_ARM, CROSS_WIDTH = np.float32(1.240963), np.float32(0.372289)  # half length and half width (0.3 of it) of an arm
RING_MIDDLE, RING_WIDTH = np.float32(0.866025), np.float32(0.288675)  # the hole has half the outer radius
REACH = 1.56  # farthest point of any outline (the triangle's corners)


@dataclass(frozen=True)
class Difficulty:
    """Ranges of the two variants; lengths in units of the image."""

    image_size: int
    scale: tuple[float, float]
    period: tuple[float, float]
    clutter: float  # its upper end


HARD = Difficulty(image_size=64, scale=(0.19, 0.29), period=(0.115, 0.16), clutter=1.0)
EASY = Difficulty(image_size=32, scale=(0.25, 0.34), period=(0.16, 0.22), clutter=0.0)


# Random numbers


def mix(z: np.ndarray) -> np.ndarray:
    """The output function of splitmix64: uint64 -> uint64, any shape."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hashes(key: int, indices: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """64 random bits for every (index, column) of a stream: `[n] , [k] -> [n k]` uint64."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    rows = mix(np.uint64(key) + indices.astype(np.uint64) * golden)
    return mix(rows[:, None] + (columns.astype(np.uint64) + np.uint64(1)) * golden)


def uniforms(key: int, indices: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1): `[n] , [k] -> [n k]` float64."""
    return (hashes(key, indices, columns) >> np.uint64(11)) * 2.0**-53


DRAWS = [
    "label",
    "clutter",
    "scale",
    "x",
    "y",
    "rotation",
    "hue",
    "chroma",
    "light",
    "dark",
    "swap",
    "period",
    "phase_u",
    "phase_v",
    "shade_angle",
    "ground_hue",
    "ground_light",
    "ground_chroma",
    "ground_turn",
    "gradient",
    "gradient_angle",
    "bar",
    "bar_width",
    "bar_offset",
    "bar_angle",
    "bar_hue",
    "bar_light",
    "count",
]
DISTRACTOR_DRAWS = [
    "label",
    "scale",
    "rotation",
    "hue",
    "chroma",
    "light",
    "dark",
    "swap",
    "period",
    "phase_u",
    "phase_v",
    "shade_angle",
    "x0",
    "y0",
    "x1",
    "y1",
    "x2",
    "y2",
    "x3",
    "y3",
]
DRAWS += [f"{name}/{slot}" for slot in range(MAX_DISTRACTORS) for name in DISTRACTOR_DRAWS]
DRAWS += ["other"]
GRID_COLUMN, PIXEL_COLUMN = 1 << 16, 1 << 20  # where the numbers of the background's grids and of the pixels start


class Draws:
    """Uniform numbers of a batch of items, by name; a name's place in DRAWS is its column."""

    def __init__(self, key: int, indices: np.ndarray):
        self.values = dict(zip(DRAWS, uniforms(key, indices, np.arange(len(DRAWS))).T, strict=True))

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """`[n]` float64, uniform in [low, high)."""
        return low + (high - low) * self.values[name]

    def integer(self, name: str, n: int) -> np.ndarray:
        """`[n]` int64, uniform in 0..n-1."""
        return (self.values[name] * n).astype(np.int64)


# Factors


@dataclass(frozen=True)
class Objects:
    """One object per image, every field `[n]` or `[n 3]`: what is needed to paint it."""

    label: np.ndarray
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray  # radius of the disc of the same area
    turn: np.ndarray  # rotation in 1/256 turns
    hue: np.ndarray
    inks: np.ndarray  # [n 2 3]: the fill's two colours, or plain's one twice
    period: np.ndarray
    phase: np.ndarray  # [n 2], in periods
    shade_turn: np.ndarray

    def __getitem__(self, rows) -> "Objects":
        return Objects(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def colour(hue: np.ndarray, chroma: np.ndarray, luminance: np.ndarray) -> np.ndarray:
    """RGB `[n 3]` in [0, 1] of a hue in turns and a chroma around a luminance."""
    pure = np.clip(np.abs((hue[:, None] * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    grey = 0.299 * pure[:, 0] + 0.587 * pure[:, 1] + 0.114 * pure[:, 2]
    return np.clip(luminance[:, None] + chroma[:, None] * (pure - grey[:, None]), 0, 1)


def two_inks(draws: Draws, suffix: str = "") -> np.ndarray:
    """A light and a dark colour of one hue in either order `[n 2 3]`; plain objects use the first alone."""
    hue, chroma = draws("hue" + suffix), draws("chroma" + suffix, 0.25, 0.55)
    light, dark = (
        colour(hue, chroma, draws("light" + suffix, 0.74, 0.9)),
        colour(hue, chroma, draws("dark" + suffix, 0.1, 0.24)),
    )
    swap = (draws("swap" + suffix) < 0.5)[:, None]
    return np.stack([np.where(swap, light, dark), np.where(swap, dark, light)], axis=1)


def appearance(draws: Draws, period: np.ndarray, suffix: str = "") -> dict[str, np.ndarray]:
    """The fields of an object that do not say what and where it is."""
    return dict(
        turn=draws.integer("rotation" + suffix, 256),
        hue=draws("hue" + suffix),
        inks=two_inks(draws, suffix),
        period=period,
        phase=np.stack([draws("phase_u" + suffix), draws("phase_v" + suffix)], axis=1),
        shade_turn=draws.integer("shade_angle" + suffix, 256),
    )


def draw_targets(draws: Draws, difficulty: Difficulty) -> Objects:
    scale = draws("scale", *difficulty.scale)
    margin = 0.8 * scale  # so that the target is mostly, not always entirely, inside
    x, y = (margin + (1 - 2 * margin) * draws(axis) for axis in "xy")
    label = draws.integer("label", len(CLASSES))
    return Objects(label=label, x=x, y=y, scale=scale, **appearance(draws, draws("period", *difficulty.period)))


def draw_distractors(draws: Draws, targets: Objects, slot: int) -> tuple[Objects, np.ndarray]:
    """One small object per image, of another class, at the farthest of four places; and how far it stays clear of the
    target `[n]`.
    """
    suffix = f"/{slot}"
    label = (targets.label + 1 + draws.integer("label" + suffix, len(CLASSES) - 1)) % len(CLASSES)
    scale = draws("scale" + suffix, *DISTRACTOR_SCALE)
    xs, ys = (np.stack([draws(f"{axis}{place}{suffix}", 0.05, 0.95) for place in range(4)], axis=1) for axis in "xy")
    dx, dy = xs - targets.x[:, None], ys - targets.y[:, None]
    distance = np.sqrt(dx * dx + dy * dy)
    rows, best = np.arange(len(label)), distance.argmax(axis=1)
    clearance = distance[rows, best] - 1.15 * (targets.scale + scale)
    look = appearance(draws, draws("period" + suffix, 0.07, 0.09), suffix)
    return Objects(label=label, x=xs[rows, best], y=ys[rows, best], scale=scale, **look), clearance


@dataclass(frozen=True)
class Scene:
    """Everything that decides a batch of images, except the pixel noise and the background's grids."""

    targets: Objects
    distractors: list[tuple[Objects, np.ndarray]]  # per slot: objects, and the rows of the images they are in
    clutter: np.ndarray
    grounds: np.ndarray  # [n 2 3]: the background's two colours
    bar_width: np.ndarray  # half width of the occluding bar / radius of the target; 0 = no bar
    bar_offset: np.ndarray  # from the target's centre / its radius
    bar_turn: np.ndarray
    bar_colour: np.ndarray  # [n 3]
    gradient: np.ndarray  # relative change of brightness from the middle to the border
    gradient_turn: np.ndarray


def draw_labels(key: int, indices: np.ndarray, changed: str | None = None) -> np.ndarray:
    """Class of every image, int64 `[n]`; with another shape or fill, drawn anew, where that is `changed`."""
    columns = np.array([DRAWS.index("label"), DRAWS.index("other")])
    own, other = uniforms(key, indices, columns).T
    label = (own * len(CLASSES)).astype(np.int64)
    if changed is None:
        return label
    of_factor = list(np.divmod(label, len(FILLS)))
    place, n = FACTORS.index(changed), (len(SHAPES), len(FILLS))[FACTORS.index(changed)]
    of_factor[place] = (of_factor[place] + 1 + (other * (n - 1)).astype(np.int64)) % n
    return of_factor[0] * len(FILLS) + of_factor[1]


def draw_scene(key: int, indices: np.ndarray, difficulty: Difficulty, changed: str | None = None) -> Scene:
    """All there is to paint; where a factor of the targets is `changed`, everything else is as it was."""
    draws = Draws(key, indices)
    clutter = draws("clutter", 0, difficulty.clutter)
    targets = draw_targets(draws, difficulty)
    count = draws("count") * (1 + MAX_DISTRACTORS * clutter)
    slots = [draw_distractors(draws, targets, slot) for slot in range(MAX_DISTRACTORS)]
    present = [np.flatnonzero((clearance > 0) & (count >= slot + 1)) for slot, (_, clearance) in enumerate(slots)]
    ground_hue = targets.hue + draws("ground_hue", 0.2, 0.8)
    middle, spread = draws("ground_light", 0.4, 0.58), 0.21 * clutter
    chroma = draws("ground_chroma", 0.05, 0.3)
    other_hue = ground_hue + clutter * draws("ground_turn", -0.15, 0.15)
    bar = draws("bar") < 0.6 * clutter
    return Scene(
        targets=targets if changed is None else replace(targets, label=draw_labels(key, indices, changed)),
        distractors=[(objects[rows], rows) for (objects, _), rows in zip(slots, present, strict=True)],
        clutter=clutter,
        grounds=np.stack(
            [colour(ground_hue, chroma, middle - spread), colour(other_hue, chroma, middle + spread)], axis=1
        ),
        bar_width=np.where(bar, draws("bar_width", 0.05, 0.05 + 0.08 * clutter), 0.0),
        bar_offset=draws("bar_offset", -0.7, 0.7),
        bar_turn=draws.integer("bar_angle", 256),
        bar_colour=colour(draws("bar_hue"), 0.3 * np.ones(len(indices)), draws("bar_light", 0.2, 0.8)),
        gradient=draws("gradient", 0.0, 0.25),
        gradient_turn=draws.integer("gradient_angle", 256),
    )


# Geometry: exact elementwise float32 only


def column(values: np.ndarray) -> np.ndarray:
    """`[n] -> [n 1 1]` float32, to broadcast over pixels."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def along(xs: np.ndarray, ys: np.ndarray, turn: np.ndarray, factor: np.ndarray | float = 1.0) -> np.ndarray:
    """Coordinate along a direction: `xs [n 1 w], ys [n h 1] -> [n h w]`, times a factor per image."""
    return xs * column(COS[turn] * factor) + ys * column(SIN[turn] * factor)


def outline(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to a shape's edge (outside of corners a bound of it), negative inside, in units of the radius."""
    if shape == "disc":
        return np.sqrt(u * u + v * v) - 1
    if shape == "ring":
        return np.abs(np.sqrt(u * u + v * v) - RING_MIDDLE) - RING_WIDTH
    if shape == "triangle":
        return np.maximum(v, np.abs(u) * np.float32(0.866025) - v * np.float32(0.5)) - TRIANGLE
    u, v = np.abs(u), np.abs(v)
    if shape == "square":
        return np.maximum(u, v) - SQUARE
    across, upright = np.maximum(u - CROSS_ARM, v - CROSS_WIDTH), np.maximum(u - CROSS_WIDTH, v - CROSS_ARM)
    return np.minimum(across, upright)


def signed_distance(objects: Objects, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """`[n h w]`, in units of each object's radius: every outline is evaluated once, for its group."""
    distance = np.empty_like(u)
    for number, shape in enumerate(SHAPES):
        rows = np.flatnonzero(objects.label // len(FILLS) == number)
        distance[rows] = outline(shape, u[rows], v[rows])
    return distance


# Fill


def soft_step(distance: np.ndarray) -> np.ndarray:
    """How much of a pixel lies beyond an edge, from the distance in pixels, in place."""
    distance += np.float32(0.5)
    return np.clip(distance, 0, 1, out=distance)


def band(t: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """A square wave of period 1 with soft edges: 0 or 1."""
    return soft_step((np.abs(t - np.floor(t) - np.float32(0.5)) - np.float32(0.25)) * sharpness)


def pattern(fill: str, s: np.ndarray, t: np.ndarray, sharpness: np.ndarray) -> np.ndarray:
    """Share of the second ink at texture coordinates s, t (in periods)."""
    if fill == "stripes":
        return band(s, sharpness)
    if fill == "checks":
        a, b = band(s, sharpness), band(t, sharpness)
        return a + b - 2 * a * b
    s, t = (w - np.floor(w) - np.float32(0.5) for w in (s, t))
    return soft_step((np.float32(0.33) - np.sqrt(s * s + t * t)) * sharpness)


def second_ink(objects: Objects, u: np.ndarray, v: np.ndarray, image_size: int) -> np.ndarray:
    """Share of the second ink `[n h w]` at object coordinates u, v."""
    share = np.zeros_like(u)
    zoom, sharpness = column(objects.scale / objects.period), column(objects.period * image_size)
    for number, fill in enumerate(FILLS[1:], start=1):
        rows = np.flatnonzero(objects.label % len(FILLS) == number)
        s, t = (w[rows] * zoom[rows] + column(objects.phase[rows, axis]) for axis, w in enumerate((u, v)))
        share[rows] = pattern(fill, s, t, sharpness[rows])
    return share


# Compose


def blend(canvas: np.ndarray, colours: np.ndarray, alpha: np.ndarray) -> None:
    """Lay colours `[n 3 h w]` (or `[n 3 1 1]`) over the canvas `[n 3 h w]` with opacity `[n h w]`, in place."""
    difference = colours - canvas
    difference *= alpha[:, None]
    canvas += difference


def mixture(pair: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Between two colours `[n 2 3]` by the share `[n h w]` of the second: `[n 3 h w]`."""
    pair = pair.astype(np.float32)[..., None, None]
    mixed = (pair[:, 1] - pair[:, 0]) * share[:, None]
    mixed += pair[:, 0]
    return mixed


def paint(
    canvas: np.ndarray, mask: np.ndarray, objects: Objects, xs: np.ndarray, ys: np.ndarray, image_size: int
) -> None:
    """Draw one object per image at the pixel centres `xs [n 1 w], ys [n h 1]`, in place."""
    dx, dy = xs - column(objects.x), ys - column(objects.y)
    u = along(dx, dy, objects.turn, 1 / objects.scale)
    v = along(dx, dy, (objects.turn + 64) % 256, 1 / objects.scale)
    distance = signed_distance(objects, u, v)
    np.copyto(mask, (objects.label + 1)[:, None, None], where=distance < 0)
    colours = mixture(objects.inks, second_ink(objects, u, v, image_size))
    colours *= 1 + along(dx, dy, objects.shade_turn, 0.16 / objects.scale)[:, None]
    blend(canvas, colours, soft_step(-distance * column(objects.scale * image_size)))


def paint_small(canvas: np.ndarray, mask: np.ndarray, objects: Objects, rows: np.ndarray) -> None:
    """`paint` in a window around each object, for the images `rows`."""
    size = canvas.shape[-1]
    width = min(size, int(2 * REACH * DISTRACTOR_SCALE[1] * size) + 3)
    left, top = (
        np.clip((c * size - width / 2).astype(np.int64), 0, size - width)[:, None, None] for c in (objects.x, objects.y)
    )
    y, x = top + np.arange(width)[:, None], left + np.arange(width)
    here = rows[:, None, None], y, x
    everywhere = rows[:, None, None, None], np.arange(3)[:, None, None], y[:, None], x[:, None]
    window, window_mask = canvas[everywhere], mask[here]
    paint(window, window_mask, objects, *pixel_centres(x, y, size), size)
    canvas[everywhere], mask[here] = window, window_mask


def paint_bar(canvas: np.ndarray, mask: np.ndarray, scene: Scene, xs: np.ndarray, ys: np.ndarray) -> None:
    """The occluder: a straight bar across the image, over the target."""
    rows = np.flatnonzero(scene.bar_width)
    target, ids, behind = scene.targets[rows], mask[rows], canvas[rows]
    place = along(xs - column(target.x), ys - column(target.y), scene.bar_turn[rows]) - column(
        scene.bar_offset[rows] * target.scale
    )
    distance = np.abs(place) - column(scene.bar_width[rows] * target.scale)
    ids[distance < 0] = 0
    blend(
        behind,
        scene.bar_colour[rows].astype(np.float32)[..., None, None],
        soft_step(-distance * np.float32(canvas.shape[-1])),
    )
    mask[rows], canvas[rows] = ids, behind


def pixel_centres(x: np.ndarray, y: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel numbers to coordinates in units of the image, float32."""
    return tuple((pixels.astype(np.float32) + np.float32(0.5)) / np.float32(size) for pixels in (x, y))


def enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear value noise `[n cells+1 cells+1] -> [n size size]`."""
    place = (np.arange(size) + 0.5) / size * (grid.shape[-1] - 1)
    low = place.astype(np.int64)
    t = (place - low).astype(np.float32)
    wide = grid[:, :, low] * (1 - t) + grid[:, :, low + 1] * t
    return wide[:, low] * (1 - t)[:, None] + wide[:, low + 1] * t[:, None]


def background(key: int, indices: np.ndarray, scene: Scene, size: int) -> np.ndarray:
    """Value noise at two scales between two colours `[n 3 size size]`."""
    share, first = np.float32(0), GRID_COLUMN
    for cells, weight in zip(NOISE_GRIDS, (0.6, 0.4), strict=True):
        columns = np.arange(first, first := first + (cells + 1) ** 2)
        grid = uniforms(key, indices, columns).astype(np.float32).reshape(-1, cells + 1, cells + 1)
        share = share + np.float32(weight) * enlarge(grid, size)
    return mixture(scene.grounds, share)


def pixel_noise(key: int, indices: np.ndarray, clutter: np.ndarray, size: int) -> np.ndarray:
    """Uniform noise `[n 3 size size]`, +-0.1 at full clutter: three 16-bit numbers from one hash per pixel."""
    bits = hashes(key, indices, PIXEL_COLUMN + np.arange(size * size)).reshape(-1, size, size)
    noise = np.empty((len(bits), 3, size, size), dtype=np.float32)
    for channel in range(3):
        noise[:, channel] = (bits >> np.uint64(16 * channel)).astype(np.uint16)
    noise *= np.float32(2**-15)
    noise -= 1
    noise *= column(0.1 * clutter)[..., None]
    return noise


def render_chunk(
    key: int, indices: np.ndarray, difficulty: Difficulty, size: int, changed: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n 3 size size]` and masks int64 `[n size size]`, back to front."""
    scene = draw_scene(key, indices, difficulty, changed)
    pixels = np.arange(size)
    xs, ys = pixel_centres(pixels[None, None, :], pixels[None, :, None], size)
    canvas = background(key, indices, scene, size)
    mask = np.zeros((len(indices), size, size), dtype=np.int64)
    for objects, rows in scene.distractors:
        paint_small(canvas, mask, objects, rows)
    paint(canvas, mask, scene.targets, xs, ys, size)
    paint_bar(canvas, mask, scene, xs, ys)
    canvas *= 1 + along(xs - np.float32(0.5), ys - np.float32(0.5), scene.gradient_turn, 2 * scene.gradient)[:, None]
    if difficulty.clutter:
        canvas += pixel_noise(key, indices, scene.clutter, size)
    canvas *= 255
    return np.clip(np.rint(canvas, out=canvas), 0, 255, out=canvas).astype(np.uint8), mask


# Data set


class Shapes(torch.utils.data.Dataset):
    """The embedded data set. Items are `(image float32 [3 h w] normalised, label int, mask int64 [h w])`.

    Mask: 0 = other, label + 1 = the visible part of an object of that class (the target and the distractors).
    Raises InputError for an unknown split, or an `n` or `image_size` that is too small.
    """

    has_masks = True
    classes = CLASSES
    n_classes = len(CLASSES)
    changed: str | None = None  # the factor that is not the images' own, see `with_changed`

    def __init__(
        self,
        split: str = "val",
        *,
        easy: bool = False,
        seed: int = 0,
        n: int | None = None,
        image_size: int | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ):
        name = "shapes-easy" if easy else "shapes"
        if split not in DEFAULT_N:
            raise InputError(f"{name} has no split '{split}'; its splits are {' and '.join(DEFAULT_N)}.")
        if n is not None and n < 1:
            raise InputError(f"{name}:{n} has no images; ask for at least 1.")
        self.difficulty = EASY if easy else HARD
        self.image_size = self.difficulty.image_size if image_size is None else image_size
        if self.image_size < 8:
            raise InputError(f"{name} cannot be rendered at {self.image_size} px; ask for an image size of at least 8.")
        self.spec = name if n is None else f"{name}:{n}"
        self.split, self.seed, self.n = split, seed, DEFAULT_N[split] if n is None else n
        self.mean, self.std = tuple(mean), tuple(std)
        self.key = int(digest(name, split, seed)[:16], 16)
        self.fingerprint = digest(VERSION, name, split, seed, self.n, self.image_size)[:16]

    def __len__(self) -> int:
        return self.n

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of every image, int64 `[image]`."""
        return draw_labels(self.key, np.arange(self.n), self.changed)

    def with_changed(self, factor: str) -> "Shapes":
        """The same images, but for the "shape" or the "fill" of each target: another one, drawn from the seed.

        All that does not show the target is equal bit for bit. Raises `InputError` for any other factor.
        """
        if factor not in FACTORS:
            raise InputError(f"the target has no factor {factor!r} that makes its class; there are shape and fill")
        other = copy.copy(self)
        other.__dict__.pop("labels", None)
        other.changed, other.fingerprint = factor, digest(self.fingerprint, factor)[:16]
        return other

    def factors(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """What the images were made from, each `[n]`.

        shape, texture: numbers in SHAPES, FILLS. hue in turns. x, y: centre in units of the image. scale: radius of
        the disc of the target's area / image size. rotation: radians, clockwise. clutter: 0..1. occlusion: width of
        the bar / the target's diameter, 0 = none. n_distractors.
        """
        scene = draw_scene(self.key, self._checked(indices), self.difficulty, self.changed)
        target = scene.targets
        n_distractors = np.zeros(len(indices), dtype=np.int64)
        for _, rows in scene.distractors:
            n_distractors[rows] += 1
        return dict(
            shape=target.label // len(FILLS),
            texture=target.label % len(FILLS),
            hue=target.hue,
            x=target.x,
            y=target.y,
            scale=target.scale,
            rotation=target.turn * (2 * np.pi / 256),
            clutter=scene.clutter,
            occlusion=scene.bar_width,
            n_distractors=n_distractors,
        )

    def render(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images uint8 `[n 3 h w]` and masks int64 `[n h w]`."""
        indices, size = self._checked(indices), self.image_size
        images = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        masks = torch.empty(len(indices), size, size, dtype=torch.int64)
        for start in range(0, len(indices), CHUNK):
            part = slice(start, start + CHUNK)
            chunk = render_chunk(self.key, indices[part], self.difficulty, size, self.changed)
            images[part], masks[part] = map(torch.from_numpy, chunk)
        return images, masks

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int, Tensor]]:
        """The items of one batch, rendered together (PyTorch's DataLoader asks for them so)."""
        images, masks = self.render(indices)
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        images = images.float().div_(255).sub_(mean).div_(std)
        return [(image, int(self.labels[i]), mask) for image, i, mask in zip(images, indices, masks, strict=True)]

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        return self.__getitems__([index])[0]

    def pil(self, index: int) -> Image.Image:
        """The picture itself, a PIL RGB image."""
        return Image.fromarray(self.render([index])[0][0].permute(1, 2, 0).numpy())

    def _checked(self, indices: Sequence[int]) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(indices) and not (-self.n <= indices.min() and indices.max() < self.n):
            raise IndexError(f"{self.spec} ({self.split}) has {self.n} images, numbered from 0.")
        return indices % self.n


def digest(*parts: object) -> str:
    """Hex SHA-256 of what the parts print as."""
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()
