"""Run with: pytest tests/probes/test_prune.py"""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from analyses import prune as analysis
from models import ViTConfig, checkpoint, load, loop, masks, open_data, recipe, run_folder
from models.checkpoint import fresh
from models.errors import InputError
from models.origin import Origin
from probes import prune
from probes.methods import lottery, rounds
from probes.methods.plan import Plan
from tests.reference import slow_prune

CONFIG = ViTConfig(
    image_size=32,
    patch_size=16,
    d_model=8,
    n_heads=2,
    n_steps=3,
    n_classes=20,
    init="xavier",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)
PLAN = Plan(rounds=2, epochs=2, graft_epochs=1, batch_size=16, optimizer="adamw", replicates=2)


@pytest.fixture(scope="module")
def data():
    return [open_data("shapes-easy:64", split, like=CONFIG) for split in ("train", "val")]


def new_game(data, out: Path, plan: Plan = PLAN, config: ViTConfig = CONFIG) -> rounds.Lottery:
    model = fresh(config, 0)
    model.origin = Origin("planted", "init")
    return rounds.Lottery(model, data[0], data[1], plan, out, 100)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    game = new_game(data, tmp_path_factory.mktemp("prune"))
    game.play()
    return game


def all_masks(game: rounds.Lottery) -> list[torch.Tensor]:
    return [game.masks(number)[0] for number in range(game.plan.rounds + 1)]


class Doubled(rounds.Lottery):
    """Rounds in double precision; a checkpoint is read in single precision everywhere else."""

    def load(self, number: int):
        model, content = self.untrained(), checkpoint.read(self.path(number, "ckpt"))
        model.load_state_dict(content["weights"])
        return masks.put_on(model.eval().requires_grad_(False), masks.unpacked(content["masks"], self.config))


