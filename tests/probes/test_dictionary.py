"""Run with: pytest tests/probes/test_dictionary.py"""

import dataclasses

import numpy as np
import pytest
import timm
import torch
from sklearn import metrics
from torch.utils.data import Subset

from analyses import dictionary as analysis
from analyses import features as single
from models import load, open_data
from models.checkpoint import fresh
from models.errors import InputError
from models.loop import generator
from probes import dictionary as probe
from probes.methods import activations, coding, concepts, switching
from probes.methods.dictionaries import Dictionary
from probes.walk import Pass, split
from tests.probes.small import CONFIG, SHAPES, moved

QUICK = dict(updates=20, k=3, effects=2, n_top=3, batch_size=9)
CHOSEN = dict(expansion=4, k=3, updates=20, separate=True)  # as `measure` calls them


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 80, 2))


@pytest.fixture(scope="module")
def model(data):
    return moved(data)


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=fresh(model.config, 1).eval(), **QUICK)


@pytest.fixture(scope="module")
def trained(model, data):
    """What `result` was measured with."""
    return coding.train(model, split(Pass(data), 4096)[0], CHOSEN)


@pytest.fixture(scope="module")
def measured(data):
    """The images that `result` was measured on."""
    return split(Pass(data), 4096)[1].data


def opened(data) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([item[0] for item in data]), torch.tensor([item[1] for item in data])


