"""Run with: pytest tests/probes/test_attribution.py"""

import dataclasses
import time

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import Subset

from analyses import attribution as analysis
from analyses import composition as composing
from analyses import graph as graphs
from models import ViTConfig, load, open_data
from models.checkpoint import fresh
from models.errors import InputError
from probes import attribution as probe
from probes.methods.circuits import Circuits
from tests.probes.small import CONFIG, SHAPES, made
from tests.reference.slow_circuits import of_circuit


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 36, 2))


@pytest.fixture(scope="module")
def model(data):
    return made(data)


@pytest.fixture(scope="module")
def result(model, data):
    return probe.measure(model, data, control=fresh(model.config, 1).eval(), images=12, exact=6, points=3, checked=5)


class Straight(nn.Module):
    """In a norm's place: nothing is normed."""

    is_centred, weight = False, torch.ones(16)

    def forward(self, x, hooks=None):
        return x


def linear(data=None, **changes: object):
    """A model whose logits are linear in every stream: uniform attention, no norm, no GELU; all weights zero."""
    classes = tuple(data.dataset.classes) if data is not None else None
    model = fresh(dataclasses.replace(CONFIG, **({"n_blocks": 3, "classes": classes} | changes)), 0).eval()
    model.norm = Straight()
    with torch.no_grad():
        for block in model.core:
            block.norm1, block.norm2 = Straight(), Straight()
            block.mlp.forward = lambda x, hooks, gamma, mlp=block.mlp: mlp.fc2(hooks.hook_post(mlp.fc1(x)))
            for weights in block.parameters():
                weights.zero_()
        model.head.weight.zero_()
    return model


