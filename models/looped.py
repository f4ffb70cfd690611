"""Step names for anybody's looped model: one that calls one block several times in a forward.

    looped = models.unroll(model, block="encoder.block")
    _, cache = looped.run_with_cache(images)
    cache["resid_post", 3]                        # after the fourth call

Where the block is a timm Block whose arithmetic is ours (checked on numbers), each call has every hook point of a step
of a bViT: heads, patterns, neurons. Any other block has ``blocks.{t}.hook_resid_pre`` and ``hook_resid_post``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint

from models.block import Block
from models.config import ViTConfig
from models.errors import InputError
from models.hooks import Shared, Step, listening
from models.watching import Names, Watched

HEARD = "only resid_pre and resid_post are heard there"
STATES = ("x", "hidden_states", "h", "z", "inputs")  # what a block may call its state, where it is given by name


class Call(nn.Module):
    """The hook points of one call of a block that nothing else is known of."""

    def __init__(self) -> None:
        super().__init__()
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()


class Unrolled(Watched):
    """A foreign module whose block is watched call by call; it is called as before, and shares its weights."""

    def __init__(self, module: nn.Module, block: str, n_steps: int | None = None):
        super().__init__()
        try:
            looped = module.get_submodule(block)
        except AttributeError:
            named = [name for name, _ in module.named_modules() if name and name.count(".") < 3]
            raise InputError(
                f"unroll: {type(module).__name__} has no module {block!r}; it has {', '.join(named[:12])}"
            ) from None
        self.module, self.n_steps, self.calls, self.is_counting = module, n_steps, 0, n_steps is None
        self.__dict__ |= {"looped": looped, "before": vars(looped).get("forward")}
        self.__dict__["core"] = [as_ours(looped, self.real)]
        self.is_fresh = False
        self.blocks = nn.ModuleList()
        if n_steps is not None:
            self._watch(n_steps)
        looped.forward = self._call
        module.register_forward_pre_hook(self._begin)

    @property
    def real(self) -> Callable[..., Any]:
        """The block's own forward, or what stood in its place already; bound anew, so that a copy has its own."""
        return self.before or type(self.looped).forward.__get__(self.looped)

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.calls, self.is_fresh = 0, False

    def _watch(self, n_steps: int) -> None:
        """Give the first `n_steps` calls hook points."""
        ours = self.core[0]
        for _ in range(len(self.blocks), n_steps):
            self.blocks.append(Call() if ours is None else step_of_block(self, ours))
        self.n_steps = n_steps
        self.setup()

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """What runs in place of the block's own forward: the same, seen at this call."""
        t, self.calls = self.calls, self.calls + 1
        if t >= len(self.blocks):
            if not self.is_counting and any(map(is_watched, self.blocks)):
                raise InputError(f"only {len(self.blocks)} calls of the block have hook points; give unroll n_steps")
            return self.real(*args, **kwargs)
        step = self.blocks[t]
        if is_watched(step, but=("hook_resid_pre", "hook_resid_post")):
            if len(args) != 1 or kwargs:
                raise InputError(f"the block was called with more than its state; {HEARD}")
            return self._ours()(args[0], step)
        args, kwargs = with_state(args, kwargs, step.hook_resid_pre)
        output = self.real(*args, **kwargs)
        if isinstance(output, tuple | list):
            return type(output)([step.hook_resid_post(output[0]), *output[1:]])
        return step.hook_resid_post(output)

    def _ours(self) -> Block:
        """Our block with what the looped one holds now, once a forward: layers and weights may have been exchanged."""
        if not self.is_fresh:
            looped = self.looped
            others = [part for part in looped.modules() if part is not looped]
            ours = None if draws(looped) or listening(*others) else as_ours(looped, self.real)
            if ours is None:
                raise InputError(f"something in the block was replaced, is hooked or draws at random; {HEARD}")
            self.core[0], self.is_fresh = ours, True
        return self.core[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        if self.is_counting:
            self.is_counting = False
            self._watch(self.calls)
        return output

    def count(self, *args: Any, **kwargs: Any) -> int:
        """How often the block is called for these inputs; one run without gradients, where that is not known yet."""
        if self.is_counting:
            with torch.no_grad():
                self(*args, **kwargs)
        return len(self.blocks)

    def hooks(self, fwd_hooks: Any = (), bwd_hooks: Any = (), *args: Any, **kwargs: Any) -> Any:
        """As of a bViT; before the first run nobody knows how many steps there are, unless unroll was given n_steps."""
        if self.is_counting and (list(fwd_hooks) or list(bwd_hooks)):
            raise InputError("how many steps there are is known after one run: call the model once, or give n_steps")
        return super().hooks(fwd_hooks, bwd_hooks, *args, **kwargs)

    def run_with_hooks(self, *args: Any, fwd_hooks: Any = (), bwd_hooks: Any = (), **kwargs: Any) -> Any:
        self.count(*args, **kwargs)
        with self.hooks(fwd_hooks, bwd_hooks):
            return self(*args, **kwargs)

    def run_with_cache(  # type: ignore[override]
        self,
        *args: Any,
        names_filter: Names = None,
        device: Any = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        pos_slice: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ActivationCache]:
        """Output and a cache of the named activations; see `models.vit.BViT.run_with_cache`."""
        self.count(*args, **kwargs)
        output, activations = self.cached(
            lambda: self(*args, **kwargs),
            names_filter,
            device=device,
            remove_batch_dim=remove_batch_dim,
            incl_bwd=incl_bwd,
            pos_slice=pos_slice,
        )
        return output, ActivationCache(activations, self, has_batch_dim=not remove_batch_dim)

    @property
    def cfg(self) -> SimpleNamespace:
        """What TransformerLens' cache asks of a model."""
        return SimpleNamespace(n_layers=len(self.blocks), attn_only=self.core[0] is None, normalization_type=None)


def unroll(module: nn.Module, block: str, n_steps: int | None = None) -> Unrolled:
    """Step names for a module that calls its submodule `block` several times in a forward.

    `n_steps` is how many calls get hook points; by default as many as the first run makes. Raises `InputError` for a
    block that is not there.
    """
    return Unrolled(module, block, n_steps)


def with_state(args: tuple, kwargs: dict[str, Any], hook: nn.Module) -> tuple[tuple, dict[str, Any]]:
    """A block's arguments with its state (the first tensor, or that of a usual name) passed through a hook point."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:i], hook(value), *args[i + 1 :]), kwargs
    name = next((name for name in STATES if isinstance(kwargs.get(name), Tensor)), None)
    if name is None:
        raise InputError(f"the block was called without a tensor that could be its state (by position, or {STATES})")
    return args, kwargs | {name: hook(kwargs[name])}


def is_watched(step: nn.Module, but: tuple[str, ...] = ()) -> bool:
    return listening(*(module for name, module in step.named_modules() if name not in but))


def step_of_block(model: Unrolled, block: Block) -> Step:
    norm = block.norm1
    return Step(Shared(model, 0), is_centred=norm.is_centred, eps=norm.eps, has_step_embedding=False)


def draws(block: nn.Module) -> bool:
    """Whether what a block gives is drawn at random: it trains, with dropout or drop path."""
    return any(part.training and (getattr(part, "p", 0) or getattr(part, "drop_prob", 0)) for part in block.modules())


def as_ours(block: nn.Module, forward: Callable[[Tensor], Tensor]) -> Block | None:
    """Our `Block` around a timm Block's own weights, where both give the same numbers; None for any other, also for one
    whose `forward` is no longer timm's.
    """
    if type(block) is not TimmBlock or getattr(forward, "__func__", None) is not TimmBlock.forward:
        return None
    with contextlib.suppress(InputError, AttributeError):  # a part of a name or kind that ours does not have
        ours = around(block)
        return ours if agree(block, forward, ours) else None
    return None


def around(block: TimmBlock) -> Block:
    """Our block that holds the very parameters of timm's."""
    scale = getattr(block.ls1, "gamma", None)
    config = ViTConfig(
        n_steps=1,
        d_model=block.attn.proj.out_features,
        n_heads=block.attn.num_heads,
        d_mlp=block.mlp.fc1.out_features,
        norm="ln" if hasattr(block.norm1, "bias") else "rms",
        norm_eps=block.norm1.eps,
        layer_scale=None if scale is None else 1.0,
    )
    with torch.device("meta"):
        ours = Block(config)
    for name, meta in list(ours.named_parameters()):
        place, _, leaf = name.rpartition(".")
        theirs = getattr(block.get_submodule(place), leaf)
        like = block.attn.proj.weight
        missing = nn.Parameter(torch.zeros(meta.shape, dtype=like.dtype, device=like.device), requires_grad=False)
        ours.get_submodule(place)._parameters[leaf] = missing if theirs is None else theirs
    return ours.eval()


@torch.no_grad()
def agree(block: TimmBlock, forward: Callable[[Tensor], Tensor], ours: Block) -> bool:
    """Whether both blocks map random states to the same, to rounding."""
    weight, modes = block.attn.proj.weight, [(part, part.training) for part in block.modules()]
    z = torch.randn(2, 5, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    step = step_of_block(SimpleNamespace(core=[ours]), ours)
    block.eval()
    expected = forward(z)
    for part, was_training in modes:
        part.training = was_training
    close = 1e-4 if weight.dtype == torch.float32 else 1e-2
    return bool(torch.allclose(ours(z, step), expected, rtol=close, atol=close * float(expected.abs().max())))
