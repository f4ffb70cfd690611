"""Masks in the codings that are met, told apart by looking at a sample."""

import io

import numpy as np
import pytest
from PIL import Image

from models.data.codings import Coding, check_ids, raw_mask
from models.errors import InputError

IDS = np.array([[0, 1, 2], [2, 1, -1], [0, -1, 1]])  # in the house's encoding, of an image of class 0


def rgb(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)


def written(ignore: int) -> np.ndarray:
    return np.where(IDS < 0, ignore, IDS)


CODED = {
    "R + 256 G, 1000 = ignored": (rgb(written(1000)), 300),
    "RGB with opaque alpha": (np.dstack([rgb(written(1000)), np.full((3, 3), 255, np.uint8)]), 300),
    "8 bits, 255 = ignored": (written(255).astype(np.uint8), 20),
    "8 bits thrice": (np.stack([written(255).astype(np.uint8)] * 3, -1), 20),
    "16 bits, 1000 = ignored": (written(1000).astype(np.uint16), 919),
    "16 bits, 65535 = ignored": (written(65535).astype(np.uint16), 919),
    "16 bits, 255 = ignored": (written(255).astype(np.uint16), 50),
}


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("stored", ["png", "npy"])
def test_every_coding_is_told_from_the_masks(coding, stored):
    raw, n_classes = CODED[coding]
    file = io.BytesIO()
    if stored == "png":
        Image.fromarray(raw).save(file, format="PNG")
    else:
        np.save(file, raw)
    looked = [("a", 0, raw_mask(file, "a")), ("b", 0, np.zeros_like(raw))]
    found = Coding.checked(looked, n_classes, "x")
    assert np.array_equal(found.read(file, "a", 0, (3, 3)), IDS) and found.read(file, "a", 0, (3, 3)).dtype == np.int64


@pytest.mark.parametrize("white", [255, 1, True])
def test_black_and_white_masks_show_the_class_of_their_image(white):
    raw = [np.array([[0, white], [white, 0]]).astype(bool if white is True else np.uint8) for _ in range(4)]
    looked = [(str(label), label, mask.astype(np.uint8) if white is True else mask) for label, mask in enumerate(raw)]
    coding = Coding.checked(looked, 4, "x")
    assert [coding.ids(mask, "a", label).max() for _, label, mask in looked] == [1, 2, 3, 4]


def test_black_and_white_masks_of_two_classes_show_both():
    looked = [(str(label), label, np.array([[0, 1]], np.uint8)) for label in (0, 0, 1, 1)]
    assert [Coding.checked(looked, 2, "x").ids(raw, "a", label).max() for _, label, raw in looked] == [1, 1, 2, 2]


def test_grey_masks_with_transparency_are_read_by_their_grey():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("LA").save(file, format="PNG")
    looked = [(str(label), label, raw_mask(file, "a")) for label in range(3)]
    assert Coding.checked(looked, 3, "x").read(file, "a", 2, (2, 1)).tolist() == [[0, 3]]


def test_masks_without_any_object_are_refused():
    looked = [(str(i), 0, np.zeros((1, 2), np.uint8)) for i in range(8)]
    with pytest.raises(InputError, match="x: none of 8 sampled masks shows an object"):
        Coding.checked(looked, 2, "x")
    Coding.checked(looked[:7], 2, "x")


def test_ids_of_one_class_are_no_black_and_white():
    looked = [("a", 0, np.array([[0, 1]], np.uint8)), ("b", 1, np.array([[0, 2]], np.uint8))]
    assert Coding.of(looked, 2).white == 0 and Coding.of(looked[:1], 1).white == 0


@pytest.mark.parametrize(
    ("raw", "n_classes", "message"),
    [
        (rgb(np.array([[0, 301]])), 300, r"row 7: the mask holds id 301, outside 0..300 and 1000"),
        (np.array([[0, 21]], np.uint8), 20, r"row 7: the mask holds id 21, outside 0..20 and 255"),
        (np.array([[0, 254]], np.uint8), 20, "row 7: the mask holds id 254"),
        (np.array([[0, 920]], np.uint16), 919, r"row 7: the mask holds id 920, outside 0..919 and 1000"),
        (np.array([[0, 1000, 65535]], np.uint16), 919, "row 7: the mask holds id 65535"),
        (np.array([[-1]], np.int32), 5, "row 7: the mask holds id -1"),
        (np.array([[[9, 8, 7]]], np.uint8), 20, "row 7: the mask is coloured, but ids are R . 256 G"),
    ],
)
def test_ids_above_the_classes_are_refused(raw, n_classes, message):
    with pytest.raises(InputError, match=message):
        Coding.checked([("row 7", 0, raw)], n_classes, "x")


