"""Run with: pytest tests/probes/test_pointing_game.py"""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from analyses.pointing_game import best_head
from models import ViTConfig, checkpoint, open_data
from models.checkpoint import fresh
from models.errors import InputError
from models.origin import Origin
from probes import pointing_game as game
from probes import saving
from probes.methods import pointing
from tests.reference import slow_pointing_game as slow
from tests.warm import python

CONFIG = ViTConfig.preset("bvit_shapes", n_steps=3, d_model=32, n_heads=2, n_classes=20)


@pytest.fixture(scope="module")
def model():
    model = fresh(CONFIG, 0).eval()
    model.origin = Origin("planted")
    return model


@pytest.fixture(scope="module")
def data(model):
    return torch.utils.data.Subset(open_data("shapes", like=model), range(0, 80, 2))


@pytest.fixture(scope="module")
def result(model, data):
    return game.measure(model, data, control=model, upsample="bicubic", batch_size=16)


def patch_attention(model, images) -> np.ndarray:
    """[image step head row column] from cached patterns: another way than the probe's."""
    _, cache = model.run_with_cache(images, names_filter="blocks.*.attn.hook_pattern")
    rows = torch.stack([cache["pattern", t][:, :, 0, 1:] for t in range(model.config.n_steps)], 1)
    return rows.unflatten(-1, (8, 8)).detach().numpy()


def test_everything_equals_the_slow_reference(model, data, result) -> None:
    items = [data[i] for i in range(len(data))]
    labels = [item[1] for item in items]
    masks = [item[2].numpy() for item in items]
    attention = patch_attention(model, torch.stack([item[0] for item in items]))
    for step, head, radius, pixels in ((0, 0, 0, 0.0), (1, 1, 15, 15 * 64 / 224), (2, 0, 15, 15 * 64 / 224)):
        for target in ("class", "any"):
            hits = [
                slow.hit(
                    attention[i, step, head],
                    masks[i],
                    (lambda v, i=i: v == labels[i] + 1) if target == "class" else (lambda v: v > 0),
                    8,
                    pixels,
                )
                for i in range(len(items))
            ]
            cell = result["hit_ratio"].sel(step=step, head=head, radius=radius, target=target)
            assert float(cell.sel(average="micro")) == pytest.approx(slow.micro(hits))
            assert float(cell.sel(average="macro")) == pytest.approx(slow.macro(hits, labels))
    for name, reference in (("mass", slow.mass), ("iou60", slow.iou60)):
        expected = np.mean([reference(attention[i, 1, 1], masks[i], labels[i], 8) for i in range(len(items))])
        assert float(result[name].sel(step=1, head=1)) == pytest.approx(expected, abs=1e-4)
    assert (result["argmax"].values == attention.reshape(*attention.shape[:3], -1).argmax(-1)).mean() > 0.999


def test_baselines_equal_their_definitions(data, result) -> None:
    masks, labels = [data[i][2].numpy() for i in range(len(data))], [data[i][1] for i in range(len(data))]
    cell = result["baseline"].sel(radius=0, target="class", average="micro")
    assert float(cell.sel(kind="centre")) == pytest.approx(
        np.mean([m[32, 32] == c + 1 for m, c in zip(masks, labels, strict=True)])
    )
    assert float(cell.sel(kind="uniform")) == pytest.approx(
        np.mean([(m[4::8, 4::8] == c + 1).mean() for m, c in zip(masks, labels, strict=True)])
    )
    assert float(cell.sel(kind="area")) == pytest.approx(
        np.mean([(m == c + 1).mean() for m, c in zip(masks, labels, strict=True)]), rel=1e-5
    )
    assert float(result["chance"].sel(companion="mass")) == pytest.approx(float(cell.sel(kind="area")), rel=1e-5)


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5, 4.2857, 15.0])
def test_dilation_equals_the_distance_transform(radius: float) -> None:
    masks = torch.rand(2, 3, 40, 40) > 0.99
    expected = np.stack([[distance_transform_edt(~m.numpy()) for m in row] for row in masks])
    expected = (expected < radius) | masks.numpy()
    assert (pointing.dilate(masks, radius).numpy() == expected).all()


