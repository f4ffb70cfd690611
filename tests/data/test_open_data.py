"""`open_data` by spec, class folders, and what a probe asks of any data."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from models import BViT, ViTConfig, open_data
from models.config import IMAGENET_MEAN, IMAGENET_STD
from models.data import describe, match_classes, names_of_classes, require_masks
from models.errors import InputError


def plant(root, *files: str) -> None:
    for i, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (i, 2 * i, 255)).save(root / file)


def test_like_decides_size_and_normalisation(tmp_path):
    plant(tmp_path, "val/a/1.png")
    config = ViTConfig(
        n_steps=1, d_model=8, n_heads=1, image_size=32, patch_size=8, n_classes=1, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    for like in (config, BViT(config)):
        for data in (open_data(f"folder:{tmp_path}", like=like), open_data("shapes:9", "train", like=like)):
            assert data[0][0].shape == (3, 32, 32) and data.image_size == 32
            assert tuple(data.mean) == (0.5,) * 3 and tuple(data.std) == (0.25,) * 3
    for spec, size, mean, std in (
        ("shapes", 64, (0.5,) * 3, (0.5,) * 3),
        ("shapes-easy", 32, (0.5,) * 3, (0.5,) * 3),
        (f"folder:{tmp_path}", 224, IMAGENET_MEAN, IMAGENET_STD),
    ):
        data = open_data(spec)
        assert (data.image_size, tuple(data.mean), tuple(data.std)) == (size, mean, std)


def test_the_number_of_shapes_is_that_of_the_training_images():
    assert [
        len(open_data(spec, split)) for spec in ("shapes:300", "shapes-easy:300") for split in ("train", "val")
    ] == [300, 5_000] * 2
    assert [len(open_data("shapes", split)) for split in ("train", "val")] == [50_000, 5_000]
    assert open_data("shapes:300").fingerprint == open_data("shapes").fingerprint


def test_class_folders(tmp_path):
    plant(
        tmp_path,
        "train/b/1.png",
        "train/a/x/2.JPG",
        "train/c/3.png",
        "validation/a/9.png",
        "validation/c/8.png",
        "validation/c/7.png",
    )
    (tmp_path / "train" / "b" / "notes.txt").write_text("no picture")
    train, val = (open_data(f"folder:{tmp_path}", split) for split in ("train", "val"))
    assert train.classes == val.classes == ("a", "b", "c")
    assert [item.name for item in train.items] == ["a/x/2.JPG", "b/1.png", "c/3.png"] and train.labels.tolist() == [
        0,
        1,
        2,
    ]
    assert [item.name for item in val.items] == ["a/9.png", "c/7.png", "c/8.png"] and val.labels.tolist() == [0, 2, 2]
    image, label, mask = val[1]
    assert mask is None and label == 2 and image.dtype == torch.float32 and not val.has_masks
    assert val.pil(1).size == (30, 20) and val.labels.dtype == np.int64
    plant(tmp_path, "validation/d/1.png")
    assert open_data(f"folder:{tmp_path}").classes == ("a", "c", "d")


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        (
            "shape",
            "val",
            "no data set is called 'shape'; there are shapes, shapes:N, .*folder:PATH, imagenet-s:PATH, voc:PATH, "
            "boxes:PATH.*wds/",
        ),
        ("", "val", "no data set is called ''"),
        ("http://x", "val", "no data set is called"),
        ("shapes:", "val", "number of training images"),
        ("shapes:-3", "val", "number of training images"),
        ("shapes:0", "train", "number of training images"),
        ("shapes-easy:many", "train", "number of training images"),
        ("shapes:" + 5000 * "9", "train", "number of training images, below 100,000,000"),
        ("shapes:\u0663", "train", "number of training images"),
        ("folder:~nobody-at-all/x", "val", "there is no file or folder ~nobody-at-all/x"),
        *((f"{kind}:{300 * 'x'}", "val", "there is no file or folder") for kind in ("folder", "list", "voc", "boxes")),
        (f"parquet:{300 * 'x'}", "val", "there is no .parquet file at"),
        (f"wds/x:{300 * 'x'}", "val", "there is no folder"),
        *(("folder:{}", split, "--split is .*, which names no split") for split in ("", ".", "..", "../full", "a\0")),
        ("shapes", "test", "train and val"),
        ("folder:", "val", "names no place; write folder:PATH"),
        ("folder:{}/nowhere", "val", "there is no file or folder"),
        ("imagenet-s:{}/nowhere", "val", "there is no file or folder"),
        ("voc:{}/nowhere", "val", "there is no file or folder"),
        ("boxes:{}/nowhere", "val", "there is no file or folder"),
        ("folder:{}", "train", "no split 'train'; it holds full, val, and needs a folder train"),
        ("folder:{}/full", "val", "no split 'val'; it holds no folders"),
        ("folder:{}/full/1.png", "val", "no split 'val'; it holds no folders"),
        ("folder:{}", "val", "holds no images for split 'val'"),
        ("folder:{}/val", "empty", "has no class folders"),
        ("imagenet-s:{}", "val", "no split 'val': it lacks the folder validation and holds full, val"),
        ("voc:{}", "val", "no ImageSets/Segmentation/val.txt; that folder holds no lists"),
        ("boxes:{}", "val", "holds no CSV of boxes"),
        ("torch/image_folder:{}/nowhere", "val", "there is no folder"),
        ("wds/x", "val", "there is no folder .none given."),
    ],
)
def test_bad_specs_are_one_sentence(tmp_path, spec, split, message):
    (tmp_path / "val" / "empty").mkdir(parents=True)
    plant(tmp_path, "full/1.png")
    with pytest.raises(InputError, match=message) as caught:
        open_data(spec.format(tmp_path), split)
    assert "\n" not in str(caught.value)


def test_classes_are_matched_by_name():
    assert match_classes(("c", "a"), ("a", "b", "c")) == [2, 0]
    with pytest.raises(InputError, match="no class b that the data has"):
        match_classes(("a", "b"), ("a",))
    with pytest.raises(InputError, match="no class 0, 1, 2, 3, 4 and 7 more that"):
        match_classes([str(k) for k in range(12)], None)


def test_two_classes_of_one_name_stay_two_and_are_never_guessed():
    cranes = ("crane", "dog", "crane")
    assert match_classes(cranes, cranes) == [0, 1, 2]
    with pytest.raises(InputError, match="the model has several classes of the name crane"):
        match_classes(("dog", "crane"), cranes)
    with pytest.raises(InputError, match="the data has several classes of the name crane"):
        match_classes(cranes, ("dog", "crane"))
    assert match_classes(("dog",), cranes) == [1]


def test_a_model_of_1000_classes_without_names_knows_imagenets():
    bare = ViTConfig(n_classes=1000)
    names = names_of_classes(bare, ("n01440764", "n15075141"))
    assert match_classes(("n15075141", "n01443537"), names) == [999, 1] and list(names) == sorted(names)
    assert names_of_classes(bare, ("0", "7"))[7] == "7" and names_of_classes(bare, ("tench",))[0] == "0"
    named = ViTConfig(n_classes=2, classes=("a", "b"))
    assert names_of_classes(named, ("n01440764",)) == ("a", "b")


def test_like_is_a_model_or_its_config():
    with pytest.raises(InputError, match="like is a model or its config, not 'runs/demo'"):
        open_data("shapes", like="runs/demo")


def test_a_data_set_that_does_not_say_what_it_is_is_one_sentence():
    bare = torch.utils.data.TensorDataset(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    for data in (bare, Subset(bare, [0])):
        with pytest.raises(InputError, match=r"^a TensorDataset does not say its spec, split.*models.open_data"):
            describe(data)


def test_a_class_whose_name_is_no_text_is_named(tmp_path):
    plant(tmp_path, "val/a/1.png")
    os.rename(os.fsencode(tmp_path / "val" / "a"), os.fsencode(tmp_path / "val") + b"/\xff")
    with pytest.raises(InputError, match=r"the class name '.udcff' is no text in UTF-8; rename it"):
        open_data(f"folder:{tmp_path}")


def test_masks_are_required_through_any_subset(tmp_path):
    plant(tmp_path, "val/a/1.png", "val/a/2.png")
    require_masks(Subset(open_data("shapes-easy"), [1]))
    for data in (open_data(f"folder:{tmp_path}"), Subset(open_data(f"folder:{tmp_path}"), [1])):
        with pytest.raises(
            InputError, match=r"folder:.* has no masks; name data that has them with --data \(shapes, .*imagenet-s:PATH"
        ):
            require_masks(data)


def test_a_subset_of_shapes_is_described():
    data = open_data("shapes-easy:40", "train")
    about = describe(Subset(data, [7, 7, 3]))
    assert about.labels.tolist() == data.labels[[7, 7, 3]].tolist() and about.indices.tolist() == [7, 7, 3]
    assert (about.spec, about.split, about.image_size, about.has_masks) == ("shapes-easy:40", "train", 32, True)
    assert about.fingerprint != data.fingerprint == describe(data).fingerprint
