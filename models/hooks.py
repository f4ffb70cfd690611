"""The hook points of one step, and ready hook functions for ``run_with_hooks``.

Weights exist once per block, hook points once per step. A `Step` is the shared block seen at one
step: it holds that step's hook points and no parameters, and calling it runs the block. So every
tool that hooks a module (TransformerLens, Captum, grad-cam, timm, nnsight) gets the right step.

Axes: batch, pos (CLS, registers, patches), head, query and key (both pos), d_model, d_head, d_mlp.

| name | shape |
|---|---|
| hook_embed, hook_pos_embed | [batch pos d_model] |
| blocks.{t}.hook_step_embed (models with a step embedding) | [batch pos d_model] |
| blocks.{t}.hook_resid_pre, hook_resid_mid, hook_resid_post, hook_attn_out, hook_mlp_out | [batch pos d_model] |
| blocks.{t}.attn.hook_q, hook_k, hook_v, hook_z | [batch pos head d_head] |
| blocks.{t}.attn.hook_attn_scores, hook_pattern | [batch head query key] |
| blocks.{t}.attn.hook_result (computed only when named) | [batch pos head d_model] |
| blocks.{t}.mlp.hook_pre, hook_post | [batch pos d_mlp] |
| blocks.{t}.ln1.hook_scale, ln2.hook_scale, ln_final.hook_scale | [batch pos 1] |
| blocks.{t}.ln1.hook_normalized, ln2.hook_normalized, ln_final.hook_normalized (before the affine) | [batch pos d_model] |
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

HookFunction = Callable[..., Tensor]


def listening(*points: nn.Module) -> bool:
    """Whether anybody listens to one of `points`, be it through TransformerLens or plain torch hooks."""
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


class AttentionHooks(nn.Module):
    """The hook points of attention at one step; called, it runs the shared attention."""

    def __init__(self, core: nn.Module):
        super().__init__()
        self.__dict__["core"] = core  # seen, not owned: the weights are registered once, in the block
        for name in ("mask_qkv", "mask_proj"):  # of a pruned model, see `models.masks`
            self.register_buffer(name, None, persistent=False)
        for name in ("q", "k", "v", "z", "attn_scores", "pattern", "result"):
            setattr(self, f"hook_{name}", HookPoint())

    def forward(self, x: Tensor) -> Tensor:
        return self.core.attn(x, self, self.core.gamma1)

    @property
    def W_O(self) -> Tensor:
        """What a head's z adds to the stream, LayerScale included: [head d_head d_model]."""
        weight = _scaled(_masked(self.core.attn.proj.weight, self.mask_proj).T, self.core.gamma1)
        return weight.unflatten(0, (self.core.attn.n_heads, -1))

    @property
    def b_O(self) -> Tensor:
        return _scaled(self.core.attn.proj.bias, self.core.gamma1)


class MlpHooks(nn.Module):
    """The hook points of the MLP at one step; called, it runs the shared MLP."""

    def __init__(self, core: nn.Module):
        super().__init__()
        self.__dict__["core"] = core
        for name in ("mask_fc1", "mask_fc2"):
            self.register_buffer(name, None, persistent=False)
        self.hook_pre, self.hook_post = HookPoint(), HookPoint()

    def forward(self, x: Tensor) -> Tensor:
        return self.core.mlp(x, self, self.core.gamma2)

    @property
    def W_out(self) -> Tensor:
        """What a neuron adds to the stream, LayerScale included: [d_mlp d_model]."""
        return _scaled(_masked(self.core.mlp.fc2.weight, self.mask_fc2).T, self.core.gamma2)

    @property
    def b_out(self) -> Tensor:
        return _scaled(self.core.mlp.fc2.bias, self.core.gamma2)


class Step(nn.Module):
    """The shared block at one step: its hook points, under TransformerLens' names, and no parameters."""

    def __init__(self, core: nn.Module, *, is_centred: bool, eps: float, has_step_embedding: bool):
        super().__init__()
        self.__dict__["core"] = core
        if has_step_embedding:
            self.hook_step_embed = HookPoint()
        for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
            setattr(self, f"hook_{name}", HookPoint())
        self.ln1, self.ln2 = NormHooks(is_centred, eps), NormHooks(is_centred, eps)
        self.attn, self.mlp = AttentionHooks(core), MlpHooks(core)

    def forward(self, x: Tensor, step_embedding: Tensor | None = None) -> Tensor:
        if self.attn.mask_qkv is None:
            return self.core(x, self, step_embedding)
        return torch.func.functional_call(self.core, self.masked_weights(), (x, self, step_embedding))

    def masked_weights(self) -> dict[str, Tensor]:
        """What this step of a pruned model runs with in the block's place: its matrices times the step's masks."""
        attn, mlp, core = self.attn, self.mlp, self.core
        return {
            "attn.qkv.weight": core.attn.qkv.weight * attn.mask_qkv,
            "attn.proj.weight": core.attn.proj.weight * attn.mask_proj,
            "mlp.fc1.weight": core.mlp.fc1.weight * mlp.mask_fc1,
            "mlp.fc2.weight": core.mlp.fc2.weight * mlp.mask_fc2,
        }

    @property
    def is_watched(self) -> bool:
        return listening(*self.modules())


def _masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    return weight if mask is None else weight * mask


def _scaled(tensor: Tensor, gamma: Tensor | None) -> Tensor:
    return tensor if gamma is None else tensor * gamma


def zero(activation: Tensor, hook: HookPoint) -> Tensor:
    """Zero ablation."""
    return torch.zeros_like(activation)


def mean(activation: Tensor, hook: HookPoint) -> Tensor:
    """Mean ablation: every image gets the mean over the batch."""
    return activation.mean(0, keepdim=True).expand_as(activation)


def replace(value: Tensor) -> HookFunction:
    """A hook that puts `value` (anything that broadcasts to the activation) in the activation's place."""

    def put(activation: Tensor, hook: HookPoint) -> Tensor:
        return value.to(activation).expand_as(activation)

    return put


def add_noise(scale: float, seed: int = 0) -> HookFunction:
    """A hook that adds Gaussian noise of standard deviation `scale`, the same at every call."""

    def add(activation: Tensor, hook: HookPoint) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return activation + scale * torch.randn(activation.shape, generator=generator).to(activation)

    return add


def head(index: int, function: HookFunction) -> HookFunction:
    """`function` for head `index` alone, at q, k, v, z, result `[batch pos head _]` or scores, pattern `[batch head _ _]`."""

    def only(activation: Tensor, hook: HookPoint) -> Tensor:
        axis = 1 if hook.name.endswith(("hook_attn_scores", "hook_pattern")) else 2
        changed = activation.clone()
        changed.select(axis, index).copy_(function(activation.select(axis, index), hook=hook))
        return changed

    return only
