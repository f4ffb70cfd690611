"""One ImageNet-S in the four forms that people have it in: the items are equal."""

import pytest
import torch
import xarray as xr

from models.checkpoint import fresh
from models.config import ViTConfig
from models.data import Stream, describe, open_data
from models.errors import InputError
from probes import pointing_game

LIKE = ViTConfig(image_size=16, patch_size=8)
FORMS = ("official", "two trees", "parquet", "webdataset")


@pytest.fixture
def sets(imagenet_s_in_four_forms):
    return {form: open_data(spec, like=LIKE) for form, spec in imagenet_s_in_four_forms.items()}


@pytest.mark.parametrize("form", FORMS[1:])
def test_items_are_equal_in_every_form(sets, form):
    official, other = sets["official"], sets[form]
    assert other.classes == official.classes == ("n01440764", "n02102040", "n02979186") and other.has_masks
    assert other.labels.tolist() == official.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for (image, label, mask), expected in zip(other, official, strict=True):
        assert torch.equal(image, expected[0]) and label == expected[1] and torch.equal(mask, expected[2])
        assert {-1, 0, label + 1} <= set(mask.flatten().tolist()) <= {-1, 0, 1, 2, 3}


def test_the_pointing_game_is_equal_in_every_form(sets):
    model = fresh(ViTConfig(image_size=16, patch_size=8, n_steps=2, d_model=16, n_heads=2, n_classes=3), 0)
    official, *others = (pointing_game.measure(model, sets[form], batch_size=4) for form in FORMS)
    assert official["mass"].notnull().any()
    for other in others:
        xr.testing.assert_equal(other, official)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_streams_through_processes(sets, form):
    (batch,) = Stream(sets[form], 8, workers=1)
    assert torch.equal(batch.masks, torch.stack([sets[form][i][2] for i in range(6)]))
    assert describe(sets[form]).photographs.tolist() == list(range(6))


def test_the_mask_s_folder_is_the_class(sets, imagenet_s_in_four_forms):
    """The first image lies in another class folder of its tree."""
    first = sets["two trees"].items[0]
    assert first.path.parent.name == "n02102040" and first.name == "n01440764/ILSVRC2012_val_00000000.JPEG"
    assert first.label == 0 and sets["two trees"].fingerprint == sets["official"].fingerprint


def two_trees(specs: dict[str, str]) -> list[str]:
    return specs["two trees"].removeprefix("imagenet-s:").split("@")


def test_either_tree_may_be_named_from_above_or_inside(imagenet_s_in_four_forms, sets):
    masks, images = two_trees(imagenet_s_in_four_forms)
    for spec in (
        f"{masks}/validation-segmentation@{images}",
        f"{masks}@{images}/val",
        f"{masks}/validation-segmentation@{images}/val",
    ):
        assert open_data(f"imagenet-s:{spec}", like=LIKE).fingerprint == sets["official"].fingerprint


def test_images_may_lie_flat_and_bear_their_class(imagenet_s_in_four_forms, tmp_path, sets):
    masks, _ = two_trees(imagenet_s_in_four_forms)
    flat = tmp_path / "flat@home"
    flat.mkdir()
    for image in [item.path for item in sets["two trees"].items]:
        (flat / f"{image.stem}_{image.parent.name}.JPEG").write_bytes(image.read_bytes())
    data = open_data(f"imagenet-s:{masks}@{flat}", like=LIKE)
    assert torch.equal(data[0][2], sets["official"][0][2]) and torch.equal(data[5][0], sets["official"][5][0])


def test_images_may_be_kaggles(imagenet_s_in_four_forms, tmp_path, sets):
    masks, _ = two_trees(imagenet_s_in_four_forms)
    validation = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    validation.mkdir(parents=True)
    for item in sets["two trees"].items:
        (validation / item.path.name).write_bytes(item.path.read_bytes())
    data = open_data(f"imagenet-s:{masks}@{tmp_path / 'kaggle'}", like=LIKE)
    assert data.fingerprint == sets["official"].fingerprint


def test_every_mask_needs_its_image(imagenet_s_in_four_forms, sets):
    masks, images = two_trees(imagenet_s_in_four_forms)
    sets["two trees"].items[3].path.unlink()
    with pytest.raises(
        InputError,
        match=r"1 of 6 masks have no image of their name below .*, the first is n02102040/ILSVRC2012_val_00000011.png",
    ):
        open_data(f"imagenet-s:{masks}@{images}")
    twice = [item.path for item in sets["official"].items[:1]]
    for folder in ("n0", "n1"):
        (sets["two trees"].items[0].path.parents[1] / folder).mkdir()
        (sets["two trees"].items[0].path.parents[1] / folder / twice[0].name).write_bytes(b"")
    sets["two trees"].items[3].path.write_bytes(b"")
    with pytest.raises(
        InputError, match="3 images bear the name of the mask n01440764/ILSVRC2012_val_00000000.png, such as"
    ):
        open_data(f"imagenet-s:{masks}@{images}")


def test_train_has_its_own_masks(imagenet_s_in_four_forms, plant, tmp_path):
    masks, images = two_trees(imagenet_s_in_four_forms)
    with pytest.raises(InputError, match="no split 'train': there is no folder train-semi-segmentation in"):
        open_data(f"imagenet-s:{masks}@{images}", "train")
    plant("masks/train-semi-segmentation/n01440764/n01440764_7.png", "images/train/n01440764/n01440764_7.JPEG")
    plant("images/train/n01440764/n01440764_8.JPEG")
    data = open_data(f"imagenet-s:{masks}@{images}", "train")
    assert [item.name for item in data.items] == ["n01440764/n01440764_7.JPEG"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{0}@", "names one place only; write imagenet-s:MASKS@IMAGES"),
        ("@{1}", "names one place only"),
        ("{0}@{1}/nowhere", "there is no file or folder .*nowhere"),
        ("{0}/nowhere@{1}", "there is no file or folder .*nowhere"),
        (
            "{0}/validation-segmentation/n01440764@{1}",
            "n01440764 holds no class folders with masks; found 2 pictures there",
        ),
    ],
)
def test_bad_pairs_are_one_sentence(imagenet_s_in_four_forms, spec, message):
    with pytest.raises(InputError, match=message) as caught:
        open_data("imagenet-s:" + spec.format(*two_trees(imagenet_s_in_four_forms)))
    assert "\n" not in str(caught.value)


def test_masks_without_images_are_counted(imagenet_s_in_four_forms, sets, capsys):
    sets["official"].items[2].path.unlink()
    assert len(open_data(imagenet_s_in_four_forms["official"])) == 5
    assert "left out 1 mask without an image (n02102040/ILSVRC2012_val_00000010.png)" in capsys.readouterr().err
