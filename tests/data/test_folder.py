"""Folders of photographs as people have them: class folders, Kaggle's ImageNet, tables, classes in file names."""

import pytest

from models.config import ViTConfig
from models.data import found, open_data
from models.errors import InputError

LIKE = ViTConfig(image_size=16, patch_size=8)
CAT, DOG, HEN = "n02123045", "n02106550", "n01514859"


def named(data) -> dict[str, str]:
    """The class of every file."""
    return {item.name: data.classes[item.label] for item in data.items}


@pytest.fixture
def kaggle(plant):
    """Kaggle's ImageNet as it is unpacked: 2 training images of each of 3 classes, 4 validation images of 2 of them."""
    root = "ILSVRC/Data/CLS-LOC"
    training = [f"{root}/train/{wnid}/{wnid}_{i}.JPEG" for wnid in (CAT, DOG, HEN) for i in (1, 2)]
    validation = [f"{root}/val/ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 5)]
    base = plant(*training, *validation, f"{root}/test/ILSVRC2012_test_00000001.JPEG")
    rows = [
        f"ILSVRC2012_val_{i:08d},{wnid} 1 2 30 40 {wnid} 5 6 7 8 "
        for i, wnid in ((3, CAT), (1, DOG), (2, DOG), (4, CAT))
    ]
    (base / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(rows) + "\n")
    (base / "LOC_synset_mapping.txt").write_text(f"{CAT} tabby\n")
    (base / "ILSVRC" / "ImageSets" / "CLS-LOC").mkdir(parents=True)
    (base / "ILSVRC" / "ImageSets" / "CLS-LOC" / "val.txt").write_text("ILSVRC2012_val_00000001 1\n")
    return base


@pytest.mark.parametrize("place", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_imagenet_is_read_wherever_one_points(kaggle, place):
    train, val = (open_data(f"folder:{kaggle / place}", split, like=LIKE) for split in ("train", "val"))
    assert train.classes == val.classes == (HEN, DOG, CAT) and train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    wanted = {1: DOG, 2: DOG, 3: CAT, 4: CAT}
    assert named(val) == {f"ILSVRC2012_val_{i:08d}.JPEG": wnid for i, wnid in wanted.items()}
    assert val[2][0].shape == (3, 16, 16) and val[2][1] == 2


def test_the_folder_of_one_split_may_be_named(kaggle):
    splits = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    assert open_data(f"folder:{splits / 'val'}").labels.tolist() == [1, 1, 2, 2]
    assert len(open_data(f"folder:{splits / 'train'}", "train")) == 6
    with pytest.raises(
        InputError, match="no split 'val'; it holds n01514859.*for all splits name the folder above, .*CLS-LOC"
    ):
        open_data(f"folder:{splits / 'train'}")


@pytest.mark.parametrize("place", ["ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC/val", "ILSVRC/Data"])
def test_kaggles_table_may_lie_anywhere_above(kaggle, place):
    (kaggle / "LOC_val_solution.csv").rename(kaggle / place / "LOC_val_solution.csv")
    assert open_data(f"folder:{kaggle}").labels.tolist() == [1, 1, 2, 2]


def test_without_kaggles_table_it_is_named(kaggle):
    (kaggle / "LOC_val_solution.csv").unlink()
    with pytest.raises(
        InputError, match=r"val has no class folders but 4 pictures such as .*no LOC_val_solution.csv in"
    ):
        open_data(f"folder:{kaggle}")
    assert len(open_data(f"folder:{kaggle}", "train")) == 6


def test_pictures_that_the_table_does_not_name_are_counted(kaggle, plant, capsys):
    plant("ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000009.JPEG")
    assert len(open_data(f"folder:{kaggle}")) == 4
    assert "1 picture without a line in the table (ILSVRC2012_val_00000009.JPEG)" in capsys.readouterr().err
    (kaggle / "LOC_val_solution.csv").write_text("ImageId,PredictionString\nother,n01 1 2 3 4\n")
    with pytest.raises(InputError, match="LOC_val_solution.csv names none of the 5 pictures"):
        open_data(f"folder:{kaggle}")


def test_validation_sorted_into_class_folders_needs_no_table(kaggle, plant):
    plant(f"sorted/train/{CAT}/1.JPEG", f"sorted/val/{CAT}/2.JPEG")
    assert open_data(f"folder:{kaggle / 'sorted'}").classes == (CAT,)


def test_tiny_imagenet_is_read(plant, capsys):
    root = plant(*(f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in (CAT, DOG) for i in range(2)))
    plant(*(f"val/images/val_{i}.JPEG" for i in range(3)))
    (root / "train" / CAT / f"{CAT}_boxes.txt").write_text(f"{CAT}_0.JPEG\t0\t0\t9\t9\n")
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62" for i, wnid in enumerate((CAT, DOG, CAT))]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    train, val = (open_data(f"folder:{root}", split) for split in ("train", "val"))
    assert train.classes == val.classes == (DOG, CAT) and len(train) == 4
    assert named(val) == {"images/val_0.JPEG": CAT, "images/val_1.JPEG": DOG, "images/val_2.JPEG": CAT}
    said = capsys.readouterr().err
    assert "val_annotations" not in said and f"1 file that is no picture ({CAT}/{CAT}_boxes.txt)" in said


@pytest.mark.parametrize("table", ["val.csv", "val.txt", "val/labels.csv", "val_labels.csv"])
def test_a_flat_folder_may_have_a_table_beside_or_in_it(plant, table, capsys):
    root = plant("val/one.png", "val/two.png", "val/three.png")
    (root / table).write_text("one.png,cat\ntwo.png,dog\nthree.png,cat\n")
    (root / "val" / "notes.md").write_text("of mine")
    assert named(open_data(f"folder:{root}")) == {"one.png": "cat", "three.png": "cat", "two.png": "dog"}
    assert "left out 1 file that is no picture (notes.md)" in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [(2, 0), (2, 1)])
def test_numbers_in_a_table_are_places_of_training_classes_where_they_start_at_0(plant, numbers, capsys):
    root = plant(*(f"train/{wnid}/1.png" for wnid in (CAT, DOG, HEN)), "val/1.png", "val/2.png")
    (root / "val.txt").write_text("".join(f"{i}.png {number}\n" for i, number in enumerate(numbers, 1)))
    data = open_data(f"folder:{root}")
    named_by_place = dict(zip(("1.png", "2.png"), [sorted((CAT, DOG, HEN))[k] for k in numbers], strict=True))
    is_place = 0 in numbers
    assert named(data) == (named_by_place if is_place else {"1.png": "2", "2.png": "1"})
    assert ("numbers in val.txt are places of classes, 0 is " in capsys.readouterr().err) is is_place


@pytest.mark.parametrize(
    "file",
    [
        "ILSVRC2012_val_00033334_{}.JPEG",
        "{}_123.JPEG",
        "{}.JPEG",
        "val-{}-7.jpg",
        "7.{}.png",
        "a {} b.png",
    ],
)
def test_a_wnid_in_the_file_name_is_the_class(plant, file, capsys):
    files = [file.format(wnid) for wnid in (CAT, DOG)]
    root = plant(*(f"{place}{name}" for place in ("set/val/", "set/train/", "alone/") for name in files))
    expected = dict(zip(sorted(files), sorted((CAT, DOG)), strict=True))
    assert named(open_data(f"folder:{root / 'alone'}")) == expected
    assert "classes by the names of files: n02106550, n02123045" in capsys.readouterr().err
    for split in ("train", "val"):
        assert named(open_data(f"folder:{root / 'set'}", split)) == expected


def test_train_and_val_have_the_same_classes_whatever_tells_them(plant):
    root = plant(*(f"train/{wnid}_{i}.JPEG" for wnid in (CAT, DOG, HEN) for i in range(2)), f"val/{DOG}/1.JPEG")
    assert open_data(f"folder:{root}").classes == open_data(f"folder:{root}", "train").classes == (HEN, DOG, CAT)
    assert open_data(f"folder:{root}").labels.tolist() == [1]


@pytest.mark.parametrize("file", ["{}.{}.jpg", "{}_{}.jpg", "{} ({}).jpg", "{}{}.jpg", "{1}_{0}.png"])
def test_words_beside_numbers_are_classes(plant, file):
    names = [file.format(name, i) for name in ("american bulldog", "cat") for i in (1, 12)]
    data = open_data(f"folder:{plant(*(f'train/{name}' for name in names))}", "train")
    assert data.classes == ("american bulldog", "cat") and data.labels.tolist() == [0, 0, 1, 1]


def test_pictures_without_a_class_in_their_names_are_counted(plant, capsys):
    root = plant(f"val/{CAT}_1.JPEG", f"val/{DOG}_1.JPEG", "val/n0212304_1.JPEG", "val/xn021230451_1.JPEG")
    assert len(open_data(f"folder:{root}")) == 2
    assert "2 pictures without a class in their names (n0212304_1.JPEG, xn0" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("IMG_1", "IMG_2"), ("1", "2"), ("cat", "dog"), ("cat_1", "dog")])