def planted(masks: torch.Tensor, labels: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Hits [radius target image] of one planted map per image."""
    return pointing.hits(attention[:, None, None], pointing.score_table(masks, labels, 8))[..., 0, 0]


def test_a_head_that_looks_at_the_object_scores_one_and_one_that_looks_away_zero(data) -> None:
    masks, labels = torch.stack([data[i][2] for i in range(40)]), torch.tensor([data[i][1] for i in range(40)])
    on = (masks[:, 4::8, 4::8] == (labels + 1)[:, None, None]).flatten(1)
    seen = on.any(1)  # a thin object may miss every patch centre
    assert seen.sum() > 30
    assert (planted(masks[seen], labels[seen], on[seen].float())[0, 0] == 1).all()
    assert (planted(masks, labels, (~on).float())[0, 0] == 0).all()


def test_random_attention_scores_the_share_of_patch_centres_on_the_mask(data) -> None:
    masks, labels = torch.stack([data[i][2] for i in range(40)]), torch.tensor([data[i][1] for i in range(40)])
    p = (masks[:, 4::8, 4::8] == (labels + 1)[:, None, None]).float().mean((1, 2))
    table = pointing.score_table(masks, labels, 8)
    hits = pointing.hits(torch.rand(40, 50, 8, 64), table)[0, 0]
    spread = (p * (1 - p)).sum().sqrt() / 40 / (50 * 8) ** 0.5
    assert abs(hits.mean() - p.mean()) < 4 * spread


def test_ties_are_averaged_and_ignored_pixels_left_out() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, :8, :8], mask[:, 8:, 8:] = 1, -1  # patches: target, other, other, ignored
    label = torch.tensor([0])
    assert planted(mask, label, torch.ones(1, 4))[0, 0] == pytest.approx(1 / 3)
    assert planted(mask, label, torch.tensor([[1.0, 1, 0, 0]]))[0, 0] == 0.5
    assert planted(mask, label, torch.tensor([[0.0, 0, 0, 1]])).isnan().all()


def test_entropy_and_shares_of_tokens_by_hand() -> None:
    table = pointing.score_table(torch.ones(1, 16, 16, dtype=torch.long), torch.tensor([0]), 8)
    patches = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25, 0], [1, 0, 0, 0]])
    keys = torch.tensor([0.3, 0.05, 0.15, 0, 0, 0, 0.5]).expand(1, 1, 3, 7)  # CLS, two registers, four patches
    companions = pointing.companions(patches[None, None], keys, 3, table)
    named = dict(zip(pointing.COMPANIONS, companions[:, 0, 0].tolist(), strict=True))
    assert named["entropy"] == pytest.approx([1, 0.75, 0])  # of 2 bits
    assert named["to_cls"] == pytest.approx([0.3] * 3) and named["to_registers"] == pytest.approx([0.2] * 3)


def test_ignored_pixels_count_for_nothing() -> None:
    """16 x 16 pixels, four patches: half of the first is the target, the second half ignored, the last all ignored."""
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, :8, :4], mask[:, :8, 12:], mask[:, 8:, 8:] = 1, -1, -1
    table = pointing.score_table(mask, torch.tensor([0]), 8)
    assert table.share[0].tolist() == [0.5, 0, 0, 0] and table.valid[0].tolist() == [1, 0.5, 1, 0]
    assert float(table.area[0]) == pytest.approx(0.5 / 2.5)
    attention = torch.tensor([0.4, 0.2, 0.1, 0.3]).view(1, 1, 1, 4)
    mass, lift, iou, *_ = pointing.companions(attention, torch.zeros(1, 1, 1, 5), 1, table)[:, 0, 0, 0].tolist()
    assert mass == pytest.approx(0.2 / (0.4 + 0.1 + 0.1)) and lift == pytest.approx(mass / 0.2)
    assert iou == pytest.approx(
        0.5 / (1 + 0)
    )  # the first and the last patch hold the top 60 %, the last counts for nothing
    uniform = torch.full((1, 1, 1, 4), 0.25)
    chance = pointing.chance(table)[:, 0]
    assert pointing.companions(uniform, torch.zeros(1, 1, 1, 5), 1, table)[0, 0, 0, 0] == pytest.approx(
        float(chance[0])
    )
    assert float(chance[1]) == 1


def test_an_upsampled_arg_max_on_an_ignored_pixel_is_left_out() -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, 8:, 8:] = -1
    table = pointing.score_table(mask, torch.tensor([0]), 8)
    attention = torch.tensor([[0.0, 0, 0, 1], [1.0, 0, 0, 0]]).view(1, 2, 1, 4)
    hit = pointing.hits_upsampled(attention, table, 16, "bilinear")[0, 0, 0, :, 0]
    assert hit[0].isnan() and hit[1] == 0


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_upsampled_arg_max_of_one_patch_is_its_centre_pixel(mode: str) -> None:
    """Patches of 3 pixels, 8 x 8 of them: the score of a pixel says which one it is."""
    table = pointing.score_table(torch.zeros(1, 24, 24, dtype=torch.long), torch.tensor([0]), 3)
    table.score[:] = torch.arange(24 * 24.0).view(24, 24)
    inner = [(row, column) for row in range(1, 7) for column in range(1, 7)]
    attention = torch.eye(64)[[8 * row + column for row, column in inner]].view(1, 6, 6, 64)
    expected = torch.tensor([24.0 * (3 * row + 1) + 3 * column + 1 for row, column in inner]).view(6, 6)
    hit = pointing.hits_upsampled(attention, table, 24, mode)
    assert torch.equal(hit, expected.expand(2, 2, 1, 6, 6))


def test_hits_are_where_attention_is() -> None:
    table = pointing.score_table(
        torch.zeros(1, 16, 16, dtype=torch.long, device="meta"), torch.zeros(1, device="meta"), 8
    )
    attention = torch.zeros(1, 2, 3, 4, device="meta")
    assert pointing.hits_upsampled(attention, table, 16, "bilinear").device.type == "meta"


def test_the_chance_of_companions_by_hand() -> None:
    """Four images of four patches: ignored pixels, a target that fills it, none, half a patch that is all there is."""
    masks = torch.zeros(4, 16, 16, dtype=torch.long)
    masks[0, :8, :4], masks[0, :8, 12:], masks[0, 8:, 8:], masks[1] = 1, -1, -1, 1
    masks[3], masks[3, :8, :4] = -1, 1
    chance = pointing.chance(pointing.score_table(masks, torch.zeros(4), 8))
    assert torch.allclose(chance[0], torch.tensor([0.5 / 2.5, 1, 0, 1])) and (chance[[1, 3]] == 1).all()
    assert torch.allclose(chance[2], torch.tensor([0.3 / (1.5 + 0.5 - 0.3), 0.6, 0, 0.6]))
    assert chance[4:].isnan().all() and len(chance) == len(pointing.COMPANIONS)


def test_companions_take_shares_of_whatever_attention_the_patches_have() -> None:
    """The rest of it is on CLS; and the last patches of the top 60 % are those that reach it, exactly or not."""
    mask = torch.zeros(1, 16, 16, dtype=torch.long)
    mask[:, :8, :8] = 1
    table, keys = pointing.score_table(mask, torch.tensor([0]), 8), torch.zeros(1, 1, 1, 5)
    exactly = torch.tensor([0.6, 0.4, 0, 0], dtype=torch.float64).view(1, 1, 1, 4)
    for attention in (exactly, exactly / 4):
        mass, lift, iou, entropy, *_ = pointing.companions(attention, keys, 1, table)[:, 0, 0, 0].tolist()
        assert (mass, lift, iou) == pytest.approx((0.6, 0.6 / 0.25, 1))
        assert entropy == pytest.approx(-(0.6 * np.log(0.6) + 0.4 * np.log(0.4)) / np.log(4))
    mask[:], mask[:, :8, :4] = -1, 1
    half = pointing.companions(exactly, keys, 1, pointing.score_table(mask, torch.tensor([0]), 8))[:, 0, 0, 0].tolist()
    assert half[:3] == pytest.approx([1, 1, 1])


def test_a_planted_head_of_a_real_model_is_found(data) -> None:
    """Head 1 at step 1 gets keys that say where the texture is plainest; here: patches of the target, planted through
    the q and k hooks.
    """
    model = fresh(CONFIG, 0).eval()
    model.origin = Origin("planted")
    grids = torch.stack([data[i][2][4::8, 4::8].flatten() == data[i][1] + 1 for i in range(len(data))])
    seen = grids.any(1)
    subset = torch.utils.data.Subset(data.dataset, [data.indices[i] for i in seen.nonzero()[:, 0]])
    grids, place = grids[seen], iter(range(0, len(subset), 20))

    def look(k: torch.Tensor, hook) -> torch.Tensor:
        first = next(place)
        k = k.clone()
        k[:, 0, 1], k[:, 1:, 1] = 0, grids[first : first + len(k), :, None].float()
        return k

    def ask(q: torch.Tensor, hook) -> torch.Tensor:
        q = q.clone()
        q[:, :, 1] = 10.0
        return q

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_q", ask), ("blocks.1.attn.hook_k", look)]):
        found = game.measure(model, subset, thumbnails=False, batch_size=20)
    assert float(found["hit_ratio"].sel(step=1, head=1, radius=0, target="class", average="micro")) == 1.0
    best = best_head(found)
    assert (best["step"], best["head"], best["held_out"]) == (1, 1, 1.0)


def test_upsampled_nearest_to_the_patches(model, data) -> None:
    """With one bright patch in the middle of a dark grid, the upsampled arg-max stays inside that patch."""
    masks, labels = torch.stack([data[i][2] for i in range(4)]), torch.tensor([data[i][1] for i in range(4)])
    attention = torch.zeros(4, 1, 1, 64)
    attention[..., 27] = 1
    for mode in ("bilinear", "bicubic"):
        hit = pointing.hits_upsampled(attention, pointing.score_table(masks, labels, 8), 64, mode)[0, 0, :, 0, 0]
        inside = masks[:, 24:32, 24:32] == (labels + 1)[:, None, None]
        sure = inside.flatten(1).all(1) | ~inside.flatten(1).any(1)
        assert (hit[sure] == inside.flatten(1).any(1)[sure].float()).all()


def test_same_seed_same_result_and_any_batch_size(model, data, result) -> None:
    again = game.measure(model, data, control=model, upsample="bicubic", batch_size=16)
    changing = ("created", "command", "seconds", "machine")
    assert again.drop_attrs().identical(result.drop_attrs())
    assert {k: v for k, v in again.attrs.items() if k not in changing} == {
        k: v for k, v in result.attrs.items() if k not in changing
    }
    other = game.measure(model, data, batch_size=7, thumbnails=False)
    assert np.allclose(other["hit_ratio"], result["hit_ratio"], atol=1e-6)


def saved(model, path: Path) -> Path:
    checkpoint.save(
        path,
        model,
        ema=None,
        data="shapes",
        metrics={},
        init_sha256=checkpoint.state_sha256(model.state_dict()),
        provenance={"seed": 0},
    )
    return path


FULL_DISK = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (20_480, 20_480))
runpy.run_module("probes.pointing_game", run_name="__main__", alter_sys=True)
"""


def test_a_full_disk_is_one_sentence_and_the_old_result_stays(model, result, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the middle of the file."""
    source, out = saved(model, tmp_path / "ckpt.pt"), tmp_path / "pointing_game.nc"
    saving.save(result, out)
    old = out.read_bytes()
    done = python("-c", FULL_DISK, source, *shlex.split("--limit 8 --device cpu --no-control --out"), out)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "already written is intact" in done.stderr.splitlines()[-1]
    assert out.read_bytes() == old and len(list(tmp_path.iterdir())) == 2


def test_thumbnails_are_the_images_themselves(data, result) -> None:
    place = 3
    position = int(result["shown"][place])
    image = (data[position][0] * 0.5 + 0.5).permute(1, 2, 0) * 255
    assert np.abs(result["thumbnail"].values[place] - image.numpy()).max() <= 1
    assert (result["thumbnail_mask"].values[place] == data[position][2].numpy()).all()
    score = result["hit"].values[0, 0].mean((1, 2))
    assert score[result["shown"].values[0]] == score.max()


def test_nan_activations_name_their_step(data) -> None:
    model = fresh(CONFIG, 0).eval()
    model.origin = Origin("planted")
    with (
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda x, hook: x * torch.nan)]),
        pytest.raises(InputError, match=r"step 2 \(blocks.1\)"),
    ):
        game.measure(model, data, thumbnails=False)


def test_images_that_lost_their_target_are_counted(model, data) -> None:
    class Lost(torch.utils.data.Dataset):
        has_masks = True

        def __init__(self):
            for name in ("spec", "split", "classes", "fingerprint", "labels", "image_size", "mean", "std"):
                setattr(self, name, getattr(data.dataset, name))

        def __len__(self):
            return 6

        def __getitem__(self, i):
            image, label, mask = data.dataset[i]
            return image, label, torch.zeros_like(mask) if i % 3 == 0 else mask

    found = game.measure(model, Lost(), thumbnails=False)
    assert found.attrs["n_skipped"] == 2 and list(found["index"].values) == [1, 2, 4, 5]


def test_the_centre_is_the_centre_and_a_radius_is_of_224_pixels() -> None:
    """A pixel 29.97 pixels away is closer than 15 of 224 are at 448, which is 30."""
    masks = torch.zeros(2, 448, 448, dtype=torch.long)
    masks[0, 224, 224] = masks[1, 224 + 27, 224 + 13] = 1
    centre = pointing.score_table(masks, torch.zeros(2), 56).baseline[0]
    assert centre[0].tolist() == [[1, 0]] * 2 and centre[1].tolist() == [[1, 1]] * 2
