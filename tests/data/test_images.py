"""Decoding and geometry: every kind of picture becomes 8-bit RGB, and a mask stays on its picture."""

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from models.config import ViTConfig
from models.data.files import pictures
from models.data.images import Images, cut, cut_mask, decode, shorter_side
from models.data.items import Item
from models.errors import InputError, UnreadableImage


def config(image_size: int, **fields) -> ViTConfig:
    return ViTConfig(image_size=image_size, patch_size=8, **fields)


def blobs(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth random pattern of 0 and 1: [height width]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return (np.asarray(coarse) > 128).astype(np.int64)


def save(path, picture: Image.Image, **options):
    picture.save(path, **options)
    return path


def one_image(tmp_path, ids: np.ndarray, image_size: int, **options) -> Images:
    """A set of one picture that is black and white exactly where its mask is 0 and 1."""
    path = save(tmp_path / "a.png", Image.fromarray((255 * ids).astype(np.uint8)), **options)
    item = Item(
        path, "a.png", 0, lambda size: ids if size == ids.shape[::-1] else pytest.fail("asked for another size")
    )
    return Images("folder:x", "val", ("white",), [item], config(image_size, mean=(0, 0, 0), std=(1, 1, 1)))


@pytest.mark.parametrize(("width", "height"), [(300, 211), (97, 240), (64, 64), (500, 333), (133, 147)])
@pytest.mark.parametrize("image_size", [32, 96, 160, 224])
def test_picture_and_mask_stay_aligned(tmp_path, width, height, image_size):
    image, label, mask = one_image(tmp_path, blobs(width, height), image_size)[0]
    assert image.shape == (3, image_size, image_size) and image.dtype == torch.float32
    assert mask.shape == (image_size, image_size) and mask.dtype == torch.int64 and label == 0
    inside = torch.nn.functional.avg_pool2d(mask[None].float(), 5, 1, 2)[0]
    flat = (inside == 0) | (inside == 1)  # two pixels away from every edge
    assert torch.equal((image[0] > 0.5)[flat], mask.bool()[flat])
    assert ((image[0] > 0.5) == mask.bool()).float().mean() > 0.97
    assert 0 < mask.float().mean() < 1


def test_the_centre_of_the_picture_is_the_centre_of_the_crop():
    ids = np.zeros((200, 301), dtype=np.int64)
    ids[100:, 150:] = 1
    for image_size in (96, 224):
        mask = cut_mask(ids, image_size)
        assert not mask[: image_size // 2 - 1].any() and not mask[:, : image_size // 2 - 1].any()
        assert mask[image_size // 2 + 1 :, image_size // 2 + 1 :].all()


@pytest.mark.parametrize(("image_size", "side"), [(32, 32), (96, 96), (159, 159), (160, 183), (224, 256), (384, 439)])
def test_the_rule_of_the_crop(image_size, side):
    assert shorter_side(image_size) == side


def test_the_cut_equals_resizing_and_then_cropping():
    noise = np.random.default_rng(0).integers(0, 256, (320, 480, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    resized = picture.resize((384, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((80, 16, 304, 240)), dtype=int)
    assert np.abs(np.asarray(cut(picture, 224, Image.Resampling.BICUBIC), dtype=int) - expected).max() <= 2
    assert np.array_equal(np.asarray(cut(picture.crop((0, 0, 96, 96)), 96, Image.Resampling.BICUBIC)), noise[:96, :96])


def test_a_strip_one_pixel_wide_costs_no_memory():
    assert cut(Image.new("RGB", (1, 60_000)), 224, Image.Resampling.BICUBIC).size == (224, 224)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_with_its_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = one_image(tmp_path, blobs(120, 80), 64, exif=exif)
    image, _, mask = data[0]
    assert ((image[0] > 0.5) == mask.bool()).float().mean() > 0.98
    assert data.pil(0).size == ((120, 80) if orientation <= 4 else (80, 120))
    upright = one_image(tmp_path, blobs(120, 80), 64)[0][2]
    assert torch.equal(mask, upright) == (orientation == 1)


def test_normalisation_is_the_models(tmp_path):
    data = one_image(tmp_path, np.ones((40, 40), dtype=np.int64), 32)
    data.mean, data.std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    torch.testing.assert_close(data[0][0][:, 3, 3], torch.tensor([1.8, 3.2, 3.5]))


def encoded(picture: Image.Image, **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, **options)
    return file


RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
COLOURS = Image.merge(
    "RGB", [Image.fromarray(RAMP), Image.fromarray(RAMP[:, ::-1].copy()), Image.fromarray(np.full_like(RAMP, 90))]
)


@pytest.mark.parametrize(
    ("file", "expected", "tolerance"),
    [
        (encoded(Image.fromarray(RAMP), format="PNG"), np.stack([RAMP] * 3, -1), 0),
        (encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), format="PNG"), np.stack([RAMP] * 3, -1), 0),
        (encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), format="TIFF"), np.stack([RAMP] * 3, -1), 0),
        (encoded(Image.fromarray(RAMP.astype(np.float32) / 255), format="TIFF"), np.stack([RAMP] * 3, -1), 0),
        (encoded(Image.fromarray(RAMP.astype(np.int32)), format="TIFF"), np.stack([RAMP] * 3, -1), 0),
        (encoded(Image.fromarray(RAMP.astype(np.int32) * 257), format="TIFF"), np.stack([RAMP] * 3, -1), 0),
        (encoded(COLOURS, format="PNG"), np.asarray(COLOURS), 0),
        (encoded(COLOURS.convert("CMYK"), format="TIFF"), np.asarray(COLOURS), 1),
        (encoded(COLOURS.quantize(256), format="PNG"), np.asarray(COLOURS), 16),
        (
            encoded(COLOURS, format="GIF", save_all=True, append_images=[Image.new("RGB", COLOURS.size, "red")]),
            np.asarray(COLOURS),
            40,
        ),
        (
            encoded(Image.merge("RGBA", [*COLOURS.split(), Image.new("L", COLOURS.size, 255)]), format="PNG"),
            np.asarray(COLOURS),
            0,
        ),
        (encoded(Image.new("RGBA", COLOURS.size, (10, 20, 30, 0)), format="PNG"), np.full((4, 256, 3), 255), 0),
        (encoded(Image.fromarray(RAMP > 99), format="PNG"), np.stack([255 * (RAMP > 99)] * 3, -1), 0),
    ],
    ids=[
        "grey",
        "16-bit",
        "16-bit TIFF",
        "float",
        "32-bit",
        "16 of 32 bits",
        "RGB",
        "CMYK",
        "palette",
        "animated",
        "opaque",
        "transparent",
        "bits",
    ],
)
def test_every_kind_of_picture_is_converted(file, expected, tolerance):
    picture = decode(file, "a")
    assert picture.mode == "RGB" and picture.size == (256, 4)
    assert np.abs(np.asarray(picture, dtype=int) - expected).max() <= tolerance


def damaged_files() -> dict[str, bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    jpeg, png, tiff = (encoded(noise, format=kind).getvalue() for kind in ("JPEG", "PNG", "TIFF"))
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    return {
        "empty": b"",
        "text": b"not a picture",
        "half a JPEG": jpeg[:900],
        "half a PNG": png[:900],
        "half a TIFF": tiff[:900],
        "flipped": bytes(flipped),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_a_damaged_picture_is_named(kind, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(damaged_files()[kind])
    with pytest.raises(UnreadableImage, match=r"n01/photo\.jpg cannot be read") as caught:
        decode(path, "n01/photo.jpg")
    assert "\n" not in str(caught.value) and caught.value.name == "n01/photo.jpg"


@pytest.mark.parametrize("limit", [300, 150], ids=["warning", "error"])
def test_a_decompression_bomb_is_refused(limit, tmp_path, monkeypatch):
    """Pillow warns above its limit and refuses above twice that; both are unreadable here."""
    path = save(tmp_path / "bomb.png", Image.new("L", (20, 20)))
    assert decode(path, "bomb.png").size == (20, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImage, match=f"bomb.png .*more than {limit} pixels"):
        decode(path, "bomb.png")


def test_only_visible_image_files_are_pictures(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("b/2.PNG", "b/c/1.jpeg", "a.jpg", "b/.hidden.jpg", "b/notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert [path.relative_to(tmp_path).as_posix() for path in pictures(tmp_path)] == ["a.jpg", "b/2.PNG", "b/c/1.jpeg"]


def test_the_fingerprint_knows_content_geometry_and_split_but_not_the_place(tmp_path):
    def mark(folder: str, size=(8, 8), name: str = "a.png", image_size: int = 32, split: str = "val") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = save(
            tmp_path / folder / name, Image.fromarray(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8))
        )
        return Images(f"folder:{folder}", split, ("x",), [Item(path, name, 0)], config(image_size)).fingerprint

    assert mark("one") == mark("two")
    changed = [
        mark("one", size=(8, 90)),
        mark("one", name="b.png"),
        mark("one", image_size=64),
        mark("one", split="train"),
    ]
    assert len({mark("one"), *changed}) == 5


def turned(tmp_path, kind: str, orientation: int, *, upright: bool, n: int = 1) -> tuple[Images, np.ndarray]:
    """Pictures of `kind` that EXIF turns, with masks of the stored or of the upright pixels; and the upright mask."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = blobs(120, 80)
    for i in range(n):
        save(tmp_path / f"{i}.{kind}", Image.fromarray((255 * stored).astype(np.uint8)), exif=exif)
    as_seen = Image.fromarray(stored.astype(np.uint8))
    as_seen.getexif()[ExifTags.Base.Orientation] = orientation
    as_seen = np.asarray(ImageOps.exif_transpose(as_seen)).astype(np.int64)
    ids = as_seen if upright else stored
    items = [Item(tmp_path / f"{i}.{kind}", f"{i}.{kind}", 0, lambda size: ids) for i in range(n)]
    data = Images("folder:x", "val", ("white",), items, config(64, mean=(0, 0, 0), std=(1, 1, 1)))
    return data, cut_mask(as_seen, 64)


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_masks_of_stored_pixels_lie_on_pictures_of_every_format(tmp_path, kind, orientation, capsys):
    data, expected = turned(tmp_path, kind, orientation, upright=False)
    image, _, mask = data[0]
    assert np.array_equal(mask, expected) and ((image[0] > 0.5) == mask.bool()).float().mean() > 0.95
    said = capsys.readouterr().err
    assert said.startswith("warning: ") == (orientation > 1)
    if orientation > 1:
        assert f"EXIF turns 1 of 1 images: 1 mask is taken as drawn on the stored pixels, and turned (0.{kind})" in said


@pytest.mark.parametrize("kind", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_that_fits_only_the_upright_picture_is_upright(tmp_path, kind, orientation, capsys):
    data, expected = turned(tmp_path, kind, orientation, upright=True, n=2)
    image, _, mask = data[1]
    assert np.array_equal(mask, expected) and ((image[0] > 0.5) == mask.bool()).float().mean() > 0.95
    assert (
        f"EXIF turns 2 of 2 images: 2 masks have the upright size and are taken so (0.{kind}, 1.{kind})"
        in capsys.readouterr().err
    )


def test_images_that_exif_turns_are_counted_among_the_others(tmp_path, capsys):
    """A mask drawn upright on a picture upside down cannot be told from its size: it is said how it is taken."""
    data, expected = turned(tmp_path, "jpg", 3, upright=True, n=5)
    plain = save(tmp_path / "plain.jpg", Image.new("L", (120, 80)))
    items = [*data.items, Item(plain, "plain.jpg", 0, data.items[0].mask)]
    capsys.readouterr()
    Images("folder:x", "val", ("white",), items, config(64))
    said = capsys.readouterr().err
    assert (
        "EXIF turns 5 of 6 images: 5 masks are taken as drawn on the stored pixels, and turned (0.jpg, 1.jpg," in said
    )
    assert "2.jpg, ...); where masks were drawn upright, store these images upright" in said
    assert not np.array_equal(data[0][2], expected)


def test_nothing_is_said_of_sets_without_masks(tmp_path, capsys):
    data, _ = turned(tmp_path, "jpg", 6, upright=False)
    capsys.readouterr()
    Images("folder:x", "val", ("white",), [Item(item.path, item.name, 0) for item in data.items], config(64))
    assert capsys.readouterr().err == ""


def test_a_mask_that_fits_neither_way_is_named(tmp_path):
    data, _ = turned(tmp_path, "jpg", 6, upright=False)
    for shape in ((7, 9), (120, 81)):
        item = Item(data.items[0].path, "0.jpg", 0, lambda size, shape=shape: np.zeros(shape, dtype=np.int64))
        with pytest.raises(
            InputError, match=rf"0.jpg: the mask is {shape[1]} x {shape[0]} pixels, its image 120 x 80 \(as stored\)"
        ):
            Images("folder:x", "val", ("white",), [item], config(64))[0]
