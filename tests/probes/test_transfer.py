"""Run with: pytest tests/probes/test_transfer.py"""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, special
from torch.utils.data import Subset

from analyses import transfer as analysis
from models import ViTConfig, adapters, checkpoint, load, loop, open_data
from models.checkpoint import fresh
from models.errors import InputError, Stopped
from probes import transfer as probe
from probes.methods import finetuning, linear
from probes.walk import Pass

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=7)
QUICK = dict(seeds=2, epochs=1, rank=2, train_batch=16)
HOWS = ("linear", "block", "full", "lora", "step-lora")


def data(split: str, n: int) -> Subset:
    return Subset(open_data("shapes-easy", split, like=CONFIG), range(n))


@pytest.fixture(scope="module")
def model():
    return fresh(CONFIG, 0).eval()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Pass:
    return Pass(data("val", 40), batch_size=16, out=tmp_path_factory.mktemp("run") / "transfer.nc")


@pytest.fixture(scope="module")
def result(model, images):
    return probe.measure(model, images, control=fresh(CONFIG, 1).eval(), _train=data("train", 64), **QUICK)


def right(model, images: Pass) -> float:
    """Share of right answers, one image at a time."""
    with torch.no_grad():
        answers = [int(model(image[None]).argmax()) == label for image, label, _ in (images.data[i] for i in range(40))]
    return float(np.mean(answers))


# The linear probe


@pytest.mark.parametrize("n_classes", [2, 4])
def test_logistic_is_the_minimum_of_its_objective(n_classes: int) -> None:
    """Against a general optimiser on the objective as it is written, softmax and standardisation by hand."""
    rng = np.random.default_rng(0)
    labels, l2 = rng.integers(0, n_classes, 80), 0.05
    x = (rng.normal(size=(80, 5)) + labels[:, None]) * [1, 2, 3, 4, 5] + 10
    z = (x - x.mean(0)) / x.std(0)

    def objective(flat: np.ndarray) -> float:
        w, b = flat[: n_classes * 5].reshape(n_classes, 5), flat[n_classes * 5 :]
        log_p = special.log_softmax(z @ w.T + b, axis=1)
        return -log_p[np.arange(80), labels].mean() + l2 * (w**2).sum() / 2

    best = optimize.minimize(objective, np.zeros(n_classes * 6), options=dict(gtol=1e-7)).x
    w, b = best[: n_classes * 5].reshape(n_classes, 5), best[n_classes * 5 :]
    weight, bias = linear.logistic(x.astype(np.float32), labels, n_classes, l2)
    ours, theirs = (special.softmax(logits, axis=1) for logits in (x @ weight.T + bias, z @ w.T + b))
    assert np.allclose(ours, theirs, atol=2e-3)


def test_a_class_without_an_image_is_never_answered() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    weight, bias = linear.logistic(x, np.arange(30) % 2 * 2, 4, 0.1)
    answers = (x @ weight.T + bias).argmax(1)
    assert set(answers) <= {0, 2} and bias[1] == bias[3] == linear.NEVER


def test_states_are_what_the_head_reads_after_every_number_of_steps(model, images) -> None:
    x, labels = linear.features(model, images)
    batch = torch.stack([images.data[i][0] for i in range(40)])
    assert x.shape == (40, 4, 16) and labels.tolist() == [images.data[i][1] for i in range(40)]
    with torch.no_grad():
        for k in range(4):
            logits = torch.from_numpy(x[:, k]) @ model.head.weight.T + model.head.bias
            assert torch.allclose(logits, model(batch, n_steps=k), atol=1e-5)


def test_a_planted_state_is_found_by_its_step() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 4, 6)).astype(np.float32)
    x[:, 2, :3] += 6 * np.eye(3)[labels]
    found = linear.fitted_all(x, labels, 3, [0, 1])
    held_out = found["held_out"].mean(0)
    assert held_out.argmax() == 2 and held_out[2] > 0.95 and held_out[[0, 1, 3]].max() < 0.7


