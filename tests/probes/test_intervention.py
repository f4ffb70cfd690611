"""Run with: pytest tests/probes/test_intervention.py"""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import xarray as xr
from torch.nn import functional
from torch.utils.data import Subset

from analyses import intervention as analysis
from models import ViTConfig, checkpoint, load, masks, open_data
from models.checkpoint import fresh
from models.errors import InputError
from probes import intervention as probe
from probes.methods import interventions
from tests.reference import slow_vit

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)
SHAPES = {
    "bvit": {},
    "step embedding": {"step_embedding": "learned", "n_registers": 2},
    "stacked": {"n_blocks": 3},
    "mean": {"layer_scale": 0.5, "norm": "rms", "pool": "mean", "step_embedding": "sinusoidal"},
    "pruned": {},
}


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 46, 2))


def made(data, kind: str = "bvit"):
    """A model whose answers change from step to step."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, classes=tuple(data.dataset.classes), **SHAPES[kind])
    model = fresh(config, 0).eval()
    with torch.no_grad():
        model.head.weight.normal_()
        for block in model.core:
            block.attn.qkv.weight.mul_(3)
            block.mlp.fc2.weight.mul_(6)
            block.mlp.fc2.bias.normal_()
        if config.step_embedding == "learned":
            model.step_embed.normal_()
    if kind == "pruned":
        masks.put_on(model, torch.rand(3, sum(masks.sizes(config).values())) > 0.4)
    return model


@pytest.fixture(scope="module")
def model(data):
    return made(data)


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=fresh(model.config, 1).eval(), batch_size=10)


# Against plain torch, one image and one step at a time


class ByHand:
    """A model as loops over images and steps, where `left` stands in for what a step leaves, `told` for what it is told
    and `under` for the step whose masks it runs under.
    """

    def __init__(self, model):
        self.model, self.config = model, model.trained
        self.weights = {name: value.double() for name, value in model.state_dict().items()}
        self.rows = None if masks.taken_from(model) is None else masks.taken_from(model)

    def step(self, z: torch.Tensor, t: int, told: torch.Tensor | None, under: int) -> torch.Tensor:
        config, block = self.config, f"core.{min(t * self.config.n_blocks // self.config.n_steps, 2)}"
        block = block if config.n_blocks > 1 else "core.0"
        weights = dict(self.weights)
        if self.rows is not None:
            for name, mask in masks.split(self.rows[min(under, len(self.rows) - 1)], config).items():
                weights[f"{block}.{masks.WEIGHTS[name]}"] = weights[f"{block}.{masks.WEIGHTS[name]}"] * mask
        z = z if told is None else z + told.double()
        for norm, half in (("norm1", slow_vit.attention), ("norm2", slow_vit.mlp)):
            inner = slow_vit.norm(z, weights, f"{block}.{norm}", config)
            inner = half(inner, weights, block, config) if half is slow_vit.attention else half(inner, weights, block)
            z = z + inner * weights.get(f"{block}.ls{1 if norm == 'norm1' else 2}.gamma", 1)
        return z

    def states(self, image: torch.Tensor, n_steps: int, left=None, told=None, under=None) -> list[torch.Tensor]:
        z = start = self.model.embed(image[None])[0].double()
        states = [z]
        for t in range(n_steps):
            say = self.model.step_embedding(t) if told is None else told(t)
            after = self.step(z, t, say, t if under is None else under(t))
            z = after if left is None else left(after.clone(), z, start, t)
            states.append(z)
        return states

    def numbers(self, data, n_steps: int, **how) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and loss of every state."""
        labels = torch.tensor([data[i][1] for i in range(len(data))])
        with torch.no_grad():
            runs = [torch.stack(self.states(data[i][0], n_steps, **how)) for i in range(len(data))]
            logits = [self.model.read_out(states.float()) for states in torch.stack(runs, 1)]
        right = [(of_state.argmax(-1) == labels).float().mean().item() for of_state in logits]
        return np.array(right), np.array([functional.cross_entropy(of_state, labels).item() for of_state in logits])


