"""Sparse dictionaries and the buffer they are trained from. Run with: pytest tests/probes/test_dictionaries.py"""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from models import ViTConfig, open_data
from models.checkpoint import fresh
from models.errors import InputError, Stopped
from models.loop import generator
from probes.methods import activations, coding, concepts, dictionaries
from probes.walk import Pass

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)
HOW = dict(k=3.0, seed=0, device="cpu", kept=None, key={})


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 46, 2))


@pytest.fixture(scope="module")
def model(data):
    return fresh(dataclasses.replace(CONFIG, classes=tuple(data.dataset.classes), n_registers=1), 0).eval()


def planted(n_directions: int, width: int, k: int, places: int = 1, rows: int = 256):
    """Rows that are sums of k of so many unit directions, the same in all places: the directions, and their batches."""
    directions = torch.nn.functional.normalize(torch.randn(n_directions, width, generator=generator(7)), dim=1)

    def batches(first: int, last: int):
        for update in range(first, last):
            draw = generator(8, update)
            which = torch.rand(places, rows, n_directions, generator=draw).topk(k, -1).indices
            amount = torch.zeros(places, rows, n_directions).scatter_(
                -1, which, 1 + torch.rand(places, rows, k, generator=draw)
            )
            yield {"rows": (amount @ directions, amount @ directions)}

    return directions, batches


def test_a_planted_dictionary_is_recovered() -> None:
    directions, batches = planted(24, 32, 2)
    plans = {"one": dictionaries.Plan("rows", 1, 48, 32)}
    found = dictionaries.fitted(plans, batches, updates=300, **HOW | {"k": 2.0})["one"]
    cosine = (directions @ found.decoder[0].T).amax(1)
    assert cosine.min() > 0.9 and cosine.median() > 0.97
    rows = next(batches(900, 901))["rows"][0]
    codes = found.codes(rows[0], 0)
    left = rows[0] - found.decoded(codes, 0)
    assert 1 - left.square().sum() / (rows[0] - rows[0].mean(0)).square().sum() > 0.9
    assert float((codes > 0).sum(-1).float().mean()) == pytest.approx(2, abs=0.2)
    turned = found.rotated(0).calibrated([rows], 2)
    assert torch.allclose(turned.decoder @ turned.decoder.mT, found.decoder @ found.decoder.mT, atol=1e-5)
    assert (directions @ turned.decoder[0].T).amax(1).median() < 0.9


def test_a_group_for_each_place_sees_its_place_alone() -> None:
    _, batches = planted(12, 8, 2, places=3, rows=32)
    plans = {"each": dictionaries.Plan("rows", 3, 10, 8)}
    mixed = dictionaries.fitted(plans, batches, updates=20, **HOW)["each"]

    def last_is_nothing(first: int, last: int):
        for batch in batches(first, last):
            rows = batch["rows"][0] * torch.tensor([1.0, 1.0, 0.0])[:, None, None]
            yield {"rows": (rows, rows)}

    other = dictionaries.fitted(plans, last_is_nothing, updates=20, **HOW)["each"]
    assert mixed.group(2) == 2 and mixed.n_features == 10
    assert not torch.allclose(mixed.decoder[2], other.decoder[2], atol=1e-3)
    assert torch.allclose(mixed.decoder.norm(dim=-1), torch.ones(3, 10), atol=1e-6)


def test_a_transcoder_learns_a_linear_layer() -> None:
    matrix = torch.randn(4, 4, generator=generator(3)) / 2

    def batches(first: int, last: int):
        for update in range(first, last):
            rows = torch.randn(1, 256, 4, generator=generator(5, update))
            yield {"ffn": (rows, rows @ matrix)}

    plans = {"ffn": dictionaries.Plan("ffn", 1, 32, 4, is_transcoder=True)}
    found = dictionaries.fitted(plans, batches, updates=400, **HOW | {"k": 16.0})["ffn"]
    rows = torch.randn(500, 4, generator=generator(6))
    left = rows @ matrix - found.decoded(found.codes(rows, 0), 0)
    assert left.square().sum() / (rows @ matrix).square().sum() < 0.05


def test_the_threshold_lets_k_features_fire_on_average() -> None:
    activations_ = torch.rand(2, 50, 30, generator=generator(1))
    kept = dictionaries.largest(activations_, 4)
    assert int((kept > 0).sum()) == 2 * 50 * 4
    assert kept[kept > 0].min() >= activations_[kept == 0].max()


