"""Run with: pytest tests/probes/test_composition.py"""

import numpy as np
import pytest
import torch
import xarray as xr

from analyses import composition as composing
from analyses import graph as graphs
from models import ViTConfig
from models.checkpoint import fresh
from probes.methods import composition

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)
SHAPES = {
    "bvit": {},
    "stacked": {"n_blocks": 3},
    "between": {"n_blocks": 2, "step_embedding": "learned", "n_registers": 2},
    "layer scale": {"layer_scale": 0.5, "norm": "rms", "pool": "mean"},
}


def made(**changes: object):
    """A model whose norms and scales are not 1."""
    model = fresh(ViTConfig.from_dict(CONFIG.to_dict() | changes), 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in model.core:
            block.norm1.weight.normal_(1, 0.3, generator=generator)
    return model


def result_of(model, n_steps: int = 3) -> xr.Dataset:
    """A result whose edges are random."""
    graph, rng = graphs.Graph(n_steps, model.config.n_heads), np.random.default_rng(0)
    edge = np.stack([rng.standard_normal(graph.is_edge.shape) * graph.is_edge] * 2)
    coords = dict(how=["gradient", "integrated"], slot=list(graphs.SLOTS), step=range(n_steps), part=graph.parts)
    variables = {"edge": (("how", "source", "target"), edge)} | composition.variables(model, 0)
    return xr.Dataset(variables, coords=coords)


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_composition_is_the_norm_of_the_product_of_whole_matrices(changes) -> None:
    model = made(**changes)
    found = composition.variables(model, 0)["composition"][1]
    blocks = [model.blocks[t] for t in composition.steps(model)]
    assert found.shape == (3, len(blocks), 2, len(blocks), 2)

    def whole(step, head: int) -> tuple[torch.Tensor, torch.Tensor]:
        block = step.shared.block
        weight = block.attn.qkv.weight.detach().double().unflatten(0, (3, 2, 8))[:, head]
        norm = torch.diag(block.norm1.weight.detach().double())
        if block.norm1.is_centred:
            norm = (torch.eye(16) - 1 / 16).double() @ norm
        q, k, v = (norm @ one.T for one in weight)
        return q @ k.T, v @ step.attn.W_O[head].detach().double()

    for i, writer in enumerate(blocks):
        for j, reader in enumerate(blocks):
            (_, first), (qk, ov) = whole(writer, 1), whole(reader, 0)
            for slot, second in enumerate((qk, qk.T, ov)):
                expected = (first @ second).norm() / (first.norm() * second.norm())
                assert found[slot, i, 1, j, 0] == pytest.approx(float(expected), rel=1e-6)


def test_chance_of_composition_is_that_of_rotated_matrices() -> None:
    """Against whole products with a random rotation between them; its mean square has a closed form, 1 / d_model."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(4, 1, *shape, generator=generator).double() for shape in ((12, 3), (3, 12))]
    writer, reader = ([factors[0][i], factors[1][i]] for i in (0, 1))
    drawn = composition.of_random(writer, reader, 0)[:, 0, 0]
    first, second = (of[0][0] @ of[1][0] for of in (writer, reader))
    turned = [torch.linalg.qr(torch.randn(12, 12, generator=generator).double()).Q for _ in range(400)]
    slow = np.array([float((first @ turn @ second).norm() / (first.norm() * second.norm())) for turn in turned])
    assert np.square(drawn).mean() == pytest.approx(1 / 12, rel=0.06)
    assert np.allclose(np.quantile(drawn, [0.1, 0.5, 0.9]), np.quantile(slow, [0.1, 0.5, 0.9]), rtol=0.06)


def test_pairs_that_no_run_composes_do_not_count() -> None:
    result, stacked = result_of(made()), result_of(made(n_blocks=3))
    assert composing.is_possible(result).values.tolist() == [[True]]
    assert composing.is_possible(stacked).values.tolist() == np.triu(np.ones((3, 3), bool), 1).tolist()
    assert composing.outside(stacked, stacked)[2] == 3 * 3 * 2 * 2
    use = composing.used_by_weights(stacked)
    assert use.shape == (3, 3, 2, 3, 2) and np.allclose(use[:, 2], 0)
    by_hand = sum(
        abs(float(graphs.between_heads(result).sel(how="integrated", slot="k")[s, 1, t, 0]))
        for t in range(3)
        for s in range(t)
    )
    assert float(composing.used_by_weights(result).sel(slot="k")[0, 1, 0, 0]) == pytest.approx(by_hand)
    assert np.allclose(use.sum(["block", "other_block"]), composing.used_by_weights(result)[:, 0, :, 0])


def test_agreement_of_scores_with_their_use_is_one_where_they_have_one_order() -> None:
    result = result_of(made())
    edges = composing.used_by_weights(result).transpose(*result["composition"].dims)
    planted = result.assign(
        composition=result["composition"].copy(data=edges), composition_chance=edges.copy(data=edges * 0 + 1)
    )
    assert composing.agreement(planted) == pytest.approx(1)
    assert len(composing.lines(planted)) == 3 and composing.use_map(planted).values.shape == (12, 3)
    assert composing.score_map(result_of(made(n_blocks=3)), "q").values.shape == (6, 6)
