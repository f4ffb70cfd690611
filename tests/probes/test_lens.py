"""Run with: pytest tests/probes/test_lens.py"""

import dataclasses
import signal

import numpy as np
import pytest
import timm
import torch
from sklearn import metrics
from torch import nn
from torch.utils.data import Subset

from analyses import lens as analysis
from models import load, open_data
from models.checkpoint import fresh
from models.errors import InputError, Stopped
from probes import lens as probe
from probes.methods import contributions, lenses, pointing, saying
from probes.methods.reading import Readout, states_of
from probes.walk import Pass, split
from tests.probes import small
from tests.probes.small import CONFIG, moved

SHAPES = small.SHAPES | {"distilled": {"pool": "distilled", "n_registers": 1}}
QUICK = dict(updates=3, jacobian_images=2, batch_size=9)


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 46, 2))


@pytest.fixture(scope="module")
def model(data):
    return moved(data)


def opened(data) -> torch.Tensor:
    return torch.stack([data[i][0] for i in range(len(data))])


class Linear(nn.Module):
    """A block that is a linear map: every token by `weight`, and a share of the mean token by `mixing`."""

    def __init__(self, weight: torch.Tensor, mixing: torch.Tensor):
        super().__init__()
        self.attn = self.norm1 = nn.Identity()  # what a block is known by
        self.weight, self.mixing = weight, mixing

    def forward(self, h: torch.Tensor, step: nn.Module, step_embedding: object = None) -> torch.Tensor:
        h = step.hook_resid_pre(h)
        return step.hook_resid_post(h @ self.weight.T + h.mean(1, keepdim=True) @ self.mixing.T)


def linear(data, mixing: float, **changes: object):
    """A model of linear steps; the true map of a step is near the identity."""
    model = fresh(dataclasses.replace(CONFIG, classes=tuple(data.dataset.classes), **changes), 0).eval()
    with torch.no_grad():
        model.head.weight.normal_()
        model.pos_embed.normal_()
    weight = torch.eye(16) + 0.3 * torch.randn(16, 16) / 4
    for k in range(len(model.core)):
        model.core[k] = Linear(weight, mixing * torch.randn(16, 16) / 4)
    return model, weight


# Lenses


def test_the_jacobian_of_linear_steps_is_their_power_and_its_lens_is_exact(data) -> None:
    model, weight = linear(data, 0.0)
    readout, images = Readout(model), opened(data)
    measured = lenses.jacobian_sum(readout, images[:5]) / 5
    for t in range(3):
        assert torch.allclose(measured[t].float(), torch.linalg.matrix_power(weight, 3 - t), atol=1e-5)
    rows = probe.rows_of(readout, images)
    seen = lenses.Lens(measured.float(), torch.zeros(3, 16))(rows)
    assert torch.allclose(seen, rows[:, -1:].expand_as(seen), atol=1e-4)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_jacobian_is_autograd_s_own_through_all_tokens(data, changes) -> None:
    """Against torch.func on one image at a time, of the rows that are read by a common shift of them."""
    model, images = moved(data, **changes), opened(data)[:2]
    readout = Readout(model)
    measured = lenses.jacobian_sum(readout, images)
    expected = torch.zeros_like(measured)
    n_prefix, n_rows = model.config.n_prefix, len(readout.heads)
    for image in images:
        z = model.embed(image[None]).detach()
        for t in range(3):

            def last(shift: torch.Tensor, z=z, t=t) -> torch.Tensor:
                moved = z.clone()
                if changes.get("pool") == "mean":
                    moved[:, n_prefix:] = z[:, n_prefix:] + shift
                else:
                    moved[0, :n_rows] = z[0, :n_rows] + shift.unflatten(0, (n_rows, -1))
                out = model.run_steps(moved, t, 3)
                return out[0, n_prefix:].mean(0) if changes.get("pool") == "mean" else out[0, :n_rows].flatten()

            expected[t] += torch.autograd.functional.jacobian(last, torch.zeros(readout.width)).double()
            z = model.run_steps(z, t, t + 1).detach()
    assert torch.allclose(measured, expected, atol=1e-4, rtol=1e-3)


