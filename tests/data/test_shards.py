"""WebDataset shards at random places: which file of a sample is the picture, which the mask, which the label."""

import json
import pickle

import numpy as np
import pytest

from models.config import ViTConfig
from models.data import Stream, open_data
from models.errors import InputError, UnreadableImage

LIKE = ViTConfig(image_size=16, patch_size=8, mean=(0, 0, 0), std=(1, 1, 1))


def reds(data) -> list[int]:
    """The red of every image, as it comes through the stream."""
    return [round(255 * image[0, 0, 0].item()) for batch in Stream(data, 4) for image in batch.images]


@pytest.fixture
def shards(tmp_path, tar, picture):
    tar(
        tmp_path / "s-0.tar",
        {"a.png": picture(10), "a.cls": b"1", "a.json": b"{}", "b.png": picture(20), "b.cls": b"0\n"},
    )
    tar(tmp_path / "s-1.tar", {"a.cls": b"2", "a.png": picture(30), "c.png": b"damaged", "c.cls": b"0"})
    split = dict(name="validation", num_samples=4, filenames=["s-0.tar", "s-1.tar"], shard_lengths=[2, 2])
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": split}}), encoding="utf-8-sig")
    return tmp_path


def test_shards_have_random_access(shards):
    data = open_data(f"wds/mine:{shards}", like=LIKE)
    assert len(data) == 4 and data.labels.tolist() == [1, 0, 2, 0] and data.classes == ("0", "1", "2")
    assert data.pil(2).getpixel((0, 0)) == (30, 0, 0) and data.pil(0).getpixel((0, 0)) == (10, 0, 0)
    assert reds(data) == [10, 20, 30] and not data.has_masks and pickle.loads(pickle.dumps(data))[1][1] == 0
    with pytest.raises(UnreadableImage, match=r"^s-1.tar: c.png cannot be read as an image .it is of no known format"):
        data[3]
    with pytest.raises(InputError, match="no split 'train'; _info.json lists validation"):
        open_data(f"wds/mine:{shards}", "train")


def test_the_fingerprint_of_shards_knows_them(shards, tar, picture):
    before = open_data(f"wds/mine:{shards}", like=LIKE).fingerprint
    assert open_data(f"wds/mine:{shards}", like=LIKE).fingerprint == before
    tar(shards / "s-1.tar", {"a.png": picture(30) + bytes(9), "a.cls": b"2", "c.png": picture(1), "c.cls": b"0"})
    assert open_data(f"wds/mine:{shards}", like=LIKE).fingerprint != before


@pytest.mark.parametrize(
    "sample",
    [
        {"jpg": 1, "png": 9},
        {"png": 9, "jpg": 1},
        {"JPEG": 1, "png": 9},
        {"webp": 1, "png": 9},
        {"jpg": 1, "seg.png": 9},
        {"png": 1, "mask.png": 9},
        {"image.png": 1, "png": 9},
        {"ppm": 1, "png": 9},
        {"jpg": 1, "png": 9, "bmp": 8},
    ],
    ids=" ".join,
)
def test_a_mask_beside_the_picture_is_not_the_picture(tmp_path, tar, picture, sample):
    files = {f"{key}.{kind}": picture(10 * i + red) for i, key in enumerate("ab") for kind, red in sample.items()}
    files |= {f"c.{kind}": picture(20 + red) for kind, red in sample.items() if red != 1}  # its picture is missing
    tar(tmp_path / "val.tar", files | {"a.cls": b"0", "b.cls": b"1", "c.cls": b"1"})
    assert reds(open_data(f"wds/x:{tmp_path}", like=LIKE)) == [1, 11]


def test_what_is_missing_is_counted_and_named(tmp_path, tar, picture, capsys):
    files = {"a.jpg": picture(1), "a.png": picture(2), "a.cls": b"0", "b.png": picture(3), "b.cls": b"0"}
    files |= {"c.jpg": picture(4), "d.jpg": picture(5), "d.cls": b"-1", "._a.jpg": b"x", "__MACOSX/e.jpg": b"x"}
    tar(tmp_path / "val.tar", files)
    assert reds(open_data(f"wds/x:{tmp_path}", like=LIKE)) == [1]
    said = capsys.readouterr().err
    assert "1 sample without a picture (b)" in said and "2 samples without a label (c, ...)" in said
    assert "2 leftovers of file systems (._a.jpg, __MACOSX/e.jpg)" in said


def test_a_shard_that_was_cut_off_is_never_a_smaller_one(tmp_path, tar, picture):
    files = {"a.png": picture(1), "a.cls": b"0", "b.png": picture(2), "b.cls": b"0"}
    whole = tar(tmp_path / "val.tar", files).read_bytes()
    for size in range(100, whole.rstrip(b"\0").__len__(), 100):
        (tmp_path / "val.tar").write_bytes(whole[:size])
        with pytest.raises(InputError, match="val.tar cannot be read as a tar .*; restore it"):
            open_data(f"wds/x:{tmp_path}", like=LIKE)


