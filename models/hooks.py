"""The hook points of one step, and ready hook functions for ``run_with_hooks``.

Weights exist once per block, hook points once per step. A `Step` is the shared block seen at one step: it holds
that step's hook points and no parameters, and calling it runs the block. So every tool that hooks a module
(TransformerLens, Captum, grad-cam, timm, nnsight) gets the right step. Who calls whom:

    BViT.run_steps  -- z -->  blocks[t]: Step           the hook points of step t
                                 | (z, step)
                                 v
                              core[k]: Block            the weights, shared by the steps
                                 |-- norm1(z, step.ln1)
                                 |-- step.attn(x, block)  -->  block.attn(x, step.attn)   q k v, pattern, z
                                 |-- norm2(u, step.ln2)
                                 `-- step.mlp(x, block)   -->  block.mlp(x, step.mlp)     pre, post

Axes: batch, pos (CLS, registers, patches), head, query and key (both pos), d_model, d_head, d_mlp.

| name | shape |
|---|---|
| hook_embed, hook_pos_embed (z_0 is their sum, also with a norm before the blocks) | [batch pos d_model] |
| blocks.{t}.hook_step_embed (models with a step embedding) | [batch pos d_model] |
| blocks.{t}.hook_resid_pre, hook_resid_mid, hook_resid_post, hook_attn_out, hook_mlp_out | [batch pos d_model] |
| blocks.{t}.hook_q_input, hook_k_input, hook_v_input (each head's own stream, before ln1) | [batch pos head d_model] |
| blocks.{t}.hook_mlp_in (the MLP's own stream, before ln2) | [batch pos d_model] |
| blocks.{t}.attn.hook_q, hook_k, hook_v, hook_z (q, k after norm and rotation) | [batch pos head d_head] |
| blocks.{t}.attn.hook_attn_scores, hook_pattern | [batch head query key] |
| blocks.{t}.attn.hook_result | [batch pos head d_model] |
| blocks.{t}.mlp.hook_pre, hook_post | [batch pos d_mlp] |
| blocks.{t}.ln1.hook_scale, ln2.hook_scale, ln_final.hook_scale | [batch pos 1] |
| blocks.{t}.ln1.hook_normalized, ln2.hook_normalized, ln_final.hook_normalized (no affine) | [batch pos d_model] |

The inputs and hook_result are computed only when they are named: listening to everything leaves them out. While an
input of q, k or v is heard, ln1 norms a stream for each of them and each head: [batch pos slot head _], slot = q, k, v.
"""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from models.errors import InputError

