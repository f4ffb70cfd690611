"""Run with: pytest tests/probes/test_factors.py"""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import Ridge
from torch import nn
from torch.utils.data import Subset

from analyses import factors as analysis
from models import ViTConfig, open_data
from models.checkpoint import fresh
from models.errors import InputError
from probes import factors as probe
from probes.methods import ridge, targets
from probes.walk import Pass, split

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)
SHAPES = {
    "bvit": {},
    "stacked": {"n_blocks": 3},
    "between": {"n_blocks": 2, "step_embedding": "learned", "n_registers": 2, "norm": "rms"},
}


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 240))


def made(**changes: object):
    return fresh(dataclasses.replace(CONFIG, **changes), 0).eval()


# Ridge


def rows(n: int = 90, d: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Two cells of features [cell row d] with a large mean, and three columns of targets that follow from the first."""
    x = torch.randn(2, n, d, dtype=torch.float64) * torch.linspace(0.1, 3, d) + 20
    y = x[0, :, :3] @ torch.randn(3, 3, dtype=torch.float64) + torch.randn(n, 3)
    return x, y


def summed(x: torch.Tensor, y: torch.Tensor, is_there: torch.Tensor, batch: int = 13) -> ridge.Sums:
    sums = ridge.Sums.none(*x.shape[::2], y.shape[1])
    for first in range(0, len(y), batch):
        part = slice(first, first + batch)
        sums.add(x[:, part], y[part], is_there[:, part])
    return sums


def test_probes_from_sums_are_scikit_learn_s_on_the_rows_that_are_there() -> None:
    x, y = rows()
    is_there = torch.rand(2, 90) < 0.8
    x = torch.where(is_there[..., None], x, torch.nan)
    found = ridge.fitted(summed(x, y, is_there), [slice(0, 1), slice(1, 3)])
    for cell in range(2):
        mine, of = x[cell][is_there[cell]].numpy(), y[is_there[cell]].numpy()
        z = (mine - mine.mean(0)) / mine.std(0)
        for column in range(3):
            expected = Ridge(alpha=float(found.penalty[cell, column]) * len(z)).fit(z, of[:, column])
            said = (mine - found.x_mean[cell].numpy()) @ found.weight[cell, :, column].numpy()
            assert np.allclose(said + float(found.y_mean[cell, column]), expected.predict(z), atol=1e-8)


def test_the_penalty_is_that_of_least_cross_validation_written_out() -> None:
    x, y = rows(24)
    found = ridge.fitted(summed(x, y, torch.ones(2, 24, dtype=torch.bool)), [slice(0, 1), slice(1, 3)])
    for cell in range(2):
        z = (x[cell] - x[cell].mean(0)) / x[cell].std(0, correction=0)
        for part in (slice(0, 1), slice(1, 3)):
            scores = []
            for penalty in ridge.PENALTIES:
                hat = z @ torch.linalg.solve(z.T @ z + 24 * penalty * torch.eye(7), z.T) + 1 / 24
                left = (y[:, part] - hat @ y[:, part]).square().sum() / 24
                scores.append(float(left / (1 - 1.4 * hat.trace() / 24) ** 2))
            assert ridge.PENALTIES[int(np.argmin(scores))] == pytest.approx(float(found.penalty[cell, part][0]))
        assert found.penalty[cell, 1] == found.penalty[cell, 2]


def test_features_that_are_the_same_in_all_rows_are_read_as_the_mean() -> None:
    x, y = rows()
    x[0] = 3 + 1e-7 * torch.randn(90, 7)
    found = ridge.fitted(summed(x, y, torch.ones(2, 90, dtype=torch.bool)), [slice(0, 3)])
    assert not found.weight[0].any() and found.weight[1].any() and torch.allclose(found.y_mean[0], y.mean(0))


# Targets


def test_a_turn_that_cannot_be_seen_is_the_same_target(data) -> None:
    groups = {group.factors[0].name: group for group in targets.of_data(Pass(data))}
    known = data.dataset.factors(range(240))
    shape = np.array(["disc", "square", "triangle", "cross", "ring"])[known["shape"]]
    group = groups["rotation of triangles"]
    assert (group.has == (shape == "triangle")).all()
    turned = targets.circular(3 * (known["rotation"] + 2 * np.pi / 3))
    assert np.allclose(group.factors[0].values, turned)
    assert (groups["rotation of squares and crosses"].has == np.isin(shape, ["square", "cross"])).all()


def test_shuffled_values_are_those_of_other_images_of_the_group(data) -> None:
    constant = []
    for group in targets.of_data(Pass(data)):
        for factor, shuffled in zip(group.factors, group.shuffled, strict=True):
            own, others = factor.values[group.has], shuffled.values[group.has]
            assert np.allclose(np.sort(own, 0), np.sort(others, 0))
            assert (factor.values[~group.has] == shuffled.values[~group.has]).all()
            if np.allclose(own, others):
                constant.append(factor.name)
    assert constant == ["clutter", "occlusion", "distractors"]  # shapes-easy has none


def test_what_does_not_vary_is_not_asked(data) -> None:
    names = [factor.name for group, _ in targets.of_parts(*split(Pass(data), 100)) for factor in group.factors]
    assert {"class", "hue", "position"} < set(names) and not {"clutter", "occlusion"} & set(names)


# The probe


class Planted(nn.Module):
    """A block that does nothing but add a number of the image to a direction of CLS, from one step on."""

    def __init__(self, start: int, turn: int = 0):
        super().__init__()
        self.attn = self.norm1 = nn.Identity()  # what a block is known by
        self.start, self.turn = start, turn

    def forward(self, h: torch.Tensor, step: nn.Module, step_embedding: object = None) -> torch.Tensor:
        t = int(step.hook_resid_pre.name.split(".")[1])
        h = step.hook_resid_pre(h).clone()
        brightness = h[:, 1:, 0].mean(1)
        if t >= self.start:
            h[:, 0, 2:] = 0
            h[:, 0, 2 + (t * self.turn) % 8] = brightness
        return step.hook_resid_post(h)


class Bright(torch.utils.data.Dataset):
    """Grey images of known brightness; the class says which half of the grey levels."""

    spec, split, classes, fingerprint, has_masks, image_size = "bright", "val", ("dark", "light"), "0", False, 32

    def __init__(self, n: int):
        self.level = np.random.default_rng(0).permutation(np.linspace(-1, 1, n))
        self.labels = (self.level > 0).astype(np.int64)

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int, None]:
        return torch.full((3, 32, 32), float(self.level[i])), int(self.labels[i]), None

    def factors(self, indices) -> dict[str, np.ndarray]:
        n, level = len(indices), self.level[np.asarray(indices)]
        noise = np.random.default_rng(1).random((7, len(self)))[:, np.asarray(indices)]
        known = dict(zip(("hue", "x", "y", "rotation", "clutter", "occlusion"), noise, strict=False))
        whole = dict(shape=self.labels[indices], texture=np.zeros(n, int), n_distractors=np.zeros(n, int))
        return known | whole | {"scale": level}


def planted(start: int, turn: int = 0):
    """A model whose CLS holds the brightness from step `start` on, in one direction or in another after every step."""
    model = made(n_classes=2, classes=("dark", "light"))
    with torch.no_grad():
        model.patch_embed.proj.weight.fill_(0.001)
        model.pos_embed.mul_(0)
        model.cls_token.copy_(torch.linspace(-1, 1, 16))
        model.core[0] = Planted(start, turn)
        model.norm = nn.Identity()
    return model


@pytest.fixture(scope="module")
def bright():
    return Bright(120)


def test_a_planted_factor_is_read_from_its_step_on_and_by_every_step_s_probe(bright) -> None:
    result = probe.measure(planted(1), bright, batch_size=50)
    scale = result.sel(factor="scale", token="CLS")
    assert np.allclose(scale["score"], [0, 0, 1, 1], atol=1e-4) and float(scale["half"]) == 2
    assert np.allclose(scale["transfer"][2:, 2:], 1, atol=1e-4) and float(scale["shared"]) == pytest.approx(1, abs=1e-4)
    assert (abs(scale["shuffled"][:2]) < 1e-4).all() and (scale["shuffled"][2:] < 0.05).all()
    of_class = result.sel(factor="class", token="CLS")
    assert (of_class["score"][2:] > 0.9).all()
    assert (of_class["score"][:2] == of_class["chance"]).all() and float(of_class["chance"]) < 0.6
    assert np.allclose(result["score"].sel(token="patches", factor="scale"), 1, atol=1e-4)


def test_a_code_that_moves_is_not_read_by_another_step_s_probe(bright) -> None:
    scale = probe.measure(planted(0, turn=1), bright).sel(factor="scale", token="CLS")
    assert np.allclose(scale["score"], [0, 1, 1, 1], atol=1e-4)
    assert (scale["transfer"].values[1:, 1:][~np.eye(3, dtype=bool)] < 0.05).all()
    assert float(scale["shared"]) < 0.05


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_scores_are_those_of_plain_ridge_on_whole_arrays(data, changes) -> None:
    """Features by the model's own cache, probes by scikit-learn under the penalties that were chosen."""
    model, data = made(**changes), Subset(data.dataset, range(110))
    result = probe.measure(model, data, batch_size=17)
    parts = [part.data for part in split(Pass(data), 4096)]
    known = [data.dataset.factors(np.asarray(part.indices)) for part in parts]
    items = [part.__getitems__(range(len(part))) for part in parts]
    hue = [targets.circular(2 * np.pi * of["hue"]) for of in known]
    shape = [np.eye(5)[of["shape"]] for of in known]
    for token in ("CLS", "object", "background"):
        x, other = ([features(model, part, token, state) for part in items] for state in (2, 3))
        for name, (y, truth) in (("hue", hue), ("shape", shape)):
            penalty = float(result["penalty"].sel(factor=name, token=token, state=2))
            said = [
                plain(x[0], y, penalty)(of - base) for of, base in ((x[1], x[0].mean(0)), (other[1], other[0].mean(0)))
            ]
            expected = [score(of, truth, y.mean(0), name == "shape") for of in said]
            measured = result["transfer"].sel(factor=name, token=token, state=2, other_state=[2, 3])
            assert np.allclose(measured, expected, atol=1e-3), (token, name)


def features(model, items: list, token: str, state: int) -> np.ndarray:
    """What is read of a token in a state, image by image: [image d]."""
    images, labels, masks = zip(*items, strict=True)
    n_prefix, p = model.config.n_prefix, model.config.patch_size
    with torch.no_grad():
        z = model.norm(model(torch.stack(images), stop_at_step=state))
    kept = []
    for tokens, label, mask in zip(z, labels, masks, strict=True):
        shows = mask[p // 2 :: p, p // 2 :: p].flatten() == label + 1
        patches = tokens[n_prefix:]
        kept.append({"CLS": tokens[:1], "object": patches[shows], "background": patches[~shows]}[token].mean(0))
    return torch.stack(kept).double().numpy()


def plain(x: np.ndarray, y: np.ndarray, penalty: float):
    """A probe of deviations from the mean, fitted by scikit-learn on standardised rows."""
    sd = x.std(0)
    sd[sd < 1e-5 * abs(x).mean()] = np.inf
    fit = Ridge(alpha=penalty * len(x)).fit((x - x.mean(0)) / sd, y)
    return lambda deviation: fit.predict(deviation / sd)


def score(said: np.ndarray, truth: np.ndarray, constant: np.ndarray, is_class: bool) -> float:
    if is_class:
        return (said.argmax(1) == truth.argmax(1)).mean()
    return 1 - ((said - truth) ** 2).sum() / ((truth - constant) ** 2).sum()


def test_without_masks_and_factors_the_class_alone_is_read(data) -> None:
    class Photographs(torch.utils.data.Dataset):
        spec, split, classes, fingerprint, has_masks, image_size = "p", "val", tuple("ab"), "1", False, 32
        labels = np.arange(40) % 2

        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int, None]:
            return data[i][0], i % 2, None

    result = probe.measure(made(), Photographs())
    assert result["factor"].values.tolist() == ["class"] and result["token"].values.tolist() == ["CLS", "patches"]
    assert "only 20 images" in result.attrs["note"]
    with pytest.raises(InputError, match="nothing varies"):
        probe.measure(made(), Subset(Photographs(), range(0, 40, 2)))


def test_what_the_choice_of_patches_gives_away_is_not_scored(result) -> None:
    position = result["score"].sel(factor="position")
    assert position.sel(token=["object", "background"]).isnull().all()
    assert position.sel(token=["CLS", "patches"]).notnull().all()
    assert result["score"].drop_sel(factor="position").notnull().all()


def test_a_model_that_is_not_finite_is_one_sentence(data) -> None:
    model = made()
    with torch.no_grad():
        model.core[0].mlp.fc2.weight.mul_(1e38)
    with pytest.raises(InputError, match="not finite from step"):
        probe.measure(model, data)
    with pytest.raises(InputError, match="--fit-images is 0"):
        probe.measure(model, data, fit_images=0)


# The analysis


@pytest.fixture(scope="module")
def result(data):
    return probe.measure(made(), data, control=made(), fit_images=100, batch_size=40)


def test_the_table_says_what_stands_beside_every_score(result) -> None:
    table = analysis.table(result)
    assert "chance" in table and "shuffled" in table and "untrained" in table and "3 steps" in table
    assert "mean of the object's" in table and all(len(line) <= 120 for line in table.splitlines())
    assert len(analysis.transfer_frame(result)) == 2 * result["transfer"].size


def test_half_way_and_shared_of_scores_written_out() -> None:
    transfer = xr.DataArray(
        [[0.2, 0.2, 0.2, 0.2], [0.2, 0.3, 0.2, 0.2], [0.2, 0.2, 0.8, 0.5], [0.2, 0.2, 0.1, 1.0]],
        dims=("state", "other_state"),
    )
    own, chance = analysis.own(transfer), xr.DataArray(0.2)
    assert own.values.tolist() == [0.2, 0.3, 0.8, 1.0] and int(analysis.half(own, chance)) == 2
    clear = analysis.is_clear(own, chance)
    assert clear.values.tolist() == [False, False, True, True]
    assert float(analysis.shared(transfer, chance, clear)) == pytest.approx((0.3 + 0) / (0.8 + 0.6))
    assert np.isnan(float(analysis.half(xr.zeros_like(own), chance)))
