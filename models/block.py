"""The one block of the paper: ``u = h + MHSA(LN(h)); B(h) = u + MLP(LN(u))``.

Parameters carry timm's names. Every module is called with the hook points of the step at which it
runs (`models.hooks`), because its weights serve many steps. What other families add (normalised queries and keys,
rotary positions, quick GELU) is a line where it applies, and only there.
"""

import math

import torch
import torch.fx
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.config import ViTConfig
from models.hooks import AttentionHooks, MlpHooks, NormHooks, Step, listening

torch.fx.wrap("rearrange")  # torch.fx must not trace into einops
torch.fx.wrap("einsum")

Stream = Float[Tensor, "batch pos d_model"]
PerHead = Float[Tensor, "batch pos head d_head"]
Vector = Float[Tensor, " d_model"]


class Norm(nn.Module):
    """LayerNorm or RMSNorm of the last axis; fused unless a hook is on its scale or normalized values."""

    def __init__(self, config: ViTConfig, width: int | None = None):
        super().__init__()
        self.eps, self.is_centred = config.norm_eps, config.norm == "ln"
        self.weight = nn.Parameter(torch.ones(width or config.d_model))
        self.bias = nn.Parameter(torch.zeros(width or config.d_model)) if self.is_centred else None

    def forward(self, x: Float[Tensor, "*axes width"], hooks: NormHooks | None = None) -> Float[Tensor, "*axes width"]:
        if hooks is not None and hooks.is_watched:
            x = hooks(x) * self.weight
            return x if self.bias is None else x + self.bias
        if self.is_centred:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)

    def shares(self, x: Stream, y: Stream) -> tuple[Stream, Stream]:
        """What x and y each contribute to norm(x + y), exactly: the two sum to it. The bias goes with y."""
        x, y = (part - part.mean(-1, keepdim=True) if self.is_centred else part for part in (x, y))
        factor = self.weight / ((x + y).square().mean(-1, keepdim=True) + self.eps).sqrt()
        return x * factor, y * factor if self.bias is None else y * factor + self.bias


class Attention(nn.Module):
    """Multi-head self-attention; fused (`scaled_dot_product_attention`) unless a hook is on its scores or pattern."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.n_heads, self.is_rotary = config.n_heads, config.position == "rotary"
        self.side = config.side
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.proj = nn.Linear(config.d_model, config.d_model)
        if config.qk_norm:
            self.q_norm, self.k_norm = Norm(config, config.d_head), Norm(config, config.d_head)

    def forward(
        self, x: Float[Tensor, "batch pos *slot_head d_model"], hooks: AttentionHooks, gamma: Vector | None
    ) -> Stream:
        """What attention adds to the stream, from the normalised stream; `gamma` is LayerScale's factor.

        Where a hook is on an input of q, k or v, x holds one stream for each slot and head:
        [batch pos slot head d_model].
        """
        q, k, v = self.queries_keys_values(x, hooks)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        if self.is_rotary:
            q, k = rotated(q, self.side), rotated(k, self.side)
        q, k, v = hooks.hook_q(q), hooks.hook_k(k), hooks.hook_v(v)
        if listening(hooks.hook_attn_scores, hooks.hook_pattern):
            scores = einsum(q, k, "batch query head d, batch key head d -> batch head query key") * q.shape[-1] ** -0.5
            pattern = hooks.hook_pattern(hooks.hook_attn_scores(scores).softmax(-1))
            z = einsum(pattern.to(v.dtype), v, "batch head query key, batch key head d -> batch query head d")
        else:
            z = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        z = hooks.hook_z(z)
        if listening(hooks.hook_result):
            result = einsum(z, hooks.W_O.to(z.dtype), "batch pos head d, head d d_model -> batch pos head d_model")
            return hooks.hook_result(result).sum(2) + hooks.b_O
        return scale(self.proj(z.flatten(2)), gamma)

    def queries_keys_values(
        self, x: Float[Tensor, "batch pos *slot_head d_model"], hooks: AttentionHooks
    ) -> Float[Tensor, "slot batch pos head d_head"]:
        """Queries, keys and values (the slots), from one stream or from one for each slot and head."""
        sizes = dict(slot=3, head=self.n_heads)
        if not hooks.is_split:
            return rearrange(self.qkv(x), "batch pos (slot head d) -> slot batch pos head d", **sizes)
        weight = rearrange(hooks.weight("qkv"), "(slot head d) d_model -> slot head d d_model", **sizes).to(x.dtype)
        bias = rearrange(self.qkv.bias, "(slot head d) -> slot 1 1 head d", **sizes).to(x.dtype)
        return einsum(x, weight, "batch pos slot head d_model, slot head d d_model -> slot batch pos head d") + bias


class Mlp(nn.Module):
    """Two layers with a GELU between them, exact or OpenAI's quick one."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.is_quick = config.activation == "quick_gelu"
        self.fc1 = nn.Linear(config.d_model, config.d_mlp)
        self.fc2 = nn.Linear(config.d_mlp, config.d_model)

    def forward(self, x: Stream, hooks: MlpHooks, gamma: Vector | None) -> Stream:
        pre = hooks.hook_pre(self.fc1(x))
        post = hooks.hook_post(pre * (1.702 * pre).sigmoid() if self.is_quick else F.gelu(pre))
        return scale(self.fc2(post), gamma)


