"""Parquet as Hugging Face packs pictures, with and without masks."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq

from models.config import ViTConfig
from models.data import Stream, open_data
from models.data import parquet as store
from models.errors import InputError, UnreadableImage

LIKE = ViTConfig(image_size=16, patch_size=8, mean=(0, 0, 0), std=(1, 1, 1))


def reds(data) -> list[int]:
    return [round(255 * image[0, 0, 0].item()) for batch in Stream(data, 4) for image in batch.images]


@pytest.fixture
def packed(tmp_path, parquet, picture):
    """Two training files of 3 rows and a validation file of 3, with a row that has no label."""
    for name, values, labels in (
        ("train-00000-of-00002", (10, 20, 30), (2, 0, 1)),
        ("train-00001-of-00002", (40, 50, 60), (0, 0, -1)),
        ("validation-00000-of-00001", (70, 80, 90), (1, None, 0)),
    ):
        columns = {"image": [{"bytes": picture(red), "path": f"{red}.png"} for red in values], "label": list(labels)}
        parquet(tmp_path / "data" / f"{name}.parquet", columns, ("cat", "dog", "hen"))
    (tmp_path / "README.md").write_text("a card")
    return tmp_path


@pytest.mark.parametrize("place", ["", "data", "data/*.parquet", "**/*-0000?-of-*.parquet"])
def test_splits_and_classes_are_told_by_names_and_schema(packed, place, capsys):
    train, val = (open_data(f"parquet:{packed / place}", split, like=LIKE) for split in ("train", "val"))
    assert train.classes == val.classes == ("cat", "dog", "hen")
    assert train.labels.tolist() == [2, 0, 1, 0, 0] and reds(train) == [10, 20, 30, 40, 50]
    assert val.labels.tolist() == [1, 0] and reds(val) == [70, 90] and not val.has_masks and val[1][2] is None
    assert val.pil(1).getpixel((0, 0)) == (90, 0, 0)
    assert val.items[1].name == "validation-00000-of-00001.parquet: row 2 (90.png)"
    assert train.items[4].name == "train-00001-of-00002.parquet: row 1 (50.png)"
    said = capsys.readouterr().err
    assert "left out 1 row without a label (train-00001-of-00002.parquet: row 2)" in said


def test_one_file_is_the_split_of_its_name_else_val(packed):
    file = packed / "data" / "validation-00000-of-00001.parquet"
    assert len(open_data(f"parquet:{file}")) == 2
    with pytest.raises(InputError, match="no split 'train'; its 1 .parquet files are of validation, by their names"):
        open_data(f"parquet:{file}", "train")
    other = file.rename(packed / "data" / "all.parquet")
    assert len(open_data(f"parquet:{other}")) == 2
    moved = packed / "Train" / "0000.parquet"
    moved.parent.mkdir()
    other.rename(moved)
    assert len(open_data(f"parquet:{moved}", "train")) == len(open_data(f"parquet:{moved.parent}", "train")) == 2


def test_bytes_words_and_other_columns(tmp_path, parquet, picture):
    for split, words in (("train", "c a b"), ("val", "b c c")):
        columns = {"img": [picture(5)] * 3, "fine": words.split(), "label": [7, 8, 9], "more": [None] * 3}
        parquet(tmp_path / f"{split}.parquet", columns)
    data = open_data(f"parquet:{tmp_path}?label=fine", like=LIKE)
    assert data.classes == ("a", "b", "c") and data.labels.tolist() == [1, 2, 2] and reds(data) == [5, 5, 5]
    assert open_data(f"parquet:{tmp_path}?image=img&label=fine", like=LIKE).fingerprint == data.fingerprint
    numbers = open_data(f"parquet:{tmp_path}", like=LIKE)
    assert numbers.classes == tuple(map(str, range(10))) and numbers.labels.tolist() == [7, 8, 9]
    assert numbers.fingerprint != data.fingerprint


def test_numbers_without_names_are_as_many_in_every_split(tmp_path, parquet, picture):
    parquet(tmp_path / "train.parquet", {"image": [picture(1)] * 3, "label": [0, 1, 4]})
    parquet(tmp_path / "val.parquet", {"image": [picture(1)], "label": [2]})
    assert (
        open_data(f"parquet:{tmp_path}").classes == open_data(f"parquet:{tmp_path}", "train").classes == tuple("01234")
    )
    (tmp_path / "classes.txt").write_text("\ufeffa\nb\nc\nd\ne\n", encoding="utf-8")
    assert open_data(f"parquet:{tmp_path}").classes == tuple("abcde")


def test_categories_are_words(tmp_path, picture):
    labels = pa.array(["dog", "cat", "dog"]).dictionary_encode()
    pq.write_table(pa.table({"image": [picture(1)] * 3, "label": labels}), tmp_path / "val.parquet")
    data = open_data(f"parquet:{tmp_path}")
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [1, 0, 1]


def test_paths_in_place_of_bytes_are_read_beside_the_file(plant, parquet):
    root = plant("pictures/1.png")
    parquet(
        root / "val.parquet",
        {"image": [{"bytes": None, "path": "pictures/1.png"}, {"bytes": None, "path": "no"}], "label": [0, 0]},
    )
    data = open_data(f"parquet:{root}", like=LIKE)
    assert data[0][0].shape == (3, 16, 16)
    with pytest.raises(
        UnreadableImage, match=r"val.parquet: row 1 \(no\) cannot be read as an image .the row holds no picture"
    ):
        data[1]


def test_a_row_without_its_picture_is_left_out_of_the_stream(tmp_path, parquet, picture, capsys):
    parquet(tmp_path / "val.parquet", {"image": [None, *[picture(3)] * 2], "label": [0, 0, 0]})
    assert reds(open_data(f"parquet:{tmp_path}", like=LIKE)) == [3, 3]
    assert "left out 1 unreadable images: val.parquet: row 0" in capsys.readouterr().err


def with_masks(picture, masks, **columns) -> dict[str, list]:
    """Rows as a packaged ImageNet-S has them: image, mask, filename, label."""
    n = len(masks)
    return {
        "image": [picture(1)] * n,
        "mask": masks,
        "filename": [f"n_{i}" for i in range(n)],
        "label": [0] * n,
        **columns,
    }


def test_masks_are_served_in_the_coding_they_have(tmp_path, parquet, picture, mask_png):
    ids = np.array([[1, 1000, 0, 3]] * 16).repeat(4, 1)
    for coded, written in (("rgb", ids), ("grey", np.where(ids == 1000, 255, ids)), ("wide", ids)):
        masks = [{"bytes": mask_png(written, coded), "path": None}] * 2
        parquet(tmp_path / coded / "val.parquet", with_masks(picture, masks), ("a", "b", "c"))
        data = open_data(f"parquet:{tmp_path / coded}", like=LIKE)
        assert data.has_masks and np.array_equal(data[1][2], np.where(ids == 1000, -1, ids))
        assert data.items[1].name == "val.parquet: row 1 (n_1)"


def test_a_mask_id_above_the_classes_names_the_row(tmp_path, parquet, picture, mask_png):
    good, bad = (mask_png(np.full((16, 16), k), "rgb") for k in (1, 4))
    parquet(tmp_path / "val.parquet", with_masks(picture, [good, good, bad]), ("a", "b", "c"))
    with pytest.raises(InputError, match=r"val.parquet: row 2.*: the mask holds id 4, outside 0..3 and 1000"):
        open_data(f"parquet:{tmp_path}")
    parquet(tmp_path / "val.parquet", with_masks(picture, [*[good] * 102, bad, *[good] * 100]), ("a", "b", "c"))
    data = open_data(f"parquet:{tmp_path}", like=LIKE)  # not among those looked at
    with pytest.raises(InputError, match=r"val.parquet: row 102 \(n_102\): the mask holds id 4"):
        data[102]


def test_a_row_without_its_mask_is_named(tmp_path, parquet, picture, mask_png):
    parquet(tmp_path / "val.parquet", with_masks(picture, [mask_png(np.ones((16, 16)), "grey"), None]), ("a",))
    with pytest.raises(InputError, match="val.parquet: row 1 has no mask"):
        open_data(f"parquet:{tmp_path}")


def test_memory_is_flat(tmp_path, parquet, monkeypatch):
    """Row groups of 100 KB are let go; one of 4 MB is read page by page, of 80 KB each."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 20_000), dtype=np.uint8)
    columns = {"image": [row.tobytes() for row in noise], "label": [0] * 200}
    pages = dict(write_batch_size=4, data_page_size=50_000, use_dictionary=False)
    parquet(tmp_path / "groups" / "val.parquet", columns, group=5)
    (tmp_path / "one").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "one" / "val.parquet", row_group_size=200, **pages)
    monkeypatch.setattr(store, "HELD", 300_000)
    for place in ("groups", "one"):
        data, before, most = open_data(f"parquet:{tmp_path / place}"), pa.total_allocated_bytes(), 0
        for i in (*range(200), 3, 199, 100, *range(50, 60), 0):
            assert data.items[i].path.getvalue() == noise[i].tobytes()
            most = max(most, pa.total_allocated_bytes() - before)
        assert most < 2_000_000 and len(data.items.store.held) <= 3


