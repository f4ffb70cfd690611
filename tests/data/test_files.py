"""What a walk over somebody's disk takes, what it leaves out, and that it says so."""

import hashlib
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.config import ViTConfig
from models.data import describe, open_data
from models.data import items as of_files
from models.data.files import endings, folders, in_order, masks_among, pictures, text_of
from models.data.items import Names
from models.errors import InputError

LIKE = ViTConfig(image_size=16, patch_size=8)

# What Synology, QNAP, macOS, Windows, Linux, NetApp and Jupyter leave behind
LEFTOVERS = (
    "@eaDir",
    "#recycle",
    "@Recycle",
    ".@__thumb",
    "__MACOSX",
    ".ipynb_checkpoints",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    ".Trash-1000",
    "~snapshot",
    "__pycache__",
    "LOST.DIR",
)


def names(data) -> list[str]:
    return [item.name for item in data.items]


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_leftovers_of_file_systems_are_neither_classes_nor_pictures(plant, capsys, leftover):
    kept = [f"{split}/{name}/{i}.jpg" for split in ("train", "val") for name in ("cat", "dog") for i in range(3)]
    more = [f"{split}/{place}{leftover}/thumb.jpg" for split in ("train", "val") for place in ("", "cat/")]
    root = plant(*kept, *more, f"{leftover}/1.jpg")
    for split in ("train", "val"):
        data = open_data(f"folder:{root}", split)
        assert data.classes == ("cat", "dog") and len(data) == 6
        assert f"left out 2 leftovers of file systems ({leftover}, cat/{leftover}" in sorted_names(capsys, leftover)


def sorted_names(capsys, leftover: str) -> str:
    return capsys.readouterr().err.replace(f"cat/{leftover}, {leftover}", f"{leftover}, cat/{leftover}")


@pytest.mark.parametrize("file", [".DS_Store", "._1.jpg", "Thumbs.db", "desktop.ini", ".hidden.jpg", ".gitkeep"])
def test_files_of_the_system_are_left_out_counted_and_named(plant, capsys, file):
    root = plant("val/cat/1.jpg")
    (root / "val" / "cat" / file).write_bytes(b"\0\5\x16\7")
    assert names(open_data(f"folder:{root}")) == ["cat/1.jpg"]
    assert f"left out 1 leftover of a file system (cat/{file})" in capsys.readouterr().err


def test_nothing_is_said_where_nothing_is_left_out(plant, capsys):
    open_data(f"folder:{plant('val/cat/1.jpg', 'val/dog/x/2.png')}")
    assert capsys.readouterr().err == ""


def test_other_files_and_empty_class_folders_are_counted_and_named(plant, capsys):
    root = plant("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/2.jpg", "val/3.jpg")
    for file in ("val/cat/notes.txt", "val/cat/1.json", "val/cat/2.h5", "val/cat/3.mpg", "val/cat/README"):
        (root / file).write_text("no picture")
    for split in ("train", "val"):
        (root / split / "mouse").mkdir()
    data = open_data(f"folder:{root}")
    said = capsys.readouterr().err
    assert data.classes == ("cat", "dog") and len(data) == 2 and said.count("\n") == 1
    assert "5 files that are no pictures (cat/" in said and ", ...)" in said
    assert "1 class folder without pictures (mouse)" in said
    assert "1 picture outside the class folders (3.jpg)" in said


@pytest.mark.parametrize("what", ["class", "inside", "split", "root"])
def test_links_are_followed(plant, tmp_path, what):
    plant(*(f"elsewhere/val/cat/more/{i}.jpg" for i in range(5)), "here/val/dog/1.jpg")
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "val" / "cat").mkdir(exist_ok=True)
    if what == "inside":
        (here / "val" / "cat" / "link").symlink_to(elsewhere / "val" / "cat" / "more")
    elif what == "class":
        (here / "val" / "cat").rmdir()
        (here / "val" / "cat").symlink_to(elsewhere / "val" / "cat")
    else:
        link = here / "linked" if what == "root" else here / "linked" / "val"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(elsewhere if what == "root" else elsewhere / "val")
        here = here / "linked"
    assert open_data(f"folder:{here}").labels.tolist().count(0) == 5