class LayerScale(nn.Module):
    """A learned factor per channel (CaiT), under timm's name."""

    def __init__(self, d_model: int, value: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((d_model,), float(value)))


class Block(nn.Module):
    """B(h), applied at a step whose hook points it is handed."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.drop_path = config.drop_path
        self.norm1, self.attn = Norm(config), Attention(config)
        self.norm2, self.mlp = Norm(config), Mlp(config)
        if config.layer_scale is not None:
            self.ls1 = LayerScale(config.d_model, config.layer_scale)
            self.ls2 = LayerScale(config.d_model, config.layer_scale)

    @property
    def gamma1(self) -> Vector | None:
        return self.ls1.gamma if hasattr(self, "ls1") else None

    @property
    def gamma2(self) -> Vector | None:
        return self.ls2.gamma if hasattr(self, "ls2") else None

    def forward(self, h: Stream, step: Step, step_embedding: Vector | None = None) -> Stream:
        if step_embedding is not None:
            h = h + step.hook_step_embed(step_embedding.expand_as(h))
        h = step.hook_resid_pre(h)
        attended = step.attn(self.norm1(step.attn.split(h), step.ln1), self)
        u = step.hook_resid_mid(h + step.hook_attn_out(self.dropped(attended)))
        computed = step.mlp(self.norm2(step.hook_mlp_in(u), step.ln2), self)
        return step.hook_resid_post(u + step.hook_mlp_out(self.dropped(computed)))

    def dropped(self, x: Stream) -> Stream:
        """Drop path (stochastic depth): whole images lose this branch while training."""
        if not self.training or self.drop_path == 0:
            return x
        keep = 1 - self.drop_path
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep


@torch.fx.wrap
def rotated(x: PerHead, side: int) -> PerHead:
    """DINOv3's rotary positions: a patch's row and column rotate pairs of its channels; CLS and registers stay."""
    n, quarter = side * side, x.shape[-1] // 4
    place = (torch.arange(side, device=x.device, dtype=torch.float32) + 0.5) / side * 2 - 1
    period = 100 ** (torch.arange(quarter, device=x.device, dtype=torch.float32) / quarter)
    angle = 2 * math.pi * torch.cartesian_prod(place, place)[..., None] / period  # [patch row-or-column period]
    cos, sin = (wave.flatten(1)[:, None] for wave in (angle.cos(), angle.sin()))
    a, b = x[:, -n:].chunk(2, -1)
    patches = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([x[:, :-n], patches.to(x.dtype)], 1)


def scale(x: Stream, gamma: Vector | None) -> Stream:
    return x if gamma is None else x * gamma
