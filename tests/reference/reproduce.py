"""``make reproduce``: what others define or published, beside what this toolkit gives for the same arrays.

    python -m tests.reference.reproduce                                  # the shipped run's stored attention
    python -m tests.reference.reproduce --voc VOCdevkit/VOC2007 --coco instances_val2014.json

Where the other library is installed its own code runs; where not, its rule is written out here from its source, and the
line says so. A line whose two numbers must be equal and are not ends the script with exit code 1; what is missing is
skipped with a word.
"""

import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
import tyro
from scipy import stats
from sklearn.decomposition import PCA

from analyses import intervals, rank, results
from probes.methods import pointing

RUNS = Path(__file__).parents[2] / "runs"
ZHANG = "Zhang et al. 2018, image centre, VOC07 test, all"
TOLERANCE = 15  # pixels, of the original pointing game


@dataclass(frozen=True)
class Line:
    """One number of others beside ours; `must_agree` to within `within`."""

    what: str
    source: str
    theirs: float | None
    ours: float | None
    within: float = 1e-6
    must_agree: bool = True
    word: str = ""

    @property
    def holds(self) -> bool:
        if not self.must_agree or self.theirs is None or self.ours is None:
            return True
        return abs(self.theirs - self.ours) <= self.within

    def __str__(self) -> str:
        numbers = "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in (self.theirs, self.ours))
        mark = "" if self.theirs is None or self.ours is None else "  equal" if self.must_agree else "  differ by rule"
        mark = mark if self.holds else "  DIFFER"
        return f"{self.what:46}{numbers}{mark:16}  {self.source}{self.word and f'; {self.word}'}"


# The pointing game of others on our stored attention


@dataclass(frozen=True)
class Stored:
    """Attention [image row column] of every stored image, step and head, and the target's mask [image y x]."""

    attention: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    patch: int

    @property
    def target(self) -> np.ndarray:
        return self.masks == self.labels[:, None, None] + 1

    @property
    def table(self) -> pointing.Table:
        return pointing.score_table(torch.from_numpy(self.masks), torch.from_numpy(self.labels), self.patch)

    @property
    def as_ours(self) -> torch.Tensor:
        """[image step head patch] with one step and one head."""
        return torch.from_numpy(self.attention).flatten(1)[:, None, None]


def stored(path: Path) -> Stored:
    """What a result keeps of its images: each under every step's and head's map."""
    result = results.read(path)
    attention = result["thumbnail_attention"].transpose("place", "step", "head", "row", "column").values
    places, n = len(attention), attention.shape[1] * attention.shape[2]
    labels = result["label"].values[result["shown"].values].astype(np.int64)
    masks = result["thumbnail_mask"].values.astype(np.int64)
    flat = attention.reshape(places * n, *attention.shape[3:]).astype(np.float64)
    return Stored(flat, masks.repeat(n, 0), labels.repeat(n), result.attrs["patch_size"])


