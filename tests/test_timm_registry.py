"""What timm's own model tests ask of every model in its registry, asked of bViT. Run with: pytest
tests/test_timm_registry.py
"""

import pytest
import timm
import torch

import models.timm_registry  # noqa: F401
from models import ViTConfig, timm_bridge
from models.checkpoint import fresh
from models.errors import InputError

from .warm import python

NAME = "bvit_tiny_patch16_224"


def made(**asked):
    return timm.create_model(NAME, **(dict(num_classes=7, img_size=64, depth=4) | asked))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


def test_every_size_is_listed_and_has_the_facts_of_timms_vit() -> None:
    assert timm.list_models("bvit_*") == [f"bvit_{size}_patch16_224" for size in ("base", "large", "small", "tiny")]
    ours, theirs = (timm.create_model(name, num_classes=3) for name in (NAME, "vit_tiny_patch16_224"))
    for fact in ("input_size", "fixed_input_size", "pool_size", "classifier", "first_conv"):
        assert ours.pretrained_cfg[fact] == theirs.pretrained_cfg[fact], fact
    for member in ("num_classes", "num_features", "head_hidden_size", "embed_dim", "num_prefix_tokens", "global_pool"):
        assert getattr(ours, member) == getattr(theirs, member), member
    assert ours.feature_info == theirs.feature_info
    with pytest.raises(InputError, match="no published weights"):
        timm.create_model(NAME, pretrained=True)


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_features_and_head_make_the_forward(images, global_pool) -> None:
    model = made(global_pool=global_pool).eval()
    features = model.forward_features(images)
    assert features.shape == (2, 17, 192)
    assert torch.allclose(model.forward_head(features), model(images), atol=1e-6)
    assert model.forward_head(features, pre_logits=True).shape == (2, 192)
    unrolled = timm_bridge.to_timm(model)
    assert torch.allclose(unrolled(images), model(images), atol=1e-5)
    assert torch.allclose(unrolled.forward_features(images), features, atol=1e-5)


def test_a_new_head_none_and_all_tokens(images) -> None:
    model = made().eval()
    model.reset_classifier(3)
    assert model(images).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(images).shape == (2, 192)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, 17, 192)
    model.reset_classifier(5, "avg")
    assert model(images).shape == (2, 5) and model.config.pool == "mean"
    with pytest.raises(InputError, match="global_pool is 'max'"):
        model.reset_classifier(5, "max")


def test_intermediates_are_the_states_after_the_steps(images) -> None:
    model = made().eval()
    _, cache = model.run_with_cache(images)
    final, states = model.forward_intermediates(images, indices=[0, 2], output_fmt="NLC", return_prefix_tokens=True)
    for (patches, prefix), t in zip(states, (0, 2), strict=True):
        assert torch.allclose(torch.cat([prefix, patches], 1), cache["resid_post", t], atol=1e-6)
    assert torch.allclose(final, model.forward_features(images), atol=1e-6)
    maps = model.forward_intermediates(images, indices=2, intermediates_only=True)
    assert [tuple(m.shape) for m in maps] == [(2, 192, 4, 4)] * 2
    assert torch.allclose(maps[1].flatten(2).mT, cache["resid_post", 3][:, 1:], atol=1e-6)
    named = model.forward_intermediates(images, indices=1, output_dict=True, return_prefix_tokens=True)
    assert set(named) == {"image_features", "image_intermediates", "image_intermediates_prefix"}


def test_features_only(images) -> None:
    model = timm.create_model(NAME, features_only=True, img_size=64, depth=4, out_indices=(1, 2)).eval()
    whole = made().eval()
    whole.load_state_dict(model.model.state_dict(), strict=False)
    _, cache = whole.run_with_cache(images)
    for features, t in zip(model(images), (1, 2), strict=True):
        assert torch.allclose(features.flatten(2).mT, cache["resid_post", t][:, 1:], atol=1e-5)
    assert model.feature_info.channels() == [192, 192] and model.feature_info.reduction() == [16, 16]


def test_gradient_checkpointing_gives_equal_gradients(images) -> None:
    def gradients(model) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(images).square().sum().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters()}

    model = made().train()
    plain = gradients(model)
    model.set_grad_checkpointing()
    again = gradients(model)
    assert all(torch.allclose(plain[name], again[name], rtol=1e-4, atol=1e-6) for name in plain)


TRACED = """
import timm, torch
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
import models.timm_registry
images = torch.randn(2, 3, 64, 64)
model = timm.create_model("bvit_tiny_patch16_224", num_classes=7, img_size=64, depth=4).eval()
expected = model(images)
assert torch.allclose(torch.fx.symbolic_trace(model)(images), expected, atol=1e-6)
assert torch.allclose(torch.export.export(model, (images,)).module()(images), expected, atol=1e-6)
train_nodes, eval_nodes = get_graph_node_names(model)
last = dict(train_return_nodes=[train_nodes[-1]], eval_return_nodes=[eval_nodes[-1]])
extractor = create_feature_extractor(model.eval(), **last).eval()
assert torch.allclose(extractor(images)[eval_nodes[-1]], expected, atol=1e-6)
"""


def test_it_is_traced_and_exported_while_nobody_listens() -> None:
    done = python("-c", TRACED)
    assert done.returncode == 0, done.stderr


def test_what_a_bvit_is_not_is_refused_by_name() -> None:
    for asked, complaint in (
        (dict(img_size=(64, 32)), "square images"),
        (dict(in_chans=1), "three channels"),
        (dict(dynamic_img_size=True), "one size"),
        (dict(global_pool="map"), "global_pool is 'map'"),
        (dict(nonsense=1), "no field nonsense"),
    ):
        with pytest.raises(InputError, match=complaint):
            made(**asked)


def test_an_odd_number_of_hidden_units_survives_the_way_to_timm() -> None:
    config = ViTConfig(image_size=32, patch_size=16, d_model=448, n_heads=7, d_mlp=453, n_steps=2, n_classes=3)
    model, images = fresh(config, 0).eval(), torch.randn(2, 3, 32, 32)
    vit = timm_bridge.to_timm(model)
    assert vit.blocks[0].mlp.fc1.out_features == 453
    assert torch.allclose(vit(images), model(images), atol=1e-5)
