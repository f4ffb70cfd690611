"""Weights as people have them. Run with: pytest tests/test_foreign.py"""

import argparse
from functools import partial

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import LayerNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.vision_transformer import VisionTransformer as OfTorchvision

from models import ViTConfig, foreign, load, masks
from models.checkpoint import fresh, save
from models.errors import InputError

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3)
COARSE = dict(norm_layer=partial(LayerNorm, eps=1e-5))  # of CLIP and DINOv3
ROTARY = dict(use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3", rope_temperature=100.0)
ROTARY |= dict(rope_rotate_half=True, use_fc_norm=False, init_values=0.3, num_reg_tokens=2, dynamic_img_size=True)


def registered(name: str, kind: type, **fields) -> None:
    """A model of timm's registry that is small enough to be tested."""

    def entry(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **asked):
        return kind(**(SMALL | fields | asked))

    entry.__name__, entry.__module__ = name, __name__
    timm.models.register_model(entry)


__all__: list[str] = []
registered("vit_wee_patch8_32", VisionTransformer)
registered("vit_wee_patch8_reg4_32", VisionTransformer, reg_tokens=4, init_values=0.3, no_embed_class=True)
registered("vit_wee_patch8_scaled_32", VisionTransformer, init_values=0.3)
registered("vit_wee_patch8_clip_32", VisionTransformer, pre_norm=True, act_layer="quick_gelu", **COARSE)
registered("vit_wee_patch8_dinov3", Eva, qkv_bias=False, **ROTARY, **COARSE)
registered("vit_wee_patch8_dinov3_qkvb", Eva, qkv_bias=True, **ROTARY, **COARSE)
registered("deit_wee_distilled_patch8_32", VisionTransformerDistilled)


def made(name: str = "vit_wee_patch8_32", **asked):
    """timm's model of that name, every parameter of which matters."""
    model = timm.create_model(name, **(dict(num_classes=7) | asked)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32)


@pytest.fixture
def loaded(tmp_path):
    """The model that a content of a file becomes, loaded by timm's name."""

    def load_it(content, name: str = "vit_wee_patch8_32", file: str = "weights.pth", **options):
        path = tmp_path / file
        save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
        return load(f"timm:{name}@{path}", **options)

    return load_it


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": under("module.", s), "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda s: {"model": under("_orig_mod.", s), "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda s: under("module._orig_mod.model.", s),
        lambda s: {"model": {"state_dict": under("backbone.", s)}},
        lambda s: {"state_dict": under("model.", s) | {"criterion.weight": torch.ones(7)}},
        lambda s: (
            {name: value for name, value in under("net.backbone.", s).items() if "head" not in name}
            | {"net.fc.weight": s["head.weight"], "net.fc.bias": s["head.bias"]}
        ),
        lambda s: s | {"decoder_embed.weight": torch.ones(2, 24), "mask_token": torch.ones(1, 1, 24)},
        lambda s: {"ema": {"decay": 0.99}, "model": s},
    ],
)
def test_wrappers_and_prefixes(loaded, images, wrap) -> None:
    theirs = made()
    model = loaded(wrap(theirs.state_dict()))
    assert model.origin.weights == "raw" and model.config.n_classes == 7
    assert torch.allclose(model(images), theirs(images), atol=1e-4)
    assert torch.allclose(loaded(under("module.", theirs.state_dict()), file="w.safetensors")(images), theirs(images))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
        lambda raw, ema: {"model": raw, "model_ema": under("module.", ema)},
        lambda raw, ema: {"model": raw, "ema": {"module": ema, "decay": 0.99, "updates": 5}},
        lambda raw, ema: {
            "student": under("module.backbone.", raw) | {"module.head.mlp.0.weight": torch.ones(9, 24)},
            "teacher": under("backbone.", ema) | {"head.mlp.0.weight": torch.ones(9, 24)},
        },
        lambda raw, ema: {"state_dict": under("module.base_encoder.", raw) | under("module.momentum_encoder.", ema)},
        lambda raw, ema: {"model": under("student.backbone.", raw) | under("teacher.backbone.", ema)},
    ],
)
def test_of_two_states_the_one_asked_for(loaded, images, wrap) -> None:
    raw, ema = made(num_classes=0), made(num_classes=0)
    content = wrap(raw.state_dict(), ema.state_dict())
    for weights, theirs in (("ema", ema), ("raw", raw)):
        model = loaded(content, weights=weights)
        assert model.origin.weights == weights and torch.allclose(model(images), theirs(images), atol=1e-4)
    assert loaded(content, weights="init").origin.weights == "init"


