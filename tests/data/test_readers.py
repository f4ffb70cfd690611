"""Run with: pytest tests/data/test_readers.py"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from models import ViTConfig, open_data
from models.data import Stream, describe, match_classes, require_masks
from models.data.images import Images, decode
from models.errors import InputError, UnreadableImage

LIKE = ViTConfig.preset("bvit_easy", image_size=32, mean=(0, 0, 0), std=(1, 1, 1))


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def save(array: np.ndarray, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def rgb(ids: np.ndarray) -> np.ndarray:
    """ImageNet-S's encoding."""
    return np.stack([ids % 256, ids // 256, np.zeros_like(ids)], -1).astype(np.uint8)


@pytest.fixture
def imagenet_s(tmp_path):
    """Three classes of two images; the right half is the class, a strip is ignored, the rest other."""
    for c, name in enumerate(("n01", "n02", "n03")):
        for k in range(2):
            ids = np.zeros((40, 56), np.int64)
            ids[:, 28:], ids[:3] = c + 1, 1000
            save(picture(seed=2 * c + k), tmp_path / "validation" / name / f"{k}.JPEG")
            save(rgb(ids), tmp_path / "validation-segmentation" / name / f"{k}.png")
    return tmp_path


def test_imagenet_s_ids_become_labels(imagenet_s) -> None:
    data = open_data(f"imagenet-s:{imagenet_s}", like=LIKE)
    image, label, mask = data[3]
    assert len(data) == 6 and data.classes == ("n01", "n02", "n03") and label == 1 and image.shape == (3, 32, 32)
    assert mask.dtype == torch.int64 and set(mask.unique().tolist()) == {-1, 0, 2}
    assert (mask[8:, 18:] == 2).all() and (mask[8:, :14] == 0).all() and (mask[:2] == -1).all()


def test_large_ids_are_widened_before_they_are_multiplied(tmp_path) -> None:
    (tmp_path / "ImageNetS_categories_im300.txt").write_text("\n".join(f"n{k:03d}" for k in range(300)))
    save(picture(32, 32), tmp_path / "validation" / "n290" / "a.png")
    save(rgb(np.full((32, 32), 291)), tmp_path / "validation-segmentation" / "n290" / "a.png")
    data = open_data(f"imagenet-s:{tmp_path}", like=LIKE)
    assert data[0][1] == 290 and (data[0][2] == 291).all()


@pytest.mark.parametrize(("height", "width", "size"), [(40, 56, 32), (90, 61, 32), (400, 300, 224), (224, 224, 224)])
def test_image_and_mask_stay_aligned(tmp_path, height, width, size) -> None:
    """An image that is its own mask: after the transform, bright pixels are target pixels but at the blurred edges."""
    y, x = np.mgrid[:height, :width]
    inside = (y - height * 0.45) ** 2 + (x - width * 0.6) ** 2 < (0.3 * min(height, width)) ** 2
    save(np.repeat((inside * 255).astype(np.uint8)[..., None], 3, -1), tmp_path / "validation" / "n01" / "a.png")
    save(rgb(inside.astype(np.int64)), tmp_path / "validation-segmentation" / "n01" / "a.png")
    image, _, mask = open_data(f"imagenet-s:{tmp_path}", like=ViTConfig(image_size=size, mean=(0, 0, 0), std=(1, 1, 1)))[0]
    sure = (image[0] < 0.05) | (image[0] > 0.95)
    assert sure.float().mean() > 0.8 and ((image[0] > 0.5) == (mask == 1))[sure].float().mean() > 0.995
    moved = (image[0] > 0.5).float() - (mask == 1).float()
    assert abs(moved.sum()) < 0.03 * mask.sum()


def test_voc_gives_an_item_per_image_and_class(tmp_path) -> None:
    ids = np.zeros((40, 40), np.uint8)
    ids[:20], ids[20:30], ids[38:] = 1, 15, 255
    save(picture(40, 40), tmp_path / "JPEGImages" / "a.jpg")
    palette = Image.fromarray(ids)
    (tmp_path / "SegmentationClass").mkdir()
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path / "SegmentationClass" / "a.png")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("a\n")
    data = open_data(f"voc:{tmp_path}", like=LIKE)
    assert [data.classes[label] for label in data.labels] == ["aeroplane", "person"]
    assert set(data[0][2].unique().tolist()) == {-1, 0, 1, 15}
    with pytest.raises(InputError, match=r"no ImageSets/Segmentation/train.txt; that folder holds val"):
        open_data(f"voc:{tmp_path}", "train")


def test_boxes_are_unions_by_class(tmp_path) -> None:
    save(picture(40, 40), tmp_path / "x" / "a.png")
    (tmp_path / "boxes.csv").write_text("file,wnid,w,h,x0,y0,x1,y1,more\na.png,n7,80,80,0,0,40,40,1\na.png,n7,80,80,40,40,80,80,1\na.png,n9,80,80,0,0,80,8,1\n")
    for spec in (f"boxes:{tmp_path}", f"boxes:{tmp_path / 'boxes.csv'}"):
        data = open_data(spec, like=LIKE)
        assert data.classes == ("n7", "n9") and len(data) == 2
        mask = data[0][2]
        assert (mask[:16, :16] == 1).all() and (mask[16:, 16:] == 1).all() and (mask[:15, 17:] == 0).all()
    (tmp_path / "boxes.csv").write_text("file,wnid,w,h,x0,y0,x1,y1\na.png,n7,80,80,0,0,90,40\n")
    with pytest.raises(InputError, match=r"line 2 of boxes.csv has a box outside"):
        open_data(f"boxes:{tmp_path}")


def test_class_folders_have_no_masks(tmp_path) -> None:
    for k, name in enumerate(("cat", "dog")):
        save(picture(seed=k), tmp_path / "val" / name / "a.png")
    data = open_data(f"folder:{tmp_path}", like=LIKE)
    assert data[1][1:] == (1, None) and np.asarray(data.pil(1)).shape == (40, 56, 3)
    with pytest.raises(InputError, match=r"imagenet-s:PATH.*probes.trajectories"):
        require_masks(data)


def test_pictures_of_every_kind_become_rgb(tmp_path) -> None:
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64)
    deep = (grey * 257).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.abs(np.asarray(decode(tmp_path / "deep.png", "deep"))[..., 0].astype(int) - grey).max() <= 1
    Image.fromarray(grey.astype(np.uint8)).save(tmp_path / "grey.png")
    assert np.asarray(decode(tmp_path / "grey.png", "grey")).shape == (64, 64, 3)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert np.asarray(decode(tmp_path / "cmyk.jpg", "cmyk"))[0, 0, 0] > 150
    frames = [Image.new("P", (8, 8), k) for k in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "moving.gif", "moving").size == (8, 8)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(decode(tmp_path / "clear.png", "clear")) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert decode(tmp_path / "turned.jpg", "turned").size == (10, 20)


