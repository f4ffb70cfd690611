"""Run with: pytest tests/test_timm_bridge.py"""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from models import ViTConfig, load, timm_bridge
from models.checkpoint import fresh
from models.errors import InputError

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=7)


def vit(**fields) -> VisionTransformer:
    model = VisionTransformer(**(SMALL | fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(reg_tokens=4, no_embed_class=True, init_values=0.1),
        dict(global_pool="avg"),
        dict(qkv_bias=False),
        dict(num_classes=0),
        dict(reg_tokens=2),
        dict(mlp_ratio=2),
    ],
    ids=str,
)
def test_timms_logits_there_and_back(fields) -> None:
    theirs, images = vit(**fields), torch.randn(2, 3, 32, 32)
    ours = load(theirs)
    assert torch.allclose(ours(images), theirs(images), atol=1e-4)
    assert torch.allclose(timm_bridge.to_timm(ours)(images), theirs(images), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        (dict(class_token=False, global_pool="avg"), "class token"),
        (dict(pre_norm=True), "pre_norm"),
        (dict(qk_norm=True), "qk_norm"),
        (dict(act_layer="gelu_tanh"), "activation"),
        (dict(global_pool="map"), "pooling 'map'"),
        (dict(final_norm=False), "no final norm"),
        (dict(patch_size=(8, 4)), "patches that are not square"),
        (dict(in_chans=1), "three channels"),
        (dict(global_pool="avg", fc_norm=False), "fc_norm"),
    ],
)
def test_what_does_not_fit_is_named(fields, feature) -> None:
    with pytest.raises(InputError, match=feature):
        load(VisionTransformer(**(SMALL | fields)))


def test_an_unrolled_bvit_in_timm_gives_its_logits() -> None:
    config = ViTConfig.preset(
        "bvit_easy", n_steps=4, d_model=24, n_heads=3, n_classes=5, n_registers=2, layer_scale=0.2
    )
    model, images = fresh(config, 0).eval(), torch.randn(2, 3, 32, 32)
    unrolled = timm_bridge.to_timm(model)
    assert len(unrolled.blocks) == 4 and torch.allclose(unrolled(images), model(images), atol=1e-5)
    with pytest.raises(InputError, match="step embedding"):
        timm_bridge.to_timm(fresh(ViTConfig.preset("bvit_easy", step_embedding="learned"), 0))


def test_a_local_state_dict(tmp_path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3).eval()
    torch.save({"model": {name: value.half() for name, value in theirs.state_dict().items()}}, tmp_path / "w.pth")
    model = load(f"timm:vit_tiny_patch16_224@{tmp_path / 'w.pth'}")
    assert (
        model.config.n_classes == 3 and model.config.n_blocks == 12 and model.origin.run.name == "vit_tiny_patch16_224"
    )
    assert torch.allclose(model.head.weight, theirs.head.weight, atol=1e-3)
    with pytest.raises(InputError, match="does not fit"):
        load(f"timm:vit_small_patch16_224@{tmp_path / 'w.pth'}")


def test_sources_that_are_not_there(tmp_path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no")
    for source, message in (
        ("timm:vit_tiny_patch16_225", "timm has no model"),
        (f"timm:vit_tiny_patch16_224@{tmp_path}/none.pth", "there is no file"),
        (f"timm:vit_tiny_patch16_224@{tmp_path}/broken.pth", "not readable as a checkpoint"),
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224@FILE"),
        ("hf:nobody/nothing", "cannot be fetched"),
    ):
        with pytest.raises(InputError, match=message):
            load(source)


def test_bvit_in_timms_registry() -> None:
    model = timm.create_model("bvit_tiny_patch16_224", num_classes=10).eval()
    assert timm.is_model("bvit_base_patch16_224") and model.num_classes == 10 and model.num_features == 192
    images = torch.randn(1, 3, 224, 224)
    assert torch.allclose(model.forward_head(model.forward_features(images)), model(images), atol=1e-5)
    model.reset_classifier(4)
    assert model(images).shape == (1, 4)
    with pytest.raises(InputError, match="no published weights"):
        timm.create_model("bvit_tiny_patch16_224", pretrained=True)
