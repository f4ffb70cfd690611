"""What is said of foreign weights, and what they must not be. Run with: pytest tests/test_foreign_said.py"""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.vision_transformer import VisionTransformer as OfTorchvision

from models import ViTConfig, load
from models.errors import InputError


def made(**asked) -> dict[str, torch.Tensor]:
    return timm.create_model("vit_tiny_patch16_224", **(dict(num_classes=0, img_size=32) | asked)).state_dict()


@pytest.fixture
def loaded(tmp_path):
    def load_it(content):
        torch.save(content, tmp_path / "weights.pth")
        return load(f"timm:vit_tiny_patch16_224@{tmp_path / 'weights.pth'}")

    return load_it


@pytest.mark.parametrize(
    "packed",
    [
        lambda value: (10 * value).to(torch.int8),
        lambda value: value.to(torch.complex64),
        lambda value: value.to_sparse(),
        lambda value: value.to("meta"),
    ],
)
def test_numbers_that_are_not_the_models_own_are_refused(loaded, packed) -> None:
    state = made()
    state["blocks.0.mlp.fc1.weight"] = packed(state["blocks.0.mlp.fc1.weight"])
    with pytest.raises(InputError, match="its blocks.0.mlp.fc1.weight holds no plain fractions"):
        loaded(state)


def test_what_a_folder_says_of_its_weights_is_held_against_timms_model(tmp_path) -> None:
    save_file(made(), tmp_path / "model.safetensors")
    source = f"timm:vit_tiny_patch16_224@{tmp_path}"
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    config = load(source).config
    assert config.mean == (0.1, 0.2, 0.3) and config.std == (0.4, 0.5, 0.6)
    for said, message in {
        '{"num_attention_heads": 6}': "has 6 heads, not 3",
        '{"vision_config": {"hidden_act": "quick_gelu"}}': "has the activation quick_gelu, not gelu",
        "[]": "config.json does not say what Hugging Face writes there",
    }.items():
        (tmp_path / "config.json").write_text(said)
        with pytest.raises(InputError, match=message):
            load(source)
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}')
    (tmp_path / "preprocessor_config.json").unlink()
    assert load(source).config.std == (0.5, 0.5, 0.5)


def test_images_are_normalised_as_the_weights_ask_or_what_is_assumed_is_said(tmp_path) -> None:
    file, of_torchvision = tmp_path / "w.pth", OfTorchvision(224, 16, 12, 3, 192, 768, num_classes=7).state_dict()
    torch.save(of_torchvision, file)
    assert load(f"timm:vit_tiny_patch16_224@{file}").config.mean == ViTConfig().mean
    torch.save(timm.create_model("vit_small_patch16_224", num_classes=0).state_dict(), file)
    with pytest.warns(UserWarning, match=r"as timm:vit_small_patch16_224.dino@.*w.pth"):
        assert load(f"timm:vit_small_patch16_224@{file}").config.mean == (0.5, 0.5, 0.5)
    assert load(f"timm:vit_small_patch16_224.dino@{file}").config.mean == ViTConfig().mean


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:vit_tiny_patch16_224@", "names no file after the @"),
        ("timm:vit_tiny_patch16_224.mae@x", "timm has no weights 'mae' of vit_tiny_patch16_224; it has vit_tiny_patch"),
        (None, "not a NoneType"),
        ({"norm.weight": torch.ones(2)}, "not a dict; save a state dict"),
    ],
)
def test_sources_that_name_nothing_are_refused(source, message) -> None:
    with pytest.raises(InputError, match=message):
        load(source)


def test_positions_that_make_no_square_are_named(loaded) -> None:
    with pytest.raises(InputError, match=r"pos_embed of shape \[1, 7, 192\].*; its patches make no square"):
        loaded(made(img_size=(32, 48)))
