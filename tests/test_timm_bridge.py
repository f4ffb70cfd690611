"""Run with: pytest tests/test_timm_bridge.py"""

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from models import ViTConfig, hooks, load, timm_bridge
from models.checkpoint import fresh, save
from models.errors import InputError

SMALL = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=7)
ROTARY = dict(use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3", rope_temperature=100.0)
ROTARY |= dict(rope_rotate_half=True, use_fc_norm=False, global_pool="token", init_values=0.3, num_reg_tokens=2)
FAMILIES = {
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch32_clip_224": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_small_patch16_dinov3": dict(global_pool="token"),
    "vit_small_patch16_dinov3_qkvb": dict(global_pool="token"),
    "deit_small_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "eva_large_patch14_196": {},
    "eva_giant_patch14_224": {},
}


def shaken(model):
    """Every parameter matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def vit(**fields) -> VisionTransformer:
    return shaken(VisionTransformer(**(SMALL | fields)))


def small(name: str, **options):
    """A model of timm's registry with few small blocks."""
    patch = int(name.split("patch")[1][:2])
    sizes = dict(img_size=4 * patch, embed_dim=24, depth=2, num_heads=3, num_classes=7)
    return shaken(timm.create_model(name, **sizes, **options)), torch.randn(2, 3, 4 * patch, 4 * patch)


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
        dict(pre_norm=True, act_layer="quick_gelu"),
        dict(pre_norm=True, norm_layer="rmsnorm", reg_tokens=2),
        dict(qk_norm=True),
        dict(qk_norm=True, norm_layer="rmsnorm"),
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
        (dict(act_layer="gelu_tanh"), "activation"),
        (dict(scale_attn_norm=True), "scale_attn_norm"),
        (dict(mlp_layer=timm.layers.SwiGLUPacked), "an MLP of type GluMlp"),
        (dict(attn_layer="diff"), "attention of type DiffAttention"),
        (dict(pos_embed="none"), "no position embedding"),
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


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        (lambda block: setattr(block.mlp, "act", torch.nn.ReLU()), "the activation ReLU"),
        (lambda block: setattr(block.norm2, "eps", 0.5), "norms of several epsilons"),
        (lambda block: setattr(block.attn, "num_heads", 6), "heads of another width"),
        (lambda block: block.attn.__dict__.update(num_heads=6, head_dim=4), "blocks that differ"),
    ],
)
def test_a_later_block_that_differs_is_named(change, feature) -> None:
    theirs = VisionTransformer(**SMALL)
    change(theirs.blocks[1])
    with pytest.raises(InputError, match=feature):
        load(theirs)


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        (dict(global_pool="avg"), "global_pool='token' would do"),
        (dict(use_abs_pos_emb=True), "rotary positions beside learned ones"),
        (dict(rope_temperature=50.0), "another kind than DINOv3's"),
        (dict(rope_type="cat"), "another kind than DINOv3's"),
        (dict(swiglu_mlp=True), "an MLP of type GluMlp"),
        (dict(qkv_fused=False), "separate projections"),
        (dict(attn_only_layer_scale=True), "LayerScale on attention alone"),
        (dict(use_post_norm=True), "blocks of type EvaBlockPostNorm"),
    ],
)
def test_what_does_not_fit_of_the_rotary_ones_is_named(fields, feature) -> None:
    with pytest.raises(InputError, match=feature):
        load(Eva(**(SMALL | ROTARY | fields)))
    with pytest.raises(InputError, match="ResNet is not timm's plain"):
        load(timm.create_model("resnet18"))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_timms_registry_have_its_logits(name) -> None:
    theirs, images = small(name, **FAMILIES[name])
    assert torch.allclose(load(theirs)(images), theirs(images), atol=1e-4)


@pytest.mark.parametrize("fields", [{}, dict(attn_type="rope", qkv_bias=True), dict(qk_norm=True)], ids=str)
def test_rotary_positions_have_timms_logits(fields) -> None:
    theirs, images = shaken(Eva(**(SMALL | ROTARY | fields))), torch.randn(2, 3, 32, 32)
    ours = load(theirs)
    assert ours.config.position == "rotary" and not ours.pos_embed.any()
    assert "pos_embed" not in dict(ours.named_parameters())
    assert torch.allclose(ours(images), theirs(images), atol=1e-4)
    with pytest.raises(InputError, match="rotary positions"):
        timm_bridge.to_timm(ours)


def test_a_distilled_deit_there_and_back() -> None:
    theirs, images = shaken(VisionTransformerDistilled(**SMALL)), torch.randn(2, 3, 32, 32)
    ours = load(theirs)
    assert ours.config.pool == "distilled" and ours.config.n_registers == 1
    assert torch.allclose(ours(images), theirs(images), atol=1e-4)
    assert torch.allclose(timm_bridge.to_timm(ours)(images), theirs(images), atol=1e-4)
    with pytest.raises(InputError, match="two heads"):
        ours.run_with_cache(images)[1].logit_attrs(torch.zeros(1, 2, 18, 24), 0)


