"""Functions for hooks, who is heard, the weights of a step. Run with: pytest tests/test_hook_functions.py"""

import re

import pytest
import torch
from torch import nn

from models import BViT, ViTConfig
from models.checkpoint import fresh
from models.errors import InputError
from models.hooks import add_noise, head, listening, mean, replace, zero
from models.vit import whole
from models.watching import fitted

CONFIG = ViTConfig(image_size=32, patch_size=8, d_model=24, n_heads=3, n_steps=4, n_classes=5, init="xavier")


@pytest.fixture
def model() -> BViT:
    return fresh(CONFIG, 0).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "axis"),
    [("hook_attn_scores", 1), ("hook_pattern", 1), ("hook_q", 2), ("hook_k", 2), ("hook_v", 2), ("hook_z", 2)],
)
def test_a_function_for_one_head_changes_that_head_alone(model, images, name, axis) -> None:
    kept = {}
    with torch.no_grad():
        _, before = model.run_with_cache(images, names_filter=f"blocks.1.attn.{name}")
        with model.hooks([(f"blocks.1.attn.{name}", head(1, zero))]):
            model.run_with_hooks(images, fwd_hooks=[(f"blocks.1.attn.{name}", lambda x, hook: kept.update(after=x))])
    after, expected = kept["after"].unbind(axis), list(before[f"blocks.1.attn.{name}"].unbind(axis))
    expected[1] = torch.zeros_like(expected[1])
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


def test_the_mean_of_one_image_needs_a_reference(model, images) -> None:
    said = (
        "blocks.0.hook_mlp_out: the mean over a batch of one image is that image's own activation; give more images, "
        "or replace(mean) with a mean over a data set"
    )
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        model.run_with_hooks(images[:1], fwd_hooks=[("blocks.0.hook_mlp_out", mean)])
    _, cache = model.run_with_cache(images, names_filter="blocks.0.hook_mlp_out")
    known = replace(cache["blocks.0.hook_mlp_out"].mean(0))
    alone = model.run_with_hooks(images[:1], fwd_hooks=[("blocks.0.hook_mlp_out", known)])
    together = model.run_with_hooks(images, fwd_hooks=[("blocks.0.hook_mlp_out", mean)])
    assert torch.allclose(alone, together[:1], atol=1e-5)


def test_noise_is_that_of_its_seed_at_every_call(model, images) -> None:
    activation, hook = torch.ones(2, 5, dtype=torch.float64), model.hook_dict["blocks.0.hook_mlp_out"]
    drawn = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    for _ in range(2):
        noisy = add_noise(0.1, seed=3)(activation, hook=hook)
        assert noisy.dtype == torch.float64 and torch.allclose(noisy, 1 + 0.1 * drawn.double())
    assert add_noise(0.1)(activation.bfloat16(), hook=hook).dtype == torch.bfloat16
    assert torch.equal(add_noise(0.1)(activation, hook=hook), add_noise(0.1, seed=0)(activation, hook=hook))
    noisy = model.run_with_hooks(images, fwd_hooks=[("blocks.0.hook_mlp_out", add_noise(0.1))])
    assert not torch.allclose(noisy, model(images))


def test_a_value_put_in_place_takes_the_activation_s_type(model) -> None:
    hook = model.hook_dict["blocks.0.hook_mlp_out"]
    assert replace(torch.ones(5, dtype=torch.float64))(torch.zeros(2, 5), hook=hook).dtype == torch.float32


def test_a_head_s_function_is_told_where_it_is(model, images) -> None:
    names = []
    told = head(1, lambda activation, hook: names.append(hook.name) or activation)
    model.run_with_hooks(images, fwd_hooks=[("blocks.*.attn.hook_z", told)])
    assert names == [f"blocks.{t}.attn.hook_z" for t in range(model.config.n_steps)]


@pytest.mark.parametrize(
    "listen",
    ["register_forward_hook", "register_forward_pre_hook", "register_backward_hook", "register_full_backward_pre_hook"],
)
def test_every_kind_of_hook_is_listening(listen) -> None:
    point = nn.Identity()
    assert not listening(point, nn.Identity())
    handle = getattr(point, listen)(lambda *_: None)
    assert listening(nn.Identity(), point)
    handle.remove()
    assert not listening(point)


class Adapted(nn.Linear):
    """A layer as `peft` wraps one, with two adapters at work."""

    active_adapters = ("once", "twice")

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        return {"once": 1.0, "twice": 2.0, "idle": 100.0}[adapter] * torch.ones_like(self.weight)


def test_a_matrix_has_the_adapters_that_are_at_work() -> None:
    model = fresh(CONFIG, 0)
    layer = model.core[0].mlp.fc1 = Adapted(CONFIG.d_model, CONFIG.d_mlp)
    assert torch.equal(model.blocks[1].weight("fc1"), layer.weight + 1 + 2)
    model.blocks[1].mlp.adapter = "idle"
    assert torch.equal(model.blocks[1].weight("fc1"), layer.weight + 100)