def states_by_hooks(model, images: torch.Tensor) -> list[torch.Tensor]:
    """z_0 .. z_T as plain torch hooks see them."""
    states = [model.embed(images)]
    handles = [
        model.blocks[t].hook_resid_post.register_forward_hook(lambda m, args, out: states.append(out.clone()))
        for t in range(model.config.n_steps)
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return states


def codes_by_hand(dictionary: Dictionary, scale, z: torch.Tensor, state: int) -> torch.Tensor:
    """One row and one feature after the other."""
    g = state if len(dictionary.decoder) > 1 else 0
    every = torch.zeros(*z.shape[:2], dictionary.decoder.shape[1])
    for i in range(z.shape[0]):
        for p in range(z.shape[1]):
            row = (z[i, p] - scale.mean[state, 0]) / scale.size[state, 0, 0]
            rising = dictionary.encoder[g].T @ row + dictionary.bias[g]
            every[i, p] = torch.where(rising > dictionary.threshold, rising, torch.zeros(()))
    return every


@pytest.mark.parametrize("kind", ["shared", "separate", "larger", "rotated", "pca"])
def test_explained_l0_and_dead_are_what_their_definitions_say(kind, result, trained, model, measured) -> None:
    images, _ = opened(measured)
    with torch.no_grad():
        states = states_by_hooks(model, images)
        for token, place in (("cls", slice(0, 1)), ("patch", slice(1, None))):
            scale, state = trained.scales[token], 2
            rows = (states[state][:, place] - scale.mean[state]) / scale.size[state]
            at = result.sel(kind=kind, token=token, state=state)
            if kind == "pca":
                directions = trained.principal[token][state]
                back, l0 = rows @ directions @ directions.T, 3
            else:
                dictionary = trained.dictionaries[kind, token]
                codes = codes_by_hand(dictionary, scale, states[state][:, place], state)
                g = dictionary.group(state)
                back, l0 = codes @ dictionary.decoder[g] + dictionary.offset[g], (codes > 0).sum(-1).float().mean()
                assert float(at["dead"]) == pytest.approx(float((codes == 0).all(0).all(0).float().mean()))
            explained = 1 - (rows - back).square().sum() / rows.square().sum()
            assert float(at["explained"]) == pytest.approx(float(explained), abs=1e-4)
            assert float(at["l0"]) == pytest.approx(float(l0), abs=1e-4)
            assert float(at["explained_low"]) <= float(at["explained"]) <= float(at["explained_high"])
    by_all = result["explained"].sel(kind=kind, token="patch").mean("state")
    assert float(result["explained_by_all"].sel(kind=kind, token="patch")) == pytest.approx(float(by_all))
    shared = result["explained_by_all"].sel(kind="shared", token="patch")
    assert float(result["sharing"].sel(kind=kind, token="patch")) == pytest.approx(float(shared - by_all))


def test_profiles_and_top_patches_are_those_of_the_codes(result, trained, model, measured, data) -> None:
    images, _ = opened(measured)
    with torch.no_grad():
        states = states_by_hooks(model, images)
        every = [
            codes_by_hand(trained.dictionaries["shared", "patch"], trained.scales["patch"], z[:, 1:], t)
            for t, z in enumerate(states)
        ]
    every = torch.stack(every)  # [state image patch feature]
    of = result.sel(token="patch")
    assert np.allclose(of["profile"], every.mean((1, 2)).T, atol=1e-5)
    assert np.allclose(of["rate"], (every > 0).float().mean((1, 2)).T, atol=1e-6)
    never = (every == 0).all(0).all(0).all(0)
    assert float(of["dead_everywhere"].sel(kind="shared")) == pytest.approx(float(never.float().mean()))
    numbers = [data.indices[i] for i in measured.indices]
    value, patch = every.max(2)
    for state in (0, 3):
        for feature in range(0, 64, 7):
            order = value[state, :, feature].argsort(descending=True, stable=True)[:3]
            expected = [(numbers[i], int(patch[state, i, feature])) for i in order if value[state, i, feature] > 0]
            at = of.isel(feature=feature, state=state)
            found = [*zip(at["top"].values.tolist(), at["top_patch"].values.tolist(), strict=True)]
            assert found[: len(expected)] == expected and all(image == -1 for image, _ in found[len(expected) :])


def test_f1_is_sklearn_s_for_the_feature_chosen_on_other_images(result, trained, model, measured, data) -> None:
    images, _ = opened(measured)
    fitting, measuring = split(Pass(data), 4096)
    known = concepts.of_images(measuring, 8)["patch"]
    others = concepts.of_images(fitting, 8)["patch"]
    held, names = known.present(np.arange(len(measured))), known.names

    def fired(these: torch.Tensor, state: int) -> torch.Tensor:
        with torch.no_grad():
            z = states_by_hooks(model, these)[state][:, 1:]
            return codes_by_hand(trained.dictionaries["shared", "patch"], trained.scales["patch"], z, state) > 0

    on_others, here = fired(opened(fitting.data)[0], 1), fired(images, 1)
    held_by_others = others.present(np.arange(len(fitting)))
    for factor, value in (("object", "target"), ("row", "last third"), ("edge", "edge")):
        column = names.index((factor, value))
        wanted = held_by_others[..., column].expand(on_others.shape[:2]).flatten().numpy()
        scores = [metrics.f1_score(wanted, on_others[..., f].flatten().numpy(), zero_division=0) for f in range(64)]
        at = dict(concept=f"patch {factor} {value}", against="dictionary", state=1)
        chosen = int(result["best_feature"].sel(at))
        assert scores[chosen] == pytest.approx(max(scores), abs=1e-6)
        truth = held[..., column].expand(here.shape[:2]).flatten().numpy()
        expected = metrics.f1_score(truth, here[..., chosen].flatten().numpy(), zero_division=0)
        assert float(result["f1"].sel(at)) == pytest.approx(expected, abs=1e-5)
        assert (
            float(result["match"].sel(against="dictionary", token="patch", factor=factor).max()) >= max(scores) - 1e-6
        )
    told = result["f1"].sel(against="dictionary", state=1)[result["concept"].str.startswith("patch object")]
    assert float(result["f1_of_factor"].sel(told="patch object", against="dictionary", state=1)) == pytest.approx(
        float(told.mean())
    )


# Switching off


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("token", ["cls", "patch"])
def test_a_feature_switched_off_is_what_plain_hooks_leave(changes, token, data) -> None:
    model = moved(data, **changes)
    trained = coding.train(model, Pass(data), CHOSEN | dict(separate=False))
    coded, images = trained.coded["dictionary"], opened([data[i] for i in range(3)])[0]
    dictionary, scale = coded.dictionaries[token], coded.scales[token]
    features = switching.importance(coded, images, torch.zeros(3, dtype=torch.long))[token].topk(2).indices
    with torch.no_grad():
        z = model.embed(images)
        copies = z.expand(3, 2, *z.shape).flatten(0, 2)
        logits = switching.run(model, copies, switching.without(coded, token, features, 4)).unflatten(0, (3, 2, 3))
        place = slice(0, 1) if token == "cls" else slice(model.config.n_prefix, None)

        def taken_out(out: torch.Tensor, state: int, feature: int) -> torch.Tensor:
            out = out.clone()
            amount = codes_by_hand(dictionary, scale, out[:, place], state)[..., feature]
            out[:, place] -= float(scale.size[state]) * amount[..., None] * dictionary.decoder[0, feature]
            return out

        for i, feature in enumerate(features.tolist()):
            state = taken_out(z, 0, feature)
            for t in range(3):
                state = taken_out(model.run_steps(state, t, t + 1), t + 1, feature)
            assert torch.allclose(logits[0, i], model.read_out(state), atol=1e-4)
        untouched = model(images)
    assert not torch.allclose(logits[0], untouched.expand(2, -1, -1), atol=1e-3)
    assert not torch.allclose(logits[1], logits[0], atol=1e-3) and not torch.allclose(logits[2], logits[0], atol=1e-3)


def test_the_first_order_weight_is_a_derivative_by_differences(model, trained, data) -> None:
    coded = trained.coded["dictionary"]
    images, labels = opened([data[i] for i in range(4)])
    found = switching.importance(coded, images, labels)["patch"]
    with torch.no_grad():
        states = states_by_hooks(model, images)
        for feature in found.argsort(descending=True)[:2].tolist():
            total = torch.zeros(4)
            for t, z in enumerate(states):
                amount = coded.dictionaries["patch"].codes(coded.rows(z, "patch", t), t)[..., feature, None]
                part = torch.zeros_like(z)
                part[:, 1:] = coded.scales["patch"].size[t] * amount * coded.dictionaries["patch"].decoder[0, feature]
                up, down = (
                    switching.margins(model.read_out(model.run_steps(z + sign * 0.01 * part, t, 3)), labels)
                    for sign in (1, -1)
                )
                total += (up - down) / 0.02
            assert float(found[feature]) == pytest.approx(float(total.abs().sum()), rel=0.02)


def test_effects_are_those_of_the_features_of_most_weight(result) -> None:
    for token in ("cls", "patch"):
        weight = result["importance"].sel(token=token).values
        assert result["tested"].sel(token=token).values.tolist() == np.argsort(-weight, kind="stable")[:2].tolist()
    assert result["effect"].dims == ("how", "token", "rank")
    assert (result["effect_low"] <= result["effect"]).all() and (result["effect"] <= result["effect_high"]).all()


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_a_transcoder_stands_in_the_place_of_the_ffn(changes, data) -> None:
    """A dictionary whose threshold is 0 is a ReLU layer: put in the FFN's place by hooks, or by hand in the block."""
    model, images = moved(data, **changes), opened([data[i] for i in range(4)])[0]
    draw = generator(2)
    layer = Dictionary(
        torch.randn(1, 16, 40, generator=draw),
        torch.randn(1, 40, generator=draw),
        torch.randn(1, 40, 16, generator=draw) / 6,
        torch.randn(1, 16, generator=draw),
        torch.tensor(0.0),
    )
    scales = {
        name: activations.Scale(torch.randn(1, 1, 16, generator=draw).expand(3, -1, -1), torch.full((3, 1, 1), size))
        for name, size in (("ffn_in", 0.7), ("ffn_out", 1.9))
    }

    def plain(x, hooks, gamma):
        hidden = ((x - scales["ffn_in"].mean[0]) / 0.7 @ layer.encoder[0] + layer.bias[0]).relu()
        return (hidden @ layer.decoder[0] + layer.offset[0]) * 1.9 + scales["ffn_out"].mean[0]

    with torch.no_grad():
        with model.hooks(switching.ffn_by(model, layer, scales)):
            hooked = model(images)
        for block in model.core:
            block.mlp.forward = plain
        assert torch.allclose(hooked, model(images), atol=1e-4)


def test_answers_are_counted_when_states_and_ffn_are_replaced(result, trained, model, measured, data) -> None:
    images, labels = opened(measured)
    scales = trained.scales
    with torch.no_grad():
        untouched = model(images).argmax(1)
        z = model.embed(images)
        for t in range(4):
            for token, place in (("cls", slice(0, 1)), ("patch", slice(1, None))):
                dictionary = trained.dictionaries["shared", token]
                codes = codes_by_hand(dictionary, scales[token], z[:, place], t)
                back = codes @ dictionary.decoder[0] + dictionary.offset[0]
                z = z.clone()
                z[:, place] = back * scales[token].size[t] + scales[token].mean[t]
            z = model.run_steps(z, t, t + 1) if t < 3 else z
        answers = model.read_out(z).argmax(1)
    of = result.sel(replaced="states, dictionary")
    assert float(of["agreement"]) == pytest.approx(float((answers == untouched).float().mean()))
    assert float(of["accuracy"]) == pytest.approx(float((answers == labels).float().mean()))
    assert float(result["agreement"].sel(replaced="nothing")) == 1
    kept = float((untouched == labels).float().mean())
    assert float(result["accuracy"].sel(replaced="nothing")) == pytest.approx(kept)


def test_the_transcoder_is_held_against_the_mean_of_each_step(result, trained, model, measured) -> None:
    images, _ = opened(measured)
    with torch.no_grad():
        _, cache = model.run_with_cache(images)
        rows = model.core[0].norm2(cache["resid_mid", 1])
    wanted, scales = cache["mlp_out", 1], trained.scales
    codes = codes_by_hand(trained.transcoder, scales["ffn_in"], rows, 1)
    back = (codes @ trained.transcoder.decoder[0] + trained.transcoder.offset[0]) * scales["ffn_out"].size[1]
    left = (wanted - back - scales["ffn_out"].mean[1]).square().sum()
    explained = 1 - left / (wanted - trained.ffn_mean[1]).square().sum()
    assert float(result["ffn_explained"][1]) == pytest.approx(float(explained), abs=1e-4)
    assert float(result["ffn_l0"][1]) == pytest.approx(float((codes > 0).sum(-1).float().mean()), abs=1e-4)


# The whole measurement


def test_batches_do_not_change_the_result(result, model, data) -> None:
    other = probe.measure(model, data, **QUICK | dict(batch_size=4))
    for name in other.data_vars:
        if other[name].dtype.kind == "f":
            assert np.allclose(result[name], other[name], atol=1e-4, equal_nan=True), name
        else:
            assert (result[name] == other[name]).all(), name


def test_a_timm_vit_is_taken_too(data) -> None:
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2, num_classes=20
    )
    model = load(module)
    model.config = dataclasses.replace(model.config, classes=tuple(data.dataset.classes))
    result = probe.measure(model, data, **QUICK | dict(updates=2))
    assert result.sizes["state"] == 3 and np.isfinite(result["ffn_explained"]).all()
    assert analysis.table(result)


