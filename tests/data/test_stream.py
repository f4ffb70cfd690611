"""Batches in order, over processes and workers, past unreadable images."""

import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from models.config import ViTConfig
from models.data import Stream, open_data
from models.errors import InputError

LIKE = ViTConfig(image_size=16, patch_size=8)


def indices(stream: Stream) -> list[int]:
    return [int(i) for batch in stream for i in batch.index]


@pytest.fixture
def photos(tmp_path):
    """120 photographs in two classes; `damage(k)` makes the first k unreadable."""
    for i in range(120):
        folder = tmp_path / "val" / f"n{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (i, 0, 0)).save(folder / f"{i:03}.png")
    return open_data(f"folder:{tmp_path}", like=LIKE)


def damage(data, n: int) -> list[str]:
    for item in data.items[:n]:
        item.path.write_bytes(item.path.read_bytes()[:40])
    return [item.name for item in data.items[:n]]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_items_in_order(workers):
    data = open_data("shapes-easy:50", "train")
    seen = []
    for batch in Stream(data, 16, workers=workers):
        for i, image, label, mask in zip(batch.index, batch.images, batch.labels, batch.masks, strict=True):
            expected = data[int(i)]
            assert torch.equal(image, expected[0]) and label == expected[1] and torch.equal(mask, expected[2])
            seen.append(int(i))
    assert seen == list(range(50))


def test_a_spawned_loading_process_gives_the_same_batches(photos, monkeypatch):
    """As on macOS and Windows: all that it gets of the data is what can be pickled."""
    monkeypatch.setattr(
        multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("spawn")
    )
    for spawned, own in zip(Stream(photos, 50, workers=1), Stream(photos, 50), strict=True):
        assert torch.equal(spawned.images, own.images) and list(spawned.index) == list(own.index)


@pytest.mark.parametrize(("world", "batch_size", "n"), [(1, 7, 50), (2, 7, 50), (3, 4, 23), (4, 50, 10)])
def test_shards_cover_each_index_once_in_the_same_batches(world, batch_size, n):
    data = open_data(f"shapes-easy:{n}", "train")
    shards = [indices(Stream(data, batch_size, shard=(rank, world))) for rank in range(world)]
    assert sorted(index for shard in shards for index in shard) == list(range(n))
    together = {tuple(batch.index) for batch in Stream(data, batch_size)}
    assert {
        tuple(batch.index) for rank in range(world) for batch in Stream(data, batch_size, shard=(rank, world))
    } == together


def test_a_subset_streams_its_own_items_by_its_own_positions(photos):
    chosen = [5, 80, 2]
    for data in (photos, open_data("shapes-easy:100", "train")):
        (batch,) = Stream(Subset(data, chosen), 8)
        assert batch.index.tolist() == [0, 1, 2] and batch.labels.tolist() == data.labels[chosen].tolist()
        assert all(torch.equal(image, data[i][0]) for image, i in zip(batch.images, chosen, strict=True))
        assert (batch.masks is None) == (data is photos)


def test_whole_batches_are_asked_for_where_the_data_can():
    class Counting(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            raise AssertionError("one by one")

        def __getitems__(self, positions):
            return [(torch.full((3, 2, 2), float(i)), i, None) for i in positions]

    assert [batch.images[:, 0, 0, 0].tolist() for batch in Stream(Counting(), 6)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


@pytest.mark.parametrize("workers", [0, 1])
def test_one_percent_of_unreadable_images_is_left_out_counted_and_named(photos, capsys, workers):
    names = damage(photos, 1)
    stream = Stream(photos, 32, workers=workers)
    assert indices(stream) == list(range(1, 120)) and stream.unreadable == names
    assert capsys.readouterr().err == f"left out 1 unreadable images: {names[0]}\n"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_more_than_one_percent_stops_and_names_the_file(photos, workers, batch_size):
    names = damage(photos, 2)
    with pytest.raises(
        InputError, match=rf"more than 1 % of the 120 images cannot be read \(2 so far, the last is {names[1]}\)"
    ) as caught:
        indices(Stream(photos, batch_size, workers=workers))
    assert "\n" not in str(caught.value)


def test_a_single_unreadable_image_does_not_stop_a_small_set(photos):
    damage(photos, 1)
    assert indices(Stream(Subset(photos, [4, 0, 7]), 2)) == [0, 2]
    assert indices(Stream(Subset(photos, [0]), 2)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_mask_stops_at_once_in_one_sentence(tmp_path, workers):
    for folder, mode, size in (("validation", "RGB", (16, 16)), ("validation-segmentation", "RGB", (16, 17))):
        (tmp_path / folder / "n01").mkdir(parents=True)
        Image.new(mode, size).save(tmp_path / folder / "n01" / "a.png")
    with pytest.raises(InputError, match=r"^n01/a.png: the mask is 16 x 17 pixels") as caught:
        indices(Stream(open_data(f"imagenet-s:{tmp_path}", like=LIKE), 4, workers=workers))
    assert "\n" not in str(caught.value)


def test_the_count_starts_anew_with_every_pass(photos):
    names = damage(photos, 1)
    stream = Stream(photos, 50)
    assert indices(stream) == indices(stream) and stream.unreadable == names


def test_a_batch_size_of_nothing_is_refused(photos):
    with pytest.raises(InputError, match="batch size is 0"):
        Stream(photos, 0)
    assert np.array_equal(next(iter(Stream(photos, 3))).index, [0, 1, 2])


@pytest.mark.parametrize("workers", [0, 1])
def test_pixels_that_are_not_finite_name_their_image(photos, workers):
    def broken(index: int) -> tuple:
        image, label, mask = photos[index]
        return (image * torch.nan if index == 7 else image), label, mask

    class Broken(Subset):
        def __getitem__(self, index):
            return broken(self.indices[index])

        def __getitems__(self, keys):
            return [self[key] for key in keys]

    data = Broken(photos, range(5, 20))
    with pytest.raises(InputError, match=r"n\d/\d+.png holds pixels that are not finite") as said:
        list(Stream(data, 4, workers=workers))
    assert photos.items[7].name in str(said.value)
    huge = torch.utils.data.TensorDataset(torch.tensor([65_535.0, -1e30]), torch.zeros(2))
    with pytest.raises(InputError, match=r"^image 1 .* holds a pixel of 1e\+30 where 1,000,000 is the most; repair it"):
        list(Stream(huge, 2))
    numbered = torch.utils.data.TensorDataset(torch.tensor([0.0, torch.inf]), torch.zeros(2))
    with pytest.raises(InputError, match=r"^image 1 \(counted from 0\) holds"):
        list(Stream(numbered, 2))


def test_a_photograph_of_fractions_that_are_not_finite_is_unreadable(photos):
    pixels = np.full((16, 20), 0.5, np.float32)
    pixels[3, 4] = np.nan
    path = photos.items[3].path.with_suffix(".tif")
    Image.fromarray(pixels).save(path)
    path.rename(photos.items[3].path)
    stream = Stream(photos, 50)
    assert 3 not in indices(stream) and stream.unreadable == [photos.items[3].name]