@pytest.mark.parametrize(
    ("point", "answer", "said"),
    [
        ("blocks.1.hook_attn_out", lambda x: x[:1], "returned [1, 17, 24] in place of [3, 17, 24]"),
        ("blocks.1.hook_resid_post", lambda x: x[:1], "returned [1, 17, 24] in place of [3, 17, 24]"),
        ("blocks.1.attn.hook_pattern", lambda x: x[:, :1], "returned [3, 1, 17, 17] in place of [3, 3, 17, 17]"),
        ("blocks.1.hook_resid_post", lambda x: x.double(), "returned torch.float64 in place of torch.float32"),
        ("blocks.1.hook_resid_post", lambda x: x.detach().numpy(), "returned a ndarray, not a tensor or None"),
        ("blocks.1.hook_resid_post", lambda x: 0.0, "returned a float, not a tensor or None"),
    ],
)
def test_an_answer_that_does_not_fit_is_no_activation(model, images, point, answer, said) -> None:
    with pytest.raises(InputError, match=f"^{point}: the hook {re.escape(said)}"):
        model.run_with_hooks(images, fwd_hooks=[(point, lambda x, hook: answer(x))])
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_a_hook_may_leave_tokens_out_and_answer_in_autocasts_type(model, images) -> None:
    fewer = fitted(lambda x, hook: x[:, :9])
    assert fewer(torch.zeros(3, 17, 24), hook=model.hook_dict["blocks.1.hook_resid_pre"]).shape == (3, 9, 24)
    with pytest.raises(InputError, match="hook_attn_out: the hook returned"):
        fewer(torch.zeros(3, 17, 24), hook=model.hook_dict["blocks.1.hook_attn_out"])
    with torch.autocast("cpu", torch.bfloat16):
        model.run_with_hooks(images, fwd_hooks=[("blocks.1.attn.hook_z", lambda x, hook: x.float())])


@pytest.mark.parametrize("point", ["blocks.1.mlp.hook_post", "blocks.1.hook_resid_post"])
def test_there_is_no_head_where_there_are_none_nor_beyond_the_last(model, images, point) -> None:
    with pytest.raises(InputError, match=f"^{point} has no heads"):
        model.run_with_hooks(images, fwd_hooks=[(point, head(0, zero))])
    with pytest.raises(InputError, match="hook_z has 3 heads, so there is no head 3 in it"):
        model.run_with_hooks(images, fwd_hooks=[("blocks.1.attn.hook_z", head(3, zero))])


def test_a_number_may_stand_in_an_activations_place_and_a_misfit_may_not(model, images) -> None:
    point = "blocks.1.hook_mlp_out"
    ours, theirs = (model.run_with_hooks(images, fwd_hooks=[(point, hook)]) for hook in (replace(0.0), zero))
    assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match=re.escape(f"{point}: a value [5] cannot stand in place of [3, 17, 24]")):
        model.run_with_hooks(images, fwd_hooks=[(point, replace(torch.zeros(5)))])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m, x: m.run_with_hooks(x, fwd_hooks=["hook_embed"]), "hooks are pairs of a name and a function"),
        (lambda m, x: whole("n_steps", 3.0), "n_steps is 3.0, it must be a whole number"),
        (lambda m, x: m.run_with_cache(x, incl_bwd=True), "goes back from one number, the output is"),
        (lambda m, x: m.tokens_to_residual_directions([0, 5]), "classes 0 to 4, not"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(model, images, call, said) -> None:
    with pytest.raises(InputError, match=said):
        call(model, images)


@pytest.mark.parametrize("n_blocks", [1, 4])
def test_a_cache_of_fewer_steps_ends_with_the_last_that_ran(images, n_blocks) -> None:
    model = fresh(ViTConfig.from_dict(CONFIG.to_dict() | {"n_blocks": n_blocks}), 0).eval()
    logits, cache = model.run_with_cache(images, n_steps=2)
    assert torch.equal(cache["resid_post", -1], cache["resid_post", 1])
    assert torch.equal(cache.accumulated_resid(-1)[-1], cache["resid_post", 1])
    assert len(cache.stack_activation("resid_post")) == 2 and len(cache.stack_head_results()) == 6
    parts = cache.decompose_resid() @ model.W_U / cache["ln_final.hook_scale"]
    centred = parts.sum(0) - (cache["resid_post", 1].mean(-1, keepdim=True) / cache["ln_final.hook_scale"]) * (
        model.W_U.sum(0)
    )
    assert torch.allclose(centred[:, 0] + model.b_U, logits, atol=1e-4)