def test_what_cannot_be_measured_is_one_sentence(data, model) -> None:
    with pytest.raises(InputError, match="tells no classes apart"):
        probe.measure(fresh(dataclasses.replace(CONFIG, n_classes=0), 0), data)
    with pytest.raises(InputError, match="--k is 16, but 16 features are left for each state"):
        probe.measure(model, data, k=16)
    with pytest.raises(InputError, match="--updates is 0"):
        probe.measure(model, data, updates=0)
    with pytest.raises(InputError, match="--expansion is 1000000, it must lie between 1 and 256"):
        probe.measure(model, data, expansion=10**6)
    with pytest.raises(InputError, match="--effects is 65"):
        probe.measure(model, data, effects=65)
    with pytest.raises(InputError, match="too few"):
        probe.measure(model, Subset(data, [0]), **QUICK)


def test_a_model_of_zeros_has_a_result_without_pictures(data) -> None:
    empty = moved(data)
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.zero_()
    result = probe.measure(empty, data, **QUICK | dict(updates=2))
    assert "thumbnail" not in result and (result["rate"] == 0).all() and analysis.table(result)


# Its analysis


def test_lives_are_read_from_planted_profiles(result) -> None:
    planted = {0: [0, 1, 0.6, 0], 1: [0.1, 0, 0.2, 2], 2: [1, 1, 1, 0.9], 3: [0, 0, 0, 0], 4: [0.2, 0.3, 1, 0.4]}
    profile = result["profile"].sel(token="patch")[: len(planted)] * 0 + np.array([*planted.values()], np.float32)
    of = single.span(profile)
    assert of["length"].values[[0, 1, 2, 4]].tolist() == [2, 1, 4, 1] and np.isnan(of["length"].values[3])
    assert of["born"].values[[0, 1, 2, 4]].tolist() == [1, 3, 0, 2]
    assert of["dies"].values[[0, 1, 2, 4]].tolist() == [2, 3, 3, 2]
    assert single.fates(profile) == {"fade": 25, "come and stay": 25, "come and go": 25, "last": 25}
    assert single.lengths(profile).tolist() == [50, 25, 0, 25]


def test_the_table_and_figures_show_nulls_and_the_untrained_model(result) -> None:
    table = analysis.table(result)
    for said in (
        "sharing changes",
        "one for all, rotated",
        "untrained",
        "others' values",
        "FFN, mean",
        "random direction",
    ):
        assert said in table
    assert len(analysis.figure(result).axes) == 8 + 1
    assert {"patches", "CLS"} >= {ax.get_title() for ax in analysis.figure(result).axes[:2]}
    assert analysis.interactive(result, "cls").data
    frame, every = analysis.frame(result), single.feature_frame(result)
    assert set(frame["model"]) == {"trained", "untrained"} and len(every) == 2 * 64
    rows = single.shown(result)
    assert len({(token, feature) for token, feature, _ in rows}) == len(rows) == 7
    assert single.examples(result).axes and single.examples(result.drop_vars("thumbnail")) is None
    assert len(single.top_frame(result, "patch", 3)) == 4
    assert single.match_frame(result, "cls", 3)["F1"].is_monotonic_decreasing
    token, feature, _ = rows[0]
    pictures = single.top_pictures(result, token, feature)
    assert pictures and pictures[0][0].shape == (32, 32, 3)