def test_where_tokens_mix_only_the_expansion_has_their_mean(data) -> None:
    model, _ = linear(data, 0.5)
    readout, images = Readout(model), opened(data)
    rows = probe.rows_of(readout, images)
    weight = (lenses.jacobian_sum(readout, images) / len(images)).float()
    every = lenses.jacobian_lenses(weight, rows.mean(0))
    off = {name: (lens(rows) - rows[:, -1:]).mean(0).abs().max() for name, lens in every.items()}
    assert off["expansion"] < 1e-3 < 0.1 < off["jacobian"]


def fitted(readout: Readout, rows: torch.Tensor, updates: int, **how: object) -> dict[str, lenses.Lens]:
    return lenses.fitted(readout, rows, updates=updates, seed=0, **dict(kept=None, key={}) | how)


def test_lenses_start_at_the_logit_lens(model, data) -> None:
    readout = Readout(model)
    rows = probe.rows_of(readout, opened(data))
    for lens in fitted(readout, rows, 0).values():
        assert torch.equal(lens(rows), rows)
    with torch.no_grad():
        _, cache = model.run_with_cache(opened(data))
        assert torch.allclose(readout.logits(rows).transpose(0, 1), cache.logit_lens(), atol=1e-5)


def test_the_tuned_lens_finds_the_map_of_a_linear_model_and_it_is_a_power_of_one(data) -> None:
    model, weight = linear(data, 0.0)
    readout = Readout(model)
    rows = torch.randn(512, 1, 16) @ torch.stack([torch.linalg.matrix_power(weight, t).T for t in range(4)])[:, None]
    rows = rows[:, :, 0].transpose(0, 1)
    final = readout.logits(rows[:, -1:]).log_softmax(-1)

    def off(lens: lenses.Lens) -> float:
        return float(lenses.divergence(final, readout.logits(lens(rows)))[:, :-1].mean().detach())

    start, every = off(lenses.Lens.identity(3, 16)), fitted(readout, rows, 1500)
    assert off(every["tuned"]) < 0.01 * start and off(every["powers"]) < 0.01 * start
    assert off(every["same"]) > 5 * off(every["powers"])  # one map cannot be W, W^2 and W^3


def test_powers_apply_one_map_as_often_as_steps_are_left() -> None:
    weight, bias, rows = torch.randn(4, 4), torch.randn(4), torch.randn(5, 4, 4)
    lens, expected = lenses.powers(weight, bias, 3), rows.clone()
    for t in range(3):
        for _ in range(3 - t):
            expected[:, t] = expected[:, t] @ weight.T + bias
    assert torch.allclose(lens(rows), expected, atol=1e-4)


