"""The embedded data: repeatable, exact against a second rendering, balanced, and beyond a linear model."""

import hashlib

import numpy as np
import pytest
import torch

from models.data.shapes import CLASSES, FILLS, MAX_DISTRACTORS, SHAPES, Shapes, draw_scene
from models.errors import InputError

BOTH = pytest.mark.parametrize("easy", [False, True], ids=["shapes", "shapes-easy"])


def golden(data: Shapes) -> str:
    indices = [0, 1, 2, 3, 500, 4_999]
    parts = [data.labels[indices], *data.factors(indices).values(), data.render(indices)[1].numpy()]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]


def convex(corners: list, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Depth of points inside a convex polygon (smallest distance to a side's line, negative outside)."""
    depths = []
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
        depths.append(((u1 - u0) * (v - v0) - (v1 - v0) * (u - u0)) / np.hypot(u1 - u0, v1 - v0))
    return np.min(depths, axis=0)


def box(width: float, height: float) -> list:
    return [(-width, -height), (width, -height), (width, height), (-width, height)]


def depth(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Depth inside an outline of area pi."""
    if shape == "disc":
        return 1 - np.hypot(u, v)
    if shape == "ring":
        outer = np.sqrt(4 / 3)
        return np.minimum(outer - np.hypot(u, v), np.hypot(u, v) - outer / 2)
    if shape == "square":
        return convex(box(np.sqrt(np.pi) / 2, np.sqrt(np.pi) / 2), u, v)
    if shape == "cross":
        arm = np.sqrt(np.pi / (8 * 0.3 - 4 * 0.3**2))
        return np.maximum(convex(box(arm, 0.3 * arm), u, v), convex(box(0.3 * arm, arm), u, v))
    corner = np.sqrt(4 * np.pi / np.sqrt(27))
    angles = np.deg2rad([-90, 30, 150])
    return convex([(corner * np.cos(a), corner * np.sin(a)) for a in angles], u, v)


def reference_mask(scene, row: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask of one image in float64, and which of its pixels are too near an edge to be sure of."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    mask, unsure = np.zeros((size, size), dtype=np.int64), np.zeros((size, size), dtype=bool)
    objects = [(o, list(rows).index(row)) for o, rows in scene.distractors if row in rows] + [(scene.targets, row)]
    for o, k in objects:
        dx, dy, angle = x - o.x[k], y - o.y[k], 2 * np.pi * o.turn[k] / 256
        u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
        inside = depth(SHAPES[o.label[k] // len(FILLS)], u / o.scale[k], v / o.scale[k])
        mask[inside > 0] = o.label[k] + 1
        unsure |= np.abs(inside) < 1e-4
    if scene.bar_width[row] > 0:
        angle, radius = 2 * np.pi * scene.bar_turn[row] / 256, o.scale[row]
        place = np.cos(angle) * dx + np.sin(angle) * dy - scene.bar_offset[row] * radius
        mask[np.abs(place) < scene.bar_width[row] * radius] = 0
        unsure |= np.abs(np.abs(place) - scene.bar_width[row] * radius) < 1e-4
    return mask, unsure


def ridge_accuracy(pixels: torch.Tensor, labels: torch.Tensor, n_train: int) -> float:
    """The best test accuracy, over regularisation strengths, of linear regression to the one-hot labels."""
    pixels = pixels - pixels[:n_train].mean(0)
    train, test = pixels[:n_train], pixels[n_train:]
    values, vectors = torch.linalg.eigh(train @ train.T)
    target = vectors.T @ torch.nn.functional.one_hot(labels[:n_train]).float()
    similarity = test @ train.T @ vectors
    scores = [similarity @ (target / (values[:, None] + strength)) for strength in (1e1, 1e2, 1e3, 1e4)]
    return max((score.argmax(1) == labels[n_train:]).float().mean().item() for score in scores)


@BOTH
def test_an_item_does_not_depend_on_its_batch_or_on_n(easy):
    data, longer = Shapes(easy=easy), Shapes(easy=easy, n=2_000_000)
    images, masks = data.render(range(70))
    for indices in ([3], [69, 3, 3, 41], list(range(69, -1, -1))):
        for other in (data, longer):
            some_images, some_masks = other.render(indices)
            assert torch.equal(some_images, images[indices]) and torch.equal(some_masks, masks[indices])
    assert np.array_equal(longer.labels[:5_000], data.labels)
    many, few = data.factors(range(70)), data.factors([69, 3])
    assert all(np.array_equal(few[name], many[name][[69, 3]]) for name in many)


@pytest.mark.parametrize(("easy", "expected"), [(False, "1d32677c71568c3c"), (True, "7bd705f3f72f7b7e")])
def test_labels_factors_and_masks_are_the_same_on_every_machine(easy, expected):
    assert golden(Shapes(easy=easy)) == expected


@pytest.mark.parametrize(("easy", "size"), [(False, 64), (False, 96), (True, 32)])
def test_masks_equal_a_plain_rendering(easy, size):
    data, indices = Shapes("train", easy=easy, image_size=size), np.arange(100)
    scene, masks = draw_scene(data.key, indices, data.difficulty), data.render(indices)[1].numpy()
    for row in indices:
        expected, unsure = reference_mask(scene, row, size)
        assert np.array_equal(masks[row][~unsure], expected[~unsure])
        assert unsure.mean() < 0.01


@BOTH
def test_the_biggest_object_has_the_label_and_the_factors_name_it(easy):
    data = Shapes(easy=easy)
    masks, factors = data.render(range(400))[1], data.factors(range(400))
    areas = torch.stack([torch.bincount(mask.flatten(), minlength=21) for mask in masks])[:, 1:]
    labels = data.labels[:400]
    assert np.array_equal(areas.argmax(1).numpy(), labels)
    assert np.array_equal(factors["shape"] * len(FILLS) + factors["texture"], labels)
    assert CLASSES[labels[0]] == f"{SHAPES[factors['shape'][0]]} {FILLS[factors['texture'][0]]}"
    assert np.all((areas > 0).sum(1).numpy() <= 1 + factors["n_distractors"])


def test_occlusion_hides_at_most_about_a_fifth_of_the_target():
    data = Shapes()
    scene = draw_scene(data.key, np.arange(2_000), data.difficulty)
    barred = np.flatnonzero(scene.bar_width)
    assert len(barred) > 100
    for row in barred[:40]:
        hidden, _ = reference_mask(scene, row, 64)
        scene.bar_width[row] = 0
        whole, _ = reference_mask(scene, row, 64)
        assert (whole == data.labels[row] + 1).sum() * 0.75 < (hidden == data.labels[row] + 1).sum()


@BOTH
def test_area_does_not_tell_the_shape(easy):
    data = Shapes(easy=easy)
    inner = (
        (data.render(range(600))[1] == torch.from_numpy(data.labels[:600] + 1)[:, None, None])
        .float()
        .mean((1, 2))
        .numpy()
    )
    shapes = data.labels[:600] // len(FILLS)
    means = np.array([inner[shapes == shape].mean() for shape in range(len(SHAPES))])
    assert means.max() / means.min() < 1.25


@BOTH
def test_classes_are_balanced_and_splits_and_seeds_differ(easy):
    data, train, other = Shapes(easy=easy), Shapes("train", easy=easy), Shapes(easy=easy, seed=1)
    assert (len(train), len(data)) == (50_000, 5_000)
    counts = np.bincount(train.labels, minlength=20)
    assert ((counts - 2_500) ** 2 / 2_500).sum() < 50  # chi-squared, 19 degrees of freedom: p = 1e-4
    for different in (train, other):
        assert (data.labels == different.labels[:5_000]).mean() < 0.08
        assert not torch.equal(data.render([0])[0], different.render([0])[0])
    assert len({d.fingerprint for d in (data, train, other, Shapes(easy=not easy), Shapes(easy=easy, n=10))}) == 5
    assert Shapes(easy=easy).fingerprint == data.fingerprint
    assert Shapes(easy=easy, image_size=48).fingerprint != data.fingerprint


def test_factors_cover_their_ranges():
    factors = Shapes("train").factors(range(4_000))
    assert abs(factors["clutter"].mean() - 0.5) < 0.03 and factors["clutter"].max() <= 1
    assert set(factors["n_distractors"]) == set(range(MAX_DISTRACTORS + 1))
    assert 0.2 < (factors["occlusion"] > 0).mean() < 0.4
    easy = Shapes("train", easy=True).factors(range(4_000))
    assert not any(easy[name].any() for name in ("clutter", "occlusion", "n_distractors"))
    assert easy["scale"].min() >= 0.25 and easy["rotation"].max() < 2 * np.pi


@BOTH
def test_the_object_is_not_always_in_the_centre(easy):
    data = Shapes(easy=easy)
    target = data.render(range(600))[1] == torch.from_numpy(data.labels[:600] + 1)[:, None, None]
    middle = target[:, data.image_size // 2, data.image_size // 2].float().mean()
    assert target.float().mean() + 0.05 < middle < 0.85


@BOTH
def test_a_linear_model_on_pixels_stays_below_40_percent(easy):
    data = Shapes("train", easy=easy)
    pixels, labels = data.render(range(2_000))[0].flatten(1).float() / 255, torch.from_numpy(data.labels[:2_000])
    assert ridge_accuracy(pixels, labels, n_train=1_500) < 0.4
    pixels[:, :20] = torch.nn.functional.one_hot(labels) * 4.0  # the same model does read what is linear
    assert ridge_accuracy(pixels, labels, n_train=1_500) > 0.9


@BOTH
def test_items_are_normalised_and_equal_one_by_one_and_in_batches(easy):
    data = Shapes(easy=easy, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    images, masks = data.render([5, 9])
    expected = (images.double() / 255 - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    for i, (image, label, mask), wanted, exact in zip([5, 9], data.__getitems__([5, 9]), expected, masks, strict=True):
        alone = data[i]
        assert torch.equal(alone[0], image) and alone[1] == label == data.labels[i] and torch.equal(alone[2], mask)
        assert torch.equal(mask, exact) and mask.dtype == torch.int64 and isinstance(label, int)
        torch.testing.assert_close(image.double(), wanted, rtol=0, atol=1e-6)
    assert np.array_equal(np.asarray(data.pil(5)), images[0].permute(1, 2, 0).numpy())


def test_a_loader_and_a_subset_work():
    data = torch.utils.data.Subset(Shapes(easy=True), [7, 2, 4])
    images, labels, masks = next(iter(torch.utils.data.DataLoader(data, batch_size=3)))
    assert images.shape == (3, 3, 32, 32) and masks.shape == (3, 32, 32)
    assert labels.tolist() == data.dataset.labels[[7, 2, 4]].tolist()
    assert len(list(Shapes(easy=True, n=5))) == 5


@pytest.mark.parametrize("options", [{"split": "test"}, {"n": 0}, {"image_size": 4}])
def test_bad_input_is_named(options):
    with pytest.raises(InputError, match=r"train and val|at least"):
        Shapes(**options)
    with pytest.raises(IndexError):
        Shapes(n=3)[3]


@BOTH
@pytest.mark.parametrize("factor", ["shape", "fill"])
def test_one_factor_of_the_target_changes_and_nothing_else(easy, factor):
    data = Shapes(easy=easy)
    other, indices = data.with_changed(factor), np.arange(60)
    scenes = [draw_scene(data.key, indices, data.difficulty, changed) for changed in (None, factor)]
    for name in vars(scenes[0].targets):
        same = np.array_equal(*(getattr(scene.targets, name) for scene in scenes))
        assert same == (name != "label"), name
    before, after = data.factors(indices), other.factors(indices)
    changed = "texture" if factor == "fill" else factor
    assert (before.pop(changed) != after.pop(changed)).all()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    (pixels, masks), (other_pixels, other_masks) = data.render(indices), other.render(indices)
    targets = [torch.from_numpy(of.labels[indices] + 1)[:, None, None] for of in (data, other)]
    shown = (masks == targets[0]) | (other_masks == targets[1])
    reach = torch.nn.functional.max_pool2d(shown.float(), 7, 1, 3) > 0  # edges are soft, at corners the most
    assert torch.equal(*(p.where(~reach[:, None], 0) for p in (pixels, other_pixels)))
    assert all((a != b).any() for a, b in zip(pixels, other_pixels, strict=True))


def test_a_changed_data_set_knows_its_own_labels_and_leaves_the_other_as_it_is():
    data = Shapes()
    before = data.labels.copy()
    other = data.with_changed("fill")
    assert (data.labels == before).all() and (other.labels != before).all()
    assert [other[i][1] for i in (0, 7)] == other.labels[[0, 7]].tolist()
    assert other.fingerprint != data.fingerprint and np.bincount(other.labels).min() > 150
    with pytest.raises(InputError, match="no factor 'hue'"):
        data.with_changed("hue")