@pytest.mark.parametrize("scope", ["global", "matrix"])
def test_masks_equal_those_of_appendix_g_transcribed(data, tmp_path: Path, scope: str) -> None:
    """The whole loop against the slow one, in double precision: one graft after the other, masks applied by hand."""
    torch.set_default_dtype(torch.float64)
    try:
        game = Doubled(
            new_game(data, tmp_path / "unused").model.double(),
            *data,
            replace(PLAN, scope=scope, replicates=1, optimizer="adamw"),
            tmp_path,
            100,
        )
        game.train_set, game.val_set = (replace(s, images=s.images.double()) for s in (game.train_set, game.val_set))
        game.play()
        init = game.untrained()

        def batches(number: int, kind: int, epochs: float, lr: float) -> list:
            order = loop.Order(64, 16, PLAN.seed, number, kind)
            updates = round(order.per_epoch * epochs)
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr)
            plain = replace(recipe.RECIPES["plain"], batch_size=16, lr=lr)
            schedule = recipe.schedule(optimizer, plain, updates, order.per_epoch)
            given = []
            for update in range(updates):
                schedule.step_update(update)
                epoch, places, _ = order.batch(update)
                batch = game.train_set.flipped(places, PLAN.seed, number, kind, epoch, 1)
                given.append((*batch, optimizer.param_groups[0]["lr"]))
            return given

        def optimizer_of(named: dict) -> torch.optim.Optimizer:
            kept = ("pos_embed", "cls_token")
            decayed = [p for n, p in named.items() if p.ndim > 1 and n not in kept]
            rest = [p for n, p in named.items() if p.ndim <= 1 or n in kept]
            decay = 0.02 if "pos_embed" in named else 0.05
            return torch.optim.AdamW(
                [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}], 1.0
            )

        slow = slow_prune.rounds(
            copy.deepcopy(init),
            init,
            all_masks(game)[0],
            2,
            PLAN.rate,
            scope,
            lambda p: batches(p, rounds.TRAIN, PLAN.epochs, PLAN.lr),
            lambda p: batches(p, rounds.GRAFT, PLAN.graft_epochs, PLAN.graft_lr),
            optimizer_of,
            recipe.RECIPES["plain"].clip,
        )
        for ours, theirs in zip(all_masks(game)[1:], slow, strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("scope", ["global", "matrix"])
def test_exactly_the_floor_goes_each_round_and_ties_go_by_position(scope: str) -> None:
    groups = lottery.groups(CONFIG, scope)
    n = sum(groups)
    kept = torch.rand(4, n) < torch.tensor([1.0, 0.7, 0.5, 0.1])[:, None]
    weights = torch.randint(0, 5, (4, n)).float()  # many ties
    after = lottery.without_smallest(weights, kept, 0.29, groups)
    assert groups == ([n] if scope == "global" else [192, 64, 256, 256])
    for before, now, value in zip(*(t.split(groups, 1) for t in (kept, after, weights)), strict=True):
        for row in range(4):
            assert int(before[row].sum()) - int(now[row].sum()) == int(before[row].sum()) * 29 // 100
            assert not (now[row] & ~before[row]).any()
            gone = before[row] & ~now[row]
            if gone.any():
                assert value[row][gone].max() <= value[row][now[row]].min()
                level = value[row][gone].max()
                assert gone[before[row] & (value[row] == level)].long().diff().le(0).all()  # the first of the equals


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_pruned_weights_get_no_update_and_no_decay(data, tmp_path: Path, optimizer: str) -> None:
    game = new_game(data, tmp_path, replace(PLAN, optimizer=optimizer))
    chosen = torch.rand(3, sum(masks.sizes(CONFIG).values())) < 0.4
    game.train_under(chosen, 0, "trained", "model")
    trained = load(game.path(0, "trained"), weights="raw")
    weights = masks.joined({name: trained.core[0].get_parameter(name) for name in masks.WEIGHTS.values()})
    start = masks.joined({name: game.model.core[0].get_parameter(name) for name in masks.WEIGHTS.values()})
    assert (weights[~chosen.any(0)] == 0).all()
    assert (weights[chosen.any(0)] != start[chosen.any(0)]).float().mean() > 0.99
    grafts, _ = game.grafted(trained.requires_grad_(False), range(3), chosen, 0, rounds.GRAFT, "grafts")
    assert (grafts[~chosen] == 0).all()
    assert (grafts[chosen] != start.expand(3, -1)[chosen]).float().mean() > 0.99


def test_the_result_says_what_its_masks_say(finished) -> None:
    with xr.open_dataset(run_folder.result(finished.out, "prune"), engine="h5netcdf") as result:
        found = result.load()
    n = found.attrs["n_weights"]
    bits = np.unpackbits(found["mask"].values, axis=-1, count=n).astype(bool)  # NumPy alone
    for number, chosen in enumerate(all_masks(finished)):
        assert (bits[number] == chosen.numpy()).all()
        assert (found["kept"].values[number] == chosen.sum(1).numpy()).all()
    expected = [n]
    for _ in range(2):
        expected.append(expected[-1] - int(expected[-1] * 0.2))
    assert found["kept"].values.tolist() == [[k] * 3 for k in expected]
    a, b = bits[2, 0], bits[2, 1]
    assert float(found["jaccard"].sel(round=2, weight="all", step=0, other_step=1)) == pytest.approx(
        (a & b).sum() / (a | b).sum()
    )
    last = load(finished.path(2, "ckpt"), weights="raw")
    assert finished.accuracy(last) == pytest.approx(float(found["accuracy"][2]))
    assert (masks.taken_from(last) == all_masks(finished)[2]).all()
    between = found["replicate_jaccard"].sel(round=2, weight="all").transpose("replicated", "pair").values
    assert between.shape == (2, 1) and (between > 0).all() and (between < 1).all()


def test_stopped_anywhere_it_ends_in_the_same_masks_and_rewrites_no_finished_round(
    data, finished, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", -1)  # save after every update
    left = [0]

    def stop(self) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "stop_if_asked", stop)
    written: dict[Path, int] = {}
    for left[0] in (3, 7, 2, 11, 5, 0):
        game = new_game(data, tmp_path)
        if left[0]:
            with pytest.raises(KeyboardInterrupt):
                game.play()
        else:
            game.play()
        for path, when in written.items():
            assert path.stat().st_mtime_ns == when
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "rounds").rglob("*.pt")}
    for ours, straight in zip(all_masks(game), all_masks(finished), strict=True):
        assert torch.equal(ours, straight)
    ours, straight = (load(g.path(2, "ckpt"), weights="raw").state_dict() for g in (game, finished))
    assert all(torch.equal(ours[name], straight[name]) for name in ours)
    assert not list(tmp_path.glob("last*"))


def test_replicates_differ_by_data_order_alone(finished) -> None:
    steps, replicates = finished.masks(1)
    assert finished.replicated == [0, 1]
    again = replicates[:, 0]
    assert not any(torch.equal(mask, steps[t]) for t, mask in zip(finished.replicated, again, strict=True))
    every = torch.ones_like(again)
    weights, _ = finished.grafted(finished.load(0), finished.replicated, every, 0, rounds.GRAFT + 1, "again")
    assert torch.equal(finished.without_smallest(weights, every), again)


def test_controls(finished) -> None:
    chosen, sizes = finished.masks(2)[0], list(masks.sizes(CONFIG).values())
    for name in ("random", "shuffled", "union", "shared"):
        found = finished.control(name)
        assert list(found["round"].values) == [1, 2] and ((found["accuracy"] >= 0) & (found["accuracy"] <= 1)).all()
    taken = {
        name: masks.taken_from(load(finished.path(2, name), weights="raw"))
        for name in ("random", "shuffled", "union", "shared")
    }
    for part, other in zip(chosen.split(sizes, 1), taken["random"].split(sizes, 1), strict=True):
        assert torch.equal(part.sum(1), other.sum(1))
    assert not torch.equal(taken["random"], chosen)
    assert sorted(map(tuple, taken["shuffled"].tolist())) == sorted(map(tuple, chosen.tolist()))
    assert not any(torch.equal(a, b) for a, b in zip(taken["shuffled"], chosen, strict=True))
    assert torch.equal(taken["union"], chosen.any(0).expand(3, -1))
    assert torch.equal(taken["shared"][0], taken["shared"][1]) and taken["shared"].sum(1)[0] == chosen.sum(1)[0]