FIELDS = {
    "CLIP": dict(pre_norm=True, activation="quick_gelu"),
    "CLIP without centring": dict(pre_norm=True, norm="rms", n_registers=2),
    "normalised": dict(qk_norm=True),
    "rotary": dict(position="rotary", n_registers=2, layer_scale=0.3),
    "distilled": dict(pool="distilled", n_registers=1),
    "all": dict(position="rotary", pre_norm=True, qk_norm=True, activation="quick_gelu", step_embedding="learned"),
}


@pytest.fixture(params=FIELDS, ids=str)
def family(request):
    """A bViT of each family; every weight is trained, so every family can be too."""
    fields = dict(n_steps=4, d_model=24, n_heads=3, n_classes=5) | FIELDS[request.param]
    return shaken(fresh(ViTConfig.preset("bvit_easy", **fields), 0))


def test_components_of_a_family_sum_to_the_stream_and_to_the_logit(family) -> None:
    images = torch.randn(3, 3, 32, 32)
    logits, cache = family.run_with_cache(images)
    assert torch.allclose(logits, family(images), atol=1e-5)
    final = cache["resid_post", -1]
    assert torch.allclose(cache["embed"] + cache["pos_embed"], family(images, stop_at_step=0), atol=1e-5)
    assert torch.allclose(cache.decompose_resid().sum(0), final, atol=1e-4)
    assert torch.allclose(cache.get_full_resid_decomposition(expand_neurons=True).sum(0), final, atol=1e-4)
    assert torch.allclose(cache.stack_head_results(incl_remainder=True).sum(0), final, atol=1e-4)
    assert torch.allclose(cache.logit_lens()[-1], logits, atol=1e-4)
    if family.config.pool == "cls":
        labels = torch.tensor([1, 4, 2])
        parts = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=0)
        attribution = cache.logit_attrs(parts, labels, pos_slice=0, has_batch_dim=True).sum(0)
        assert torch.allclose(attribution, (logits - family.b_U)[torch.arange(3), labels], atol=1e-4)


def test_q_and_k_are_what_the_scores_are_made_of(family) -> None:
    images = torch.randn(3, 3, 32, 32)
    _, cache = family.run_with_cache(images)
    scores = torch.einsum("bqhd,bkhd->bhqk", cache["q", 2], cache["k", 2]) / 8**0.5
    assert torch.allclose(scores, cache["attn_scores", 2], atol=1e-5)
    rows = torch.stack([cache["pattern", t][:, :, 0] for t in range(4)], 1)
    assert torch.allclose(hooks.cls_attention(family, images), rows, atol=1e-5)


def test_a_family_is_stored_unrolled_and_trained(family, tmp_path) -> None:
    images = torch.randn(3, 3, 32, 32)
    save(tmp_path / "ckpt.pt", family)
    stored = load(tmp_path / "ckpt.pt")
    assert stored.config == family.config and torch.equal(stored(images), family(images))
    if family.config.step_embedding == "none":
        assert torch.allclose(family.at_steps(6)(images), family(images, n_steps=6), atol=1e-5)
    family.train()(images).square().sum().backward()
    assert all(parameter.grad.any() for parameter in family.parameters())


def test_states_of_a_family_are_timms_after_each_block() -> None:
    for theirs in (vit(pre_norm=True, qk_norm=True, act_layer="quick_gelu"), shaken(Eva(**(SMALL | ROTARY)))):
        images, states = torch.randn(2, 3, 32, 32), []
        for block in theirs.blocks:
            block.register_forward_hook(lambda module, args, output, kept=states: kept.append(output))
        theirs(images)
        _, cache = load(theirs).run_with_cache(images, names_filter="blocks.*.hook_resid_post")
        assert all(torch.allclose(cache["resid_post", t], states[t], atol=1e-4) for t in range(3))


def test_weights_are_copied_and_nothing_is_drawn() -> None:
    theirs, before = vit(), torch.get_rng_state()
    ours = load(theirs)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        ours.core[0].attn.qkv.weight.zero_()
    assert theirs.blocks[0].attn.qkv.weight.any()
    assert all(parameter.requires_grad for parameter in ours.parameters())


def test_a_config_of_before_is_stored_as_before() -> None:
    assert not {"position", "activation", "pre_norm", "qk_norm"} & set(ViTConfig().to_dict())
    config = ViTConfig(pre_norm=True, activation="quick_gelu", n_registers=1, pool="distilled")
    assert ViTConfig.from_dict(config.to_dict()) == config and config.to_dict()["pre_norm"] is True


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(position="sinusoidal"), "position is 'sinusoidal', it must be learned or rotary"),
        (dict(activation="relu"), "activation is 'relu', it must be gelu or quick_gelu"),
        (dict(pre_norm=1), "pre_norm is 1, it must be true or false"),
        (dict(qk_norm="yes"), "qk_norm is 'yes', it must be true or false"),
        (dict(pool="distilled"), "n_registers is 0"),
        (dict(position="rotary", d_model=18), "d_model / n_heads is 6"),
    ],
)
def test_a_bad_field_of_a_family_is_one_sentence(fields, message) -> None:
    with pytest.raises(InputError, match=message):
        ViTConfig.preset("bvit_easy", **({"d_model": 24, "n_heads": 3} | fields))


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