def test_bombs_and_stumps_are_unreadable(tmp_path, monkeypatch) -> None:
    save(picture(), tmp_path / "a.png")
    (tmp_path / "stump.png").write_bytes((tmp_path / "a.png").read_bytes()[:400])
    with pytest.raises(UnreadableImage, match="stump"):
        decode(tmp_path / "stump.png", "stump")
    for limit in (1500, 500):  # PIL warns above its limit and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match="pixels"):
            decode(tmp_path / "a.png", "a")


@pytest.mark.parametrize(
    ("spec", "message"),
    [("cats", "no data set is called 'cats'"), ("folder:", "folder:PATH"), ("folder:/nowhere", "there is no file or folder"), ("shapes:many", "number of training images")],
)
def test_a_bad_spec_is_one_sentence(spec, message) -> None:
    with pytest.raises(InputError, match=message):
        open_data(spec)


def test_bad_folders_and_masks_are_one_sentence(imagenet_s, tmp_path) -> None:
    spec = f"imagenet-s:{imagenet_s}"
    with pytest.raises(InputError, match="train-semi"):
        open_data(spec, "train")
    save(rgb(np.full((40, 56), 9)), imagenet_s / "validation-segmentation" / "n01" / "0.png")
    with pytest.raises(InputError, match=r"n01/0.JPEG: the mask holds id 9, outside 0..3 and 1000"):
        open_data(spec)[0]
    save(rgb(np.zeros((40, 40), np.int64)), imagenet_s / "validation-segmentation" / "n01" / "0.png")
    with pytest.raises(InputError, match=r"the mask is 40 x 40 pixels, its image 56 x 40"):
        open_data(spec)[0]
    (imagenet_s / "validation-segmentation" / "n01" / "1.png").unlink()
    with pytest.raises(InputError, match=r"n01/1.JPEG has no mask"):
        open_data(spec)
    (tmp_path / "empty" / "val").mkdir(parents=True)
    with pytest.raises(InputError, match="no class folders"):
        open_data(f"folder:{tmp_path / 'empty'}")
    with pytest.raises(InputError, match="no split 'train'; it holds val"):
        open_data(f"folder:{tmp_path / 'empty'}", "train")


