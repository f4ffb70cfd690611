"""What timm reads: torchvision's sets, Hugging Face data sets."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from models.config import ViTConfig
from models.data import Stream, describe, open_data
from models.errors import InputError

LIKE = ViTConfig(image_size=16, patch_size=8, mean=(0, 0, 0), std=(1, 1, 1))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (value, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def reds(data) -> list[int]:
    """The red of every image, as it comes through the stream."""
    return [round(255 * image[0, 0, 0].item()) for batch in Stream(data, 4) for image in batch.images]


def test_torchvision_folders(tmp_path):
    for split, value in (("train", 50), ("validation", 90)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "1.png").write_bytes(png(value + (name == "dog")))
    train, val = (open_data(f"torch/image_folder:{tmp_path}", split, like=LIKE) for split in ("train", "val"))
    assert val.classes == ("cat", "dog") and val.labels.tolist() == [0, 1]
    assert reds(train) == [50, 51] and reds(val) == [90, 91]
    image, label, mask = val[1]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 1 and mask is None
    about = describe(torch.utils.data.Subset(val, [1]))
    assert (
        about.labels.tolist() == [1]
        and not about.has_masks
        and about.fingerprint != val.fingerprint != train.fingerprint
    )
    with pytest.raises(InputError, match=r"timm cannot open its split 'val' .Unknown torchvision dataset nothing"):
        open_data(f"torch/nothing:{tmp_path}")


def test_torchvision_arrays(tmp_path):
    """MNIST's own files, of three digits."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)
    for stem in ("train", "t10k"):
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + b"".join(n.to_bytes(4) for n in (3, 28, 28)) + digits.tobytes()
        )
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + (3).to_bytes(4) + bytes([7, 2, 0]))
    data = open_data(f"torch/mnist:{tmp_path}", like=LIKE)
    assert data.labels.tolist() == [7, 2, 0] and len(data.classes) == 10 and data[0][0].shape == (3, 16, 16)
    assert np.array_equal(np.asarray(data.pil(1)), np.stack([digits[1]] * 3, -1))


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_data_sets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    rows = dict(image=[dict(bytes=png(value), path=None) for value in (5, 6, 7)], label=[1, 0, 1])
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "validation.parquet")
    data = open_data(f"hfds/{tmp_path / 'set'}:{tmp_path / 'cache'}", like=LIKE)
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [1, 0, 1] and reds(data) == [5, 6, 7]
    with pytest.raises(InputError, match="cannot open its split 'train'"):
        open_data(f"hfds/{tmp_path / 'set'}:{tmp_path / 'cache'}", "train")