def test_swap_has_the_own_accuracy_on_its_diagonal(finished) -> None:
    matrix = finished.control("swap", at=[2])["swap"].values[0]
    assert np.allclose(np.diag(matrix), finished.accuracy(finished.load(2)))
    model, other = finished.load(2), finished.masks(2)[0].clone()
    other[1] = other[0]
    assert matrix[1, 0] == pytest.approx(finished.accuracy(masks.put_on(model, other)))


def test_a_stacked_vit_is_pruned_layer_by_layer(data, tmp_path: Path) -> None:
    config = ViTConfig.from_dict(CONFIG.to_dict() | {"n_blocks": 3})
    game = new_game(data, tmp_path, replace(PLAN, rounds=1, replicates=1), config)
    game.play()
    assert game.masks(1)[0].sum(1).unique().numel() == 1
    assert load(game.path(1, "ckpt"), weights="raw").config.n_blocks == 3
    assert game.result().sizes["pair"] == 0


def test_groups_of_grafts_give_the_same_masks(data, finished, tmp_path: Path) -> None:
    game = new_game(data, tmp_path, replace(PLAN, grafts_at_once=2))
    game.play()
    same = [(a == b).float().mean() for a, b in zip(all_masks(game), all_masks(finished), strict=True)]
    assert min(same) > 0.999  # batched products of another size may round differently


def test_a_pruned_model_can_be_fine_tuned(finished) -> None:
    model = load(finished.path(2, "ckpt"), weights="raw").train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    images, labels = finished.train_set.images, finished.train_set.labels
    before = torch.nn.functional.cross_entropy(model(images), labels)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert torch.nn.functional.cross_entropy(model(images), labels) < before
    assert (masks.taken_from(model) == finished.masks(2)[0]).all()


def test_rounds_behind_a_lost_one_are_not_controlled(data, finished, tmp_path: Path) -> None:
    shutil.copytree(finished.out, tmp_path / "run")
    game = new_game(data, tmp_path / "run")
    game.path(1, "ckpt").unlink()
    for name, at in (("shared", ()), ("random", (2,))):
        with pytest.raises(InputError, match=f"no finished round {at[0] if at else 1}"):
            game.control(name, at)


def test_bad_options_are_one_sentence(data, tmp_path: Path) -> None:
    for wrong, complaint in (
        (dict(rounds=0), "--steps .pruning rounds. is 0"),
        (dict(rate=1.0), "--rate is 1.0"),
        (dict(replicates=0), "--replicates is 0"),
        (dict(grafts_at_once=0), "--grafts-at-once is 0"),
        (dict(epochs=0), "--epochs and --graft-epochs must be numbers above 0"),
    ):
        with pytest.raises(InputError, match=complaint):
            replace(PLAN, **wrong)
    with pytest.raises(InputError, match="fewer than one batch"):
        new_game(data, tmp_path, replace(PLAN, batch_size=1000))
    with pytest.raises(InputError, match="no finished round 7"):
        new_game(data, tmp_path).control("random", at=[7])
    with pytest.raises(InputError, match="holds no pruning run"):
        prune.kept_options(tmp_path)


def test_a_model_of_one_step_is_pruned_too(data, tmp_path: Path) -> None:
    """There is nothing to compare it with: overlaps are NaN, and its weights are dead or kept by all steps."""
    game = new_game(data, tmp_path, replace(PLAN, rounds=1, replicates=2), replace(CONFIG, n_steps=1))
    game.play()
    result = game.result()
    assert result["kept"].values.tolist() == [[768], [768 - 153]]
    shares = result["categories"].sel(weight="all", round=1)
    assert float(shares.sum()) == 1 and float(shares.sel(category="step-specific")) == 0
    assert "round   1" in analysis.table(result)
    analysis.figure(result)
    assert game.control("swap")["swap"].shape == (1, 1, 1)
    assert 0 <= float(game.control("shuffled")["accuracy"][0]) <= 1


def test_a_damaged_round_is_one_sentence_and_made_anew_once_it_is_removed(data, tmp_path: Path) -> None:
    game = new_game(data, tmp_path, replace(PLAN, rounds=1))
    game.play()
    expected, path = game.masks(1), game.path(0, "pruned")
    content = torch.load(path, weights_only=True)
    for wrong in ([1], {}, content | {"graft_loss": "x"}, content | {"masks": content["masks"][:, :-1].clone()}):
        torch.save(wrong, path)
        with pytest.raises(InputError, match=r"pruned\.pt(: masks are| is damaged)"):
            game.masks(1)
    path.unlink()
    game.play()
    assert all(torch.equal(a, b) for a, b in zip(game.masks(1), expected, strict=True))