def test_linked_pictures_are_read_and_links_to_nowhere_counted(plant, capsys):
    root = plant("elsewhere/1.jpg", "val/cat/0.jpg")
    (root / "val" / "cat" / "1.jpg").symlink_to(root / "elsewhere" / "1.jpg")
    (root / "val" / "cat" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    assert names(open_data(f"folder:{root}")) == ["cat/0.jpg", "cat/1.jpg"]
    assert "1 link that leads nowhere (cat/gone.jpg)" in capsys.readouterr().err


def test_circles_of_links_end(plant, capsys):
    root = plant("val/cat/1.jpg", "val/dog/2.jpg")
    for place, target in {
        "cat/up": root / "val",
        "cat/self": root / "val" / "cat",
        "cat/far": root.parent,
        "cat/dog": root / "val" / "dog",
        "dog/cat": root / "val" / "cat",
        "loop": root / "val" / "loop",
        "cat/loop.jpg": root / "val" / "cat" / "loop.jpg",
        "all": root,
    }.items():
        (root / "val" / place).symlink_to(target)
    data = open_data(f"folder:{root}")
    assert names(data) == ["cat/1.jpg", "cat/dog/2.jpg", "dog/2.jpg", "dog/cat/1.jpg"]
    assert " links that lead in a circle (" in capsys.readouterr().err


@pytest.mark.parametrize(
    "ending",
    [
        *(".jfif", ".jpe", ".JPG", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm"),
        *(".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".pcx", ".sgi", ".mpo", ".dds"),
    ],
)
def test_every_format_that_pillow_decodes_is_read(plant, ending):
    data = open_data(f"folder:{plant(f'val/cat/1{ending}', f'val/cat/2{ending.upper()}')}", like=LIKE)
    assert len(data) == 2 and data[0][0].shape == (3, 16, 16)


def test_formats_that_pillow_only_recognises_are_no_pictures():
    assert {".jpg", ".jfif", ".pgm", ".webp", ".psd", ".mpo"} <= endings()
    assert not endings() & {".h5", ".hdf", ".mpg", ".grib", ".bufr", ".wmf", ".emf", ".pdf", ".palm", ".txt", ".npy"}


def test_a_format_that_a_plugin_adds_is_read(plant, monkeypatch):
    monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")
    assert len(open_data(f"folder:{plant('val/cat/1.HEIC')}")) == 1


def test_numeric_class_folders_are_in_numeric_order(plant):
    root = plant(*(f"{split}/{k}/1.png" for split in ("train", "val") for k in range(11)))
    for split in ("train", "val"):
        data = open_data(f"folder:{root}", split)
        assert data.classes == tuple(map(str, range(11))) and data.labels.tolist() == list(range(11))
    assert in_order(["10", "2", "1"]) == ["1", "2", "10"] and in_order(["007", "7", "10"]) == ["007", "7", "10"]
    assert in_order(["10", "2", "a"]) == ["10", "2", "a"] and folders(root / "val") == list(map(str, range(11)))


def test_masks_beside_their_pictures_are_no_pictures(plant, capsys):
    plant("val/cat/1.jpg", "val/cat/1.png", "val/cat/2.jpg")  # as labelme leaves them
    plant("val/dog/benign (1).png", "val/dog/benign (1)_mask.png", "val/dog/benign (1)_mask_1.png")  # as BUSI
    root = plant("val/hen/images/1.png", "val/hen/masks/1.png", "val/hen/2.png", "val/hen/unmasked_mask.png")
    data = open_data(f"folder:{root}")
    assert names(data) == [
        "cat/1.jpg",
        "cat/2.jpg",
        "dog/benign (1).png",
        "hen/2.png",
        "hen/images/1.png",
        "hen/unmasked_mask.png",
    ]
    assert "4 masks beside their pictures (cat/1.png, dog/benign (1)_mask.png, " in capsys.readouterr().err


def test_what_only_looks_like_a_mask_is_a_picture():
    assert masks_among(["a.png", "b.jpg", "mask.jpg", "label_1.jpg", "c_gt.png", "segment.png"]) == set()
    assert masks_among(["c.bmp", "c_gt.png", "c-seg.PNG", "d.jpeg", "d.PNG", "d_labelIds.png"]) == {
        "c_gt.png",
        "c-seg.PNG",
        "d.PNG",
        "d_labelIds.png",
    }


def test_a_class_may_be_called_mask(plant):
    assert open_data(f"folder:{plant('val/mask/1.jpg', 'val/no mask/2.jpg')}").classes == ("mask", "no mask")


def test_an_unreadable_folder_is_one_sentence(plant, monkeypatch):
    root, scandir = plant("val/cat/1.jpg"), os.scandir

    def refusing(path):
        if str(path).rstrip("/").endswith("cat"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match="cat/ cannot be read .Permission denied.; make it readable"):
        open_data(f"folder:{root}")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_read_with_and_without_byte_order_mark(tmp_path, encoding):
    file = tmp_path / "classes.txt"
    file.write_text("Käse\nhund\n", encoding=encoding)
    assert text_of(file, "voc:x") == "Käse\nhund\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_another_encoding_is_one_sentence(tmp_path, encoding):
    file = tmp_path / "classes.txt"
    file.write_text("Käse\nhund\n", encoding=encoding)
    with pytest.raises(InputError, match="^voc:x: classes.txt is not text in UTF-8.*; save it as UTF-8$"):
        text_of(file, "voc:x")


def test_names_are_kept_in_one_block():
    names = Names([Names.packed(["1.jpg", "ä.png"], "cat/"), b"", Names.packed(["x"])])
    assert list(names) == names[:] == ["cat/1.jpg", "cat/ä.png", "x"] and len(names) == 3
    assert names[-1] == "x" and names[1:] == ["cat/ä.png", "x"] and pickle.loads(pickle.dumps(names))[1] == "cat/ä.png"
    assert len(Names([])) == 0 and list(Names([Names.packed([])])) == []
    with pytest.raises(IndexError):
        names[3]


def test_names_that_are_no_text_are_read(tmp_path, capsys):
    folder = os.fsencode(tmp_path / "val" / "cat")
    os.makedirs(folder)
    try:
        with open(os.path.join(folder, b"\xff\xfe.png"), "wb") as file:
            Image.new("RGB", (8, 8)).save(file, format="PNG")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    data = open_data(f"folder:{tmp_path}", like=LIKE)
    assert len(data) == 1 and data[0][0].shape == (3, 16, 16)


def slow_fingerprint(root: Path, split: str, classes: tuple[str, ...], image_size: int) -> str:
    """As it has been from the first version on: sorted paths, sizes, labels."""
    files = [file for name in classes for file in sorted((root / name).rglob("*.*"))]
    facts = [f"{f.relative_to(root)} {f.stat().st_size} {classes.index(f.relative_to(root).parts[0])} " for f in files]
    return hashlib.sha256("\n".join(["folder", split, str(image_size), *classes, *facts]).encode()).hexdigest()[:16]


def test_the_fingerprint_of_a_folder_has_not_changed(plant):
    root = plant("val/b/1.png", "val/b/x/2.png", "val/b/x-1/3.png", "val/b/x.png", "val/a/10.jpg", "val/a/9.jpg")
    data = open_data(f"folder:{root}", like=LIKE)
    assert data.fingerprint == slow_fingerprint(root / "val", "val", ("a", "b"), 16)
    assert names(data) == ["a/10.jpg", "a/9.jpg", "b/1.png", "b/x/2.png", "b/x-1/3.png", "b/x.png"]


def test_the_fingerprint_of_a_large_set_looks_up_a_sample_of_sizes(plant, monkeypatch):
    root = plant(*(f"val/{name}/{i}.png" for name in "ab" for i in range(20)))
    monkeypatch.setattr(of_files, "LARGE", 10)
    monkeypatch.setattr(of_files, "SAMPLE", 4)
    looked, stat = [], os.stat
    monkeypatch.setattr(of_files.os, "stat", lambda *a, **k: looked.append(a[0]) or stat(*a, **k))
    before = open_data(f"folder:{root}").fingerprint
    assert len([path for path in looked if str(path).endswith(".png")]) == 4
    assert open_data(f"folder:{root}").fingerprint == before
    (root / "val" / "a" / "0.png").write_bytes(b"shorter")
    changed = open_data(f"folder:{root}").fingerprint
    (root / "val" / "b" / "3.png").rename(root / "val" / "b" / "33.png")
    assert len({before, changed, open_data(f"folder:{root}").fingerprint}) == 3


def test_a_large_folder_takes_few_bytes_a_file(tmp_path):
    """20,000 hard links here; 1,281,000 take 46 bytes a file, and 98 at the peak, where torchvision takes 170."""
    first = tmp_path / "first.jpg"
    Image.new("RGB", (8, 8)).save(first)
    for k in range(20):
        folder = tmp_path / "train" / f"n{k:08d}"
        folder.mkdir(parents=True)
        for i in range(1_000):
            os.link(first, folder / f"n{k:08d}_{i}.JPEG")
    open_data("shapes-easy:9")  # whatever is loaded once
    tracemalloc.start()
    try:
        data = open_data(f"folder:{tmp_path}", "train", like=LIKE)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data) == 20_000 and len(data.classes) == 20 and data.labels.tolist() == sorted(data.labels.tolist())
    assert kept < 60 * len(data) and peak < 130 * len(data)
    item = data.items[12_345]
    assert item.path == tmp_path / "train" / item.name and item.label == 12 and data[12_345][0].shape == (3, 16, 16)
    assert len(pickle.dumps(data)) < 60 * len(data)


def test_items_are_made_when_asked_for(plant):
    data = open_data(f"folder:{plant('val/a/1.png', 'val/a/2.png', 'val/b/3.png')}", like=LIKE)
    assert [item.name for item in data.items[1:]] == ["a/2.png", "b/3.png"] and data.items[-1].label == 1
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again[2][0], data[2][0]) and again.fingerprint == data.fingerprint
    assert describe(data).photographs.tolist() == [0, 1, 2]


def test_pictures_of_a_folder_are_sorted_part_by_part(plant):
    root = plant("b/2.PNG", "b/c/1.jpeg", "a.jpg", "b-c/3.png", "a.png")
    found = [path.relative_to(root).as_posix() for path in pictures(root)]
    assert (
        found
        == ["a.jpg", "a.png", "b/2.PNG", "b/c/1.jpeg", "b-c/3.png"]
        == [path.relative_to(root).as_posix() for path in sorted(pictures(root))]
    )