def head_of(model, step: int, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views onto what a head of a stacked model reads as v [d_head d_model] and writes [d_model d_head]."""
    attention = model.core[step].attn
    d_head = model.config.d_head
    v = attention.qkv.weight.data.unflatten(0, (3, -1, d_head))[2, head]
    return v, attention.proj.weight.data.unflatten(1, (-1, d_head))[:, head]


def start(model, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """z_0 of some random images, and that of others."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, n, model.config.n_tokens, model.config.d_model, generator=generator)
    return z.to(model.pos_embed).unbind()


def of_class(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 3] - logits[:, 5]


# Attribution


def test_in_a_linear_model_attributions_are_the_exact_effects(data) -> None:
    model = linear(data)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model.head.weight.normal_(generator=generator)
        for step, block in enumerate(model.core):
            block.mlp.fc1.weight.normal_(0, 0.3, generator=generator)
            block.mlp.fc2.weight.normal_(0, 0.3, generator=generator)
            for head in range(2):
                for weights in head_of(model, step, head):
                    weights.normal_(generator=generator)
    result = probe.measure(model, data, images=10, exact=6, points=2, checked=60)
    for how in analysis.HOWS:
        for kind in ("node", "edge"):
            exact, attributed = result[f"exact_{kind}"].values, result[f"sample_{kind}"].sel(how=how).values
            assert np.allclose(exact, attributed, rtol=1e-3, atol=1e-4 * np.abs(exact).max()), (how, kind)
            assert np.abs(exact).max() > 0.1
    edges = graphs.between_heads(result)
    assert float(np.abs(edges.sel(slot=["q", "k"])).max()) < 1e-5 < float(np.abs(edges.sel(slot="v")).max())


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_effects_are_derivatives_and_edges_sum_to_nodes(data, changes) -> None:
    """Of the metric along what is cut, where it is cut: against small exact patches, in double precision."""
    model = made(data, **changes).double()
    wires, (z, other) = Circuits(model), start(model)
    delta = wires.sources(z) - wires.sources(other)
    node, edge = (attribute(z, delta, of_class) for attribute in (wires.nodes, wires.edges))
    assert torch.allclose(edge.sum(-1), node, atol=1e-9) and node.abs().max() > 1e-3
    states, small = wires.states(z), 1e-6
    with torch.no_grad():
        for source in range(wires.graph.n_sources):
            ends = [of_class(wires.without_node(states, sign * small * delta, source)) for sign in (-1, 1)]
            assert torch.allclose((ends[0] - ends[1]) / (2 * small), node[:, source], rtol=1e-4, atol=1e-5)
        for source, target in torch.from_numpy(wires.graph.is_edge).nonzero()[::23].tolist():
            ends = [of_class(wires.without_edge(states, sign * small * delta, source, target)) for sign in (-1, 1)]
            assert torch.allclose((ends[0] - ends[1]) / (2 * small), edge[:, source, target], rtol=1e-4, atol=1e-5)
    assert not edge[:, ~torch.from_numpy(wires.graph.is_edge)].any()


def test_nodes_alone_are_those_with_edges(model, data, result) -> None:
    alone = probe.measure(model, data, images=12, exact=6, points=3, edges=False)
    assert np.allclose(alone["node"], result["node"], rtol=1e-3, atol=1e-4) and "edge" not in alone
    assert np.allclose(result["edge"].sum("target")[:, 1:], result["node"].values.reshape(2, -1), rtol=1e-4, atol=1e-4)
    assert analysis.table(alone) and analysis.figure(alone)


def test_gradients_vanish_in_a_saturated_softmax_and_integrated_ones_do_not() -> None:
    """One head looks at the token whose key is large; only its key differs from the other run's."""
    model = linear(n_steps=1, n_blocks=1, pool="cls")
    _, k, v = model.core[0].attn.qkv.weight.data.unflatten(0, (3, 2, 8))[:, 0]
    model.core[0].attn.qkv.bias.data[0] = 1.0
    k[0, 0], v[0, 1], head_of(model, 0, 0)[1][2, 0] = 60.0, 1.0, 1.0
    model.head.weight.data[3, 2] = 1.0
    other = torch.zeros(1, model.config.n_tokens, 16)
    other[:, 4, 1] = 1.0
    z = other.clone()
    z[:, 4, 0] = 3.0
    wires = Circuits(model)
    delta = wires.sources(z) - wires.sources(other)
    key = wires.graph.reading(0, 1).start
    exact = of_class(wires.logits(z)) - of_class(wires.without_edge(wires.states(z), delta, 0, key))
    gradient = wires.edges(z, delta, of_class)[:, 0, key]
    way = [other + (i + 0.5) / 40 * (z - other) for i in range(40)]
    integrated = sum(wires.edges(between, delta, of_class)[:, 0, key] for between in way) / 40
    assert exact > 0.9 and abs(gradient) < 0.01 * exact and abs(integrated - exact) < 0.1 * exact


def test_effects_that_cancel_in_a_node_are_seen_in_its_edges() -> None:
    model = linear(n_steps=2, n_blocks=2)
    read, write = head_of(model, 0, 0)
    read[0, 0], write[1, 0] = 1.0, 1.0
    read, write = head_of(model, 1, 1)
    read[0, 1], write[1, 0] = 1.0, -1.0  # takes back what the first has written into every token
    model.head.weight.data[3, 1] = 1.0
    wires, (z, other) = Circuits(model), start(model)
    delta = wires.sources(z) - wires.sources(other)
    edge, graph = wires.edges(z, delta, of_class), wires.graph
    source = graph.sources.index("blocks.0 h0")
    assert edge[:, source].sum(-1).abs().max() < 1e-5
    direct, through = edge[:, source, -1], edge[:, source, graph.targets.index("blocks.1 v1")]
    assert direct.abs().min() > 1e-4 and torch.allclose(direct, -through, atol=1e-6)


def test_a_planted_circuit_is_found(data) -> None:
    """Head 1 of step 1 copies what the patches are like into CLS; head 0 of step 3 copies that into the answer."""
    model = linear(data)
    read, write = head_of(model, 0, 1)
    read[0], write[5, 0] = model.patch_embed.proj.weight.data.sum((1, 2, 3)), 1.0
    read, write = head_of(model, 2, 0)
    read[0, 5], write[6, 0] = 40.0, 1.0
    model.head.weight.data[:, 6] = torch.linspace(-1, 1, 20)
    model.patch_embed.proj.weight.data[5:7] = 0
    for name in ("cls_token", "pos_embed"):
        getattr(model, name).data[..., 5:7] = 0
    model.patch_embed.proj.bias.data[5:7] = 0
    result = probe.measure(model, data, images=12, exact=6, checked=3)
    graph, edge = graphs.graph_of(result), result["edge"].sel(how="integrated").values
    found = {(graph.sources[i], graph.targets[j]) for i, j in np.argwhere(graphs.strongest(edge, graph, 3))}
    assert found == {("embedding", "blocks.0 v1"), ("blocks.0 h1", "blocks.2 v0"), ("blocks.2 h0", "logits")}
    others = np.sort(np.abs(edge).ravel())[::-1]
    assert others[3] < 1e-4 * others[2]
    assert analysis.smallest(result) == 4 and float(analysis.faithfulness(result)[-1, 0]) == pytest.approx(1, abs=1e-4)
    assert composing.frame(result).query("model == 'trained'").nlargest(1, "composition")[
        ["slot", "block", "head", "other_block", "other_head"]
    ].values.tolist() == [["v", 0, 1, 2, 0]]


# Exact patches and circuits


def test_exact_patches_of_nodes_are_mean_ablations_by_hand(model, data, result) -> None:
    """Plain torch hooks put the mean z of a head, or the mean FFN output, over the other images in its place."""
    chosen = [int(i) // 2 for i in result["index"]]
    held_out = [i for i in probe.probe.as_pass(data).sample(18).indices(range(18)) if i not in result["index"]]
    picked = {i: data.dataset[int(i)] for i in held_out}
    assert len(chosen) == 12 and len(picked) == 6
    images = torch.stack([of[0] for of in picked.values()])
    labels = torch.tensor([of[1] for of in picked.values()])
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.stack([data[i][0] for i in chosen]))
        before = model(images)
        rows = torch.arange(6)
        rival = before.scatter(1, labels[:, None], -torch.inf).argmax(1)

        def lost(name: str, change) -> float:
            handle = model.get_submodule(name).register_forward_hook(lambda m, args, out: change(out.clone()))
            after = model(images)
            handle.remove()
            score = [logits[rows, labels] - logits[rows, rival] for logits in (before, after)]
            return float((score[0] - score[1]).mean())

        def mean_of(values: torch.Tensor) -> torch.Tensor:
            patches = values[:, 1:].mean((0, 1), keepdim=True).expand(1, values.shape[1] - 1, *values.shape[2:])
            return torch.cat([values[:, :1].mean(0, keepdim=True), patches], 1)

        for step in range(3):
            z, out = mean_of(cache[f"blocks.{step}.attn.hook_z"]), mean_of(cache[f"blocks.{step}.hook_mlp_out"])

            def without_head(own: torch.Tensor, z: torch.Tensor = z) -> torch.Tensor:
                own[:, :, 1] = z[:, :, 1]
                return own

            exact = result["exact_node"].sel(step=step)
            assert float(exact.sel(part="h1")) == pytest.approx(
                lost(f"blocks.{step}.attn.hook_z", without_head), abs=1e-4
            )
            without_ffn = lost(f"blocks.{step}.hook_mlp_out", lambda own, out=out: out.expand_as(own))
            assert float(exact.sel(part="ffn")) == pytest.approx(without_ffn, abs=1e-4)


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_an_edge_s_patch_is_that_head_s_projection_of_another_stream(model, slot: int) -> None:
    wires, (z, other) = Circuits(model), start(model)
    delta, block = wires.sources(z) - wires.sources(other), model.core[0]
    states, source = wires.states(z), wires.graph.sources.index("blocks.0 ffn")
    with torch.no_grad():
        stream = states[1] - delta[source]
        projected = block.attn.qkv(block.norm1(stream)).unflatten(-1, (3, 2, 8))[:, :, slot, 1]

        def put(out: torch.Tensor, hook: object) -> torch.Tensor:
            out = out.clone()
            out[:, :, 1] = projected
            return out

        with model.hooks([(f"blocks.1.attn.hook_{'qkv'[slot]}", put)]):
            expected = wires.logits(states[1], 1)
        target = wires.graph.reading(1, slot).start + 1
        assert torch.allclose(wires.without_edge(states, delta, source, target), expected, atol=1e-4)
        assert not torch.allclose(expected, wires.logits(z), atol=1e-3)


def test_a_circuit_is_the_run_written_out_edge_by_edge(model) -> None:
    wires, (z, other) = Circuits(model), start(model)
    reference, rng = wires.sources(other), np.random.default_rng(0)
    with torch.no_grad():
        for n in (0, 10, 60, int(wires.graph.is_edge.sum())):
            kept = graphs.drawn(wires.graph, n, rng)
            expected = of_circuit(model, z, reference, kept)
            assert torch.allclose(wires.of_circuit(z, reference, torch.from_numpy(kept)), expected, atol=1e-4)
        assert torch.allclose(expected, wires.logits(z), atol=1e-4)


def test_circuits_end_in_the_whole_model_and_random_ones_are_beside(result) -> None:
    kept, random = analysis.faithfulness(result), analysis.faithfulness(result, "random_difference")
    assert np.allclose(kept[:, -1], 1, atol=1e-4) and np.allclose(random[:, -1], 1, atol=1e-4)
    assert random.sizes["draw"] == probe.N_DRAWS and int(result["n_edges"][0]) == 4
    assert set(result["checked_as"].values) == {"strongest", "random"}


# The probe


@pytest.mark.parametrize("corrupt", ["mean", "image"])
def test_batches_and_parts_do_not_change_the_result(model, data, corrupt: str, monkeypatch) -> None:
    how = dict(images=8, exact=4, points=2, checked=3, corrupt=corrupt)
    one = probe.measure(model, data, batch_size=18, **how)
    monkeypatch.setattr(probe, "BYTES", 1)
    other = probe.measure(model, data, batch_size=5, **how)
    for name in one.data_vars:
        if one[name].dtype.kind == "f":
            assert np.allclose(one[name], other[name], atol=1e-5), name


def test_a_timm_vit_is_taken_too(data) -> None:
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2, num_classes=20
    )
    model = load(module)
    model.config = dataclasses.replace(model.config, classes=tuple(data.dataset.classes))
    images = Subset(open_data("shapes-easy", like=model), range(8))
    result = probe.measure(model, images, images=6, exact=2, points=2, checked=3)
    assert result.sizes["step"] == 2 and result["composition"].shape == (3, 2, 2, 2, 2)
    assert analysis.table(result) and len(analysis.composition_figure(result).axes) >= 4


