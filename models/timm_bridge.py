"""timm weights in and out, and bViT in timm's registry.

Any ViT of timm that the one block can be (class token, norm before attention and MLP; registers, LayerScale, mean
pooling with fc_norm, CLIP's norm before the blocks and quick GELU, normalised queries and keys, DeiT's distillation
token, DINOv3's rotary positions) becomes a stacked `BViT` with timm's logits; one that does not fit is refused with
the feature's name. After ``import models.timm_bridge``, ``timm.create_model("bvit_base_patch16_224")`` works.
"""

from __future__ import annotations

import math
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, LayerNorm, LayerScale, Mlp, PatchEmbed
from timm.layers.norm import RmsNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from models import (
    foreign,
    timm_registry,  # noqa: F401  whoever imports this finds bViT in timm's registry
)
from models.checkpoint import State, Weights, filled
from models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from models.errors import InputError
from models.vit import BViT

ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * (1.702 * x).sigmoid()}

# In


def create(name: str, file: Path | None = None, weights: Weights = "ema") -> tuple[nn.Module, Weights]:
    """timm's model of that name with its pretrained weights, or with those of a file (`foreign.read`); and which they
    are, ``ema`` or ``raw``.
    """
    if not timm.is_model(name.removeprefix("hf_hub:")) and not name.startswith("hf_hub:"):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]
        raise InputError(f"timm has no model {name!r}" + (f"; near it are {', '.join(near)}" if near else ""))
    plain, _, tag = name.partition(".")
    if tag and name.startswith(("vit", "deit", "eva")) and name not in tagged(plain):
        raise InputError(f"timm has no weights {tag!r} of {plain}; it has {', '.join(tagged(plain)) or 'none'}")
    if file is not None:
        return _of_file(name, file, weights)
    refuse_unsupported(_made(name, "meta"))
    return _made(name, "cpu", pretrained=True), "raw"


def tagged(plain: str) -> list[str]:
    """timm's names of all weights that a model has, such as ``vit_small_patch16_224.dino``."""
    return timm.list_pretrained(f"{plain}.*")


def _made(name: str, device: str, **options: Any) -> nn.Module:
    """timm's model; one with rotary positions reads out CLS, as DINOv3's authors do (timm averages the patches)."""
    try:
        with torch.device(device):
            vit = timm.create_model(name, **options)
    except Exception as error:  # the hub's errors have no common class
        raise InputError(
            f"timm's weights of {name} cannot be fetched ({type(error).__name__}); download them and name the "
            f"file: timm:{name}@FILE"
        ) from None
    if getattr(vit, "rope", None) is not None and isinstance(vit.fc_norm, nn.Identity):
        vit.global_pool = "token"
    return vit


