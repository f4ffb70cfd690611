"""Run with: pytest tests/probes/test_ablation.py"""

import copy
import dataclasses
import time

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from torch.nn import functional
from torch.utils.data import Subset

from analyses import ablation as analysis
from analyses import intervals
from models import ViTConfig, load, open_data
from models.checkpoint import fresh
from models.errors import InputError
from probes import ablation as probe
from probes.methods import parts
from probes.walk import Pass
from tests.probes.small import CONFIG, SHAPES, made


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 46, 2))


@pytest.fixture(scope="module")
def model(data):
    return made(data)


def opened(data) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([data[i][0] for i in range(len(data))]), torch.tensor([data[i][1] for i in range(len(data))])


def by_hand(model, images: torch.Tensor, labels: torch.Tensor, place: str, change, steps: range) -> tuple[float, ...]:
    """Change of accuracy, loss and logit difference when plain torch hooks change a place at some steps."""
    with torch.no_grad():
        before = model(images)
        handles = []
        for t in steps:
            module = model.get_submodule(f"blocks.{t}.{place}")
            handles.append(module.register_forward_hook(lambda m, args, out, t=t: change(out.clone(), t)))
        after = model(images)
        for handle in handles:
            handle.remove()
    others = before.clone()
    others[torch.arange(len(labels)), labels] = -torch.inf
    rival = others.argmax(1)

    def each(logits: torch.Tensor) -> list[float]:
        rows = torch.arange(len(labels))
        difference = logits[rows, labels] - logits[rows, rival]
        right = (logits.argmax(1) == labels).float()
        return [float(right.mean()), float(functional.cross_entropy(logits, labels)), float(difference.mean())]

    return tuple(a - b for a, b in zip(each(after), each(before), strict=True))


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_every_cell_equals_a_forward_of_its_own_with_plain_torch_hooks(data, changes) -> None:
    model = made(data, **changes)
    result = probe.measure(model, data, how="zero", batch_size=10)
    images, labels = opened(data)

    def without_head(out: torch.Tensor, t: int) -> torch.Tensor:
        out[:, :, 1] = 0
        return out

    cells = {
        ("head 1", "one", 1): ("attn.hook_z", without_head, range(1, 2)),
        ("head 1", "onwards", 0): ("attn.hook_z", without_head, range(3)),
        ("attention", "onwards", 1): ("hook_attn_out", lambda out, t: out * 0, range(1, 3)),
        ("FFN", "one", 2): ("hook_mlp_out", lambda out, t: out * 0, range(2, 3)),
    }
    for (part, scope, step), how in cells.items():
        measured = result.sel(kind="ablated", part=part, scope=scope, step=step)
        expected = by_hand(model, images, labels, *how)
        assert np.allclose([measured[name] for name in probe.METRICS], expected, atol=2e-5), (part, scope, step)


def test_means_are_of_prefix_tokens_one_by_one_and_of_patches_together(model, data) -> None:
    result = probe.measure(model, data, batch_size=7)
    images, labels = opened(data)
    with torch.no_grad():
        _, cache = model.run_with_cache(images)

    def mean_of_head(out: torch.Tensor, t: int) -> torch.Tensor:
        z = cache[f"blocks.{t}.attn.hook_z"][:, :, 0]
        out[:, 0, 0], out[:, 1:, 0] = z[:, 0].mean(0), z[:, 1:].mean((0, 1))
        return out

    measured = result.sel(kind="ablated", part="head 0", scope="onwards", step=1)
    expected = by_hand(model, images, labels, "attn.hook_z", mean_of_head, range(1, 3))
    assert np.allclose([measured[name] for name in probe.METRICS], expected, atol=2e-5)


def test_another_image_s_value_is_that_of_a_donor_and_never_the_image_s_own(model, data) -> None:
    walk = Pass(data)
    put_in = parts.substitute(model, walk, "resample")
    images, labels = opened(data)
    n = len(put_in.positions)
    donor = [int(put_in.positions[i % n]) for i in range(len(data))]
    donor = [int(put_in.positions[(i + 1) % n]) if d == i else d for i, d in enumerate(donor)]
    assert all(d != i for i, d in enumerate(donor))
    with torch.no_grad():
        _, cache = model.run_with_cache(images[donor])
    result = probe.measure(model, data, how="resample", batch_size=9)
    expected = by_hand(model, images, labels, "hook_mlp_out", lambda out, t: cache["mlp_out", t], range(1, 2))
    measured = result.sel(kind="ablated", part="FFN", scope="one", step=1)
    assert np.allclose([measured[name] for name in probe.METRICS], expected, atol=2e-5)


