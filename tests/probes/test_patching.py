"""Run with: pytest tests/probes/test_patching.py"""

import dataclasses
import time

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure
from torch.utils.data import Dataset, Subset

from analyses import patching as analysis
from models import ViTConfig, load, open_data
from models.checkpoint import fresh
from models.errors import InputError
from probes import patching as probe
from probes.methods import pairs as of_images
from probes.methods import patches
from probes.methods.pairs import differing
from tests.probes.small import CONFIG, SHAPES, made

PLACES = {"resid": "hook_resid_pre", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out", "z": "attn.hook_z"}
FEW = dict(pairs=5, maps=1, shifts=3, _right=False)


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 46, 2))


@pytest.fixture(scope="module")
def model(data):
    return made(data)


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=fresh(model.config, 1).eval(), **FEW)


def by_hand(model, image: torch.Tensor, donor: torch.Tensor, site: str, t: int, change, s: int | None = None):
    """Logits [class] of one image, `change(own, donor's)` made at a place of step t by a plain torch hook; the donor's
    value is that of step s.
    """
    kept = {}
    there = model.get_submodule(f"blocks.{t if s is None else s}.{PLACES[site]}")
    here = model.get_submodule(f"blocks.{t}.{PLACES[site]}")
    with torch.no_grad():
        handle = there.register_forward_hook(lambda m, args, out: kept.update(value=out.clone()))
        model(donor[None])
        handle.remove()
        handle = here.register_forward_hook(lambda m, args, out: change(out.clone(), kept["value"]))
        logits = model(image[None])[0]
        handle.remove()
    return logits


