"""Lists of pictures and their classes, in the forms that people write them."""

import numpy as np
import pytest
from PIL import Image

from models.config import ViTConfig
from models.data import describe, open_data
from models.errors import InputError

LIKE = ViTConfig(image_size=16, patch_size=8)


def named(data) -> list[tuple[str, str]]:
    return [(item.name, data.classes[item.label]) for item in data.items]


WANTED = [("a/1.jpg", "cat"), ("b/2.png", "dog"), ("a/3.jpg", "cat")]


@pytest.mark.parametrize(
    "text",
    [
        "a/1.jpg cat\nb/2.png dog\na/3.jpg cat\n",
        "a/1.jpg\tcat\nb/2.png\tdog\na/3.jpg\tcat",
        "a/1.jpg,cat\r\nb/2.png,dog\r\na/3.jpg,cat\r\n",
        "a/1.jpg;cat\n\nb/2.png;dog\n# more\na/3.jpg;cat\n",
        "# path and class\na/1.jpg   cat\nb/2.png   dog\na/3.jpg   cat",
        "file,label\na/1.jpg,cat\nb/2.png,dog\na/3.jpg,cat\n",
        "label,path\ncat,a/1.jpg\ndog,b/2.png\ncat,a/3.jpg\n",
        "id,filename,split,class\n1,a/1.jpg,val,cat\n2,b/2.png,validation,dog\n4,a/4.jpg,train,cat\n3,a/3.jpg,test,cat\n",
        "Image Wnid\na/1.jpg cat\nb/2.png dog\na/3.jpg cat\n",
        "image,label,class_name\na/1.jpg,0,cat\nb/2.png,1,dog\na/3.jpg,0,cat\n",
        "cat,a/1.jpg\ndog,b/2.png\ncat,a/3.jpg\n",
        '"a/1.jpg", "cat"\n"b/2.png", "dog"\n"a/3.jpg", "cat"\n',
        "a\\1.jpg cat\nb\\2.png dog\na\\3.jpg cat\n",
        "a/1 cat\nb/2 dog\na/3 cat\n",
        "\ufefffile,label\na/1.jpg,cat\nb/2.png,dog\na/3.jpg,cat\n",
        "\ufeffa/1.jpg cat\nb/2.png dog\na/3.jpg cat\n",
    ],
)
def test_a_list_has_a_picture_and_its_class_a_line(plant, text):
    root = plant("a/1.jpg", "b/2.png", "a/3.jpg", "a/4.jpg")
    (root / "all.txt").write_text(text, encoding="utf-8")
    data = open_data(f"list:{root / 'all.txt'}", like=LIKE)
    assert named(data) == WANTED and data.classes == ("cat", "dog") and not data.has_masks
    assert data[1][0].shape == (3, 16, 16) and data[1][1] == 1 and data[1][2] is None
    assert open_data(f"list:{root / 'all.txt'}").fingerprint != data.fingerprint


def test_paths_and_classes_may_hold_spaces(plant):
    root = plant("my cats/one 1.jpg", "dogs/2.jpg", "a,b/3.jpg")
    (root / "all.txt").write_text("my cats/one 1.jpg tabby cat\ndogs/2.jpg dog\n")
    assert named(open_data(f"list:{root / 'all.txt'}")) == [("my cats/one 1.jpg", "tabby cat"), ("dogs/2.jpg", "dog")]
    (root / "all.csv").write_text('my cats/one 1.jpg,tabby cat\n"a,b/3.jpg",x\n')
    assert named(open_data(f"list:{root / 'all.csv'}")) == [("my cats/one 1.jpg", "tabby cat"), ("a,b/3.jpg", "x")]


def test_numbers_are_in_numeric_order_and_classes_those_of_the_training_list(plant):
    root = plant(*(f"{k}.jpg" for k in range(11)))
    (root / "train.txt").write_text("".join(f"{k}.jpg {k}\n" for k in range(11)))
    (root / "val.txt").write_text("10.jpg 10\n2.jpg 2\n")
    for spec in (f"list:{root}/{{split}}.txt", f"list:{root}"):
        train, val = (open_data(spec, split) for split in ("train", "val"))
        assert train.classes == val.classes == tuple(map(str, range(11)))
        assert train.labels.tolist() == list(range(11)) and val.labels.tolist() == [10, 2]
    assert open_data(f"list:{root / 'train.txt'}", "train").labels.tolist() == list(range(11))
    with pytest.raises(InputError, match=r"train.txt is the list of split train: write list:.*/\{split\}.txt"):
        open_data(f"list:{root / 'train.txt'}")