def test_deit_distilled_and_mae_fine_tuned(loaded, images) -> None:
    theirs = made("deit_wee_distilled_patch8_32")
    model = loaded({"model": theirs.state_dict()}, "deit_wee_distilled_patch8_32")
    assert model.config.pool == "distilled" and torch.allclose(model(images), theirs(images), atol=1e-4)
    with pytest.raises(InputError, match="it looks like timm's deit_wee_distilled_patch8_32"):
        loaded({"model": theirs.state_dict()})
    theirs = made(global_pool="avg")
    model = loaded({"model": theirs.state_dict()})
    assert model.config.pool == "mean" and torch.allclose(model(images), theirs(images), atol=1e-4)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_dinov2_under_its_official_names(loaded, images, is_chunked) -> None:
    name = "vit_wee_patch8_reg4_32"
    theirs = made(name, num_classes=0)
    state = theirs.state_dict()
    first = torch.randn(1, 1, 24)  # the position of CLS, which timm adds to its token
    state |= {"cls_token": state["cls_token"] - first, "pos_embed": torch.cat([first, state["pos_embed"]], 1)}
    state |= {"register_tokens": state.pop("reg_token"), "mask_token": torch.zeros(1, 24)}
    if is_chunked:
        state = {key.replace("blocks.", "blocks.0.").replace("blocks.0.2", "blocks.1.2"): v for key, v in state.items()}
    model = loaded(state, name)
    assert model.config.n_registers == 4 and torch.allclose(model(images), theirs(images), atol=1e-4)
    del state["mask_token"]
    assert torch.allclose(loaded({"teacher": under("backbone.", state)}, name)(images), theirs(images), atol=1e-4)


@pytest.mark.parametrize("has_bias", [False, True])
def test_dinov3_under_its_official_names(loaded, images, has_bias) -> None:
    name = "vit_wee_patch8_dinov3" + "_qkvb" * has_bias
    theirs = made(name, num_classes=0, global_pool="token")
    state = {key.replace("reg_token", "storage_tokens"): value for key, value in theirs.state_dict().items()}
    state = {key.replace("gamma_", "ls") + ".gamma" * ("gamma_" in key): value for key, value in state.items()}
    for t in range(3):
        q, v = (state.pop(f"blocks.{t}.attn.{part}_bias", torch.zeros(24)) for part in "qv")
        state |= {f"blocks.{t}.attn.qkv.bias": torch.cat([q, torch.zeros(24), v])}
        state |= {f"blocks.{t}.attn.qkv.bias_mask": torch.ones(72)}
    state |= {"rope_embed.periods": torch.ones(2), "mask_token": torch.zeros(1, 24)}
    model = loaded(state, name)
    assert torch.allclose(model(images), theirs(images), atol=1e-4)
    assert torch.allclose(loaded(theirs.state_dict(), name)(images), theirs(images), atol=1e-4)
    if has_bias:
        with pytest.raises(InputError, match=r"q_bias, which the model has not; it looks like .*dinov3_qkvb"):
            loaded(state, "vit_wee_patch8_dinov3")


def test_deit_threes_gammas(loaded, images) -> None:
    theirs = made("vit_wee_patch8_scaled_32")
    state = {name.replace("ls1.gamma", "gamma_1"): value for name, value in theirs.state_dict().items()}
    state = {name.replace("ls2.gamma", "gamma_2"): value for name, value in state.items()}
    assert torch.allclose(loaded(state, "vit_wee_patch8_scaled_32")(images), theirs(images), atol=1e-4)