def test_what_cannot_be_measured_is_one_sentence(data, model) -> None:
    with pytest.raises(InputError, match="tells no two classes apart"):
        probe.measure(fresh(dataclasses.replace(CONFIG, n_classes=0), 0), data)
    for option in ("images", "points", "checked"):
        with pytest.raises(InputError, match=f"--{option} is 0"):
            probe.measure(model, data, **{option: 0})
    with pytest.raises(InputError, match="--exact is -1"):
        probe.measure(model, data, exact=-1)
    with pytest.raises(InputError, match="one image is too few"):
        probe.measure(model, Subset(data, [0]))
    alike = Subset(data, [i for i in range(len(data)) if data[i][1] == data[0][1]])
    with pytest.raises(InputError, match="images of two classes"):
        probe.measure(model, alike, exact=0, corrupt="image")


def test_one_pass_is_ten_times_faster_than_a_patch_for_each_node() -> None:
    """Side by side in one run: all nodes at once, against one forward for each."""
    model = fresh(ViTConfig.preset("bvit_easy", n_steps=12, n_classes=20), 0).eval()
    wires, (z, other) = Circuits(model), start(model, 8)
    delta = wires.sources(z) - wires.sources(other)

    def one_by_one() -> None:
        with torch.inference_mode():
            of_class(wires.logits(z))
            for source in range(wires.graph.n_sources):
                wires.without_node([z], delta, 0) if source == 0 else patched(source)

    def patched(source: int) -> None:
        name = "mlp_out" if wires.graph.is_ffn(source) else "attn_out"
        hook = f"blocks.{wires.graph.step_of_source(source)}.hook_{name}", lambda out, hook: out - delta[source]
        with model.hooks([hook]):
            wires.logits(z)

    def seconds(run) -> float:
        started = time.process_time()
        run()
        return time.process_time() - started

    def together() -> None:
        wires.nodes(z, delta, of_class)

    seconds(together), seconds(one_by_one)
    assert max(seconds(one_by_one) / seconds(together) for _ in range(3)) > 10


