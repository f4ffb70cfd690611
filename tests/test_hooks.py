"""What people do to hooks and caches: heard, or an error that says why. Run with: pytest tests/test_hooks.py"""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models import BViT, ViTConfig, load
from models import checkpoint as checkpoints
from models.checkpoint import fresh
from models.errors import InputError
from models.hooks import add_noise, cls_attention, head, zero
from models.vit import refuse_other_images

from .warm import python

CONFIG = ViTConfig(
    image_size=32, patch_size=8, d_model=24, n_heads=3, n_steps=4, n_classes=5, init="xavier", step_embedding="learned"
)
OFF = [("blocks.2.attn.hook_z", head(0, zero))]


@pytest.fixture
def model() -> BViT:
    return fresh(CONFIG, 0).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32)


def changed(model, images) -> torch.Tensor:
    """What switching a head off does to the logits."""
    with torch.no_grad():
        before = model(images)
        with model.hooks(OFF):
            after = model(images)
        assert torch.allclose(before, model(images))
    return after - before


# Compiled

COMPILED = """
import warnings
import torch
from models import ViTConfig
from models.checkpoint import fresh
from models.hooks import head, zero

config = ViTConfig(image_size=32, patch_size=8, d_model=24, n_heads=3, n_steps=4, n_classes=5, init="xavier",
                   step_embedding="learned")
images, off = torch.randn(3, 3, 32, 32), [("blocks.2.attn.hook_z", head(0, zero))]

def changed(model, run):
    with torch.no_grad():
        before = run(images)
        with model.hooks(off):
            after = run(images)
        assert torch.allclose(run(images), before, atol=1e-5)
    return after - before

def gradient(model):
    model.zero_grad()
    model(images).square().sum().backward()
    return model.core[0].attn.qkv.weight.grad.clone()

model, graphs = fresh(config, 0).eval(), []
expected, slope = changed(model, model), gradient(model)
assert expected.abs().max() > 1e-3

wrapped = torch.compile(model, backend="eager")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    assert torch.allclose(changed(model, wrapped), expected, atol=1e-6)
assert any("model.compile() compiles its blocks" in str(warning.message) for warning in said)

model.compile(backend=lambda graph, inputs: graphs.append(graph) or graph)
assert torch.allclose(changed(model, model), expected, atol=1e-5)
with torch.no_grad():
    _, cache = model.run_with_cache(images)
    assert torch.allclose(cache["resid_post", 3], model(images, stop_at_step=4), atol=1e-5)
    assert torch.allclose(model.at_steps(2)(images), fresh(config, 0).eval()(images, n_steps=2), atol=1e-5)
assert len(graphs) == 1, f"the block was compiled {len(graphs)} times"

model = fresh(config, 0).eval()
model.compile(backend="aot_eager")
assert torch.allclose(gradient(model), slope, atol=1e-4)
"""


def test_hooks_are_heard_on_compiled_models_whose_block_is_compiled_once() -> None:
    done = python("-c", COMPILED)
    assert done.returncode == 0, done.stderr


# Replaced blocks


class Wrapped(nn.Module):
    """What checkpointing, FSDP or an adapter put in a block's place."""

    def __init__(self, inner: nn.Module, through=lambda inner, *args: inner(*args)):
        super().__init__()
        self.inner, self.through, self.calls = inner, through, 0

    def forward(self, *args):
        self.calls += 1
        return self.through(self.inner, *args)


@pytest.mark.parametrize(
    ("through", "is_same"),
    [
        (lambda inner, *args: inner(*args), True),
        (lambda inner, *args: checkpoint(inner, *args, use_reentrant=False), True),
        (lambda inner, *args: 2 * inner(*args), False),
    ],
    ids=["wrapper", "checkpointing", "changes the output"],
)
def test_a_block_that_was_put_in_place_runs_and_its_hooks_are_heard(model, images, through, is_same) -> None:
    before = model(images)
    wrapped = model.core[0] = Wrapped(model.core[0], through)
    after = model(images)
    assert wrapped.calls == 4
    assert torch.allclose(after, before, atol=1e-6) == is_same
    assert changed(model, images).abs().max() > 1e-3
    _, cache = model.run_with_cache(images, names_filter="blocks.*.attn.hook_z")
    assert len(cache.cache_dict) == 4
    assert model.blocks[1].attn.W_O.shape == (3, 8, 24)