def test_a_fit_that_was_stopped_ends_as_one_left_alone(model, data, tmp_path, monkeypatch) -> None:
    readout = Readout(model)
    rows, kept = probe.rows_of(readout, opened(data)), tmp_path / "lenses.partial"
    whole = fitted(readout, rows, 8, key={"updates": 8})
    calls, divergence = [], lenses.divergence

    def interrupted(final: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 12:
            signal.raise_signal(signal.SIGINT)
        return divergence(final, logits)

    monkeypatch.setattr(lenses, "divergence", interrupted)
    with pytest.raises(Stopped):
        fitted(readout, rows, 8, kept=kept, key={"updates": 8})
    monkeypatch.setattr(lenses, "divergence", divergence)
    again = fitted(readout, rows, 8, kept=kept, key={"updates": 8})
    for name in lenses.FITTED:
        assert torch.equal(again[name].weight, whole[name].weight)


# Parts


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_parts_sum_to_the_logit_and_each_is_what_plain_torch_finds(data, changes) -> None:
    model, images = moved(data, **changes), opened(data)[:4]
    readout, labels, kept = Readout(model), torch.tensor([3, 0, 7, 19]), {}

    def keep(value: torch.Tensor, hook: object) -> None:
        kept[hook.name] = readout.pooled(value)

    with torch.no_grad():
        with model.hooks([(f"blocks.*.{site}", keep) for site in contributions.SITES]):
            states = list(states_of(model, images))
        logits = model.read_out(states[-1])
        assert torch.allclose(readout.logits(readout.rows(states[-1])), logits, atol=1e-5)
        ends = (readout.pooled(states[i]) for i in (0, -1))
        values = contributions.of_batch(readout, kept, *ends, logits, labels)
        assert contributions.rest(values).max() < 1e-4
        added = dict(zip(contributions.names(model), values["contribution"][1].transpose(0, 1), strict=True))
        without = by_hand(model, images, labels)
    for (part, step), expected in without.items():
        assert torch.allclose(added[part][:, step], expected, atol=1e-4), (part, step)


def by_hand(model, images: torch.Tensor, labels: torch.Tensor) -> dict[tuple[str, int], torch.Tensor]:
    """What head 1 of step 1 and the FFN of step 2 add: taken out of the last state, with the norm's scale held."""
    _, cache = model.run_with_cache(images, names_filter=lambda name: True)
    z = model.run_steps(model.embed(images), 0, 3)
    heads = [model.head, model.head_dist] if model.config.pool == "distilled" else [model.head]

    def logits_of(change: torch.Tensor) -> torch.Tensor:
        """Logits of the change alone, [batch class]: centred, scaled as the last state is, no bias."""
        total = 0
        for i, head in enumerate(heads):
            row, moved = (
                x[:, model.config.n_prefix :].mean(1) if model.config.pool == "mean" else x[:, i] for x in (z, change)
            )
            if model.config.norm == "ln":
                scale = (row.var(-1, unbiased=False, keepdim=True) + model.config.norm_eps).sqrt()
                moved = moved - moved.mean(-1, keepdim=True)
            else:
                scale = (row.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()
            total = total + head.weight @ (moved / scale * model.norm.weight).T / len(heads)
        return total.T

    def to(change: torch.Tensor) -> torch.Tensor:
        every = logits_of(change)
        own = every[torch.arange(len(labels)), labels]
        others = torch.stack([torch.cat([row[:k], row[k + 1 :]]).mean() for row, k in zip(every, labels, strict=True)])
        return torch.stack([own, others, own - others])

    ffn = cache["blocks.2.hook_mlp_out"]
    return {("head 1", 1): to(cache["blocks.1.attn.hook_result"][:, :, 1]), ("FFN", 2): to(ffn)}


# Patches, depth, intervals


def test_the_roc_area_is_sklearn_s_with_ties_and_without_ignored_patches() -> None:
    score, hit = torch.randint(0, 6, (8, 30)).float(), torch.randint(0, 2, (8, 30)).float()
    hit[:, ::7], hit[5] = torch.nan, 1
    area = saying.roc_area(score, hit)
    assert area[5].isnan()
    for i in (0, 1, 2, 3, 4, 6, 7):
        there = ~hit[i].isnan()
        assert float(area[i]) == pytest.approx(metrics.roc_auc_score(hit[i][there], score[i][there]))


def test_patches_planted_on_the_object_agree_with_its_mask(model, data) -> None:
    labels, masks = (torch.stack([torch.as_tensor(data[i][k]) for i in range(8)]) for k in (1, 2))
    readout = Readout(model)
    table = pointing.score_table(masks, labels, model.config.patch_size)
    direction = readout.directions()[0, labels]  # what raises the class
    state = torch.randn(8, model.config.n_tokens, 16) * 0.01
    state[:, 1:] += 50 * (2 * table.hit[0, 0].nan_to_num(0)[..., None] - 1) * direction[:, None]
    with torch.no_grad():
        said = {name: of.nanmean(-1) for name, (_, of) in saying.of_tokens(readout, state, labels, table).items()}
    everywhere, on_object, elsewhere = said["patch_share"]
    assert on_object > 0.9 and elsewhere < 0.1 and elsewhere < everywhere < on_object
    assert said["patch_agreement"] > 0.99 and said["patch_hit"] > 0.99


# The whole measurement


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_the_logit_lens_ends_in_the_model_s_own_answers(data, changes) -> None:
    model = moved(data, **changes)
    result = probe.measure(model, data, **QUICK)
    images = torch.stack([data.dataset[int(i)][0] for i in result["index"]])
    with torch.no_grad():
        answers = model(images).argmax(-1).numpy()
        first = model(images, n_steps=1).argmax(-1).numpy()
    assert (result["is_right"].values == (answers == result["image_label"].values)).all()
    logit = result.sel(lens="logit")
    assert float(logit["agreement"].sel(state=1)) == pytest.approx((first == answers).mean())
    assert np.allclose(result["agreement"].sel(state=3), 1) and np.allclose(result["kl"].sel(state=3), 0, atol=1e-6)
    assert float(result["rest"]) < 1e-4
    total = result["contribution"].sum(("part", "step")) + result["whole_contribution"].sel(
        whole=["embedding", "bias"]
    ).sum("whole")
    assert np.allclose(total, result["whole_contribution"].sel(whole="logit"), atol=1e-4)
    assert set(result["index"].values.tolist()) <= set(data.indices) and result.attrs["n_fitted"] == 11


def test_batches_do_not_change_the_result(model, data) -> None:
    one, other = (probe.measure(model, data, **QUICK | {"batch_size": size}) for size in (23, 4))
    for name in one.data_vars:
        assert np.allclose(one[name], other[name], atol=1e-4, equal_nan=True), name


def test_photographs_are_not_shared_between_fit_and_measurement(model) -> None:
    class Pairs(torch.utils.data.Dataset):
        whole = open_data("shapes-easy", like=CONFIG)
        spec, split, classes, fingerprint, has_masks, image_size = "p", "val", whole.classes, "f", True, 32
        labels, photographs = np.zeros(20, int), np.arange(20) // 2

        def __len__(self) -> int:
            return 20

    fitting, measuring = split(Pass(Pairs()), 3)
    photographs = [set(part.photographs(np.arange(len(part))).tolist()) for part in (fitting, measuring)]
    assert len(fitting) == 6 and len(measuring) == 14 and not photographs[0] & photographs[1]


def test_a_timm_vit_is_taken_too(data) -> None:
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2, num_classes=20
    )
    model = load(module)
    model.config = dataclasses.replace(model.config, classes=tuple(data.dataset.classes))
    result = probe.measure(model, data, **QUICK)
    assert result.sizes["step"] == 2 and np.isfinite(result["kl"]).all() and float(result["rest"]) < 1e-4


def test_without_masks_and_jacobians_the_rest_is_measured(model, data) -> None:
    class Unmasked(torch.utils.data.Dataset):
        whole = data.dataset
        spec, split, fingerprint, has_masks, image_size = "unmasked", "val", "f", False, 32
        classes, labels = whole.classes, np.asarray(whole.labels)[:12]

        def __len__(self) -> int:
            return 12

        def __getitem__(self, i: int):
            return (*self.whole[i][:2], None)

    result = probe.measure(model, Unmasked(), updates=2, jacobian_images=0, batch_size=5)
    assert result["lens"].values.tolist() == ["logit", *lenses.FITTED] and "patch_agreement" not in result
    assert result["where"].values.tolist() == ["patches"] and "patches that say the class" in analysis.table(result)
    assert analysis.figure(result).axes and analysis.agreement_curves(result) is None and analysis.examples(result)


def test_what_cannot_be_measured_is_one_sentence(data, model) -> None:
    with pytest.raises(InputError, match="tells no classes apart"):
        probe.measure(fresh(dataclasses.replace(CONFIG, n_classes=0), 0), data)
    with pytest.raises(InputError, match="give two"):
        probe.measure(model, Subset(data, [0]))
    with pytest.raises(InputError, match="--updates is -1"):
        probe.measure(model, data, updates=-1)
    with pytest.raises(InputError, match="--fit-images is 0"):
        probe.measure(model, data, fit_images=0)


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=fresh(model.config, 1).eval(), **QUICK)