def test_features_that_do_not_fire_are_counted_idle_and_learn_from_what_is_left() -> None:
    _, batches = planted(12, 8, 2)
    rows = next(batches(0, 1))["rows"][0]
    weights = dictionaries.Plan("rows", 1, 10, 8).fresh(0, "cpu")
    with torch.no_grad():
        weights["bias"][0, 3] = -100  # never fires, and cannot learn
        weights["bias"][0, 4] = -0.9 * float(dictionaries.pre_threshold(weights, rows)[0, :, 4].max())  # hardly ever
    idle = torch.full((1, 10), float(dictionaries.IDLE))
    loss = dictionaries.loss_of(weights, rows, rows, 1.0, idle)
    codes = dictionaries.largest(dictionaries.pre_threshold(weights, rows), 1.0)
    fires = (codes > 0).any(1)
    assert not fires[0, 3] and torch.equal(idle == 0, fires) and (idle[~fires] == dictionaries.IDLE + 1).all()
    plain = (rows - codes @ weights["decoder"] - weights["offset"]).square().mean()
    assert loss > plain
    gradient = torch.autograd.grad(loss, weights["decoder"])[0]
    assert not fires[0, 4] and gradient[0, 4].abs().sum() > 0


def test_a_killed_fit_ends_in_the_same_weights(tmp_path, model, data) -> None:
    walk = Pass(data)
    moments = activations.moments_of(model, walk)
    scales = {site: activations.Scale.of(of) for site, of in moments.items()}
    buffer = activations.Buffer(model, walk, scales)
    plans = {
        "one": dictionaries.Plan("patch", 1, 40, 16),
        "ffn": dictionaries.Plan("ffn", 1, 40, 16, is_transcoder=True),
    }
    whole = dictionaries.fitted(plans, buffer.batches, updates=40, **HOW)

    def stopped(first: int, last: int):
        for update, batch in enumerate(buffer.batches(first, last), first):
            if update == 35:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    kept = HOW | dict(kept=tmp_path / "x.partial", key={"seed": 0})
    with pytest.raises(Stopped):
        dictionaries.fitted(plans, stopped, updates=40, **kept)
    resumed = dictionaries.fitted(plans, buffer.batches, updates=40, **kept)
    for name, of in whole.items():
        for field in dataclasses.fields(of):
            assert torch.equal(getattr(of, field.name), getattr(resumed[name], field.name)), (name, field.name)


def test_a_loss_that_is_not_finite_is_one_sentence() -> None:
    def batches(first: int, last: int):
        for _ in range(first, last):
            yield {"rows": (torch.full((1, 8, 4), torch.nan),) * 2}

    with pytest.raises(InputError, match="the loss is not finite"):
        dictionaries.fitted({"one": dictionaries.Plan("rows", 1, 8, 4)}, batches, updates=2, **HOW)


# The buffer


def whole_rows(model, data) -> dict[str, torch.Tensor]:
    """Every state and what goes in and out of the FFN, kept whole: [image place pos d_model]."""
    images = torch.stack([data[i][0] for i in range(len(data))])
    with torch.no_grad():
        _, cache = model.run_with_cache(images)
        states = torch.stack([model.embed(images), *(cache["resid_post", t] for t in range(3))], 1)
        norm = [model.core[model.config.block_of(t)].norm2 for t in range(3)]
        inputs = torch.stack([norm[t](cache["resid_mid", t]) for t in range(3)], 1)
        outputs = torch.stack([cache["mlp_out", t] for t in range(3)], 1)
    return {"cls": states[:, :, :1], "patch": states[:, :, 2:], "ffn_in": inputs, "ffn_out": outputs}


