"""Maps of relevance against plain torch, one image at a time. Run with: pytest tests/probes/test_relevance.py"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch.utils.data import Subset

from analyses import draw, results
from analyses import pointing_game as analysis
from models import ViTConfig, load, open_data
from models.checkpoint import fresh, save
from models.errors import InputError
from probes import pointing_game as game
from probes.methods import relevance
from tests.reference import slow_vit

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)
RUNS = Path(__file__).parents[2] / "runs"
SHAPES = {
    "bvit": {},
    "stacked": {"n_blocks": 3},
    "step embedding": {"step_embedding": "learned", "n_registers": 2},
    "mean": {"norm": "rms", "layer_scale": 0.5, "pool": "mean"},
}


def made(**changes: object):
    """A model whose attention is far from uniform."""
    torch.manual_seed(0)
    model = fresh(dataclasses.replace(CONFIG, **changes), 0).eval()
    with torch.no_grad():
        model.head.weight.normal_()
        for block in model.core:
            block.attn.qkv.weight.mul_(4)
            block.attn.proj.weight.mul_(4)
    return model


def by_hand(model, image: torch.Tensor, target: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Patterns [head query key] of every step of one image, and the gradient of the target's logit there, in float64
    by loops over heads.
    """
    config, d = model.config, model.config.d_head
    weights = {name: value.double() for name, value in model.state_dict().items()}
    z, patterns = model.embed(image[None])[0].detach().double().requires_grad_(), []
    for t in range(config.n_steps):
        block = f"core.{config.block_of(t)}"
        z = z if config.step_embedding == "none" else z + model.step_embedding(t).detach().double()
        inner = slow_vit.norm(z, weights, f"{block}.norm1", config)
        q, k, v = slow_vit.linear(inner, weights, f"{block}.attn.qkv").split(config.d_model, -1)
        heads = [slice(h * d, (h + 1) * d) for h in range(config.n_heads)]
        pattern = torch.stack([(q[:, own] @ k[:, own].T / d**0.5).softmax(-1) for own in heads])
        pattern.retain_grad()
        patterns.append(pattern)
        out = torch.cat([pattern[h] @ v[:, own] for h, own in enumerate(heads)], -1)
        z = z + slow_vit.linear(out, weights, f"{block}.attn.proj") * weights.get(f"{block}.ls1.gamma", 1)
        inner = slow_vit.norm(z, weights, f"{block}.norm2", config)
        z = z + slow_vit.mlp(inner, weights, block) * weights.get(f"{block}.ls2.gamma", 1)
    pooled = z[0] if config.pool == "cls" else z[config.n_prefix :].mean(0)
    slow_vit.linear(slow_vit.norm(pooled, weights, "norm", config), weights, "head")[target].backward()
    return [pattern.detach() for pattern in patterns], [pattern.grad for pattern in patterns]