def test_names_that_tell_no_class_are_refused(plant, names):
    with pytest.raises(
        InputError, match=f"has no class folders but 2 pictures such as {names[0]}.png, whose names tell no class"
    ):
        open_data(f"folder:{plant(*(f'val/{name}.png' for name in names))}")


def test_class_folders_without_splits_are_val(plant, capsys):
    root = plant("cat/1.png", "dog/2.png")
    (root / "empty").mkdir()
    assert open_data(f"folder:{root}").classes == ("cat", "dog")
    assert "there are no folders of splits in it, so all of it is val" in capsys.readouterr().err
    with pytest.raises(InputError, match="no split 'train'; it holds cat, dog, empty, and needs a folder train"):
        open_data(f"folder:{root}", "train")


@pytest.mark.parametrize("name", ["Val", "VALIDATION", "valid", "test"])
def test_split_folders_have_their_usual_names(plant, name):
    root = plant("Train/cat/1.png", "Train/dog/1.png", f"{name}/dog/1.png")
    data = open_data(f"folder:{root}")
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [1]


def test_an_empty_training_class_is_no_class(plant):
    root = plant("train/cat/1.png", "train/dog/x/1.png", "val/cat/1.png", "val/dog/2.png")
    (root / "train" / "aardvark").mkdir()
    for split in ("train", "val"):
        assert open_data(f"folder:{root}", split).classes == ("cat", "dog")


