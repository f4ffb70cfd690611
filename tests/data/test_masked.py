"""Sets with masks: ImageNet-S, Pascal VOC and boxes, planted in the files' own encodings and read back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from torch.utils.data import Subset

from models.config import ViTConfig
from models.data import describe, open_data
from models.data.voc import COLOURS, VOC_CLASSES
from models.errors import InputError

SIZE = 32
LIKE = ViTConfig(image_size=SIZE, patch_size=8)


def photo(path: Path, width: int = SIZE, height: int = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path.name))).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="PNG")  # readers go by content, not by suffix


def rgb_mask(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)).save(path)


def random_ids(values: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, (SIZE, SIZE))


def slow_decode(path: Path, ignore: int = 1000) -> list[list[int]]:
    """The house's mask from an RGB file, pixel by pixel."""
    with Image.open(path) as picture:
        pixels = [[picture.getpixel((x, y)) for x in range(picture.width)] for y in range(picture.height)]
    ids = [[r + 256 * g for r, g, _ in row] for row in pixels]
    return [[-1 if value == ignore else value for value in row] for row in ids]


@pytest.fixture
def imagenet_s(tmp_path) -> Path:
    """300 classes in the list, of which two have images: rows 1 and 299."""
    listing = [f"n{k:08d}" for k in range(300)]
    (tmp_path / "ImageNetS_categories_im300.txt").write_text("\n".join(reversed(listing)) + "\n")
    for images, masks in (("validation", "validation-segmentation"), ("train-semi", "train-semi-segmentation")):
        for k in (0, 298):
            for i in range(2):
                photo(tmp_path / images / listing[k] / f"{images}_{k}_{i}.JPEG")
                rgb_mask(
                    tmp_path / masks / listing[k] / f"{images}_{k}_{i}.png",
                    random_ids([0, k + 1, 255, 256, 257, 1000], seed=10 * k + i),
                )
    return tmp_path


@pytest.mark.parametrize(("split", "folder"), [("val", "validation"), ("train", "train-semi")])
def test_imagenet_s_ids_are_decoded_and_the_folder_is_the_label(imagenet_s, split, folder):
    data = open_data(f"imagenet-s:{imagenet_s}", split, like=LIKE)
    assert data.has_masks and len(data.classes) == 300 and data.labels.tolist() == [0, 0, 298, 298]
    for (image, label, mask), item in zip(data, data.items, strict=True):
        assert mask.tolist() == slow_decode(imagenet_s / f"{folder}-segmentation" / Path(item.name).with_suffix(".png"))
        assert (
            image.shape == (3, SIZE, SIZE) and item.name.startswith(data.classes[label]) and (mask == label + 1).any()
        )
        assert mask.max() == 299 or label == 0


def test_imagenet_s_without_a_list_counts_its_folders(imagenet_s):
    next(imagenet_s.glob("*.txt")).unlink()
    data = open_data(f"imagenet-s:{imagenet_s}", like=LIKE)
    assert data.classes == ("n00000000", "n00000298")
    with pytest.raises(
        InputError, match=r"n00000000/validation_0_0.JPEG: the mask holds id 25\d, outside 0..2 and 1000"
    ):
        data[0]


def test_of_several_lists_the_shortest_that_fits_is_taken(imagenet_s):
    (imagenet_s / "ImageNetS_categories_im50.txt").write_text("n00000000\nn00000001\n")
    (imagenet_s / "ImageNetS_categories_im919.txt").write_text("\n".join(f"n{k:08d}" for k in range(919)))
    assert len(open_data(f"imagenet-s:{imagenet_s}", like=LIKE).classes) == 300
    (imagenet_s / "validation" / "n99999999").mkdir()
    with pytest.raises(InputError, match=r"n99999999 is not in .*919 classes"):
        open_data(f"imagenet-s:{imagenet_s}", like=LIKE)


def test_an_image_without_its_mask_is_named(imagenet_s):
    (imagenet_s / "validation-segmentation" / "n00000298" / "validation_298_1.png").unlink()
    with pytest.raises(InputError, match=r"n00000298/validation_298_1.JPEG has no mask"):
        open_data(f"imagenet-s:{imagenet_s}")