def maps_by_hand(patterns: list[torch.Tensor], gradients: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """[step head key], from whole matrices and whole products."""
    one, n_steps = torch.eye(patterns[0].shape[-1]).double(), len(patterns)
    useful = [(pattern * gradient).clamp(min=0) for pattern, gradient in zip(patterns, gradients, strict=True)]
    carried, chefer = one, []
    for step in useful:
        carried = carried + step.mean(0) @ carried
        chefer.append(carried[:1])
    rollout = []
    for first in range(n_steps):
        product = one
        for t in range(first, n_steps):
            product = (patterns[t].mean(0) + one) / 2 @ product
        rollout.append(product[:1])
    found = {
        "attention": torch.stack([pattern[:, 0] for pattern in patterns]),
        "gradient": torch.stack([step[:, 0] for step in useful]),
        "chefer": torch.stack(chefer),
        "rollout": torch.stack(rollout),
    }
    return {name: of / of.sum(-1, keepdim=True).clamp(min=1e-300) for name, of in found.items()}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_map_equals_the_same_by_hand(kind: str) -> None:
    model, images = made(**SHAPES[kind]).double(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    target = torch.tensor([4, 0, 17])
    expected = [maps_by_hand(*by_hand(model, images[i], int(target[i]))) for i in range(3)]
    for name in ("attention", "gradient", "chefer", "rollout"):
        found = relevance.maps(model, images, name, target if name in relevance.OF_CLASS else None)
        reference = torch.stack([of_image[name] for of_image in expected])
        assert found.shape == reference.shape and found.dtype == torch.float32
        assert torch.allclose(found.double(), reference, atol=1e-5), name


def test_relevance_is_of_the_class_asked_for_and_works_on_frozen_weights() -> None:
    model, images = made().requires_grad_(False), torch.randn(2, 3, 32, 32)
    one, other = (relevance.maps(model, images, "gradient", torch.tensor([c, c])) for c in (1, 2))
    assert not torch.allclose(one, other, atol=1e-2) and not one.requires_grad
    with torch.inference_mode():
        assert torch.equal(relevance.maps(model, images, "rollout"), relevance.maps(model, images, "rollout"))


def test_a_head_whose_value_carries_the_class_is_relevant_where_it_looks() -> None:
    """One step, uniform attention, and one patch whose value alone raises the class: all relevance lies on it."""
    model = made(n_steps=1, n_heads=1)
    values = torch.zeros(1, 17, 1, 16)
    values[0, 6] = torch.randn(1, 16)
    with torch.no_grad():
        model.core[0].attn.qkv.weight[:32] = 0
        model.core[0].attn.qkv.bias[:32] = 0
    image = torch.randn(1, 3, 32, 32)
    with model.hooks([("blocks.0.attn.hook_v", lambda v, hook: values)]):
        for target in range(20):
            row = relevance.maps(model, image, "gradient", torch.tensor([target]))[0, 0, 0]
            assert row[6] == row.sum() and float(row.sum()) in (0.0, pytest.approx(1.0))


# Scored by the pointing game


@pytest.fixture(scope="module")
def data():
    return Subset(open_data("shapes-easy", like=CONFIG), range(0, 40, 2))


def test_maps_are_scored_by_the_same_masks_and_baselines(data) -> None:
    model = made(classes=tuple(data.dataset.classes))
    found = {name: game.measure(model, data, map=name, control=model, batch_size=8) for name in analysis_maps()}
    labels = torch.tensor([data[i][1] for i in range(len(data))])
    for name, result in found.items():
        assert result["baseline"].identical(found["attention"]["baseline"])
        assert np.allclose(result["control_hit_ratio"], result["hit_ratio"], equal_nan=True)
        n_heads = 1 if name in ("chefer", "rollout") else 2
        assert result.sizes["head"] == n_heads and result.attrs["map"] == name
        keys = relevance.maps(
            model, torch.stack([item[0] for item in data]), name, labels if name in relevance.OF_CLASS else None
        )
        position = result["index"].values // 2
        assert (result["argmax"].values == keys[..., 1:].argmax(-1).numpy()[position]).mean() > 0.99
        said = analysis.table(result)
        assert said.startswith("pointing game:" if name == "attention" else f"pointing game of {name}")
        assert ("all heads" in said) == (n_heads == 1) and analysis.interactive(result).data
        assert analysis.figure(result).axes and analysis.examples(result) is not None
    assert len(analysis.figure(found).axes) == 2


def analysis_maps() -> tuple[str, ...]:
    return ("attention", "gradient", "chefer", "rollout")


def test_attention_is_the_default_and_gives_the_shipped_numbers() -> None:
    shipped = results.read(RUNS / "demo" / "pointing_game.nc")
    model = load(RUNS / "demo")
    places = [0, 700, 4999]
    result = game.measure(model, Subset(open_data("shapes", like=model), places), thumbnails=False)
    at = np.searchsorted(shipped["index"].values, places)
    for name in ("argmax", "hit"):
        assert np.array_equal(result[name], shipped[name].isel(image=at), equal_nan=True), name


def test_a_timm_vit_has_all_maps(data) -> None:
    options = dict(img_size=32, patch_size=8, depth=2, embed_dim=16, num_heads=2, num_classes=20)
    model = load(timm.create_model("vit_tiny_patch16_224", **options))
    model.config = dataclasses.replace(model.config, classes=tuple(data.dataset.classes))
    few = Subset(open_data("shapes-easy", like=model), range(6))
    for name in analysis_maps():
        result = game.measure(model, few, map=name, thumbnails=False)
        assert result.sizes["step"] == 2 and np.isfinite(result["mass"]).all()


def test_a_model_without_a_classifier_has_no_relevance_but_a_rollout(data) -> None:
    model = fresh(dataclasses.replace(CONFIG, n_classes=0), 0).eval()
    with pytest.raises(InputError, match="--map chefer needs the class's logit"):
        game.measure(model, data, map="chefer")
    assert game.measure(model, data, map="rollout", thumbnails=False).sizes["head"] == 1


def test_each_map_has_a_file_of_its_own(tmp_path: Path, command, data) -> None:
    source = tmp_path / "ckpt.pt"
    save(source, made(classes=tuple(data.dataset.classes)), data="shapes-easy", provenance={"seed": 0})
    code, printed, _ = command(
        "probes.pointing_game", source, "--map", "rollout", "--limit", 8, "--device", "cpu", "--no-control"
    )
    assert code == 0 and "pointing game of rollout (all heads): " in printed
    assert [path.name for path in tmp_path.glob("*.nc")] == ["pointing_game.rollout.nc"]
    assert draw.of("pointing_game.rollout") is analysis
    code, _, complaint = command("probes.pointing_game", source, "--map", "nothing")
    assert code == 2 and "nothing" in complaint