# The analysis


def test_the_table_and_figures_show_trust_chance_and_the_untrained_model(result) -> None:
    table = analysis.table(result)
    for said in ("rank correlation", "worst miss", "of random", "as many random ones", "untrained", "chance"):
        assert said in table, said
    assert len(analysis.figure(result).axes) == 3 + 2 and len(analysis.exact_figure(result).axes) == 2
    assert analysis.interactive(result).data[0].z.shape == (3, 3)
    assert set(analysis.frame(result)["model"]) == {"trained", "untrained"}
    edges = analysis.edges(result)
    assert len(edges) == graphs.graph_of(result).is_edge.sum()
    assert edges["integrated"].abs().is_monotonic_decreasing


def test_agreement_is_spearman_s_and_names_the_worst_miss() -> None:
    correlation, missed, place = analysis.agreement(np.array([1.0, 2, 3, 10]), np.array([1.0, 2, 4, 3]))
    assert (correlation, missed, place) == (pytest.approx(0.8), 7, 3)


def test_edges_between_heads_have_their_places(result) -> None:
    graph, cells = graphs.graph_of(result), graphs.between_heads(result)
    edge = result["edge"].sel(how="gradient")
    cell = cells.sel(how="gradient", slot="k", step=0, other_step=2)[1, 0]
    assert float(cell) == float(edge.sel(source="blocks.0 h1", target="blocks.2 k0"))
    assert graph.place_of_target(graph.targets.index("blocks.2 k0")) == (2, 1, 0)
    steps = graphs.step_to_step(result)
    assert steps.shape == (3, 3) and np.allclose(steps[np.tril_indices(3, -1)], 0)