def test_a_name_that_comes_twice_in_a_shard_is_counted(tmp_path, tar, picture, capsys):
    tar(tmp_path / "val.tar", {"a.png": picture(1), "a.cls": b"0", "./a.png": picture(2)})
    assert reds(open_data(f"wds/x:{tmp_path}", like=LIKE)) == [2]
    assert "left out 1 file that a later one of its name replaces (./a.png)" in capsys.readouterr().err


def test_keys_are_named_behind_the_folder(tmp_path, tar, picture, mask_png):
    ids = np.array([[1, 2, 0, 1000]] * 16).repeat(4, 1)
    files = {}
    for i, key in enumerate(("n/a", "n/b")):
        files |= {f"{key}.jpg": picture(i), f"{key}.left.png": picture(50 + i), f"{key}.seg.png": mask_png(ids, "rgb")}
        files |= {f"{key}.json": json.dumps({"label": i, "wnid": f"w{1 - i}"}).encode(), f"{key}.txt": b"a caption"}
    tar(tmp_path / "val.tar", files)
    data = open_data(f"wds/x:{tmp_path}?image=left.png&mask=seg.png&label=json.wnid", like=LIKE)
    assert reds(data) == [50, 51] and data.classes == ("w0", "w1") and data.labels.tolist() == [1, 0]
    assert data.has_masks and np.array_equal(data[0][2], np.where(ids == 1000, -1, ids))
    plain = open_data(f"wds/x:{tmp_path}", like=LIKE)
    assert reds(plain) == [0, 1] and plain.labels.tolist() == [0, 1] and not plain.has_masks
    masked = open_data(f"wds/x:{tmp_path}?mask=seg.png", like=LIKE)
    assert len({data.fingerprint, plain.fingerprint, masked.fingerprint}) == 3
    assert open_data(f"wds/x:{tmp_path}?label=txt", like=LIKE).classes == ("a caption",)


def test_masks_are_checked_as_elsewhere(tmp_path, tar, picture, mask_png):
    files = {f"{key}.{kind}": content for key in "ab" for kind, content in (("jpg", picture(1)), ("cls", b"0"))}
    tar(tmp_path / "val.tar", files | {f"{key}.png": mask_png(np.full((16, 16), 2), "grey") for key in "ab"})
    with pytest.raises(InputError, match=r"val.tar: a.jpg: the mask holds id 2, outside 0..1 and 255"):
        open_data(f"wds/x:{tmp_path}?mask=png")
    tar(tmp_path / "val.tar", files | {"a.png": mask_png(np.ones((16, 16)), "grey")})
    with pytest.raises(InputError, match="1 of 2 samples have no mask .png, the first is b"):
        open_data(f"wds/x:{tmp_path}?mask=png")


@pytest.mark.parametrize(
    ("names", "place"),
    [
        (("train-0000.tar", "val-0000.tar", "val-0001.tar"), ""),
        (("imagenet-train-0.tar", "imagenet-validation-0.tar", "imagenet-validation-1.tar"), ""),
        (("train/0.tar", "val/0.tar", "val/1.tar"), ""),
        (("train/0.tar", "val/0.tar", "val/1.tar"), "val"),
        (("train-0.tar", "val-8.tar", "val-9.tar", "val-10.tar"), "val-{8..9}.tar"),
        (("a-0.tar", "a-1.tar"), "a-*.tar"),
    ],
)
def test_shards_belong_to_splits_by_their_names(tmp_path, tar, picture, names, place):
    for name in names:
        tar(tmp_path / name, {"a.jpg": picture(7 if "train" in name else 8), "a.cls": b"0"})
    assert reds(open_data(f"wds/x:{tmp_path / place}", like=LIKE)) == [8, 8]
    if place == "":
        assert reds(open_data(f"wds/x:{tmp_path}", "train", like=LIKE)) == [7]
    else:
        with pytest.raises(InputError, match="no split 'train'; its 2 .tar files are of val, by their names"):
            open_data(f"wds/x:{tmp_path / place}", "train")