def test_another_process_reads_the_same(packed):
    data = open_data(f"parquet:{packed}", "train", like=LIKE)
    assert torch.equal(data[3][0], pickle.loads(pickle.dumps(data))[3][0])
    assert [batch.labels.tolist() for batch in Stream(data, 2, workers=1)] == [[2, 0], [1, 0], [0]]
    assert len(pickle.dumps(data)) < 5_000


@pytest.mark.parametrize(
    ("columns", "query", "message"),
    [
        (
            {"picture": [b"1"], "size": [1]},
            "",
            r"has no column label or \?label=NAME that can be the label; its columns are picture",
        ),
        (
            {"label": [1], "size": [1]},
            "",
            r"has no column image or \?image=NAME that can be the image; its columns are label",
        ),
        (
            {"image": [b"1"], "label": [b"1"]},
            "",
            "that can be the label; its columns are image .binary., label .binary.",
        ),
        ({"image": [b"1"], "label": [1]}, "?mask=seg", "has no column seg that can be the mask"),
        (
            {"image": [b"1"], "label": [1]},
            "?picture=x",
            "after the question mark stand image=NAME, label=NAME, mask=NAME",
        ),
        ({"image": [b"1"], "label": [1]}, "?", "after the question mark stand .* not nothing"),
        ({"image": [b"1"], "label": [-1]}, "", "holds no images for split 'val'; add pictures to it"),
        (
            {"image": [b"1"], "label": pa.array([2**63 + 5], "uint64")},
            "",
            "val.parquet cannot be read as Parquet .Integer value",
        ),
    ],
)
def test_bad_tables_are_one_sentence(tmp_path, parquet, columns, query, message):
    parquet(tmp_path / "val.parquet", columns)
    with pytest.raises(InputError, match=message) as caught:
        open_data(f"parquet:{tmp_path}{query}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [300 * "/9j4AAQ", "a\0b", {"bytes": None, "path": 400 * "x"}, {"bytes": 3}])
def test_a_cell_that_is_no_picture_is_named(tmp_path, parquet, value):
    parquet(tmp_path / "val.parquet", {"image": [value], "label": [0]})
    with pytest.raises(InputError, match="val.parquet: row 0 .*cannot be read as an image .the row holds no picture."):
        open_data(f"parquet:{tmp_path}")[0]


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint64"])
def test_labels_of_any_width_are_numbers_and_some_may_lack(tmp_path, parquet, picture, kind):
    parquet(tmp_path / "val.parquet", {"image": [picture(i) for i in range(3)], "label": pa.array([2, None, 0], kind)})
    data = open_data(f"parquet:{tmp_path}")
    assert data.labels.tolist() == [2, 0] and data.classes == ("0", "1", "2")


def test_ids_are_no_classes(tmp_path, parquet, picture):
    parquet(tmp_path / "val.parquet", {"image": [picture(1)], "label": [10**10]})
    with pytest.raises(InputError, match="holds the label 10000000000, an id rather than a class"):
        open_data(f"parquet:{tmp_path}")


def test_a_damaged_file_and_an_empty_place_are_named(tmp_path, parquet, picture):
    with pytest.raises(InputError, match="there is no .parquet file at .*; found nothing there"):
        open_data(f"parquet:{tmp_path}")
    (tmp_path / "val.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match="val.parquet cannot be read as Parquet"):
        open_data(f"parquet:{tmp_path}")
    parquet(tmp_path / "val.parquet", {"image": [picture(1)], "label": [3]}, ("a", "b"))
    with pytest.raises(InputError, match="names 2 classes, but holds the label 3"):
        open_data(f"parquet:{tmp_path}")