def test_a_replaced_layer_inside_the_block_runs(model, images) -> None:
    before = model(images)
    model.core[0].mlp.fc2 = nn.Linear(96, 24)
    assert not torch.allclose(model(images), before)
    assert torch.equal(model.blocks[3].mlp.W_out, model.core[0].mlp.fc2.weight.T)


# Steps


def test_steps_beyond_the_hook_points_are_an_error_that_names_at_steps(images) -> None:
    model = fresh(ViTConfig(**{**CONFIG.to_dict(), "step_embedding": "sinusoidal"}), 0).eval()
    everywhere = [("blocks.*.attn.hook_z", zero)]
    for call in (
        lambda: model.run_with_cache(images, n_steps=6),
        lambda: model.run_with_hooks(images, n_steps=6, fwd_hooks=everywhere),
    ):
        with pytest.raises(InputError, match=r"only 4 of 6 steps have hook points.*model\.at_steps\(6\)"):
            call()
    with model.hooks(everywhere), pytest.raises(InputError, match=r"at_steps\(6\)"):
        model(images, n_steps=6)
    model(images, n_steps=6)
    assert len(model.at_steps(6).run_with_cache(images, names_filter="blocks.*.attn.hook_z")[1].cache_dict) == 6


def test_a_cache_of_fewer_steps_decomposes_what_ran(model, images) -> None:
    with torch.no_grad():
        logits, cache = model.run_with_cache(images, n_steps=2)
        stream = model(images, n_steps=2, stop_at_step=2)
        parts, labels = cache.decompose_resid(return_labels=True)
        assert torch.allclose(parts.sum(0), stream, atol=1e-5)
        assert [label for label in labels if "step_embed" in label] == ["0_step_embed", "1_step_embed"]
        assert torch.allclose(cache.decompose_resid(2).sum(0), stream, atol=1e-5)
        assert torch.allclose(cache.decompose_resid(1).sum(0), cache["resid_pre", 1], atol=1e-5)
        lens = cache.logit_lens()
        assert len(lens) == 3 and torch.allclose(lens[-1], logits, atol=1e-5)
    with pytest.raises(InputError, match="only 2 steps ran"):
        cache.decompose_resid(3)


# Options of a cache


def test_a_dict_of_functions_takes_the_options_that_a_list_takes(model, images) -> None:
    one, names = images[:1], ["blocks.1.hook_resid_post", "blocks.1.attn.hook_q", "blocks.1.attn.hook_pattern"]
    options = dict(remove_batch_dim=True, pos_slice=0)
    _, plain = model.run_with_cache(one, names_filter=names, **options)
    _, reduced = model.run_with_cache(one, names_filter={name: lambda x: 2 * x for name in names}, **options)
    assert not reduced.has_batch_dim
    for name in names:
        assert torch.equal(reduced[name], 2 * plain[name])
    assert plain["blocks.1.hook_resid_post"].numel() == 24

    scalar = fresh(ViTConfig(**{**CONFIG.to_dict(), "n_classes": 1}), 0).eval()
    for names_filter in (["blocks.1.attn.hook_z"], {"blocks.1.attn.hook_z": lambda x: x}):
        _, cache = scalar.run_with_cache(one, names_filter=names_filter, incl_bwd=True)
        assert cache["blocks.1.attn.hook_z_grad"].shape == (1, 17, 3, 8)
    for names_filter in ("hook_embed", {"hook_embed": lambda x: x}):
        with pytest.raises(TypeError, match="nonsense"):
            model.run_with_cache(one, names_filter=names_filter, nonsense=1)
    with pytest.raises(InputError, match="batch of one"):
        model.run_with_cache(images, remove_batch_dim=True)


def test_the_logit_lens_without_a_batch_and_of_a_cache_that_lacks_something(model, images) -> None:
    logits, cache = model.run_with_cache(images[:1], remove_batch_dim=True)
    assert cache.logit_lens().shape == (5, 5) and torch.allclose(cache.logit_lens()[-1], logits[0], atol=1e-5)
    with pytest.raises(InputError, match="lacks hook_embed"):
        model.run_with_cache(images, names_filter="blocks.*.hook_resid_post")[1].logit_lens()
    with pytest.raises(InputError, match="not whole ones of 17 tokens"):
        model.run_with_cache(images, pos_slice=0)[1].logit_lens()