def test_a_folder_of_lists_is_read_whatever_their_endings(plant):
    root = plant("1.jpg", "2.jpg")
    (root / "Validation.csv").write_text("file,label\n1.jpg,x\n")
    (root / "training.lst").write_text("2.jpg x\n")
    assert [len(open_data(f"list:{root}", split)) for split in ("train", "val")] == [1, 1]
    with pytest.raises(
        InputError, match="no split 'dev': there is no list dev.txt or dev.csv in it; found 2 pictures, 1 CSV"
    ):
        open_data(f"list:{root}", "dev")


def test_one_table_may_hold_all_splits(plant):
    root = plant("1.jpg", "2.jpg", "3.jpg")
    (root / "all.csv").write_text("file,label,split\n1.jpg,b,train\n2.jpg,a,Train\n3.jpg,b,valid\n")
    for spec in (f"list:{root / 'all.csv'}", f"list:{root}"):
        train, val = (open_data(spec, split) for split in ("train", "val"))
        assert named(train) == [("1.jpg", "b"), ("2.jpg", "a")] and named(val) == [("3.jpg", "b")]
        assert val.classes == ("a", "b")
    with pytest.raises(InputError, match="no split 'dev': all.csv holds no line of it"):
        open_data(f"list:{root / 'all.csv'}", "dev")


def test_one_list_without_splits_is_val(plant):
    root = plant("1.jpg")
    (root / "all.txt").write_text("1.jpg x\n")
    assert len(open_data(f"list:{root / 'all.txt'}")) == 1
    with pytest.raises(
        InputError, match="no split 'train'; all.txt is a single list without a column split, taken as val"
    ):
        open_data(f"list:{root / 'all.txt'}", "train")


def test_bare_names_may_lie_anywhere_below_the_list(plant):
    """As in Kaggle's competitions: a table of ids beside folders of pictures."""
    root = plant("train/000bec.jpg", "train/001513.jpg", "test/000bec.jpg", "more/deep/002211.jpg")
    (root / "labels.csv").write_text("id,breed\n000bec,boston bull\n001513,dingo\n002211,dingo\n")
    with pytest.raises(InputError, match="1 of 3 pictures of labels.csv do not exist|no split 'train'"):
        open_data(f"list:{root / 'labels.csv'}", "train")
    assert named(open_data(f"list:{root / 'labels.csv'}")) == [
        ("test/000bec.jpg", "boston bull"),
        ("train/001513.jpg", "dingo"),
        ("more/deep/002211.jpg", "dingo"),
    ]
    (root / "train.csv").write_text("id,breed\n000bec,boston bull\n001513,dingo\n")
    assert named(open_data(f"list:{root}", "train")) == [
        ("train/000bec.jpg", "boston bull"),
        ("train/001513.jpg", "dingo"),
    ]
    plant("more/001513.jpg", "other/001513.jpg")
    with pytest.raises(InputError, match="1 of 3 pictures of labels.csv do not exist, the first is 001513"):
        open_data(f"list:{root / 'labels.csv'}")


def test_absolute_paths_are_as_good(plant, tmp_path):
    root = plant("pictures/1.jpg", "lists/x.jpg")
    (root / "lists" / "val.txt").write_text(f"{root / 'pictures' / '1.jpg'} cat\n../pictures/1.jpg cat\n")
    assert open_data(f"list:{root / 'lists' / 'val.txt'}", like=LIKE)[0][0].shape == (3, 16, 16)


def test_a_picture_that_is_listed_twice_is_one_photograph(plant):
    root = plant("1.jpg", "2.jpg")
    (root / "val.txt").write_text("1.jpg cat\n2.jpg cat\n1.jpg dog\n")
    data = open_data(f"list:{root / 'val.txt'}")
    assert data.labels.tolist() == [0, 0, 1] and describe(data).photographs.tolist() == [0, 1, 0]