def apart(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Distances [... row other]."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def test_what_the_buffer_gives_is_what_the_whole_array_holds(model, data) -> None:
    walk, whole = Pass(data, seed=3), whole_rows(model, data)
    moments = activations.moments_of(model, walk)
    scales = {site: activations.Scale.of(of, common=site.startswith("ffn")) for site, of in moments.items()}
    batches = [*activations.Buffer(model, walk, scales).batches(0, 40)]
    spread = {}
    for token in ("cls", "patch"):
        flat = whole[token].transpose(0, 1).flatten(1, 2)  # [state row d]
        spread[token] = flat.var((1), unbiased=False).mean(1).sqrt()
        assert torch.allclose(scales[token].mean[:, 0], flat.mean(1), atol=1e-5)
        assert torch.allclose(scales[token].size[1:, 0, 0], spread[token][1:], rtol=1e-4)
        rows = scales[token].outward(batches[33][token][0])  # of the second filling
        distance = apart(rows, flat)
        assert distance.amin(-1).max() < 1e-4 and batches[33][token][0] is batches[33][token][1]
        nearest = distance[1].argmin(-1)
        assert (distance.argmin(-1)[1:] == nearest).all()  # the same rows of all states, but for z_0, all CLS alike
    assert len(set(distance[1].argmin(-1).tolist())) == rows.shape[1]  # no patch twice
    inputs, outputs = (whole[name].transpose(0, 1).flatten(1, 2) for name in ("ffn_in", "ffn_out"))
    distance = apart(scales["ffn_in"].outward(batches[2]["ffn"][0]), inputs)
    assert distance.amin(-1).max() < 1e-4
    picked = torch.stack([out[at] for out, at in zip(outputs, distance.argmin(-1), strict=True)])
    assert torch.allclose(scales["ffn_out"].outward(batches[2]["ffn"][1]), picked, atol=1e-4)
    tokens = torch.cat([whole["ffn_out"][:, :, :1], whole["ffn_out"][:, :, 2:]], 2)  # no register
    common = tokens.flatten(0, 2)
    assert torch.allclose(scales["ffn_out"].mean[2, 0], common.mean(0), atol=1e-5)
    assert float(scales["ffn_out"].size[1]) == pytest.approx(
        float(common.var(0, unbiased=False).mean().sqrt()), rel=1e-4
    )


def test_a_batch_depends_on_seed_and_update_alone(model, data) -> None:
    walk = Pass(data, seed=1)
    scales = {site: activations.Scale.of(of) for site, of in activations.moments_of(model, walk).items()}
    every = [*activations.Buffer(model, walk, scales).batches(0, 36)]
    later = [*activations.Buffer(model, dataclasses.replace(walk, batch_size=5), scales).batches(30, 36)]
    other = next(activations.Buffer(model, dataclasses.replace(walk, seed=2), scales).batches(0, 1))
    for one, two in zip(every[30:], later, strict=True):
        assert all(torch.equal(one[site][i], two[site][i]) for site in one for i in (0, 1))
    assert not torch.equal(every[0]["patch"][0], other["patch"][0])


def test_principal_components_are_those_of_the_state(model, data) -> None:
    found = coding.principal(activations.moments_of(model, Pass(data))["patch"], 3)
    rows = whole_rows(model, data)["patch"][:, 2].flatten(0, 1)
    _, _, v = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert torch.allclose(found[2] @ found[2].T, v[:3].T @ v[:3], atol=1e-3)


# Concepts


def test_patches_know_what_their_centre_shows(data) -> None:
    walk = Pass(data)
    known = concepts.of_images(walk, 8)
    images, patch, whole = len(data), known["patch"], data.dataset
    held = patch.present(np.arange(images)).bool()
    names = patch.names
    made = whole.factors(data.indices)
    for i in range(6):
        mask, label = data[i][2], data[i][1]
        for place in range(16):
            y, x = divmod(place, 4)
            inside = mask[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            shown = int(inside[4, 4])
            says = {name for name, there in zip(names, held[i, place], strict=True) if there}
            assert (("object", "target") in says) == (shown == label + 1)
            assert (("object", "background") in says) == (shown == 0)
            assert (("edge", "edge") in says) == (len(inside.unique()) > 1)
            assert (("row", "first third") in says) == (y * 3 // 4 == 0)
            if shown > 0:
                shape, fill = whole.classes[shown - 1].split()
                assert {("shape", shape), ("fill", fill), ("class", whole.classes[shown - 1])} <= says
            else:
                assert not any(name == "shape" for name, _ in says)
    cls = known["cls"].present(np.arange(images))[:, 0].bool()
    where = known["cls"].names.index(("hue", "60 to 120 degrees"))
    assert (cls[:, where].numpy() == ((made["hue"] >= 1 / 6) & (made["hue"] < 2 / 6))).all()


def test_other_images_values_are_as_frequent(data) -> None:
    known = concepts.of_images(Pass(data), 8)["patch"]
    everything = np.arange(len(data))
    own, other = known.present(everything), known.shuffled(0).present(everything)
    assert torch.equal(own.sum((0, 1)), other.sum((0, 1))) and not torch.equal(own, other)
    place = known.names.index(("object", "target"))
    assert torch.equal(own[..., place].sum(0), other[..., place].sum(0))  # every patch in its place
    column = known.names.index(("column", "last third"))
    assert not torch.equal(own[0, :, column], other[0, :, column])