def holding(tokens: slice, steps: range):
    def left(after, before, start, t):
        after[tokens] = before[tokens] if t in steps else after[tokens]
        return after

    return left


def cases_by_hand(model) -> dict[str, dict]:
    """How some cases are done by hand, by their name."""
    config = model.trained
    patches, last = slice(config.n_prefix, None), range(1, 6)
    cases = {
        "untouched": {},
        "damp 0.5": dict(left=lambda after, before, start, t: 0.5 * before + 0.5 * after),
        "damp 1.25": dict(left=lambda after, before, start, t: 1.25 * after - 0.25 * before),
        "reinject 0.25": dict(left=lambda after, before, start, t: 0.75 * after + 0.25 * start),
    }
    if config.pool == "mean":
        cases["hold_cls step 1"] = dict(left=holding(slice(0, 1), last))
    else:
        cases["hold_patches step 1"] = dict(left=holding(patches, last))
        cases["late_cls step 2"] = dict(left=holding(slice(0, 1), range(2)))
    if config.n_registers:
        cases["hold_registers step 0"] = dict(left=holding(slice(1, 3), range(6)))
    if config.step_embedding != "none":
        rows = [model.step_embedding(t) for t in range(6)]
        beyond = [rows[2] + (t - 2) * (rows[2] - rows[1]) for t in range(3, 6)]
        cases |= {
            "permute_embedding reversed": dict(told=lambda t: rows[2 - t] if t < 3 else rows[t]),
            "freeze_embedding step 1": dict(told=lambda t: rows[1]),
            "extrapolate_embedding cycle": dict(told=lambda t: rows[t % 3]),
            "extrapolate_embedding linear": dict(told=lambda t: rows[t] if t < 3 else beyond[t - 3]),
            "extrapolate_embedding mean": dict(told=lambda t: rows[t] if t < 3 else sum(rows[:3]) / 3),
        }
    if masks.taken_from(model) is not None:
        cases["permute_masks reversed"] = dict(under=lambda t: 2 - t if t < 3 else t)
        cases["freeze_masks step 2"] = dict(under=lambda t: 2)
    return cases


@pytest.mark.parametrize("kind", SHAPES)
def test_every_case_equals_a_loop_by_hand(data, kind: str) -> None:
    model = made(data, kind)
    some, by_hand = Subset(data.dataset, data.indices[:12]), ByHand(model)
    result = probe.measure(model, some, null=False, batch_size=5)
    assert result.sizes["state"] == (4 if kind == "stacked" else 7)
    for case, how in cases_by_hand(model).items():
        accuracy, loss = by_hand.numbers(some, result.sizes["state"] - 1, **how)
        found = result.sel(case=case)
        assert np.allclose(found["accuracy"], accuracy, atol=1e-6), case
        assert np.allclose(found["loss"], loss, rtol=1e-3), case
        if case != "untouched":
            assert not np.array_equal(found["loss"], result["loss"].sel(case="untouched")), case


def test_what_changes_nothing_is_the_untouched_model(model, data) -> None:
    images = data[0][0][None]
    untouched = list(interventions.Case("untouched", "", model).states(images))
    for change in (partial(interventions.damp, 1.0), partial(interventions.reinject, 0.0)):
        for changed, expected in zip(
            interventions.Case("none", "", model, change).states(images), untouched, strict=True
        ):
            assert torch.allclose(changed, expected, atol=1e-5)


def test_patches_that_nobody_looks_at_can_be_held(data) -> None:
    model = made(data)
    with torch.no_grad():
        model.core[0].attn.proj.weight.zero_()
    result = probe.measure(model, data, what=("hold_patches", "damp"), null=False)
    held = result.sel(case=result["what"] == "hold_patches")
    assert (held["loss"].values == result["loss"].sel(case="untouched").values).all()
    assert not (result["loss"].sel(case="damp 0.5").values == result["loss"].sel(case="untouched").values).all()


# Nulls