HookFunction = Callable[..., Tensor]
INPUTS = ("q_input", "k_input", "v_input")
OF_HEADS = tuple(f"hook_{name}" for name in ("q", "k", "v", *INPUTS, "z", "result", "attn_scores", "pattern"))
MATRICES = (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2"))  # a block's, as (half, name)


def listening(*points: nn.Module) -> bool:
    """Whether one of `points` has a hook, TransformerLens' or plain torch's."""
    return any(p._forward_hooks or p._forward_pre_hooks or p._backward_hooks or p._backward_pre_hooks for p in points)


class NormHooks(nn.Module):
    """A norm without its affine, watched: ``x -> (x - mean) / scale``, no mean for RMSNorm."""

    def __init__(self, is_centred: bool, eps: float):
        super().__init__()
        self.is_centred, self.eps = is_centred, eps
        self.hook_scale, self.hook_normalized = HookPoint(), HookPoint()

    @property
    def is_watched(self) -> bool:
        return listening(self, self.hook_scale, self.hook_normalized)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_centred:
            x = x - x.mean(-1, keepdim=True)
        scale = self.hook_scale((x.square().mean(-1, keepdim=True) + self.eps).sqrt())
        return self.hook_normalized(x / scale)


class Shared:
    """A reference to block `index` of a model, looked up at every call: one that was wrapped or replaced since is used.

    It keeps the block out of a step's modules, so that the weights are registered once, in `model.core`.
    """

    def __init__(self, model: Any, index: int):
        self.model, self.index = model, index

    @property
    def callable_block(self) -> nn.Module:
        """What a step calls: the block, or what wraps it (activation checkpointing, FSDP, an adapter)."""
        return self.model.core[self.index]

    @property
    def block(self) -> nn.Module:
        """The block itself, inside whatever wraps it."""
        return next(module for module in self.callable_block.modules() if {"attn", "norm1"} <= module._modules.keys())


class Part(nn.Module):
    """Attention or MLP at one step: its hook points, and the shared weights as this step runs with them."""

    matrices: tuple[str, ...]
    adapter: str | None = None  # which of the block's low-rank adapters this step runs with, see `models.adapters`

    def __init__(self, shared: Shared):
        super().__init__()
        self.__dict__["shared"] = shared  # not as a submodule: see `Shared`
        self.running: dict[str, Tensor] = {}  # matrices that stand in the block's place while this step runs
        for name in self.matrices:  # of a pruned model, see `models.masks`
            self.register_buffer(f"mask_{name}", None, persistent=False)

    def weight(self, name: str) -> Tensor:
        """A matrix as this step runs with it, its adapter added and its mask applied: [out in].

        Raises `InputError` where another layer stands in its place, unless it is one of `peft`'s.
        """
        if name in self.running:
            return self.running[name]
        layer, mask = getattr(self.half, name), getattr(self, f"mask_{name}")
        if hasattr(layer, "get_delta_weight"):
            adapters = [self.adapter] if self.adapter is not None else layer.active_adapters
            weight = sum((layer.get_delta_weight(adapter) for adapter in adapters), layer.weight)
        elif isinstance(layer, nn.Linear):
            weight = layer.weight
        else:
            raise InputError(f"{name} is a {type(layer).__name__}, not one matrix; merge it into its layer first")
        return weight if mask is None else weight * mask

    def parameter(self, name: str) -> str:
        """The name of a matrix's parameter in its half of the block; an adapter wraps the layer."""
        return f"{name}.base_layer.weight" if hasattr(getattr(self.half, name), "base_layer") else f"{name}.weight"


class AttentionHooks(Part):
    """The hook points of attention at one step; called with the block, it runs the block's attention."""

    matrices = ("qkv", "proj")

    def __init__(self, shared: Shared, inputs: tuple[HookPoint, HookPoint, HookPoint]):
        super().__init__(shared)
        self.__dict__["inputs"] = inputs  # the step's, which names them
        for name in ("q", "k", "v", "z", "attn_scores", "pattern", "result"):
            setattr(self, f"hook_{name}", HookPoint())

    def forward(self, x: Tensor, block: nn.Module) -> Tensor:
        return block.attn(x, self, block.gamma1)

    @property
    def is_split(self) -> bool:
        """Whether q, k and v of every head read streams of their own."""
        return listening(*self.inputs)

    def split(self, h: Tensor) -> Tensor:
        """The stream [batch pos d_model]; where a hook asks for it, one for q, k, v of each head: [... slot head d]."""
        if not self.is_split:
            return h
        per_head = h[:, :, None].expand(-1, -1, self.half.n_heads, -1)
        return torch.stack([point(per_head) for point in self.inputs], 2)

    @property
    def half(self) -> nn.Module:
        """The block's `Attention`, which holds the shared weights."""
        return self.shared.block.attn

    @property
    def W_O(self) -> Tensor:
        """What a head's z adds to the stream, LayerScale included: [head d_head d_model]."""
        return _scaled(self.weight("proj").T, self.shared.block.gamma1).unflatten(0, (self.half.n_heads, -1))

    @property
    def b_O(self) -> Tensor:
        return _scaled(self.half.proj.bias, self.shared.block.gamma1)


class MlpHooks(Part):
    """The hook points of the MLP at one step; called with the block, it runs the block's MLP."""

    matrices = ("fc1", "fc2")

    def __init__(self, shared: Shared):
        super().__init__(shared)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, x: Tensor, block: nn.Module) -> Tensor:
        return block.mlp(x, self, block.gamma2)

    @property
    def half(self) -> nn.Module:
        """The block's `Mlp`, which holds the shared weights."""
        return self.shared.block.mlp

    @property
    def W_out(self) -> Tensor:
        """What a neuron adds to the stream, LayerScale included: [d_mlp d_model]."""
        return _scaled(self.weight("fc2").T, self.shared.block.gamma2)

    @property
    def b_out(self) -> Tensor:
        return _scaled(self.half.fc2.bias, self.shared.block.gamma2)