def test_a_mask_of_another_size_or_damaged_is_named(imagenet_s):
    data = open_data(f"imagenet-s:{imagenet_s}", like=LIKE)
    folder = imagenet_s / "validation-segmentation" / "n00000000"
    rgb_mask(folder / "validation_0_0.png", np.zeros((SIZE, SIZE + 1), dtype=int))
    (folder / "validation_0_1.png").write_bytes(b"nothing")
    with pytest.raises(
        InputError, match=r"n00000000/validation_0_0.JPEG: the mask is 33 x 32 pixels, its image 32 x 32 \(as stored\)"
    ):
        data[0]
    with pytest.raises(InputError, match=r"n00000000/validation_0_1.JPEG: the mask validation_0_1.png cannot be read"):
        data[1]


def test_a_missing_split_says_what_is_there(imagenet_s):
    with pytest.raises(InputError, match=r"no split 'test'; it has val \(validation\) and train \(train-semi\)"):
        open_data(f"imagenet-s:{imagenet_s}", "test")
    (imagenet_s / "train-semi").rename(imagenet_s / "more")
    with pytest.raises(
        InputError, match="no split 'train': it lacks the folder train-semi and holds more, train-semi-seg"
    ):
        open_data(f"imagenet-s:{imagenet_s}", "train")