def test_a_random_change_moves_every_token_as_far_in_one_direction_for_all_images(data) -> None:
    now, before, start = torch.randn(3, 2, 17, 16)
    for change in (
        partial(interventions.damp, 0.5),
        partial(interventions.hold, slice(1, None), range(9)),
        partial(interventions.embedding_from, torch.randn(9, 16)),
    ):
        moved = []
        for step in (1, 2, 1):
            moment = interventions.Moment(step, before, start)
            moved.append(interventions.at_random(change, 5, False, now, moment) - now)
            far = (change(now, moment) - now).norm(dim=-1)
            assert torch.allclose(moved[-1].norm(dim=-1), far, atol=1e-5)
        assert torch.equal(moved[0], moved[2]) and not torch.allclose(moved[0], moved[1])
        one, other = functional.normalize(moved[0], dim=-1)
        assert torch.allclose(one, other, atol=1e-5)
        cosine = (functional.normalize(change(now, moment) - now, dim=-1) * functional.normalize(moved[2], dim=-1)).sum(
            -1
        )
        assert cosine.abs().mean() < 0.5


def test_masks_of_the_null_keep_as_many_weights_of_each_matrix_elsewhere(data) -> None:
    model = made(data, "pruned")
    case = interventions.permuted_masks(model, 0)[0]
    drawn, of_case = masks.taken_from(case.null(3).model), masks.taken_from(case.model)
    assert not torch.equal(drawn, of_case) and torch.equal(of_case, masks.taken_from(model).flip(0))
    for name, matrix in masks.split(drawn, model.config).items():
        expected = masks.split(of_case, model.config)[name].flatten(1).sum(1)
        assert torch.equal(matrix.flatten(1).sum(1), expected)
    assert torch.equal(masks.taken_from(model), masks.taken_from(made(data, "pruned")))  # the model itself is as it was


def test_the_change_has_the_interval_of_a_paired_bootstrap(result, model, data) -> None:
    images, labels = torch.stack([item[0] for item in data]), torch.tensor([item[1] for item in data])
    case = next(one for one in interventions.chosen(model.at_steps(6), ("damp",), 0)[0] if one.setting == "0.5")
    right = []
    for run in (case, dataclasses.replace(case, change=None)):
        with torch.no_grad():
            right.append([(model.read_out(z).argmax(1) == labels).double() for z in run.states(images)])
    changes = {k: (after - before).numpy() for k, (after, before) in enumerate(zip(*right, strict=True))}
    assert sum(change.any() for change in changes.values()) >= 2
    for state, change in changes.items():
        cell = result.sel(case="damp 0.5", state=state)
        assert float(cell["change"]) == pytest.approx(change.mean())
        if change.any():
            drawn = np.random.default_rng(1).choice(change, (4000, len(change))).mean(1)
            low, high = np.quantile(drawn, [0.025, 0.975])
            assert abs(float(cell["change_low"]) - low) < 0.06 and abs(float(cell["change_high"]) - high) < 0.06


def test_where_no_answer_changes_the_interval_is_wilson_s(result) -> None:
    """Every run starts from the same embedding: 0 of 23 images changed, which bounds the share by 0.143."""
    start = result.sel(state=0, case="damp 0.5")
    assert float(start["change_low"]) == pytest.approx(-0.1431, abs=1e-3) == -float(start["change_high"])


def test_batches_change_nothing(result, model, data) -> None:
    other = probe.measure(model, data, batch_size=4)
    for name in other.data_vars:
        assert np.allclose(other[name], result[name], rtol=1e-5, atol=1e-6, equal_nan=True), name


# Inputs


def test_a_timm_vit_is_taken_too(data) -> None:
    options = dict(img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2, num_classes=20)
    model = load(timm.create_model("vit_tiny_patch16_224", **options))
    model.config = dataclasses.replace(model.config, classes=tuple(data.dataset.classes))
    result = probe.measure(model, Subset(open_data("shapes-easy", like=model), range(6)), what=("damp", "late_cls"))
    assert result.sizes["state"] == 3 and np.isfinite(result["null_loss"]).all()