def test_neurons_are_ranked_by_gradient_times_change_written_out(model, data) -> None:
    images, labels = opened(data)
    walk = Pass(data)
    mean = parts.substitute(model, walk, "mean")
    ranked = parts.ranked_neurons(model, walk, mean, lambda batch: batch.labels)
    score = torch.zeros(CONFIG.d_mlp)
    for image, label in zip(images, labels, strict=True):
        z, kept = model.embed(image[None]), []
        for t in range(3):  # the step written out, so that its neurons are a leaf of their own
            block = model.core[0]
            z = z + model.blocks[t].attn(block.norm1(z), block)
            kept.append(functional.gelu(block.mlp.fc1(block.norm2(z))))
            kept[-1].retain_grad()
            z = z + block.mlp.fc2(kept[-1])
        functional.cross_entropy(model.read_out(z), label[None]).backward()
        for t, post in enumerate(kept):
            score += (post.grad * (mean.values["mlp.hook_post"][t] - post)).sum(1)[0].abs().detach()
    model.zero_grad()
    assert ranked[0, :8].tolist() == score.argsort(descending=True)[:8].tolist()


def test_groups_of_neurons_hold_every_neuron_once(model) -> None:
    every = parts.parts_of(model, torch.arange(CONFIG.d_mlp)[None])
    groups = [part.units[0] for part in every if part.site == "mlp.hook_post"]
    assert [i for group in groups for i in group] == list(range(CONFIG.d_mlp))
    assert [part.name for part in every][:4] == ["head 0", "head 1", "attention", "FFN"]


def test_the_null_moves_the_stream_as_far_as_the_ablation_does(model, data) -> None:
    images, _ = opened(data)
    position = torch.arange(len(images))
    direction = parts.directions(position, 3, CONFIG.d_model, 0)
    every = [part for part in parts.parts_of(model, torch.arange(CONFIG.d_mlp)[None])]
    switch = parts.Switch(model, every, parts.substitute(model, Pass(data), "mean"), position, direction)
    moved = []

    def keep(out: torch.Tensor, hook: object) -> None:
        moved.append(out.unflatten(0, (2, len(every), -1)))

    with torch.no_grad():
        z = model.embed(images)
        clean = model.run_steps(z, 0, 1)
        rows = z.expand(2 * len(every), *z.shape).flatten(0, 1)
        with model.hooks([*switch.hooks(0), ("blocks.0.hook_resid_mid", keep), ("blocks.0.hook_resid_post", keep)]):
            model.run_steps(rows, 0, 1)
        with model.hooks([("blocks.0.hook_resid_mid", lambda out, hook: moved.append(out))]):
            model.run_steps(z, 0, 1)
    after_attention, after_ffn, clean_mid = moved
    for i, part in enumerate(every):
        seen, untouched = (after_attention, clean_mid) if "attn" in part.site else (after_ffn, clean)
        far = (seen[:, i] - untouched).norm(dim=-1)
        assert torch.allclose(far[0], far[1], rtol=1e-3, atol=1e-4), part.name
    assert not torch.allclose(direction[0, 0], direction[1, 0])


def test_intervals_are_a_paired_bootstrap_of_the_images(model, data) -> None:
    """Against a bootstrap with multinomial draws of the same paired differences, kept image by image."""
    result = probe.measure(model, data, how="zero", batch_size=8)
    images, labels = opened(data)
    with torch.no_grad():
        before = functional.cross_entropy(model(images), labels, reduction="none")
        after = model.run_with_hooks(images, fwd_hooks=[("blocks.0.hook_mlp_out", lambda out, hook: out * 0)])
        change = (functional.cross_entropy(after, labels, reduction="none") - before).numpy()
    drawn = np.random.default_rng(1).choice(change, (4000, len(change))).mean(1)
    cell = result.sel(kind="ablated", part="FFN", scope="one", step=0)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert float(cell["loss"]) == pytest.approx(change.mean(), abs=1e-5)
    assert abs(float(cell["loss_low"]) - low) < 0.25 * (high - low) and abs(float(cell["loss_high"]) - high) < 0.25 * (
        high - low
    )