def test_logit_attributions_of_a_mean_pooled_model_sum_to_its_logits(images) -> None:
    model = fresh(ViTConfig(**{**CONFIG.to_dict(), "pool": "mean", "n_registers": 2}), 0).eval()
    with torch.no_grad():
        logits, cache = model.run_with_cache(images)
        attributions = cache.logit_attrs(cache.decompose_resid(), 3)
        assert torch.allclose(attributions.sum(0) + model.b_U[3], logits[:, 3], atol=1e-4)
    with pytest.raises(InputError, match="leave pos_slice out"):
        cache.logit_attrs(cache.decompose_resid(), 3, pos_slice=0)


# Inputs of heads and of the MLP

APART = ["blocks.*.hook_q_input", "blocks.*.hook_k_input", "blocks.*.hook_v_input", "blocks.*.hook_mlp_in"]


@pytest.mark.parametrize(
    "fields",
    [{}, {"n_blocks": 4, "norm": "rms"}, {"layer_scale": 0.1, "n_registers": 2}, {"qk_norm": True}],
    ids=["bViT", "stacked", "LayerScale", "normed"],
)
def test_inputs_hold_the_stream_and_change_no_logit(images, fields) -> None:
    model = fresh(ViTConfig(**{**CONFIG.to_dict(), **fields}), 0).eval()
    before = model(images)
    logits, cache = model.run_with_cache(images, names_filter=[*APART, "blocks.*.hook_resid_*"])
    assert torch.allclose(logits, before, atol=1e-5)
    for t in range(4):
        for slot in "qkv":
            every = cache[f"blocks.{t}.hook_{slot}_input"]
            assert torch.equal(every, cache["resid_pre", t][:, :, None].expand_as(every)) and every.shape[2] == 3
        assert torch.equal(cache[f"blocks.{t}.hook_mlp_in"], cache["resid_mid", t])
    assert not any(name in model.names() for name in model.names(APART))


@pytest.mark.parametrize("slot", "qkv")
def test_an_input_of_a_head_reaches_that_head_alone(model, images, slot) -> None:
    names = [f"blocks.2.attn.hook_{other}" for other in "qkv"]
    _, before = model.run_with_cache(images, names_filter=names)
    with model.hooks([(f"blocks.2.hook_{slot}_input", head(1, add_noise(1.0)))]):
        _, after = model.run_with_cache(images, names_filter=names)
    for other in "qkv":
        moved = (before[other, 2] - after[other, 2]).abs().amax((0, 1, 3)) > 1e-3
        assert moved.tolist() == [False, slot == other, False]


def test_gradients_at_the_inputs_sum_to_that_of_the_stream(model, images) -> None:
    """They are taken on the way through an input alone, though the tensor is the stream's own."""
    scalar = fresh(ViTConfig(**{**CONFIG.to_dict(), "n_classes": 1}), 0).eval()
    names = [*APART, "blocks.*.hook_resid_*"]
    _, cache = scalar.run_with_cache(images[:1], names_filter=names, incl_bwd=True)
    for t in range(4):
        pre, mid, post, mlp = (
            cache[f"blocks.{t}.hook_{name}_grad"] for name in ("resid_pre", "resid_mid", "resid_post", "mlp_in")
        )
        heads = sum(cache[f"blocks.{t}.hook_{slot}_input_grad"].sum(2) for slot in "qkv")
        assert torch.allclose(pre, heads + mid, atol=1e-5) and heads.abs().max() > 1e-4
        assert torch.allclose(mid, mlp + post, atol=1e-5) and mlp.abs().max() > 1e-4


@pytest.mark.parametrize("name", ["blocks.0.hook_q_input", "blocks.0.hook_mlp_in"])
def test_an_input_whose_gradient_was_not_recorded_says_so(images, name) -> None:
    scalar = fresh(ViTConfig(**{**CONFIG.to_dict(), "n_classes": 1, "step_embedding": "none"}), 0).eval()
    scalar.requires_grad_(False)
    scalar.head.requires_grad_()
    with pytest.raises(InputError, match=f"no gradient was recorded at {name}"):
        scalar.run_with_cache(images[:1], names_filter=name, incl_bwd=True)