def quantus_pointing(maps: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Quantus 0.6: a hit where any pixel with the largest value lies on the target."""
    largest = maps == maps.max((1, 2), keepdims=True)
    return (largest & target).any((1, 2)).astype(float)


def quantus_mass(maps: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Quantus 0.6: relevance inside over all relevance."""
    return (maps * target).sum((1, 2)) / maps.sum((1, 2))


def quantus_rank(maps: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Quantus 0.6: of the k pixels with the largest values, k the target's size, the share on the target."""
    flat, inside = maps.reshape(len(maps), -1), target.reshape(len(maps), -1)
    order = np.argsort(-flat, axis=1)
    return np.array([on[first[: on.sum()]].mean() for on, first in zip(inside, order, strict=True)])


def torchray(mask: np.ndarray, y: int, x: int, tolerance: float) -> bool:
    """TorchRay: a hit where the target meets the disc of pixels closer than the tolerance."""
    v, u = np.ogrid[: mask.shape[0], : mask.shape[1]]
    return bool((mask & ((v - y) ** 2 + (u - x) ** 2 < tolerance**2)).any())


def of_quantus(name: str, rule, maps: np.ndarray, target: np.ndarray) -> tuple[float, str]:
    """A mean by Quantus' own class where it is installed, else by its rule."""
    if importlib.util.find_spec("quantus"):
        import quantus

        metric = getattr(quantus, name)(disable_warnings=True)
        return float(np.mean(metric.evaluate_batch(a_batch=maps, s_batch=target))), f"quantus.{name}, installed"
    return float(rule(maps, target).mean()), f"Quantus' {name}, its rule written out"


def pointing_lines(of: Stored) -> Iterator[Line]:
    target, table, p = of.target, of.table, of.patch
    ours = pointing.hits(of.as_ours, table)[:, 0, :, 0, 0].double().numpy()  # [radius image] on the class
    blocks = of.attention.repeat(p, 1).repeat(p, 2)  # every pixel has its patch's value
    centres = np.zeros_like(blocks)
    centres[:, p // 2 :: p, p // 2 :: p] = of.attention
    for maps, what, is_same in ((centres, "at patch centres", True), (blocks, "over whole patches", False)):
        theirs, source = of_quantus("PointingGame", quantus_pointing, maps, target)
        word = "" if is_same else "any pixel of the arg-max patch may hit, ours is its centre"
        yield Line(f"hit ratio, {what}", source, theirs, float(ours[0].mean()), must_agree=is_same, word=word)
    points = [divmod(int(one.argmax()), one.shape[1]) for one in of.attention]
    radius = TOLERANCE * target.shape[-1] / 224
    rays = [torchray(mask, y * p + p // 2, x * p + p // 2, radius) for mask, (y, x) in zip(target, points, strict=True)]
    yield Line("hit ratio, 15 px at 224", "TorchRay's rule, written out", float(np.mean(rays)), float(ours[1].mean()))
    grid = of.as_ours.float()
    held = dict(zip(pointing.COMPANIONS, pointing.companions(grid, grid, 1, table)[:, :, 0, 0].double(), strict=True))
    theirs, source = of_quantus("RelevanceMassAccuracy", quantus_mass, blocks, target)
    yield Line("relevance inside the mask", source, theirs, float(held["mass"].mean()), within=1e-5)
    theirs, source = of_quantus("RelevanceRankAccuracy", quantus_rank, blocks, target)
    word = f"not measured here; a random map {target.mean():.4f}, our IoU of the top 60 % {held['iou60'].mean():.4f}"
    yield Line("relevance rank accuracy", source, theirs, None, word=word)


# Statistics of others


def statistics_lines() -> Iterator[Line]:
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, 24)) * np.geomspace(1, 0.02, 24)
    theirs = PCA(n_components=0.95, svd_solver="full").fit(rows).n_components_
    spectrum = np.linalg.eigvalsh(np.cov(rows.T))[::-1].copy()
    yield Line("95 % rank, centred", "sklearn.decomposition.PCA", float(theirs), float(rank.energy_rank(spectrum)))
    low = stats.binomtest(37, 50).proportion_ci(method="wilson").low
    yield Line("lower end of 37 of 50", "scipy.stats, Wilson", float(low), float(intervals.wilson(37, 50)[0]))
    draws = random.binomial(500, 0.28, (4000, 144)).max(1).mean() / 500
    hits = np.full((500, 1), 0.28).ravel()
    ours = intervals.best_of(hits, 144)[0]
    yield Line("best of 144 pointers that hit 28 % of 500", "simulated", draws, ours, within=0.002)
    yield from cka_lines(random)


def cka_lines(random: np.random.Generator) -> Iterator[Line]:
    """CKA of independent Gaussians: biased it is d / (n + d), debiased 0."""
    n, d = 150, 60
    if importlib.util.find_spec("probes.methods.similarity") is None:
        yield Line("CKA of independent Gaussians", "closed form d / (n + d)", d / (n + d), None, word="no CKA here")
        return
    from probes.methods import similarity

    drawn = [similarity.of_rows(torch.from_numpy(random.normal(size=(n, 2, d)))) for _ in range(40)]
    biased, debiased = (np.mean([float(of.cka(debiased=how)[0, 1]) for of in drawn]) for how in (False, True))
    yield Line("CKA of independent Gaussians", "closed form d / (n + d)", d / (n + d), biased, within=0.01)
    yield Line("debiased CKA of them", "closed form 0", 0.0, debiased, within=0.01)


# Image centres on boxes that the user has


def voc_boxes(path: Path) -> Iterator[tuple[str, tuple[int, int], list[tuple[float, ...]]]]:
    """Class, size (width, height) and boxes of every class of every test image, but for classes all difficult."""
    names = (path / "ImageSets" / "Main" / "test.txt").read_text().split()
    for name in names:
        root = ElementTree.parse(path / "Annotations" / f"{name}.xml").getroot()
        size = tuple(int(root.find(f"size/{side}").text) for side in ("width", "height"))
        boxes, is_easy = defaultdict(list), defaultdict(bool)
        for thing in root.iter("object"):
            box = thing.find("bndbox")
            kind = thing.find("name").text
            boxes[kind].append(tuple(float(box.find(end).text) - 1 for end in ("xmin", "ymin", "xmax", "ymax")))
            is_easy[kind] |= thing.findtext("difficult", "0") == "0"
        yield from ((kind, size, found) for kind, found in boxes.items() if is_easy[kind])


def coco_boxes(path: Path) -> Iterator[tuple[str, tuple[int, int], list[tuple[float, ...]]]]:
    content = json.loads(path.read_text())
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    boxes = defaultdict(list)
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        boxes[one["image_id"], one["category_id"]].append((x, y, x + width - 1, y + height - 1))
    yield from ((str(kind), sizes[image], found) for (image, kind), found in boxes.items())


def centre_of(items: Iterator[tuple[str, tuple[int, int], list[tuple[float, ...]]]]) -> float:
    """How often the image's centre lies in a box of the class or closer to it than 15 px: mean over classes, in %."""
    hits = defaultdict(list)
    for kind, (width, height), boxes in items:
        x, y = width // 2, height // 2
        away = (np.hypot(max(x0 - x, 0, x - x1), max(y0 - y, 0, y - y1)) for x0, y0, x1, y1 in boxes)
        hits[kind].append(min(away) < TOLERANCE)
    return 100 * float(np.mean([np.mean(of_class) for of_class in hits.values()]))


def centre_lines(voc: Path | None, coco: Path | None) -> Iterator[Line]:
    word = "name its folder (Annotations, ImageSets) with --voc"
    ours = centre_of(voc_boxes(voc)) if voc else None
    yield Line("image centre on VOC (%)", ZHANG, 69.6, ours, within=0.2, word="" if voc else word)
    word = "from boxes, where others use masks" if coco else "name its instances_*.json with --coco"
    yield Line(
        "image centre on COCO (%)", "no number at hand", None, centre_of(coco_boxes(coco)) if coco else None, word=word
    )


def reproduce(run: Path = RUNS / "demo", voc: Path | None = None, coco: Path | None = None) -> None:
    """Others' numbers beside ours.

    Args:
        run: folder with a pointing_game.nc that keeps its pixels.
        voc: folder of Pascal VOC 2007 with its test annotations.
        coco: instances_val2014.json of COCO.
    """
    lines = [*pointing_lines(stored(run / "pointing_game.nc")), *statistics_lines(), *centre_lines(voc, coco)]
    print(f"{'':46}{'theirs':>10}{'ours':>10}")
    print(*lines, sep="\n")
    if not all(line.holds for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    tyro.cli(reproduce, prog="python -m tests.reference.reproduce")