def test_masks_of_a_list_are_served(plant):
    root = plant("1.jpg", "2.jpg")
    ids = np.zeros((2, 20, 30), dtype=np.uint8)
    ids[0, :9], ids[1, 9:], ids[:, 0, 0] = 1, 2, 255
    for i, mask in enumerate(ids, 1):
        Image.fromarray(mask).save(root / f"{i}m.png")
    for text in ("image,mask,label\n1.jpg,1m.png,cat\n2.jpg,2m.png,dog\n", "1.jpg cat 1m.png\n2.jpg dog 2m.png\n"):
        (root / "val.csv").write_text(text)
        data = open_data(f"list:{root / 'val.csv'}", like=ViTConfig(image_size=20, patch_size=10))
        assert data.has_masks and data.labels.tolist() == [0, 1]
        for (_, _, mask), raw in zip(data, ids, strict=True):
            assert np.array_equal(mask, np.where(raw == 255, -1, raw.astype(int))[:, 5:25])
    (root / "val.csv").write_text("image,mask,label\n1.jpg,1m.png,cat\n2.jpg,,dog\n")
    with pytest.raises(InputError, match="line 3 of val.csv has no mask"):
        open_data(f"list:{root / 'val.csv'}")
    (root / "val.csv").write_text("image,mask,label\n1.jpg,1m.png,cat\n2.jpg,2m.png,cat\n")
    with pytest.raises(InputError, match=r"2.jpg: the mask holds id 2, outside 0..1 and 255"):
        open_data(f"list:{root / 'val.csv'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "val.txt is empty"),
        (
            "cat\ndog\n",
            "the lines of val.txt are not a picture and its class separated by tab, comma or space, the first is 'cat'",
        ),
        ("file,size\n1.jpg,3\n", "2 of 2 pictures of val.txt do not exist|1 of 1"),
        (
            "1.jpg cat\ngone.jpg cat\nlost.jpg dog\n",
            "2 of 3 pictures of val.txt do not exist, the first is gone.jpg; give paths relative to ",
        ),
        ("file,label\n1.jpg,cat\n1.jpg,\n", "line 3 of val.txt lacks a value"),
        ("file\tlabel\n1.jpg\tcat\n1.jpg\n", "line 3 of val.txt lacks a value"),
        ("file,label,mask\n1.jpg,cat,gone.png\n", "1 of 1 masks of val.txt do not exist, the first is gone.png"),
    ],
)
def test_bad_lists_are_one_sentence(plant, text, message):
    root = plant("1.jpg")
    (root / "val.txt").write_text(text)
    if "size" in text:
        assert open_data(f"list:{root / 'val.txt'}").classes == ("3",)  # the other of two columns is the class
        return
    with pytest.raises(InputError, match=message) as caught:
        open_data(f"list:{root / 'val.txt'}")
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no file or folder .*nowhere.txt"):
        open_data(f"list:{tmp_path / 'nowhere.txt'}")
    with pytest.raises(InputError, match="there is no val.txt in"):
        open_data(f"list:{tmp_path}/{{split}}.txt")
    (tmp_path / "val.txt").write_bytes("Käse.jpg cat\n".encode("latin-1"))
    with pytest.raises(InputError, match="val.txt is not text in UTF-8"):
        open_data(f"list:{tmp_path}/{{split}}.txt")


def test_a_quotation_mark_that_is_not_closed_is_one_sentence(plant):
    root = plant("1.jpg", "2.jpg")
    (root / "all.csv").write_text('file,label\n"1.jpg,cat\n' + "2.jpg,dog\n" * 20_000)
    with pytest.raises(InputError, match=r"all.csv cannot be read as a table .*; close its quotation marks"):
        open_data(f"list:{root / 'all.csv'}")


def test_a_split_that_a_column_lacks_is_answered_with_those_it_has(plant):
    root = plant("1.jpg")
    (root / "all.csv").write_text("fname,split,label\n1.jpg,train,cat\n")
    assert len(open_data(f"list:{root / 'all.csv'}", "train")) == 1
    with pytest.raises(InputError, match="no split 'val': all.csv holds no line of it, its lines are of train"):
        open_data(f"list:{root / 'all.csv'}")


def test_whole_numbers_that_pandas_wrote_as_fractions_are_in_numeric_order(plant):
    root = plant(*(f"{i}.jpg" for i in range(12)))
    (root / "val.csv").write_text("file,label\n" + "".join(f"{i}.jpg,{i}.0\n" for i in range(12)))
    data = open_data(f"list:{root / 'val.csv'}")
    assert data.classes == tuple(map(str, range(12))) and data.labels.tolist() == [*range(12)]
