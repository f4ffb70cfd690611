"""Step names for three looped models of other people. Run with: pytest tests/test_looped.py"""

import pickle

import pytest
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from models import unroll
from models.errors import InputError
from models.hooks import head, replace, zero


class Universal(nn.Module):
    """A timm Block in a loop between an embedding and a head."""

    def __init__(self, steps: int = 4, **block):
        super().__init__()
        self.embed, self.block, self.head, self.steps = (
            nn.Linear(6, 24),
            Block(24, 3, qkv_bias=True, **block),
            nn.Linear(24, 5),
            steps,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for _ in range(self.steps):
            h = self.block(h)
        return self.head(h.mean(1))


class Cell(nn.Module):
    """A block of another kind: it takes its state by name, with the input beside it, and gives a tuple."""

    def __init__(self):
        super().__init__()
        self.mix, self.gate = nn.Linear(24, 24), nn.Linear(6, 24)

    def forward(self, hidden_states: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, str]:
        return hidden_states + torch.tanh(self.mix(hidden_states) + self.gate(given)), "more"


class Injected(nn.Module):
    """Re-injects its input at every step, and stops early if it is told to."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"cell": Cell()})
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        h = x.new_zeros(*x.shape[:-1], 24)
        for _ in range(steps):
            h, _ = self.encoder["cell"](hidden_states=h, given=x)
        return self.head(h.mean(1))


class Convolutional(nn.Module):
    """Images in, a convolution applied five times."""

    def __init__(self):
        super().__init__()
        self.stem, self.loop, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x)
        for _ in range(5):
            h = h + torch.relu(self.loop(h))
        return self.head(h.mean((2, 3)))


CASES = {
    "timm block": (Universal, "block", 4, (2, 7, 6)),
    "own cell": (Injected, "encoder.cell", 6, (2, 7, 6)),
    "convolution": (Convolutional, "loop", 5, (2, 3, 8, 8)),
}


@pytest.fixture(params=CASES)
def case(request):
    kind, block, steps, shape = CASES[request.param]
    module = kind().eval()
    images = torch.randn(shape)
    expected = module(images).detach()
    return unroll(module, block), steps, images, expected


def test_it_answers_as_before_and_every_call_is_a_step(case) -> None:
    looped, steps, images, expected = case
    output, cache = looped.run_with_cache(images, names_filter="blocks.*.hook_resid_p*")
    assert torch.allclose(output, expected, atol=1e-5) and torch.allclose(looped.module(images), expected, atol=1e-5)
    assert len(looped.blocks) == steps and len(cache.cache_dict) == 2 * steps
    assert all(torch.isfinite(cache["resid_post", t]).all() for t in range(steps))


def test_ablating_and_patching_a_step_equal_a_loop_by_hand(case) -> None:
    looped, steps, images, expected = case
    _, cache = looped.run_with_cache(images)
    other = torch.randn_like(images)
    _, cache_of_other = looped.run_with_cache(other)
    patched = looped.run_with_hooks(
        images, fwd_hooks=[(f"blocks.{steps - 1}.hook_resid_post", replace(cache_of_other["resid_post", steps - 1]))]
    )
    if not isinstance(looped.module, Convolutional):  # there the head reads more than the block's output
        assert torch.allclose(patched, looped(other), atol=1e-5)
    kept = looped.run_with_hooks(images, fwd_hooks=[("blocks.2.hook_resid_pre", replace(cache["resid_pre", 2]))])
    assert torch.allclose(kept, expected, atol=1e-5)
    off = looped.run_with_hooks(images, fwd_hooks=[("blocks.*.hook_resid_post", zero)])
    assert not torch.allclose(off, expected, atol=1e-3)
    assert torch.allclose(looped(images), expected, atol=1e-5)


@pytest.mark.parametrize("block", [{}, {"init_values": 0.5}], ids=["plain", "LayerScale"])
def test_a_timm_block_has_every_hook_point_of_a_step(block) -> None:
    module, images = Universal(**block).eval(), torch.randn(2, 7, 6)
    looped = unroll(module, "block")
    _, cache = looped.run_with_cache(images)
    h = module.embed(images)
    for t in range(4):
        assert torch.allclose(cache["resid_pre", t], h, atol=1e-5)
        assert torch.allclose(cache["pattern", t].sum(-1), torch.ones(2, 3, 7), atol=1e-5)
        h = cache["resid_mid", t] + cache["mlp_out", t]
    assert torch.allclose(module.head(h.mean(1)), looped(images), atol=1e-5)

    by_hand = module.block.attn.proj.register_forward_pre_hook(lambda m, args: (without_head_0(args[0], looped.calls),))
    looped.core[0] = None  # past our arithmetic: timm's own forward with a hand-made ablation at the second call
    looped.blocks = nn.ModuleList()
    expected = module(images)
    by_hand.remove()
    fresh = unroll(Universal(**block).eval(), "block")
    fresh.module.load_state_dict({name.removeprefix("module."): v for name, v in looped.state_dict().items()})
    assert torch.allclose(
        fresh.run_with_hooks(images, fwd_hooks=[("blocks.1.attn.hook_z", head(0, zero))]), expected, atol=1e-5
    )


def without_head_0(z: torch.Tensor, calls: int) -> torch.Tensor:
    z = z.clone()
    if calls == 2:
        z[..., :8] = 0
    return z


def test_weights_are_shared_and_gradients_reach_them() -> None:
    module = Universal()
    looped = unroll(module, "block")
    assert {name.removeprefix("module.") for name in looped.state_dict()} == set(module.state_dict())
    looped(torch.randn(2, 7, 6)).square().sum().backward()
    assert module.block.attn.qkv.weight.grad.abs().sum() > 0
    with torch.no_grad():
        module.block.mlp.fc2.weight.zero_()
        module.block.mlp.fc2.bias.zero_()
    _, cache = looped.run_with_cache(torch.randn(2, 7, 6), names_filter="blocks.*.hook_mlp_out")
    assert all(not cache["mlp_out", t].any() for t in range(4))


def test_a_block_with_another_arithmetic_has_states_alone() -> None:
    for different in (dict(qk_norm=True), dict(act_layer=nn.ReLU)):
        looped = unroll(Universal(**different).eval(), "block")
        images = torch.randn(2, 7, 6)
        before = looped.module(images)
        output, cache = looped.run_with_cache(images)
        assert torch.allclose(output, before)
        assert set(cache.cache_dict) == {f"blocks.{t}.hook_resid_{at}" for t in range(4) for at in ("pre", "post")}


def test_a_stack_in_which_one_block_is_shared_twice() -> None:
    vit = VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=4, num_heads=3, num_classes=5).eval()
    vit.blocks = nn.Sequential(*[vit.blocks[0]] * 4)
    images = torch.randn(2, 3, 16, 16)
    expected = vit(images)
    output, cache = unroll(vit, "blocks.0").run_with_cache(images, names_filter="blocks.*.attn.hook_pattern")
    assert torch.allclose(output, expected, atol=1e-5) and len(cache.cache_dict) == 4


def test_numbers_of_steps_and_bad_names_are_said() -> None:
    images = torch.randn(2, 7, 6)
    with pytest.raises(InputError, match="has no module 'blocks'; it has embed, block"):
        unroll(Universal(), "blocks")
    looped = unroll(Injected(), "encoder.cell", n_steps=3)
    with pytest.raises(InputError, match="only 3 calls of the block have hook points"):
        looped.run_with_hooks(images, fwd_hooks=[("blocks.*.hook_resid_post", zero)])
    assert looped(images, steps=9).shape == (2, 5)
    _, cache = looped.run_with_cache(images, steps=2)
    assert len(cache.cache_dict) == 4
    unseen = unroll(Universal(), "block")
    with (
        pytest.raises(InputError, match="call the model once, or give n_steps"),
        unseen.hooks([("blocks.0.hook_z", zero)]),
    ):
        pass
    with pytest.raises(InputError, match="no hook point 'blocks.9.hook_resid_pre': the model has steps 0 to 3"):
        unseen.run_with_cache(images, names_filter="blocks.9.hook_resid_pre")


EXCHANGES = {
    "dropout": lambda module: module.train(),
    "a torch hook": lambda module: module.block.attn.register_forward_hook(lambda part, given, output: 0 * output),
    "another layer": lambda module: setattr(module.block.attn, "qkv", nn.Sequential(module.block.attn.qkv)),
}


@pytest.mark.parametrize("what", EXCHANGES)
def test_what_was_put_into_the_block_runs_and_is_not_overheard(what) -> None:
    module, images = Universal(proj_drop=0.5), torch.randn(2, 7, 6)
    looped = unroll(module.eval(), "block", 4)
    EXCHANGES[what](module)
    torch.manual_seed(0)
    answer = looped(images)
    del module.block.forward  # the module as it was before anybody unrolled it
    torch.manual_seed(0)
    assert torch.equal(answer, module(images))
    module.block.forward = looped._call
    with pytest.raises(InputError, match="something in the block was replaced, is hooked or draws at random"):
        looped.run_with_hooks(images, fwd_hooks=[("blocks.1.attn.hook_z", zero)])


def test_new_weights_are_those_that_run() -> None:
    module, other, images = Universal().eval(), Universal().eval(), torch.randn(2, 7, 6)
    looped, hooks = unroll(module, "block", 4), [("blocks.1.attn.hook_z", zero)]
    module.load_state_dict(other.state_dict(), assign=True)
    expected = other(images)
    assert torch.equal(looped(images), expected)
    ablated = unroll(other, "block", 4).run_with_hooks(images, fwd_hooks=hooks)
    assert torch.equal(looped.run_with_hooks(images, fwd_hooks=hooks), ablated)
    weights = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    with looped.hooks(hooks):
        assert not torch.func.functional_call(module, weights, (images,)).any()


def test_a_module_may_be_unrolled_twice_and_pickled() -> None:
    module, images = Universal().eval(), torch.randn(2, 7, 6)
    first, second = (unroll(module, "block", 4) for _ in range(2))
    expected = first(images)
    ablated = [one.run_with_hooks(images, fwd_hooks=[("blocks.1.hook_resid_post", zero)]) for one in (first, second)]
    assert torch.equal(*ablated) and not torch.allclose(ablated[0], expected)
    assert torch.equal(pickle.loads(pickle.dumps(first))(images), expected)