HF = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=8)
HUGGING_FACE = {
    "ViTForImageClassification": ("ViTConfig", "vit_wee_patch8_32"),
    "ViTModel": ("ViTConfig", "vit_wee_patch8_32"),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", "deit_wee_distilled_patch8_32"),
    "DeiTForImageClassification": ("DeiTConfig", "vit_wee_patch8_32"),
    "Dinov2Model": ("Dinov2Config", "vit_wee_patch8_scaled_32"),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", "vit_wee_patch8_reg4_32"),
    "DINOv3ViTModel": ("DINOv3ViTConfig", "vit_wee_patch8_dinov3_qkvb"),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", "vit_wee_patch8_clip_32"),
}


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_faces_names(loaded, images, tmp_path, kind) -> None:
    transformers = pytest.importorskip("transformers")
    config, name = HUGGING_FACE[kind]
    registers = dict(num_register_tokens=2) if "v3" in kind else {}
    theirs = getattr(transformers, kind)(getattr(transformers, config)(**HF, **registers, num_labels=7)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        out = theirs(pixel_values=images)
    answers = [out[key] for key in ("logits", "image_embeds") if key in out]
    expected = answers[0] if answers else out.last_hidden_state[:, 0]
    assert torch.allclose(loaded(theirs.state_dict(), name)(images), expected, atol=1e-4)
    theirs.save_pretrained(tmp_path / "saved")  # under the names that its files have
    assert torch.allclose(load(f"timm:{name}@{tmp_path / 'saved'}")(images), expected, atol=1e-4)


def test_torchvisions_names(loaded, images) -> None:
    theirs = OfTorchvision(32, 8, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=96, num_classes=7).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert torch.allclose(loaded(theirs.state_dict())(images), theirs(images), atol=1e-4)
    older = {name.replace("mlp.0.", "mlp.linear_1."): value for name, value in theirs.state_dict().items()}
    older = {name.replace("mlp.3.", "mlp.linear_2."): value for name, value in older.items()}
    assert torch.allclose(loaded(under("module.", older))(images), theirs(images), atol=1e-4)


OPENAI = {"blocks.": "transformer.resblocks.", "norm_pre": "ln_pre", "patch_embed.proj": "conv1"}
OPENAI |= {"pos_embed": "positional_embedding"}
OPENAI |= {"attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
OPENAI |= {".norm": ".ln_", "cls_token": "class_embedding"}


def test_clip_as_openai_and_open_clip_name_it(loaded, images) -> None:
    name = "vit_wee_patch8_clip_32"
    theirs = made(name)
    with torch.no_grad():
        theirs.head.bias.zero_()
    state = theirs.state_dict()
    tower = {"proj": state["head.weight"].T, "ln_post.weight": state["norm.weight"], "ln_post.bias": state["norm.bias"]}
    for key, value in state.items():
        if not key.startswith(("head", "norm.")):
            for old, new in OPENAI.items():
                key = key.replace(old, new)
            tower[key] = value[0, 0] if key == "class_embedding" else value[0] if "positional" in key else value
    model = loaded(under("visual.", tower) | {"positional_embedding": torch.ones(77, 24)}, name)
    assert model.config.pre_norm and torch.allclose(model(images), theirs(images), atol=1e-4)
    trunk = {f"visual.trunk.{key}": value for key, value in state.items() if not key.startswith("head")}
    model = loaded(trunk | {"visual.head.proj.weight": state["head.weight"]}, name)
    assert torch.allclose(model(images), theirs(images), atol=1e-4)


def arrays_of(vit: VisionTransformer) -> dict[str, np.ndarray]:
    """The original ViT's arrays."""
    w = {name: value.numpy() for name, value in vit.state_dict().items()}
    out = {
        "cls": w["cls_token"],
        "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": w["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": w["pos_embed"],
        "Transformer/encoder_norm/scale": w["norm.weight"],
        "Transformer/encoder_norm/bias": w["norm.bias"],
        "head/kernel": w["head.weight"].T,
        "head/bias": w["head.bias"],
    }
    for t in range(len(vit.blocks)):
        ours, theirs = f"blocks.{t}.", f"Transformer/encoderblock_{t}/"
        for part, kernel, bias in zip(
            ("query", "key", "value"),
            w[f"{ours}attn.qkv.weight"].reshape(3, 24, 24),
            w[f"{ours}attn.qkv.bias"].reshape(3, 3, 8),
            strict=True,
        ):
            out[f"{theirs}MultiHeadDotProductAttention_1/{part}/kernel"] = kernel.T.reshape(24, 3, 8)
            out[f"{theirs}MultiHeadDotProductAttention_1/{part}/bias"] = bias
        out[f"{theirs}MultiHeadDotProductAttention_1/out/kernel"] = w[f"{ours}attn.proj.weight"].T.reshape(3, 8, 24)
        out[f"{theirs}MultiHeadDotProductAttention_1/out/bias"] = w[f"{ours}attn.proj.bias"]
        for norm, number in (("norm1", 0), ("norm2", 2)):
            out[f"{theirs}LayerNorm_{number}/scale"] = w[f"{ours}{norm}.weight"]
            out[f"{theirs}LayerNorm_{number}/bias"] = w[f"{ours}{norm}.bias"]
        for layer in (1, 2):
            out[f"{theirs}MlpBlock_3/Dense_{layer - 1}/kernel"] = w[f"{ours}mlp.fc{layer}.weight"].T
            out[f"{theirs}MlpBlock_3/Dense_{layer - 1}/bias"] = w[f"{ours}mlp.fc{layer}.bias"]
    return out


def test_the_original_vits_arrays(images, tmp_path) -> None:
    theirs, file = made(), tmp_path / "ViT.npz"
    arrays = arrays_of(theirs)
    np.savez(file, **arrays)
    model = load(f"timm:vit_wee_patch8_32@{file}")
    assert torch.allclose(model(images), theirs(images), atol=1e-4)
    registered("vit_wee_patch8_2heads_32", VisionTransformer, num_heads=2)
    with pytest.raises(InputError, match=r"it has 3 heads, not 2; it looks like timm's vit_wee_patch8_32:"):
        load(f"timm:vit_wee_patch8_2heads_32@{file}")
    np.savez(file, **under("opt/target/", arrays | {"pre_logits/bias": np.zeros(24), "pre_logits/kernel": np.eye(24)}))
    with pytest.warns(UserWarning, match="representation layer"):
        model = load(f"timm:vit_wee_patch8_32@{file}")
    assert model.config.n_classes == 0
    theirs.reset_classifier(0)
    assert torch.allclose(model(images), theirs(images), atol=1e-4)


def test_a_file_keeps_its_image_size_until_another_is_asked_for(loaded, tmp_path) -> None:
    for name, size in (("vit_wee_patch8_32", 48), ("vit_wee_patch8_reg4_32", 64), ("deit_wee_distilled_patch8_32", 48)):
        theirs = made(name, img_size=size)
        kept, asked = loaded(theirs.state_dict(), name), loaded(theirs.state_dict(), name, image_size=24)
        images = torch.randn(2, 3, size, size)
        assert kept.config.image_size == size and torch.allclose(kept(images), theirs(images), atol=1e-4)
        theirs.set_input_size((24, 24))
        assert torch.allclose(asked(images[..., :24, :24]), theirs(images[..., :24, :24]), atol=1e-4)
        assert asked.origin.source == f"{kept.origin.source} at 24 px" and asked.origin.sha256 != kept.origin.sha256


def test_another_image_size_of_a_module_a_run_and_a_rotary_model(tmp_path, images) -> None:
    theirs = made("vit_wee_patch8_dinov3_qkvb", global_pool="token")
    model = load(theirs, image_size=48)
    larger = torch.randn(2, 3, 48, 48)
    theirs.set_input_size((48, 48))
    assert torch.allclose(model(larger), theirs(larger), atol=1e-4)

    ours = fresh(ViTConfig.preset("bvit_easy", n_steps=3, n_classes=5, step_embedding="learned", n_registers=2), 0)
    chosen = torch.rand(3, sum(masks.sizes(ours.config).values())) < 0.5
    save(tmp_path / "run" / "ckpt.pt", masks.put_on(ours, chosen), provenance={"seed": 0})
    model = load(tmp_path / "run", image_size=48)
    assert model.config.image_size == 48 and model(larger).shape == (2, 5) and not model.training
    assert torch.equal(masks.taken_from(model), chosen) and model.origin.run == tmp_path / "run"
    assert torch.equal(model.pos_embed[:, :3], ours.pos_embed[:, :3])
    expected = timm.layers.resample_abs_pos_embed(ours.pos_embed.data, (6, 6), num_prefix_tokens=3)
    assert torch.allclose(model.pos_embed, expected)
    same = load(tmp_path / "run", image_size=32)
    assert "px" not in same.origin.source and torch.allclose(same(images), ours.eval()(images))
    with pytest.raises(InputError, match="image_size = 33 is not a multiple of patch_size = 8"):
        load(tmp_path / "run", image_size=33)


def test_a_file_that_does_not_fit_says_which_model_it_looks_like(loaded) -> None:
    with torch.device("meta"):
        small = timm.create_model("vit_small_patch32_224", num_classes=5).state_dict()
    small = {name: torch.zeros(value.shape, dtype=torch.half) for name, value in small.items()}
    with pytest.raises(InputError, match=r"lacks norm_pre.weight; it looks like timm's vit_small_patch32_224: timm:"):
        loaded(small, "vit_wee_patch8_clip_32")
    with pytest.raises(InputError, match="width 24, 2 blocks, patches of 8 px, as no model of timm's"):
        loaded(made(depth=2).state_dict())
    with pytest.raises(InputError, match=r"head.weight of shape \[7, 48\].* not one linear layer on one token"):
        loaded(made().state_dict() | {"head.weight": torch.ones(7, 48)})  # DINOv2's reads CLS and the mean
    registers = made("vit_wee_patch8_reg4_32", num_classes=0).state_dict()
    assert foreign.looks_like(registers) == "vit_wee_patch8_reg4_32"


def test_what_is_no_vit_or_more_than_weights_is_refused(loaded, tmp_path) -> None:
    ours = fresh(ViTConfig.preset("bvit_easy", n_steps=2), 0)
    save(tmp_path / "ckpt.pt", ours)
    with pytest.raises(InputError, match="is a checkpoint of this toolkit"):
        load(f"timm:vit_wee_patch8_32@{tmp_path / 'ckpt.pt'}")
    for content, message in (
        (timm.create_model("resnet18").state_dict(), "holds no ViT under a name of timm"),
        ({"epoch": 3}, "it holds no tensors"),
        ([torch.ones(2)], "is not a state dict"),
        ({"model": made().state_dict(), "args": pytest.ExitCode.OK}, "more than plain tensors"),
        ({"patch_embed.proj.weight": torch.ones(24, 192)}, "is no convolution"),
    ):
        with pytest.raises(InputError, match=message):
            loaded(content)
    with pytest.raises(InputError, match="ResNet is not timm's plain"):
        loaded(made().state_dict(), "resnet18")
    np.savez(tmp_path / "code.npz", **{"embedding/kernel": np.array([OfCode], dtype=object)})
    for file, message in (("code.npz", "not readable as arrays"), ("cut.npz", "not readable as arrays")):
        (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
        with pytest.raises(InputError, match=message):
            load(f"timm:vit_wee_patch8_32@{tmp_path / file}")
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    with pytest.raises(InputError, match="no plain ViT with a class token"):
        load(f"timm:vit_wee_patch8_32@{tmp_path / 'other.npz'}")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    with pytest.raises(InputError, match="not readable as safetensors"):
        load(f"timm:vit_wee_patch8_32@{tmp_path / 'cut.safetensors'}")


class OfCode:
    """Something that only code could unpickle."""