@pytest.fixture
def voc(tmp_path) -> Path:
    ids = {
        "2007_1": random_ids([0, 3, 15, 255], 1),
        "2007_2": random_ids([0, 20], 2),
        "2007_3": random_ids([0, 255], 3),
    }
    for name, mask in ids.items():
        photo(tmp_path / "JPEGImages" / f"{name}.jpg")
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        picture = Image.fromarray(mask.astype(np.uint8))
        if name == "2007_1":  # as VOC's own: a palette whose colours are not the ids
            picture = picture.convert("P")
            picture.putdata(mask.flatten().tolist())
            picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        picture.save(tmp_path / "SegmentationClass" / f"{name}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("2007_1\n2007_3\n")
    (lists / "train.txt").write_text("2007_2\n")
    return tmp_path


def test_voc_has_one_item_per_image_and_class_present(voc):
    data = open_data(f"voc:{voc}", like=LIKE)
    assert data.classes == VOC_CLASSES and len(VOC_CLASSES) == 20
    assert [(item.name, item.label) for item in data.items] == [("2007_1.jpg", 2), ("2007_1.jpg", 14)]
    expected = random_ids([0, 3, 15, 255], 1)
    assert np.array_equal(data[0][2], np.where(expected == 255, -1, expected)) and torch.equal(data[0][2], data[1][2])
    assert open_data(f"voc:{voc}", "train").labels.tolist() == [19]


@pytest.mark.parametrize("stored", ["RGB", "a packed palette"])
def test_vocs_colours_are_its_ids_whatever_holds_them(voc, stored):
    colours = {0: (0, 0, 0), 3: (128, 128, 0), 15: (192, 128, 128), 255: (224, 224, 192)}
    assert all(tuple(COLOURS[number]) == colour for number, colour in colours.items())  # as in VOC's development kit
    ids = random_ids([0, 3, 15, 255], 1)
    mask = Image.fromarray(COLOURS[ids])
    if stored != "RGB":
        mask = Image.fromarray(np.searchsorted([0, 3, 15, 255], ids).astype(np.uint8))
        mask.putpalette([part for number in (0, 3, 15, 255) for part in colours[number]])
    mask.save(voc / "SegmentationClass" / "2007_1.png")
    data = open_data(f"voc:{voc}", like=LIKE)
    assert data.labels.tolist() == [2, 14] and np.array_equal(data[0][2], np.where(ids == 255, -1, ids))


@pytest.mark.parametrize("first", ["background", "__ignore__\n_background_"])
def test_the_background_of_a_list_of_classes_is_none(voc, first):
    (voc / "classes.txt").write_text(f"{first}\n" + "".join(f"thing {k}\n" for k in range(1, 21)))
    assert open_data(f"voc:{voc}", "train").classes[19] == "thing 20"


def test_voc_names_may_hold_spaces(voc):
    for folder, kind in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (voc / folder / f"2007_2.{kind}").rename(voc / folder / f"my picture.{kind}")
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("my picture\n2007_1  1\n")
    assert {item.name for item in open_data(f"voc:{voc}", "train").items} == {"my picture.jpg", "2007_1.jpg"}


def test_voc_takes_its_own_class_names(voc):
    (voc / "classes.txt").write_text("".join(f"thing {k}\n" for k in range(1, 21)) + "\n")
    assert open_data(f"voc:{voc}", "train").classes[19] == "thing 20"
    (voc / "classes.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"2007_2.jpg: the mask holds id 20, outside 0..2 and 255"):
        open_data(f"voc:{voc}", "train")


def test_bad_voc_folders_are_named(voc):
    with pytest.raises(InputError, match=r"no ImageSets/Segmentation/test.txt; that folder holds train, val"):
        open_data(f"voc:{voc}", "test")
    rgb_mask(voc / "SegmentationClass" / "2007_2.png", random_ids([0, 1]))
    with pytest.raises(InputError, match=r"the mask 2007_2.png has the colour \(1, 0, 0\), which VOC gives no class"):
        open_data(f"voc:{voc}", "train")
    (voc / "JPEGImages" / "2007_1.jpg").unlink()
    with pytest.raises(InputError, match="2007_1 of the list lacks its image"):
        open_data(f"voc:{voc}")


def test_items_of_one_photograph_are_known_as_such(voc):
    data = open_data(f"voc:{voc}", like=LIKE)
    assert describe(data).photographs.tolist() == [0, 0]
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_2\n2007_1\n")
    data = open_data(f"voc:{voc}", like=LIKE)
    assert describe(data).photographs.tolist() == [0, 1, 1] and describe(data).photographs.dtype == np.int64
    assert describe(Subset(Subset(data, [2, 0, 1]), [0, 2])).photographs.tolist() == [1, 1]


def test_lists_of_voc_may_begin_with_a_byte_order_mark_and_hold_flags(voc):
    (voc / "classes.txt").write_text("".join(f"thing {k}\n" for k in range(1, 21)), encoding="utf-8-sig")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_1  1\r\n2007_2 -1\r\n", encoding="utf-8-sig")
    data = open_data(f"voc:{voc}")
    assert data.classes[0] == "thing 1" and [item.name for item in data.items] == ["2007_1.jpg"] * 2 + ["2007_2.jpg"]
    (voc / "classes.txt").write_text("Käse\n", encoding="utf-16")
    with pytest.raises(InputError, match="voc:.*: classes.txt is not text in UTF-8"):
        open_data(f"voc:{voc}")


def test_voc_images_have_any_ending_and_leftovers_are_none(voc):
    (voc / "JPEGImages" / "2007_1.jpg").rename(voc / "JPEGImages" / "2007_1.JFIF")
    photo(voc / "JPEGImages" / "@eaDir" / "2007_1.jpg")
    photo(voc / "JPEGImages" / "2007_1.png")
    assert [item.name for item in open_data(f"voc:{voc}").items] == ["2007_1.JFIF"] * 2


def test_images_whose_masks_show_no_class_are_counted(voc, capsys):
    open_data(f"voc:{voc}")
    assert "left out 1 image whose mask shows no class (2007_3)" in capsys.readouterr().err


def test_the_list_of_imagenet_s_may_begin_with_a_byte_order_mark(imagenet_s):
    listing = imagenet_s / "ImageNetS_categories_im300.txt"
    listing.write_text(listing.read_text(), encoding="utf-8-sig")
    assert open_data(f"imagenet-s:{imagenet_s}").classes[0] == "n00000000"


def test_masks_of_another_list_of_classes_are_refused(imagenet_s):
    for i in range(8):
        photo(imagenet_s / "validation" / "n00000298" / f"more_{i}.JPEG")
        rgb_mask(imagenet_s / "validation-segmentation" / "n00000298" / f"more_{i}.png", random_ids([0, 241]))
    assert len(open_data(f"imagenet-s:{imagenet_s}")) == 12  # 4 of 12 masks show the class of their image
    for file in (imagenet_s / "validation").rglob("validation_*.JPEG"):
        file.unlink()
    with pytest.raises(InputError, match="only 0 of 8 sampled masks show the class of their image"):
        open_data(f"imagenet-s:{imagenet_s}")


def test_leftovers_and_masks_beside_images_of_imagenet_s_are_left_out(imagenet_s, capsys):
    for place in ("@eaDir/a.JPEG", "n00000000/@eaDir/a.JPEG", "n00000000/._validation_0_0.JPEG"):
        photo(imagenet_s / "validation" / place)
    (imagenet_s / "validation" / "n00000000" / "validation_0_0.png").write_bytes(b"a mask in the wrong place")
    assert open_data(f"imagenet-s:{imagenet_s}").labels.tolist() == [0, 0, 298, 298]
    said = capsys.readouterr().err
    assert "3 leftovers of file systems" in said and "1 mask beside its picture (n00000000/validation_0_0.png)" in said


def test_imagenet_s_masks_of_one_channel_ignore_255(imagenet_s):
    ids = random_ids([0, 1, 255])
    for file in (imagenet_s / "validation-segmentation" / "n00000000").iterdir():
        Image.fromarray(ids.astype(np.uint8)).save(file)
    data = open_data(f"imagenet-s:{imagenet_s}", like=LIKE)
    assert np.array_equal(data[0][2], np.where(ids == 255, -1, ids)) and data[2][2].max() == 299


HEADER = "split,wnid,file,w,h,x0,y0,x1,y1,more\n"


def test_a_box_mask_is_the_union_of_its_classs_boxes(tmp_path):
    photo(tmp_path / "n02" / "a.JPEG", 64, 32)
    photo(tmp_path / "n01" / "b.JPEG")
    rows = [
        "val,n02,a.JPEG,64,32,16,0,24,8,x",
        "val,n02,a.JPEG,64,32,20,4,32,16,x",
        "val,n01,a.JPEG,64,32,40,0,48,32,x",
        "val,n01,b.JPEG,16,16,0,0,8,16,x",
    ]
    (tmp_path / "boxes.csv").write_text(HEADER + "\n".join(rows) + "\n")
    data = open_data(f"boxes:{tmp_path}", like=LIKE)
    assert data.classes == ("n01", "n02") and [(item.name, item.label) for item in data.items] == [
        ("a.JPEG", 0),
        ("a.JPEG", 1),
        ("b.JPEG", 0),
    ]
    first, second, third = (np.zeros((32, 64), dtype=int) for _ in range(3))
    first[:, 40:48] = 1
    second[0:8, 16:24] = second[4:16, 20:32] = 2
    third[:, :16] = 1  # the boxes are for 16 x 16, the file has 32 x 32 pixels
    for (_, _, mask), expected in zip(data, (first[:, 16:48], second[:, 16:48], third[:, :32]), strict=True):
        assert np.array_equal(mask, expected)
    assert open_data(f"boxes:{tmp_path / 'boxes.csv'}", like=LIKE).fingerprint == data.fingerprint


def test_boxes_of_one_photograph_and_numeric_classes(tmp_path):
    photo(tmp_path / "a.JPEG")
    photo(tmp_path / "b.JPEG")
    rows = [f"val,{label},{file}.JPEG,32,32,0,0,8,8,x" for file, label in (("b", 10), ("a", 10), ("a", 2), ("a", 1))]
    (tmp_path / "boxes.csv").write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8-sig")
    data = open_data(f"boxes:{tmp_path}")
    assert data.classes == ("1", "2", "10") and data.labels.tolist() == [0, 2, 1, 2]
    assert describe(data).photographs.tolist() == [0, 0, 0, 3]


def test_boxes_of_the_upright_picture_are_taken_so(tmp_path, capsys):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "boxes.csv").write_text(HEADER + "val,n01,a.jpg,32,64,0,16,16,48,x\n")
    mask = open_data(f"boxes:{tmp_path}", like=LIKE)[0][2]
    assert mask[:, :16].eq(1).all() and mask[:, 16:].eq(0).all()
    assert "EXIF turns 1 of 1 images: 1 mask has the upright size and is taken so (a.jpg)" in capsys.readouterr().err


def test_box_files_may_lie_in_folders_of_splits(tmp_path):
    for split in ("train", "val"):
        photo(tmp_path / split / "n01" / "same.JPEG")
        photo(tmp_path / split / "n01" / f"{split}.JPEG")
    rows = [f"x,{label},{file}.JPEG,32,32,0,0,8,8,x" for label, file in (("10", "same"), ("9", "train"), ("9", "val"))]
    (tmp_path / "boxes.csv").write_text(HEADER.replace("wnid", "label") + "\n".join(rows))
    for split in ("train", "val"):
        data = open_data(f"boxes:{tmp_path}", split)
        assert data.classes == ("9", "10")
        assert sorted(str(item.path.relative_to(tmp_path)) for item in data.items) == sorted(
            [f"{split}/n01/same.JPEG", f"{split}/n01/{split}.JPEG"]
        )
    with pytest.raises(InputError, match="no split 'other'; it holds train, val"):
        open_data(f"boxes:{tmp_path}", "other")


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (HEADER, "val,n01,gone.JPEG,32,32,0,0,8,8,x", "gone.JPEG of boxes.csv is nowhere below"),
        (HEADER, "val,n01,a.JPEG,32,32,0,0,wide,8,x", "line 2 of boxes.csv has a value that is not a number"),
        (HEADER, "val,n01,a.JPEG,32,32,0,0,8", "line 2 of boxes.csv has a value that is not a number"),
        (
            HEADER,
            "val,n01,a.JPEG,32,32,8,0,8,8,x",
            "line 2 of boxes.csv has a box outside its image of 32 x 32 pixels, or an empty one",
        ),
        (HEADER, "val,n01,a.JPEG,32,32,0,0,50,8,x", "line 2 of boxes.csv has a box outside its image of 32 x 32"),
        (HEADER.replace("wnid", "class").replace("x1", "right"), "", "boxes.csv lacks the columns wnid or label, x1"),
        (HEADER, "", "holds no images"),
        (HEADER, "val,n01,a.JPEG,inf,inf,0,0,8,8,x", "line 2 of boxes.csv has an image of inf x inf pixels"),
        (HEADER, "val,n01,a.JPEG,0,0,0,0,1,1,x", "line 2 of boxes.csv has an image of 0 x 0 pixels"),
        (HEADER, "val,,a.JPEG,32,32,0,0,8,8,x", "line 2 of boxes.csv lacks a value; it needs a picture and its class"),
        ("w,h,x0,y0,x1,y1,label,file\n", "32,32,0,0,8,8", "line 2 of boxes.csv lacks a value"),
    ],
)
def test_bad_boxes_are_named(tmp_path, header, row, message):
    photo(tmp_path / "a.JPEG")
    (tmp_path / "boxes.csv").write_text(header + row + "\n")
    with pytest.raises(InputError, match=message):
        open_data(f"boxes:{tmp_path}")