class Step(nn.Module):
    """The shared block at one step: its hook points, under TransformerLens' names, and no parameters."""

    def __init__(self, shared: Shared, *, is_centred: bool, eps: float, has_step_embedding: bool):
        super().__init__()
        self.__dict__["shared"] = shared
        if has_step_embedding:
            self.hook_step_embed = HookPoint()
        for name in ("resid_pre", *INPUTS, "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"):
            setattr(self, f"hook_{name}", HookPoint())
        self.ln1, self.ln2 = NormHooks(is_centred, eps), NormHooks(is_centred, eps)
        inputs = tuple(getattr(self, f"hook_{name}") for name in INPUTS)
        self.attn, self.mlp = AttentionHooks(shared, inputs), MlpHooks(shared)

    def forward(self, x: Tensor, step_embedding: Tensor | None = None) -> Tensor:
        if self.is_masked or self.attn.adapter is not None:
            return self.run_with({name: self.weight(name) for _, name in MATRICES}, x, step_embedding)
        block = self.shared.callable_block
        is_compiled = getattr(block, "_compiled_call_impl", None) is not None
        if not is_compiled:
            return block(x, self, step_embedding)
        if self.is_watched:  # compiled code would not hear hooks that are set later
            return block._call_impl(x, self, step_embedding)
        return block(x, self.shared.model.unwatched, step_embedding)

    def run_with(self, matrices: dict[str, Tensor], x: Tensor, step_embedding: Tensor | None) -> Tensor:
        """Run the block with other matrices [out in], by name, in place of the shared ones."""
        weights = {f"{part}.{self.part(name).parameter(name)}": matrices[name] for part, name in MATRICES}
        self.attn.running.update(matrices)
        self.mlp.running.update(matrices)
        try:
            return torch.func.functional_call(self.shared.block, weights, (x, self, step_embedding))
        finally:
            self.attn.running.clear()
            self.mlp.running.clear()

    def part(self, name: str) -> Part:
        """The half of the step that the matrix `name` (qkv, proj, fc1, fc2) belongs to."""
        return self.attn if name in self.attn.matrices else self.mlp

    def weight(self, name: str) -> Tensor:
        """qkv, proj, fc1 or fc2 as this step runs with it, its adapter and a pruned model's mask applied: [out in]."""
        return self.part(name).weight(name)

    @property
    def is_masked(self) -> bool:
        return self.attn.mask_qkv is not None

    @property
    def is_watched(self) -> bool:
        return listening(*self.modules())


def _scaled(tensor: Tensor, gamma: Tensor | None) -> Tensor:
    return tensor if gamma is None else tensor * gamma


def zero(activation: Tensor, hook: HookPoint) -> Tensor:
    """Zero ablation."""
    return torch.zeros_like(activation)


def mean(activation: Tensor, hook: HookPoint) -> Tensor:
    """Mean ablation: every image gets the mean over the batch, which must be of several (else ``replace(mean)``)."""
    if len(activation) == 1:
        raise InputError(
            f"{hook.name}: the mean over a batch of one image is that image's own activation; give more images, or "
            "replace(mean) with a mean over a data set"
        )
    return activation.mean(0, keepdim=True).expand_as(activation)


def replace(value: Tensor | float) -> HookFunction:
    """A hook that puts `value` (anything that broadcasts to the activation) in the activation's place."""
    value = torch.as_tensor(value)

    def put(activation: Tensor, hook: HookPoint) -> Tensor:
        try:
            return value.to(activation).expand_as(activation)
        except RuntimeError:
            raise InputError(
                f"{hook.name}: a value {list(value.shape)} cannot stand in place of {list(activation.shape)}"
            ) from None

    return put


def add_noise(scale: float, seed: int = 0) -> HookFunction:
    """A hook that adds Gaussian noise of standard deviation `scale`, the same at every call."""

    def add(activation: Tensor, hook: HookPoint) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return activation + scale * torch.randn(activation.shape, generator=generator).to(activation)

    return add


def head(index: int, function: HookFunction) -> HookFunction:
    """A hook that applies `function` to head `index` and leaves the others alone.

    At q, k, v, their inputs, z and result `[batch pos head _]`, and at scores and pattern `[batch head query key]`.
    """

    def only(activation: Tensor, hook: HookPoint) -> Tensor:
        axis = 1 if hook.name.endswith(("hook_attn_scores", "hook_pattern")) else 2
        n_heads = activation.shape[axis] if hook.name.endswith(OF_HEADS) else 0
        if not (isinstance(index, Integral) and -n_heads <= index < n_heads):
            raise InputError(f"{hook.name} has {n_heads or 'no'} heads, so there is no head {index!r} in it")
        changed = activation.clone()
        changed.select(axis, index).copy_(function(activation.select(axis, index), hook=hook))
        return changed

    return only


def cls_attention(model: nn.Module, images: Tensor) -> Tensor:
    """Attention of the CLS token at every step and head: [batch step head key], float32.

    Computed from q and k while attention stays fused, so it costs little more than the forward itself (1.08x at 1,370
    tokens, where explicit patterns cost 2.04x). Run it under ``torch.inference_mode()`` unless gradients are wanted.
    """
    queries: list[Tensor] = []  # [batch head d_head] of each step
    rows: list[Tensor] = []  # [batch head key] of each step

    def keep_query(q: Tensor, hook: HookPoint) -> None:
        queries.append(q[:, 0].float())

    def add_row(k: Tensor, hook: HookPoint) -> None:
        scores = torch.einsum("bhd,bkhd->bhk", queries[-1] * k.shape[-1] ** -0.5, k.float())
        rows.append(scores.softmax(-1))

    hooks = [("blocks.*.attn.hook_q", keep_query), ("blocks.*.attn.hook_k", add_row)]
    model.run_with_hooks(images, fwd_hooks=hooks, stop_at_step=model.config.n_steps)
    return torch.stack(rows, 1)