def test_where_no_answer_changes_the_interval_is_what_none_in_so_many_leaves_open(model, data) -> None:
    deaf = copy.deepcopy(model)
    with torch.no_grad():
        deaf.blocks[0].attn.W_O.zero_()  # so that heads cannot matter
    result = probe.measure(deaf, data, how="zero", batch_size=8)
    heads = result.sel(kind="ablated", scope="one", part=["head 0", "head 1"])
    n = result.attrs["n_measured"]
    none = stats.binomtest(0, n).proportion_ci(0.95, method="wilson").high
    assert not heads["accuracy"].any() and n > 1
    assert np.allclose(heads["accuracy_low"], -none) and np.allclose(heads["accuracy_high"], none)


def test_poisson_weights_hold_a_photograph_together_and_depend_on_nothing_else() -> None:
    weights = intervals.poisson_weights(np.array([3, 3, 5]), 2000, 1)
    assert (weights[:, 0] == weights[:, 1]).all() and not (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 2] == intervals.poisson_weights(np.array([5]), 2000, 1)[:, 0]).all()
    assert abs(weights.mean() - 1) < 0.06 and abs(weights.var() - 1) < 0.15


def test_batches_do_not_change_the_result(model, data) -> None:
    one, other = (probe.measure(model, data, how="resample", batch_size=size) for size in (23, 4))
    for name in one.data_vars:
        assert np.allclose(one[name], other[name], atol=1e-5), name


def test_a_timm_vit_is_taken_too(data) -> None:
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2, num_classes=20
    )
    model = load(module)
    model.config = dataclasses.replace(model.config, classes=tuple(data.dataset.classes))
    result = probe.measure(model, Subset(open_data("shapes-easy", like=model), range(12)), how="zero")
    assert result.sizes["step"] == 2 and np.isfinite(result["loss"]).all()


def test_all_parts_of_a_step_in_one_batch_are_faster_than_a_forward_each() -> None:
    """Side by side in one run; the clean prefix alone halves the work."""
    model = fresh(ViTConfig.preset("bvit_easy", n_steps=12, n_classes=20), 0).eval()
    data = Subset(open_data("shapes-easy", like=model), range(8))
    images, _ = opened(data)
    every = [
        part for part in parts.parts_of(model, torch.arange(model.config.d_mlp)[None]) if part.site == "attn.hook_z"
    ]
    walk = Pass(data)
    switch = parts.Switch(
        model,
        every,
        parts.substitute(model, walk, "zero"),
        torch.arange(8),
        parts.directions(torch.arange(8), 12, 64, 0),
    )

    def together() -> None:
        states = [model.embed(images)]
        for t in range(12):
            states.append(model.run_steps(states[-1], t, t + 1))
        for t in range(12):
            probe.run_from(model, states[t], t, switch.hooks(t), 2 * len(every))

    def one_by_one() -> None:
        for t in range(12):
            for part in every:
                single = parts.Switch(model, [part], switch.put_in, switch.position, switch.direction)
                probe.run_from(model, model.run_steps(model.embed(images), 0, t), t, single.hooks(t), 2)

    def seconds(run) -> float:
        started = time.process_time()
        with torch.inference_mode():
            run()
        return time.process_time() - started

    seconds(together), seconds(one_by_one)
    ratios = [seconds(one_by_one) / seconds(together) for _ in range(3)]
    assert max(ratios) > 1.5


def test_what_cannot_be_measured_is_one_sentence(data, model) -> None:
    with pytest.raises(InputError, match="tells no classes apart"):
        probe.measure(fresh(dataclasses.replace(CONFIG, n_classes=0), 0), data)
    with pytest.raises(InputError, match="--how is 'nothing'"):
        probe.measure(model, data, how="nothing")
    with pytest.raises(InputError, match="--images is 0"):
        probe.measure(model, data, images=0)


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=fresh(model.config, 1).eval(), how="zero")


def test_the_table_and_figures_show_ablation_null_and_untrained(result) -> None:
    table = analysis.table(result)
    assert (
        "at one step" in table and "from a step on" in table and "untrained, mean" in table and "random, mean" in table
    )
    assert len(analysis.figure(result).axes) == 6 + 2
    assert analysis.interactive(result, "loss", "onwards").data[0].z.shape == (result.sizes["part"], 3)
    assert set(analysis.frame(result)["model"]) == {"trained", "untrained"}


def test_the_strongest_part_is_the_one_that_costs_most(result) -> None:
    planted = result.copy(deep=True)
    planted["accuracy"][:] = 0
    planted["accuracy"].loc[dict(kind="ablated", scope="one", part="head 1", step=2)] = -0.5
    assert analysis.strongest(planted) == ("head 1", 2)