def test_masks_of_another_class_list_are_refused():
    looked = [(str(i), 0, np.array([[0, 7]], np.uint8)) for i in range(8)]
    own = ("own", 0, np.array([[1]], np.uint8))
    for more, shown in (([], "0 of 8"), ([own] * 2, "2 of 10")):  # of two lists the first classes are often the same
        with pytest.raises(InputError, match=f"^x: only {shown} sampled masks show the class of their image"):
            Coding.checked([*looked, *more], 9, "x")
    Coding.checked([*looked, own, own, own], 9, "x")
    Coding.checked([("few", 0, looked[0][2])], 9, "x")


def test_files_that_cannot_hold_ids_are_refused():
    fractions = io.BytesIO()
    np.save(fractions, np.array([[0.5]]))
    for file, message in {
        _jpeg(): "a: its mask is a JPEG, which does not keep class numbers",
        fractions: "a: its mask holds fractions",
        io.BytesIO(b"?"): "a: its mask cannot be read",
    }.items():
        with pytest.raises(InputError, match=message):
            raw_mask(file, "a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 4), complex), "a: its mask holds values of type complex128, not class numbers"),
        (np.full((4, 4), "1"), "a: its mask holds values of type <U1, not class numbers"),
        (np.zeros((4, 4), "datetime64[s]"), r"a: its mask holds values of type datetime64.s., not class numbers"),
        (np.zeros((4, 4), [("id", int)]), "a: its mask holds values of type .*, not class numbers"),
        (np.uint8(3), r"a: its mask has shape \(\); store it as height x width, with one channel or three"),
        (np.zeros(4, np.uint8), r"a: its mask has shape \(4,\)"),
        (np.zeros((4, 4, 5), np.uint8), r"a: its mask has shape \(4, 4, 5\)"),
        (np.zeros((2, 2, 2, 2), np.uint8), r"a: its mask has shape \(2, 2, 2, 2\)"),
    ],
)
def test_arrays_that_are_no_masks_are_refused(values, message):
    file = io.BytesIO()
    np.save(file, values)
    with pytest.raises(InputError, match=message):
        raw_mask(file, "a")


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_channels_of_colours_are_no_ids(mode):
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, format="TIFF")
    with pytest.raises(InputError, match=rf"its mask holds colours \({mode}\), not class numbers"):
        raw_mask(file, "a")


def test_a_third_axis_of_one_is_no_channel():
    file, ids = io.BytesIO(), np.arange(6, dtype=">i4").reshape(2, 3)
    np.save(file, ids[..., None])
    assert raw_mask(file, "a").tolist() == ids.tolist()


def _jpeg() -> io.BytesIO:
    file = io.BytesIO()
    Image.new("L", (8, 8), 3).save(file, format="JPEG")
    return file


def test_mask_ids_are_checked_and_translated():
    ids = np.array([[0, 1], [300, 1000]])
    assert check_ids(ids, n_classes=300, ignore=1000, name="a").tolist() == [[0, 1], [300, -1]]
    for wrong in (301, -1, 999):
        ids[0, 0] = wrong
        with pytest.raises(InputError, match=rf"a: the mask holds id {wrong}, outside 0\.\.300 and 1000"):
            check_ids(ids, n_classes=300, ignore=1000, name="a")


def test_a_mask_has_a_bound_of_pixels_which_is_looked_at_before_any_is_read(monkeypatch):
    picture, array, claim = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(IDS.clip(0).astype(np.uint8)).save(picture, "PNG")
    np.save(array, IDS)
    header = {"descr": "<i8", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(claim, header)
    with pytest.raises(InputError, match="x: its mask has more than .* pixels"):
        raw_mask(claim, "x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    for file in (picture, array):
        with pytest.raises(InputError, match="x: its mask has more than 8 pixels"):
            raw_mask(file, "x")