def test_states_that_overflow_count_as_wrong(data) -> None:
    model = made(data)
    with torch.no_grad():
        model.core[0].mlp.fc2.bias[0] = 1e38
    result = probe.measure(model, data, what=("damp",), max_steps=12)
    overflown = result["n_finite"] == 0
    assert overflown.any() and (result["accuracy"].values[overflown.values] == 0).all()
    assert np.isnan(result["loss"].values[overflown.values]).all() and "overflow" in analysis.table(result)


def test_what_cannot_be_measured_is_one_sentence(model, data) -> None:
    with pytest.raises(InputError, match="no classifier"):
        probe.measure(fresh(dataclasses.replace(CONFIG, n_classes=0), 0), data)
    with pytest.raises(InputError, match="--what freeze_masks does not apply: the model has no masks"):
        probe.measure(model, data, what=("freeze_masks",))
    unpruned = masks.put_on(made(data), torch.ones(3, sum(masks.sizes(CONFIG).values()), dtype=torch.bool))
    with pytest.raises(InputError, match="--what permute_masks does not apply: its steps have the same masks"):
        probe.measure(unpruned, data, what=("permute_masks",))
    with pytest.raises(InputError, match="'nothing', which is no intervention"):
        probe.measure(model, data, what=("nothing",))
    with pytest.raises(InputError, match="beyond its trained steps"):
        probe.measure(made(data, "step embedding"), data, what=("extrapolate_embedding",), max_steps=3)
    with pytest.raises(InputError, match="--images is 0"):
        probe.measure(model, data, images=0)
    with pytest.raises(InputError, match="--max-steps is 2"):
        probe.measure(model, data, max_steps=2)


# Table and figures


def test_table_and_figures_show_null_interval_and_untrained(result, drawn_lines) -> None:
    text = analysis.table(result)
    assert (
        "after 3 steps" in text and "after 6 steps" in text and "left out: freeze_masks: the model has no masks" in text
    )
    assert "late_cls step 2 " in text and "random" in text and "untrained" in text
    assert analysis.kinds(result) == ["damp", "reinject", "hold_patches", "late_cls"]
    assert len(analysis.figure(result).axes) == 4
    labels = drawn_lines(analysis.figure(result).axes[0])
    assert {"untouched", "0.5", "0.5, random", "untrained, mean", "chance"} <= labels
    names = {trace.name for trace in analysis.interactive(result, "hold_patches").data}
    assert {"step 1", "step 3, random", "untouched"} <= names
    assert set(analysis.frame(result)["model"]) == {"trained", "untrained"}


@pytest.fixture
def drawn_lines():
    return lambda ax: {line.get_label() for line in ax.lines}


def test_the_star_stands_where_intervals_do_not_meet(result) -> None:
    planted = result.copy(deep=True)
    planted["change_low"][:], planted["change_high"][:] = -0.5, -0.3
    planted["null_change_low"][:], planted["null_change_high"][:] = -0.31, 0.1
    assert "*" not in analysis.table(planted).split("\n", 2)[2]
    planted["null_change_low"][:] = -0.29
    assert analysis.table(planted).split("\n", 2)[2].count("*") == 2 * (result.sizes["case"] - 1)


def test_the_command_writes_its_result_and_its_figure(model, tmp_path: Path, command) -> None:
    source, figure = tmp_path / "ckpt.pt", tmp_path / "figure.png"
    checkpoint.save(source, model, data="shapes-easy", provenance={"seed": 0})
    options = ("--images", 10, "--device", "cpu", "--no-control", "--what", "damp", "late_cls", "--figure", figure)
    code, printed, _ = command("probes.intervention", source, *options)
    assert code == 0 and figure.stat().st_size > 10_000 and "intervention: 10 images, chance 5.0 %" in printed
    result = xr.load_dataset(tmp_path / "intervention.nc", engine="h5netcdf")
    assert analysis.kinds(result) == ["damp", "late_cls"] and result.attrs["n_measured"] == 10
    code, _, complaint = command("probes.intervention", source, "--what", "freeze_embedding")
    assert code == 2 and "the model has no step embedding; leave it out" in complaint