def test_inputs_of_heads_see_no_adapter_and_say_so(images) -> None:
    class Adapted(nn.Module):
        def __init__(self, layer: nn.Linear):
            super().__init__()
            self.weight, self.bias = layer.weight, layer.bias

        def forward(self, x):
            return 2 * nn.functional.linear(x, self.weight, self.bias)

    model = fresh(CONFIG, 0).eval()
    model.core[0].attn.qkv = Adapted(model.core[0].attn.qkv)
    model(images)
    with pytest.raises(InputError, match="qkv is a Adapted.*merge"):
        model.run_with_cache(images, names_filter="blocks.0.hook_q_input")


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_what_heads_and_neurons_add_to_the_stream_are_their_weights_with_the_layer_scale(images, layer_scale) -> None:
    model = fresh(ViTConfig(**{**CONFIG.to_dict(), "layer_scale": layer_scale}), 0).eval()
    _, cache = model.run_with_cache(images)
    for t, step in enumerate(model.blocks):
        heads = torch.einsum("bphd,hdm->bpm", cache["z", t], step.attn.W_O) + step.attn.b_O
        assert torch.allclose(heads, cache[f"blocks.{t}.hook_attn_out"], atol=1e-5)
        neurons = cache[f"blocks.{t}.mlp.hook_post"] @ step.mlp.W_out + step.mlp.b_out
        assert torch.allclose(neurons, cache[f"blocks.{t}.hook_mlp_out"], atol=1e-5)


# Hook functions and inputs


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x[0],
        lambda x: (255 * x).to(torch.uint8),
        lambda x: x[:, :1],
        lambda x: x[..., :16],
        lambda x: x.flatten(1),
    ],
    ids=["no batch", "bytes", "grey", "size", "flat"],
)
def test_images_of_another_kind_are_one_sentence(model, images, wrong) -> None:
    with pytest.raises(InputError, match=r"takes floating-point images \[batch 3 32 32\]"):
        model(wrong(images))


@pytest.mark.parametrize("given", [None, [1.0], np.zeros((1, 3, 32, 32))], ids=["None", "list", "ndarray"])
def test_what_is_no_tensor_is_one_sentence(given) -> None:
    with pytest.raises(InputError, match=r"images \[batch 3 32 32\], it was given a .*, which is no tensor"):
        refuse_other_images(given, 32)


@pytest.mark.parametrize("name", ["blocks.0.attn", "blocks.0", "", "blocks.0.attn.hook_zz", "core.0.attn.qkv"])
def test_a_name_that_is_no_hook_point_is_one_sentence(model, images, name) -> None:
    with pytest.raises(InputError, match="no hook point matches"):
        model.run_with_hooks(images, fwd_hooks=[(name, zero)])


def test_cls_attention_is_the_cls_row_of_the_pattern(images) -> None:
    model = fresh(ViTConfig(**{**CONFIG.to_dict(), "n_registers": 1}), 0).eval()
    _, cache = model.run_with_cache(images, names_filter="blocks.*.attn.hook_pattern")
    rows = torch.stack([cache["pattern", t][:, :, 0] for t in range(4)], 1)
    model.head.register_forward_hook(lambda *_: pytest.fail("what comes after the last step is not needed"))
    assert torch.allclose(cls_attention(model, images), rows, atol=1e-6)


def test_a_default_dtype_of_double_changes_no_model(tmp_path, model, images) -> None:
    sha256 = checkpoints.state_sha256(model.state_dict())
    checkpoints.save(tmp_path / "ckpt.pt", model, init_sha256=sha256, provenance={"seed": 0})
    torch.set_default_dtype(torch.float64)
    try:
        for weights in ("raw", "init"):
            loaded = load(tmp_path / "ckpt.pt", weights)
            assert {p.dtype for p in loaded.parameters()} == {torch.float32}
            assert checkpoints.state_sha256(loaded.state_dict()) == sha256
            assert torch.equal(loaded(images), model(images))
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_warning_comes_from_plain_use(model, images) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.run_with_cache(images)