def at(*where: object):
    """A change that takes these places from the donor."""

    def change(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        own[(slice(None), *where)] = other[(slice(None), *where)]
        return own

    return change


def effect_by_hand(model, pairs, direction: str, source: str, site: str, t: int, change_of) -> float:
    """Sum of how far the patch moves the logit difference over the sum of how far it could go."""
    moved, whole = 0.0, 0.0
    into, other = probe.DIRECTIONS[direction]
    for i in range(len(pairs)):
        images, (clean, corrupt) = pairs[i][0], pairs.answers[i]
        with torch.no_grad():
            plain = [float(of[clean] - of[corrupt]) for of in model(images[:2])]
        donor = images[2] if source == "unrelated" else images[other]
        logits = by_hand(model, images[into], donor, site, t, change_of(i))
        sign = np.sign(plain[other] - plain[into])
        moved += sign * (float(logits[clean] - logits[corrupt]) - plain[into])
        whole += abs(plain[other] - plain[into])
    return moved / whole


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_every_effect_equals_forwards_of_their_own_with_plain_torch_hooks(data, changes) -> None:
    model = made(data, **changes)
    found, n_prefix = probe.measure(model, data, factor=("shape",), batch_size=16, **FEW).isel(factor=0), None
    pairs, n_prefix = differing(data, "shape", 5), model.config.n_prefix
    patch = model.config.patch_size

    def objects(i: int):
        masks, labels = pairs[i][2], pairs.answers[i]
        shown = (masks[0] == labels[0] + 1) | (masks[1] == labels[1] + 1)
        rows, columns = (d // patch for d in np.nonzero(shown.numpy()))
        return at(np.unique(rows * (CONFIG.image_size // patch) + columns) + n_prefix)

    cells = [
        ("denoising", "pair", "resid", 1, "object", objects),
        ("noising", "pair", "resid", 2, "object", objects),
        ("denoising", "unrelated", "mlp_out", 1, "cls", lambda i: at([0])),
        ("noising", "pair", "attn_out", 0, "cls", lambda i: at([0])),
    ]
    for direction, source, site, t, group, change_of in cells:
        measured = found["effect"].sel(direction=direction, source=source, site=site, step=t, group=group)
        expected = effect_by_hand(model, pairs, direction, source, site, t, change_of)
        assert float(measured) == pytest.approx(expected, abs=2e-5), (direction, source, site)
    for direction, source in (("denoising", "pair"), ("noising", "unrelated")):
        measured = found["head_effect"].sel(direction=direction, source=source, head=1, step=1)
        expected = effect_by_hand(model, pairs, direction, source, "z", 1, lambda i: at(slice(None), 1))
        assert float(measured) == pytest.approx(expected, abs=2e-5)
    token = n_prefix + 6
    measured = found["token_effect"].sel(direction="noising", site="attn_out", step=1)[0, token]
    expected = effect_by_hand(model, pairs.only(np.array([0])), "noising", "pair", "attn_out", 1, lambda i: at([token]))
    assert float(measured) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_shifted_steps_equal_forwards_of_their_own(data, changes) -> None:
    model = made(data, **changes)
    found, pairs = probe.measure(model, data, factor=("fill",), **FEW), differing(data, "image", 3)

    def margins(donor: int, site: str, change, t: int, s: int) -> float:
        each = []
        for i in range(3):
            logits = by_hand(model, pairs[i][0][0], pairs[i][0][donor], site, t, change, s)
            own = logits[pairs.labels[i]].item()
            logits[pairs.labels[i]] = -torch.inf
            each.append(own - logits.max().item())
        return float(np.mean(each))

    embeds = [0.0 if model.step_embedding(t) is None else model.step_embedding(t) for t in range(3)]

    def state(own: torch.Tensor, other: torch.Tensor, t: int = 2, s: int = 0) -> torch.Tensor:
        own[:, 0] = (other - embeds[s] + embeds[t])[:, 0]  # what entered step s, before its embedding
        return own

    where = dict(step=2, other_step=0)
    for donor in (0, 1):
        here = found.sel(donor=probe.DONORS[donor], **where)
        assert float(here["shift_margin"].sel(part="cls")) == pytest.approx(
            margins(donor, "resid", state, 2, 0), abs=1e-4
        )
        head = margins(donor, "z", at(slice(None), 1), 2, 0)
        assert float(here["head_shift_margin"].sel(head=1)) == pytest.approx(head, abs=1e-4)


def test_a_whole_state_of_step_s_at_step_t_is_running_s_minus_t_steps_more(model, data, result) -> None:
    pairs = differing(data, "image", 3)
    images, labels = torch.stack([pairs[i][0] for i in range(3)]), torch.as_tensor(pairs.labels)
    for step in range(3):
        for other_step in range(3):
            with torch.no_grad():
                own, other = (model(images[:, run], n_steps=3 + other_step - step) for run in (0, 1))
            for donor, logits in (("own", own), ("other", other)):
                expected = probe.margin(logits, labels)
                cell = result.sel(donor=donor, part="all", step=step, other_step=other_step)
                assert float(cell["shift_margin"]) == pytest.approx(float(expected.mean()), abs=1e-4)
                assert float(cell["shift_accuracy"]) == (logits.argmax(1) == labels).double().mean()


def test_its_own_value_put_back_changes_nothing(model, data, result) -> None:
    pairs = differing(data, "image", 3)
    with torch.no_grad():
        untouched = probe.margin(model(torch.stack([pairs[i][0][0] for i in range(3)])), torch.as_tensor(pairs.labels))
    for name in ("shift_margin", "head_shift_margin"):
        own = result[name].sel(donor="own").transpose(..., "step", "other_step").values
        assert np.allclose(np.diagonal(own, axis1=-2, axis2=-1), float(untouched.mean()), atol=1e-5)


def test_cls_knows_nothing_before_the_first_step_and_the_object_everything(result) -> None:
    entering = result["effect"].sel(source="pair", site="resid", step=0)
    assert np.allclose(entering.sel(group="cls"), 0, atol=1e-6)
    assert np.allclose(entering.sel(group="object"), 1, atol=0.1)  # but for soft edges beyond the mask
    assert np.allclose(entering.sel(group="background"), 0, atol=0.1)


def test_batches_do_not_change_the_result(model, data, result) -> None:
    other = probe.measure(model, data, batch_size=9, **FEW)
    for name in other.data_vars:
        if other[name].dtype.kind == "f":
            assert np.allclose(other[name], result[name], atol=1e-4, equal_nan=True), name


# Pairs


class Photographs(Dataset):
    """Noise in four classes, two items a photograph, no masks."""

    spec, split, classes, fingerprint, has_masks, image_size = "folder:noise", "val", tuple("abcd"), "f", False, 32
    labels = np.arange(24) % 4
    photographs = np.arange(24) // 2

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, None]:
        return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index)), int(self.labels[index]), None


def test_photographs_are_paired_with_another_class_and_a_third_one() -> None:
    photographs = Photographs()
    pairs = differing(photographs, "image", 9)
    label, photo = photographs.labels, photographs.photographs
    three = np.stack([label[pairs.clean], label[pairs.corrupt], label[pairs.unrelated]])
    assert all(len(set(column)) == 3 for column in three.T) and np.array_equal(pairs.answers, three[:2].T)
    assert (photo[pairs.clean] != photo[pairs.corrupt]).all() and (photo[pairs.clean] != photo[pairs.unrelated]).all()
    with pytest.raises(InputError, match="--factor fill needs images that can be rendered.*folder:noise.*image"):
        differing(photographs, "fill", 3)
    with pytest.raises(InputError, match="need three classes"):
        differing(Subset(photographs, [0, 1, 4, 5]), "image", 3)
    with pytest.raises(InputError, match="--factor is 'hue'"):
        differing(photographs, "hue", 3)


def test_photographs_are_patched_without_masks() -> None:
    model = fresh(dataclasses.replace(CONFIG, n_classes=4, classes=tuple("abcd")), 0).eval()
    found = probe.measure(model, Photographs(), **FEW)
    assert found["factor"].values.tolist() == ["image"] and found["group"].values.tolist() == ["cls", "patches"]
    entering = found["effect"].sel(source="pair", site="resid", step=0)
    assert np.allclose(entering.sel(group="patches"), 1, atol=1e-4) and np.isfinite(found["effect"]).all()
    assert "image" in analysis.table(found) and analysis.figure(found).axes


def test_a_rendered_pair_is_one_image_but_for_its_target(data) -> None:
    pairs = differing(data, "fill", 4)
    for i in range(4):
        images, label, masks = pairs[i]
        assert torch.equal(images[0], data[int(pairs.clean[i])][0]) and label == pairs.answers[i, 0]
        beyond = (masks == 0).all(0)
        assert (images[0] - images[1]).abs().amax(0)[beyond].lt(1).float().mean() > 0.95
        assert pairs.answers[i, 0] // 4 == pairs.answers[i, 1] // 4  # the same shape


def test_groups_part_the_tokens(data) -> None:
    pairs = differing(data, "shape", 3)
    masks = torch.stack([pairs[i][2] for i in range(3)])
    tokens = of_images.groups(masks, torch.as_tensor(pairs.answers), 2, 18, 8)
    assert (tokens.sum(1)[:, 2:] == 1).all() and tokens[:, 0].sum() == 3 and not tokens[:, :, 1].any()
    assert of_images.groups(None, torch.zeros(3, 2), 2, 18, 8).sum((0, 2)).tolist() == [3, 48]


# Other models, bad input, speed


def test_a_timm_vit_is_taken_too(data) -> None:
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2, num_classes=20
    )
    model = load(module)
    model.config = dataclasses.replace(model.config, classes=tuple(data.dataset.classes))
    found = probe.measure(model, Subset(open_data("shapes-easy", like=model), range(12)), **FEW)
    assert found.sizes["step"] == 2 and np.isfinite(found["effect"]).all() and np.isfinite(found["shift_margin"]).all()


def test_only_pairs_that_the_model_is_right_on_are_measured(model, data) -> None:
    right = fresh(model.config, 0).eval()
    with torch.no_grad():
        right.head.weight.zero_()
        right.head.bias.copy_(torch.eye(20)[int(differing(data, "shape", 5).answers[0, 0])])
    with pytest.raises(InputError, match="of 5 pairs there is none"):
        probe.measure(right, data, pairs=5)


def test_what_cannot_be_measured_is_one_sentence(data, model) -> None:
    with pytest.raises(InputError, match="has no classifier"):
        probe.measure(fresh(dataclasses.replace(CONFIG, n_classes=0), 0), data)
    for name, value in (("pairs", 0), ("maps", -1), ("shifts", -1)):
        with pytest.raises(InputError, match=f"--{name} is {value}"):
            probe.measure(model, data, **{name: value})
    broken = fresh(model.config, 0).eval()
    with torch.no_grad():
        broken.head.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        probe.measure(broken, data)


def test_patches_in_one_batch_from_the_clean_prefix_are_faster_than_a_forward_each() -> None:
    """Side by side in one run; the clean prefix alone halves the work."""
    model = fresh(ViTConfig.preset("bvit_easy", n_steps=12, n_classes=20), 0).eval()
    images, donors = torch.randn(2, 4, 3, 32, 32).unbind(0)
    with torch.inference_mode():
        ran = list(patches.steps(model, donors))
    heads = patches.each_head(model, 4)

    def together() -> torch.Tensor:
        clean = enumerate(patches.steps(model, images))
        return torch.stack([patches.patched(model, at["resid"], t, "z", ran[t]["z"], heads, 64) for t, at in clean], 1)

    def one_by_one() -> torch.Tensor:
        each = []
        for t in range(12):
            for h in range(model.config.n_heads):

                def put(z: torch.Tensor, hook: object, t: int = t, h: int = h) -> torch.Tensor:
                    return torch.where(heads[:, h], ran[t]["z"], z)

                each.append(model.run_with_hooks(images, fwd_hooks=[(f"blocks.{t}.attn.hook_z", put)]))
        return torch.stack(each, 1).unflatten(1, (12, -1))

    def seconds(run) -> float:
        started = time.process_time()
        with torch.inference_mode():
            run()
        return time.process_time() - started

    with torch.inference_mode():
        assert torch.allclose(together(), one_by_one(), atol=1e-5)
    assert max(seconds(one_by_one) / seconds(together) for _ in range(3)) > 1.5


# Analysis


def test_the_table_and_the_figures_show_effects_nulls_and_the_untrained_model(result) -> None:
    table = analysis.table(result)
    assert all(said in table for said in ("denoising", "unrelated", "untrained", "head 1", "shape", "fill", "chance"))
    for function in analysis.FIGURES.values():
        assert isinstance(function(result), Figure)
    assert {"effect", "head effect", "shift"} <= set(analysis.frame(result)["what"])
    assert analysis.interactive(result).data and analysis.heads(result, "fill", "noising").data
    assert analysis.steps_map(result, "own", "cls").data[0].z.shape == (3, 3)
    assert len(analysis.tokens(result).axes) >= 3


def test_an_effect_beyond_its_null_is_marked(result) -> None:
    planted = result.copy(deep=True)
    where = dict(factor="fill", direction="denoising", step=1, head=1)
    for name in ("head_effect", "head_effect_low", "head_effect_high"):
        planted[name].loc[where | dict(source="pair")] = 0.9
        planted[name].loc[where | dict(source="unrelated")] = 0.1
    assert analysis.beyond_null(planted, "head_effect").sel(where)


def test_where_the_answer_moves_from_the_object_to_cls(result) -> None:
    planted = result.copy(deep=True)
    where = dict(source="pair", direction="denoising", site="resid")
    planted["effect"].loc[where | dict(group="cls")] = [0.0, 0.6, 1.0]
    planted["effect"].loc[where | dict(group="object")] = [1.0, 0.55, 0.1]
    assert analysis.handover(planted, "shape", "denoising") == {"cls": 1, "object": 1}