VOC = ("JPEGImages/1.jpg", "SegmentationClass/1.png", "ImageSets/Segmentation/train.txt")
SPLITS = ("data/train/cat/1.png", "data/val/cat/1.png")


@pytest.mark.parametrize(
    ("asked", "files", "there", "fits"),
    [
        ("folder", VOC, "4 folders, 2 pictures, 1 text", "voc:{}"),
        ("imagenet-s", VOC, "4 folders, 2 pictures, 1 text", "voc:{}"),
        ("folder", SPLITS, "5 folders, 2 pictures", "folder:{}/data"),
        ("voc", SPLITS, "5 folders, 2 pictures", "folder:{}/data"),
        ("parquet", SPLITS, "5 folders, 2 pictures", "folder:{}/data"),
        ("folder", ("S/validation-segmentation/n01/1.png",), "3 folders, 1 picture", "imagenet-s:{}/S@IMAGES"),
        ("boxes", ("validation-segmentation/1.png", "validation/1.png"), "2 folders, 2 pictures", "imagenet-s:{}"),
        ("folder", ("a-0000.tar", "a-0001.tar", "_info.json"), "2 tars, 1 other file", "wds/NAME:{}"),
        ("parquet", ("a.tar",), "1 tar", "wds/NAME:{}"),
        ("wds/x", ("data/train-0.parquet",), "1 folder, 1 parquet", "parquet:{}"),
        (
            "folder",
            ("all/1.jpg", "labels.csv"),
            "1 folder, 1 picture, 1 CSV",
            "list:{0}/labels.csv, boxes:{0}/labels.csv",
        ),
        ("folder", ("train.txt", "val.txt", "all/1.jpg"), "1 folder, 1 picture, 2 texts", "list:{}"),
        ("folder", ("imagenet.zip",), "1 archive to unpack", None),
    ],
)
def test_an_unknown_layout_says_what_is_there_and_what_would_fit(plant, asked, files, there, fits):
    root = plant("@eaDir/1.jpg")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    with pytest.raises(InputError) as caught:
        open_data(f"{asked}:{root}")
    said = str(caught.value)
    assert f"found {there} there" in said and "\n" not in said
    assert (f"what would fit: {fits.format(root)}" if fits else "README's table of data shows every layout") in said


def test_a_large_unknown_folder_is_not_counted_to_its_end(plant, monkeypatch):
    monkeypatch.setattr(found, "ENOUGH", 20)
    root = plant(*(f"stuff/{i}/{k}/1.png" for i in range(5) for k in range(5)))
    with pytest.raises(InputError, match="found at least 20 folders there"):
        open_data(f"folder:{root}")