class Broken(Images):
    """Some of 200 images cannot be read."""

    def __init__(self, broken: set[int]):
        self.broken = broken
        self.spec, self.split, self.classes, self.fingerprint, self.has_masks, self.image_size = "planted", "val", ("a",), "f", False, 4
        self.labels = np.zeros(200, np.int64)

    def __len__(self) -> int:
        return 200

    def __getitem__(self, i):
        if i in self.broken:
            raise UnreadableImage(f"file{i}", "truncated")
        return torch.full((3, 4, 4), float(i)), 0, None


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_left_out_and_named(workers, capsys) -> None:
    stream = Stream(Broken({7, 100}), 32, workers=workers)
    index = np.concatenate([batch.index for batch in stream])
    assert sorted({*range(200)} - set(index.tolist())) == [7, 100] and stream.unreadable == ["file7", "file100"]
    assert "file100" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"more than 1 % of the 200 images.*file9"):
        list(Stream(Broken({7, 8, 9}), 32, workers=workers))


def test_shards_hold_every_image_once_in_whole_batches() -> None:
    data = open_data("shapes-easy")
    data = Subset(data, range(50))
    parts = [[batch.index.tolist() for batch in Stream(data, 8, shard=(rank, 3))] for rank in range(3)]
    assert sorted(i for part in parts for batch in part for i in batch) == list(range(50))
    whole = [batch.index.tolist() for batch in Stream(data, 8)]
    assert [whole[0], whole[3], whole[6]] == parts[0]


def test_a_subset_is_as_good_as_the_whole() -> None:
    data = open_data("shapes-easy")
    some, nested = Subset(data, [5, 9, 30]), Subset(Subset(data, [1, 5, 9, 30]), [1, 2, 3])
    about = describe(some)
    assert about.labels.tolist() == data.labels[[5, 9, 30]].tolist() and about.indices.tolist() == [5, 9, 30]
    assert describe(nested).indices.tolist() == [5, 9, 30] and describe(nested).labels.tolist() == about.labels.tolist()
    assert about.fingerprint != describe(data).fingerprint != describe(Subset(data, [5, 9, 31])).fingerprint
    batch = next(iter(Stream(some, 3)))
    assert torch.equal(batch.images[1], data[9][0]) and torch.equal(batch.masks[1], data[9][2])


def test_classes_are_matched_by_name() -> None:
    assert match_classes(["b", "a"], ["a", "x", "b"]) == [2, 0]
    with pytest.raises(InputError, match="c0, c1, c2, c3, c4 and 3 more"):
        match_classes([f"c{k}" for k in range(8)], ["a"])


def test_what_timm_reads(tmp_path) -> None:
    """timm's own folder reader is reached through its torch/ names; here torchvision's ImageFolder."""
    for k, name in enumerate(("cat", "dog")):
        save(picture(seed=k), tmp_path / "val" / name / "a.png")
    data = open_data(f"torch/folder:{tmp_path / 'val'}", like=LIKE)
    assert len(data) == 2 and data[1][1] == 1 and data[1][0].shape == (3, 32, 32) and data.classes == ("cat", "dog")
    with pytest.raises(InputError, match="timm cannot open"):
        open_data(f"torch/cifar10:{tmp_path}")