@pytest.mark.parametrize("name", ["a\n1.JPEG", "a\u20281.JPEG", 'a "1".JPEG', " a.JPEG", "sub\\a.JPEG"])
def test_boxes_of_pictures_with_unusual_names_are_read(tmp_path, name):
    (tmp_path / "sub").mkdir()
    photo(tmp_path / name.replace("\\", "/"))
    header = HEADER.replace(",", ", ") if name.startswith("sub") else HEADER  # spaces behind the commas
    quoted = name.replace('"', '""')
    (tmp_path / "boxes.csv").write_text(f'{header}val,n01,"{quoted}",32,32,0,0,8,8,x\n')
    assert open_data(f"boxes:{tmp_path}").labels.tolist() == [0]


def test_boxes_of_another_picture_are_named(tmp_path):
    photo(tmp_path / "a.JPEG", 64, 32)
    (tmp_path / "boxes.csv").write_text(HEADER + "val,n01,a.JPEG,32,64,0,0,8,8,x\n")
    with pytest.raises(
        InputError, match=r"a.JPEG: its boxes are for an image of 32 x 64 pixels, but the file stores 64 x 32"
    ):
        open_data(f"boxes:{tmp_path}")[0]
    with pytest.raises(InputError, match="no split 'train'"):
        open_data(f"boxes:{tmp_path}", "train")
    (tmp_path / "boxes.csv").unlink()
    with pytest.raises(InputError, match="holds no CSV of boxes; it needs columns file"):
        open_data(f"boxes:{tmp_path}")


def test_a_subset_is_described_as_well_as_the_whole(imagenet_s):
    data = open_data(f"imagenet-s:{imagenet_s}", like=LIKE)
    part = Subset(Subset(data, [3, 1, 0]), [0, 2])
    whole, about = describe(data), describe(part)
    assert about.labels.tolist() == [298, 0] and about.indices.tolist() == [3, 0]
    for name in ("spec", "split", "classes", "has_masks", "image_size"):
        assert getattr(about, name) == getattr(whole, name) == getattr(data, name)
    marks = [describe(Subset(data, chosen)).fingerprint for chosen in ([3, 0], [0, 3], [0], [0, 1, 2, 3])]
    assert len({whole.fingerprint, *marks}) == 5 and describe(Subset(data, [3, 0])).fingerprint == marks[0]