def _of_file(name: str, file: Path, weights: Weights) -> tuple[nn.Module, Weights]:
    """timm's model of that name with the weights of a file; `InputError` where they do not fit."""
    in_file, default = foreign.read(file, weights), _made(name, "meta")
    refuse_other_kinds(default)
    state = _suited(in_file.state, default)
    vit = _made(name, "meta", **_sizes(state, default))
    expected, n_heads = vit.state_dict(), vit.blocks[0].attn.num_heads
    complaints = [f"lacks {name}" for name in expected if name not in state]
    complaints += [f"has {name}, which the model has not" for name in state if name not in expected]
    complaints += [
        f"has {name} of shape {list(value.shape)}, not {list(expected[name].shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if in_file.n_heads not in (None, n_heads):
        complaints.append(f"has {in_file.n_heads} heads, not {n_heads}")
    activation = _activation(vit.blocks[0].mlp.act)
    if in_file.activation not in (None, activation):
        complaints.append(f"has the activation {in_file.activation}, not {activation}")
    if complaints:
        advice = _advice(complaints, in_file, name, file)
        raise InputError(f"{file} does not fit timm's {name}: it {complaints[0]}; {advice}")
    vit.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    if in_file.normalised is None:
        _say_normalisation(name, file)
    else:
        vit.pretrained_cfg = dict(getattr(vit, "pretrained_cfg", {})) | in_file.normalised
    return vit, in_file.weights


def _say_normalisation(name: str, file: Path) -> None:
    """Which images a file's weights take is not in the file: a warning where timm's weights of that model differ."""
    assumed = timm.get_pretrained_cfg(name)
    others = [other for other in tagged(name) if timm.get_pretrained_cfg(other).mean != assumed.mean]
    if others:
        warnings.warn(
            f"{file}: images are normalised as for timm's {name}.{assumed.tag} (mean {assumed.mean}); where that is "
            f"another mean than these weights were trained with, say so by a name, as timm:{others[0]}@{file}",
            stacklevel=5,
        )


def _advice(complaints: list[str], in_file: foreign.ForeignWeights, name: str, file: Path) -> str:
    """What to do about a file that does not fit."""
    if complaints[0].startswith("has the activation"):
        return "name the model of timm's that has it"
    if all(complaint.startswith("has pos_embed") for complaint in complaints):
        return "its patches make no square, and a BViT takes square images alone"
    if all(complaint.startswith("has head.") for complaint in complaints):
        return "it is not one linear layer on one token; export the file without it"
    like = foreign.looks_like(in_file.state, name, in_file.n_heads)
    if like:
        return f"it looks like timm's {like}: timm:{like}@{file}"
    return f"{foreign.shape_of(in_file.state)}, as no model of timm's that loads; give load() the module itself"


def _suited(state: State, plain: nn.Module) -> State:
    """The state where timm's classes name one thing in two ways."""
    names = plain.state_dict()
    if "blocks.0.ls1.gamma" in names:  # DeiT III
        state = {re.sub(r"gamma_([12])$", r"ls\1.gamma", name): value for name, value in state.items()}
    if "dist_token" in state and "head_dist.weight" not in state and "dist_token" not in names:
        state = {name.replace("dist_token", "reg_token"): value for name, value in state.items()}  # nobody reads it
    if "blocks.0.attn.q_bias" not in names:  # DINOv3's are zero, and timm's models of it do without
        state = {
            name: value for name, value in state.items() if not re.search(r"\.[qv]_bias$", name) or bool(value.any())
        }
    return state


def _sizes(state: State, plain: nn.Module) -> dict[str, Any]:
    """What timm must be asked for to get a model of the size of the file's: classes, image, tokens, pooling."""
    head, sizes = state.get("head.weight"), {}
    sizes["num_classes"] = 0 if head is None else len(head)
    if "fc_norm.weight" in state and plain.global_pool == "token":
        sizes["global_pool"] = "avg"  # MAE, fine-tuned
    registers = len(state["reg_token"][0]) if "reg_token" in state else 0
    if registers and "reg_token" not in plain.state_dict() and type(plain) is VisionTransformer:
        sizes["reg_tokens"] = registers
    if "pos_embed" in state and plain.pos_embed is not None:
        length, prefix = state["pos_embed"].shape[1], 1 + registers + ("dist_token" in state)
        for is_bare in (plain.no_embed_class, not plain.no_embed_class):  # bare: tokens before the patches have none
            n_patches = max(length - (0 if is_bare else prefix), 0)
            side, patch = math.isqrt(n_patches), state["patch_embed.proj.weight"].shape[-1]
            if side**2 == n_patches:
                return sizes | {"img_size": side * patch, "no_embed_class": is_bare}
    return sizes


def from_timm(vit: nn.Module) -> BViT:
    """The stacked `BViT` with the weights and logits of a timm ViT."""
    refuse_unsupported(vit)
    block = vit.blocks[0]
    norm = vit.norm if not isinstance(vit.norm, nn.Identity) else vit.fc_norm
    about = getattr(vit, "pretrained_cfg", None) or {}
    config = ViTConfig(
        n_steps=len(vit.blocks),
        n_blocks=len(vit.blocks),
        d_model=vit.embed_dim,
        n_heads=block.attn.num_heads,
        d_mlp=block.mlp.fc1.out_features,
        image_size=vit.patch_embed.img_size[0],
        patch_size=vit.patch_embed.patch_size[0],
        n_classes=vit.num_classes,
        n_registers=vit.num_prefix_tokens - 1,
        norm="rms" if isinstance(norm, RmsNorm) else "ln",
        norm_eps=norm.eps,
        layer_scale=1.0 if _has_layer_scale(block) else None,
        pool="mean" if vit.global_pool == "avg" else "distilled" if hasattr(vit, "dist_token") else "cls",
        mean=tuple(about.get("mean", IMAGENET_MEAN)),
        std=tuple(about.get("std", IMAGENET_STD)),
        position="rotary" if getattr(vit, "rope", None) is not None else "learned",
        activation=_activation(block.mlp.act),
        pre_norm=not isinstance(vit.norm_pre, nn.Identity),
        qk_norm=not isinstance(block.attn.q_norm, nn.Identity),
    )
    state = {name: value.detach().to("cpu", torch.float32, copy=True) for name, value in vit.state_dict().items()}
    return filled(config, our_names(state, config), Path(f"timm:{type(vit).__name__}")).eval()


def _has_layer_scale(block: nn.Module) -> bool:
    return isinstance(getattr(block, "ls1", None), LayerScale) or getattr(block, "gamma_1", None) is not None


def _activation(act: nn.Module | None) -> str | None:
    """Our name of an activation, known by what it does."""
    x = torch.linspace(-4, 4, 33, device="cpu")
    for name, function in ACTIVATIONS.items():
        if act is not None and torch.allclose(act.cpu()(x), function(x), atol=1e-6):
            return name
    return None


def refuse_unsupported(vit: nn.Module) -> None:
    """Raise `InputError` naming the first feature that `BViT` does not have."""
    refuse_other_kinds(vit)
    patch = vit.patch_embed
    _refuse({"no blocks": not len(vit.blocks)})
    for block in vit.blocks:
        _refuse({f"blocks of type {type(block).__name__}": type(block) not in (Block, EvaBlock)})
        _refuse(_inside(block, vit.embed_dim))
    _refuse({f"a patch embedding of type {type(patch).__name__}": type(patch) is not PatchEmbed})
    _refuse(_around(vit))


def refuse_other_kinds(vit: nn.Module) -> None:
    if type(vit) not in (VisionTransformer, VisionTransformerDistilled, Eva):
        raise InputError(
            f"{type(vit).__name__} is not timm's plain VisionTransformer, its distilled one, or the Eva of DINOv3, the "
            "only kinds that load (relative-position and hybrid models do not)"
        )


def _refuse(features: dict[str, bool]) -> None:
    for feature, has_it in features.items():
        if has_it:
            raise InputError(
                f"this timm model has {feature}, which BViT does not represent; choose a plain ViT, DeiT, CLIP or "
                "DINO-style one"
            )


def _around(vit: nn.Module) -> dict[str, bool]:
    """Features outside of the blocks -> whether the model has them."""
    norm = vit.norm if not isinstance(vit.norm, nn.Identity) else vit.fc_norm
    patch, rope, is_averaged = vit.patch_embed, getattr(vit, "rope", None), vit.global_pool == "avg"
    return {
        "no class token (class_token=False)": vit.cls_token is None,
        "no position embedding": vit.pos_embed is None and rope is None,
        "rotary positions beside learned ones": vit.pos_embed is not None and rope is not None,
        "rotary positions of another kind than DINOv3's": rope is not None and not _is_dinov3s(rope),
        "a norm in the patch embedding": not isinstance(getattr(patch, "norm", nn.Identity()), nn.Identity),
        "no final norm": isinstance(norm, nn.Identity),
        f"a norm of type {type(norm).__name__}": not isinstance(norm, nn.LayerNorm | LayerNorm | RmsNorm),
        f"pooling {vit.global_pool!r}": vit.global_pool not in ("token", "avg"),
        "mean pooling after the final norm (fc_norm=False; global_pool='token' would do)": is_averaged
        and isinstance(vit.fc_norm, nn.Identity),
        "a norm after pooling the class token (fc_norm=True)": not is_averaged
        and not isinstance(vit.fc_norm, nn.Identity),
        "mean pooling over prefix tokens": is_averaged and getattr(vit, "pool_include_prefix", False),
        "images that are not square": patch.img_size is None or patch.img_size[0] != patch.img_size[1],
        "patches that are not square": patch.patch_size[0] != patch.patch_size[1],
        "images without three channels": patch.proj.in_channels != 3,
        "norms of several epsilons": len({getattr(part, "eps", None) for part in (norm, *_norms(vit))}) > 1,
        "blocks that differ": len({(b.attn.num_heads, _activation(b.mlp.act)) for b in vit.blocks}) > 1,
    }


def _norms(vit: nn.Module) -> list[nn.Module]:
    return [part for block in vit.blocks for part in (block.norm1, block.norm2)]


def _is_dinov3s(rope: nn.Module) -> bool:
    wanted = dict(temperature=100, min_period=None, grid_offset=0, grid_indexing="ij", rotate_half=True)
    wanted |= dict(normalize_coords="separate")
    return all(getattr(rope, name, "") == value for name, value in wanted.items())


def _inside(block: nn.Module, width: int) -> dict[str, bool]:
    """Features of a block -> whether it has them."""
    attn, mlp = block.attn, block.mlp
    return {
        f"attention of type {type(attn).__name__}": type(attn) not in (Attention, AttentionRope, EvaAttention),
        "queries, keys and values of separate projections": getattr(attn, "qkv", None) is None,
        "heads of another width than d_model / n_heads": getattr(attn, "head_dim", 0) * attn.num_heads != width,
        "a norm inside attention (scale_attn_norm)": not isinstance(getattr(attn, "norm", None), nn.Identity),
        "a gate on attention": getattr(attn, "gate", None) is not None,
        f"an MLP of type {type(mlp).__name__}": type(mlp) is not Mlp,
        "a norm inside the MLP (scale_mlp_norm)": not isinstance(getattr(mlp, "norm", None), nn.Identity),
        f"the activation {type(getattr(mlp, 'act', None)).__name__}": _activation(getattr(mlp, "act", None)) is None,
        "LayerScale on attention alone": _has_layer_scale(block) and getattr(block, "gamma_2", block) is None,
    }


def our_names(state: State, config: ViTConfig) -> State:
    """timm's state dict under our names: ``blocks.`` is ``core.``; missing biases are zero; the position embedding
    covers every token.
    """
    rules = {r"^blocks\.": "core.", r"^fc_norm\.": "norm.", r"^dist_token$": "reg_token"}
    rules |= {r"gamma_([12])$": r"ls\1.gamma"}  # Eva's
    ours = {}
    for name, value in state.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        ours[name] = value
    ours.setdefault("pos_embed", torch.zeros(1, config.n_tokens, config.d_model))
    short = config.n_tokens - ours["pos_embed"].shape[1]
    if short:  # timm's no_embed_class: prefix tokens have no position
        ours["pos_embed"] = torch.cat([torch.zeros(1, short, config.d_model), ours["pos_embed"]], 1)
    for attn in [name.removesuffix("q_bias") for name in ours if name.endswith("q_bias")]:  # Eva's keys have no bias
        q, v = ours.pop(f"{attn}q_bias"), ours.pop(f"{attn}v_bias")
        ours[f"{attn}qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    for name in [name for name in ours if re.match(r"core\..*(qkv|proj|fc1|fc2)\.weight$", name)]:
        ours.setdefault(name.replace("weight", "bias"), torch.zeros(len(ours[name])))
    ours.setdefault("patch_embed.proj.bias", torch.zeros(config.d_model))
    return ours


# Out


def to_timm(model: BViT) -> VisionTransformer:
    """timm's ViT with the same logits: a bViT is unrolled into T blocks of equal weights."""
    config = model.config
    _refuse_export(config)
    kind = VisionTransformerDistilled if config.pool == "distilled" else VisionTransformer
    vit = kind(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.n_classes,
        embed_dim=config.d_model,
        depth=config.n_steps,
        num_heads=config.n_heads,
        mlp_ratio=(config.d_mlp + 0.5) / config.d_model,  # timm cuts the product down to a whole number
        init_values=config.layer_scale,
        reg_tokens=0 if config.pool == "distilled" else config.n_registers,
        global_pool="avg" if config.pool == "mean" else "token",
        norm_layer=_norm_layer(config),
        act_layer=config.activation,
        pre_norm=config.pre_norm,
        qk_norm=config.qk_norm,
    )
    vit.load_state_dict(timm_names(model))
    return vit.eval()


def _refuse_export(config: ViTConfig) -> None:
    if config.step_embedding != "none":
        raise InputError("a step embedding has no place in timm's ViT; only models without one can be exported")
    if config.position == "rotary":
        raise InputError("rotary positions have no place in timm's plain ViT; only models without them can be exported")
    if config.pool == "distilled" and config.n_registers > 1:
        raise InputError("timm's distilled ViT has no registers; only models with the distillation token alone can be")


def _norm_layer(config: ViTConfig) -> Any:
    return partial(LayerNorm if config.norm == "ln" else RmsNorm, eps=config.norm_eps)


def timm_names(model: BViT) -> State:
    """The state dict under timm's names, one block per step."""
    state, config = model.state_dict(), model.config
    out = {name: value for name, value in state.items() if not name.startswith("core.")}
    for t in range(config.n_steps):
        block = f"core.{model.trained.block_of(t)}."
        out |= {
            f"blocks.{t}.{name.removeprefix(block)}": value for name, value in state.items() if name.startswith(block)
        }
    if config.pre_norm:  # timm's patches have no bias before a norm: it goes into their positions
        bias = out.pop("patch_embed.proj.bias")
        patches = torch.arange(config.n_tokens, device=bias.device) >= config.n_prefix
        out["pos_embed"] = out["pos_embed"] + patches[:, None] * bias
    rules = {"cls": ("", ""), "mean": (r"^norm\.", "fc_norm."), "distilled": ("^reg_token$", "dist_token")}
    return {re.sub(*rules[config.pool], name): value for name, value in out.items()}