def test_the_probes_of_a_killed_run_are_those_of_an_undisturbed_one(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    x, labels, fits = rng.normal(size=(40, 3, 4)).astype(np.float32), rng.integers(0, 3, 40), []
    whole, fitted = linear.fitted_all(x, labels, 3, [0, 1]), linear.fitted

    def killed_at_the_third(*words) -> linear.Linear:
        fits.append(words[-1])
        if len(fits) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return fitted(*words)

    monkeypatch.setattr(linear, "fitted", killed_at_the_third)
    with pytest.raises(Stopped):
        linear.fitted_all(x, labels, 3, [0, 1], kept=tmp_path / "p")
    again = linear.fitted_all(x, labels, 3, [0, 1], kept=tmp_path / "p")
    assert fits == [0, 0, 0, 1, 1, 1]
    assert all(torch.equal(again[name], whole[name]) for name in whole)


# The five ways


def test_the_parameters_that_are_trained(result) -> None:
    d, hidden, steps, head = 16, CONFIG.d_mlp, 3, 20 * 17
    adapter = 2 * (d + 3 * d + d + d + 2 * (d + hidden))
    block = 3 * d * (d + 1) + d * (d + 1) + hidden * (d + 1) + d * (hidden + 1) + 4 * d
    full = sum(p.numel() for p in fresh(dataclasses.replace(CONFIG, n_classes=20), 0).parameters())
    expected = [head, block + head, full, adapter + head, steps * adapter + head]
    assert result["how"].values.tolist() == list(HOWS)
    assert (result["trainable_parameters"].values == np.array(expected)[:, None]).all()
    assert result.attrs["n_parameters"] == full


def test_what_is_kept_answers_as_was_scored(result, model, images) -> None:
    folder = images.out.parent / "transfer"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{how}-{seed}" for how in HOWS for seed in (0, 1))
    for how in HOWS:
        for seed in (0, 1):
            place = folder / f"{how}-{seed}"
            kept = adapters.load(model, place) if "lora" in how else load(place)
            assert right(kept, images) == pytest.approx(float(result["accuracy"].sel(how=how, seed=seed)), abs=0.026)
            assert kept.config.classes == tuple(images.about.classes)


def test_only_what_is_said_is_trained(result, model, images) -> None:
    folder, before = images.out.parent / "transfer", model.state_dict()
    for how, may in (("linear", ("head.",)), ("block", ("head.", "core.")), ("full", ("",))):
        after = load(folder / f"{how}-0").state_dict()
        moved = [name for name, value in after.items() if name in before and not torch.equal(value, before[name])]
        assert moved and all(name.startswith(may) for name in moved)
    for how in ("lora-0", "step-lora-0"):
        adapted = adapters.load(model, folder / how).state_dict()
        plain = {name.replace(".base_layer.", "."): value for name, value in adapted.items()}
        assert all(torch.equal(plain[name], value) for name, value in before.items() if "head" not in name)
        trained = [value for name, value in adapted.items() if "lora_B" in name]
        assert len(trained) == 4 * (1 if how == "lora-0" else model.config.n_steps)
        assert all(value.abs().max() > 0 for value in trained)


def test_an_update_is_adamw_on_the_clipped_gradient(model) -> None:
    """By hand: the batch in the order of the seed, flipped as the recipe flips."""
    train = Pass(data("train", 16))
    tuning = finetuning.Tuning(model, train, finetuning.Transfer("block", 3, 2, 2, 16, 1e-2), None)
    expected = adapters.with_head(model, train.about.classes, 3)
    tuning.fit()
    parameters = {n: p for n, p in expected.named_parameters() if n.startswith(("core.", "head."))}
    decayed = [p for p in parameters.values() if p.ndim > 1]
    rest = [p for p in parameters.values() if p.ndim <= 1]
    recipe = tuning.transfer.recipe
    optimizer = torch.optim.AdamW(
        [dict(params=rest, weight_decay=0.0), dict(params=decayed, weight_decay=recipe.weight_decay)], lr=1e-2
    )
    for update, lr in enumerate((1e-2, 1e-5)):  # the two ends of the cosine
        order = torch.randperm(16, generator=loop.generator(3, update))
        flips = [loop.hash_of(3, update, int(i), 0) % 2 for i in order]
        items = [(train.data[int(i)][0], train.data[int(i)][1], flip) for i, flip in zip(order, flips, strict=True)]
        batch = torch.stack([image.flip(-1) if flip else image for image, _, flip in items])
        loss = torch.nn.functional.cross_entropy(expected(batch), torch.tensor([label for _, label, _ in items]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    for name, value in expected.state_dict().items():
        assert torch.allclose(tuning.model.state_dict()[name], value, atol=1e-5), name


def test_an_adapter_learns_what_it_is_shown(model) -> None:
    """The same 32 images, again and again."""
    same = data("val", 32)
    result = probe.measure(model, same, how=("lora",), seeds=1, epochs=40, train_batch=32, _train=same)
    assert result["accuracy"].item() > 2 * result.attrs["majority"]


@pytest.mark.parametrize("how", ["full", "step-lora"])
def test_a_killed_transfer_ends_as_an_undisturbed_one(model, how: str, tmp_path: Path, monkeypatch) -> None:
    plan = finetuning.Transfer(how, 0, 2, 2, 16)
    whole = finetuning.Tuning(model, Pass(data("train", 64)), plan, None)
    whole.fit()
    clipped, updates = torch.nn.utils.clip_grad_norm_, []

    def killed_at_the_third(*words) -> torch.Tensor:
        updates.append(len(updates))
        if len(updates) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return clipped(*words)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", killed_at_the_third)
    with pytest.raises(Stopped):
        finetuning.Tuning(model, Pass(data("train", 64)), plan, tmp_path / "p").fit()
    again = finetuning.Tuning(model, Pass(data("train", 64)), plan, tmp_path / "p")
    again.fit()
    assert len(updates) == 8
    for name, value in whole.trained.items():
        assert torch.equal(again.trained[name], value), name


def test_a_transfer_at_another_image_size_resamples_the_positions(model, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "ckpt.pt", model, data="shapes-easy", provenance={"seed": 0})
    small = load(tmp_path, image_size=16)
    spec = [open_data("shapes-easy", split, like=small) for split in ("val", "train")]
    val, train = (Subset(whole, range(32)) for whole in spec)
    result = probe.measure(small, val, how=("linear", "lora"), seeds=1, epochs=1, train_batch=16, _train=train)
    assert np.isfinite(result["accuracy"]).all() and result["state_accuracy"].shape == (1, 4)


def test_a_stacked_vit_is_transferred_too(images) -> None:
    stacked = fresh(dataclasses.replace(CONFIG, n_blocks=3), 0).eval()
    alone = Pass(images.data)
    result = probe.measure(stacked, alone, how=("lora", "step-lora"), _train=data("train", 32), **QUICK | {"seeds": 1})
    one, per_step = result["trainable_parameters"].values[:, 0]
    assert one == per_step and np.isfinite(result["accuracy"]).all()


def test_what_cannot_be_measured_is_one_sentence(model, images) -> None:
    train = data("train", 64)

    def refused(match: str, at=model, scored=images, **options: object) -> None:
        with pytest.raises(InputError, match=match):
            probe.measure(at, scored, **dict(_train=train) | options)

    refused("--how is all", how=("all",))
    refused("--how names one way twice", how=("lora", "lora"))
    refused("--seeds is 0", seeds=0)
    refused("--epochs is 0", epochs=0)
    refused("--lr is -1", lr=-1)
    refused("--rank is 17", rank=17)
    refused("--train-limit is 0", train_limit=0)
    refused("lower --train-batch from 65", train_batch=65)
    refused("--split is train", scored=Pass(train))
    refused("all training images are of one class", _train=Subset(train, [0]))
    refused("not from CLS", at=fresh(dataclasses.replace(CONFIG, pool="mean"), 0))


# The analysis


def test_the_table_shows_every_way_beside_untrained_chance_and_majority(result) -> None:
    table = analysis.table(result)
    for said in ("untrained", "chance 5.0 %", "commonest class", "2 seeds", "step 3 (blocks.2)"):
        assert said in table
    assert all(name in table for name in analysis.NAMES.values())
    frame = analysis.frame(result)
    assert len(frame) == 2 * (5 * 2 + 4 * 2) and set(frame["model"]) == {"trained", "untrained"}


def test_mean_deviation_and_the_step_that_transfers_best(result) -> None:
    planted = result.copy(deep=True)
    planted["accuracy"].loc[dict(how="lora")] = [0.2, 0.4]
    mean, sd = analysis.mean_and_sd(planted["accuracy"].sel(how="lora"))
    assert mean == pytest.approx(30) and sd == pytest.approx(np.sqrt(200))
    assert "30.0 ± 14.1" in analysis.table(planted)
    planted["state_held_out"][:] = 0.1
    planted["state_held_out"].loc[dict(state=2)] = 0.9
    assert analysis.best_state(planted) == 2
    assert "chosen on held-out training images: after step 2" in analysis.table(planted)


def test_the_figures_stand_for_one_seed_and_without_a_linear_probe(result) -> None:
    assert len(analysis.figure(result).axes) == 2
    line = analysis.by_parameters(result).lines[0]
    assert list(line.x) == sorted(line.x) and len(line.hover) == 5
    some = result[["accuracy", "trainable_parameters", "lr"]].sel(how=["lora", "full"], seed=[0])
    assert len(analysis.figure(some).axes) == 1 and "one seed" in analysis.table(some)
    low, high = analysis.interval(some["accuracy"], 40)
    mean, _ = analysis.mean_and_sd(some["accuracy"])
    assert (low - 1e-9 <= mean).all() and (mean < high).all() and (high - low > 1).all()
    assert analysis.interactive(result, "steps").data