def test_classes_are_words_or_named_by_a_list(tmp_path, tar, picture):
    tar(
        tmp_path / "val.tar", {"a.jpg": picture(1), "a.cls": b"n02", "b.jpg": picture(2), "b.cls": "\ufeffn01".encode()}
    )
    assert open_data(f"wds/x:{tmp_path}").classes == ("n01", "n02")
    (tmp_path / "ImageNetS_categories_im3.txt").write_text("n02 n01 n00")
    data = open_data(f"wds/x:{tmp_path}")
    assert data.classes == ("n00", "n01", "n02") and data.labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("shards", "told_by"),
    [
        ({"n01440764": ["n01440764_1"], "n02123045": ["n02123045_9"]}, "shards"),
        ({"all": ["val/n01440764/1", "val/n02123045/2"]}, "folders"),
        ({"v-0": ["n01440764_1"], "v-1": ["ILSVRC2012_val_00000001_n02123045"]}, "the names of files"),
    ],
)
def test_shards_of_pictures_alone_have_classes_by_place(tmp_path, tar, picture, shards, told_by, capsys):
    for red, (shard, keys) in enumerate(shards.items()):
        tar(tmp_path / f"{shard}.tar", {f"{key}.JPEG": picture(red) for key in keys})
    data = open_data(f"wds/x:{tmp_path}")
    assert data.classes == ("n01440764", "n02123045") and data.labels.tolist() == [0, 1]
    assert capsys.readouterr().err == f"wds/x:{tmp_path}: shards of pictures alone; 2 classes by {told_by}\n"


def test_a_label_written_as_a_fraction_is_its_number(tmp_path, tar, picture):
    tar(tmp_path / "val.tar", {"a.jpg": picture(1), "a.json": b'{"label": 10.0}', "b.jpg": picture(2), "b.cls": b"2"})
    data = open_data(f"wds/x:{tmp_path}")
    assert data.labels.tolist() == [10, 2] and len(data.classes) == 11


@pytest.mark.parametrize("digits", [20, 5000])
def test_digits_without_end_are_a_word(tmp_path, tar, picture, digits):
    tar(tmp_path / "val.tar", {"a.jpg": picture(1), "a.cls": digits * b"9", "b.jpg": picture(2), "b.cls": b"8"})
    data = open_data(f"wds/x:{tmp_path}")
    assert data.classes == ("8", digits * "9") and data.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("files", "query", "message"),
    [
        ({"a.jpg": b"x"}, "", "no sample of val.tar has a picture and a label; samples hold jpg, say which is what"),
        ({"a.txt": b"x", "a.cls": b"0"}, "", "no sample of val.tar has a picture and a label; samples hold cls, txt"),
        (
            {"a.jpg": b"x", "a.jpeg": b"x", "a.cls": b"0"},
            "",
            "jpeg and jpg of a sample could both be the picture; say which with .image=jpg",
        ),
        ({"a.jpg": b"x", "a.cls": b"0"}, "?image=png", "no sample has a file .png; samples hold cls, jpg"),
        ({"a.jpg": b"x", "a.cls": b"0"}, "?mask=png", "no sample has a mask .png; samples hold cls, jpg"),
        (
            {"a.jpg": b"x", "a.cls": b"0"},
            "?picture=png",
            "after the question mark stand image=NAME, mask=NAME, label=NAME",
        ),
        ({"a.jpg": b"x", "a.json": b"{"}, "", "val.tar: a.json is no JSON"),
        ({"a.jpg": b"x", "a.json": b"[]"}, "", "val.tar: a.json is no JSON"),
        ({"a.jpg": b"x", "a.json": 100_000 * b"["}, "", "val.tar: a.json is no JSON"),
        ({"a.jpg": b"x", "a.json": b'{"label": "\\ud800"}'}, "", "a.json holds .* which is no class; write its number"),
        ({"a.jpg": b"x", "a.cls": b"a\0b"}, "", "a.cls holds .* which is no class; write its number"),
    ],
)
def test_bad_shards_are_one_sentence(tmp_path, tar, files, query, message):
    tar(tmp_path / "val.tar", files)
    with pytest.raises(InputError, match=message) as caught:
        open_data(f"wds/x:{tmp_path}{query}")
    assert "\n" not in str(caught.value)


def test_places_without_shards_are_named(tmp_path, tar):
    with pytest.raises(InputError, match="there is no folder .*nowhere; write wds/x:FOLDER"):
        open_data(f"wds/x:{tmp_path / 'nowhere'}")
    with pytest.raises(InputError, match="there is no .tar file at .*; found nothing there"):
        open_data(f"wds/x:{tmp_path}")
    (tmp_path / "val.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(InputError, match="val.tar cannot be read as a tar"):
        open_data(f"wds/x:{tmp_path}")
    (tmp_path / "_info.json").write_text('{"splits": {"val": {"filenames": ["val.tar", "gone.tar"]}}}')
    with pytest.raises(InputError, match="1 of 2 shards of _info.json do not exist, the first is gone.tar"):
        open_data(f"wds/x:{tmp_path}")
    (tmp_path / "_info.json").write_text("[]")
    with pytest.raises(InputError, match="_info.json is not timm's list of splits"):
        open_data(f"wds/x:{tmp_path}")