def test_the_table_and_figures_show_every_lens_chance_and_untrained(result) -> None:
    table = analysis.table(result)
    for said in ("best constant answer", "init tuned", "powers of one map", "nearness to the centre", "independent"):
        assert said in table
    assert "all parts, untrained" in table and "depth" not in analysis.style.models(result)["untrained"]
    assert len(analysis.figure(result).axes) == 6 + 2
    assert len(analysis.figure({"a": result, "b": result}).axes) == 12 + 4
    assert len([trace for trace in analysis.interactive(result, "agreement").data if trace.fill is None]) == 6 + 2 + 1
    assert analysis.patches(result, 0, 1).data[0].z.shape == (4, 4)
    assert set(analysis.frame(result)["model"]) == set(analysis.part_frame(result)["model"]) == {"trained", "untrained"}


def test_the_share_recovered_is_one_for_the_tuned_lens_and_none_for_the_logit_lens(result) -> None:
    share = analysis.recovered(result["kl"])
    planted = result["kl"].copy(deep=True)
    planted.loc[dict(lens="logit")], planted.loc[dict(lens="tuned")], planted.loc[dict(lens="powers")] = 3, 1, 1.5
    assert analysis.recovered(planted).sel(lens=["logit", "tuned", "powers"]).values.tolist() == [0, 1, 0.75]
    assert set(share.dims) == {"lens"}
