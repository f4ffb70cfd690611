"""timm weights in and out, and bViT in timm's registry.

Any plain ViT of timm (class token, pre-norm, optional registers, LayerScale and mean pooling with fc_norm) becomes a
stacked `BViT` with timm's logits; one that does not fit is refused with the feature's name. After ``import
models.timm_bridge``, ``timm.create_model("bvit_base_patch16_224")`` works.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from timm.layers import LayerNorm, LayerScale, Mlp
from timm.layers.norm import RmsNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models import timm_registry  # noqa: F401  whoever imports this finds bViT in timm's registry
from models.checkpoint import State, load_plain
from models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from models.errors import InputError, brief
from models.vit import BViT

# In


def create(name: str, file: Path | None = None) -> nn.Module:
    """timm's model of that name with its pretrained weights, or with those of a local state dict in timm's names."""
    if not timm.is_model(name.removeprefix("hf_hub:")) and not name.startswith("hf_hub:"):
        near = timm.list_models(f"*{name.split('.')[0][:12]}*")[:3]
        raise InputError(f"timm has no model {name!r}" + (f"; near it are {', '.join(near)}" if near else ""))
    if file is None:
        try:
            return timm.create_model(name, pretrained=True)
        except Exception as error:  # the hub's errors have no common class
            raise InputError(
                f"timm's weights of {name} cannot be fetched ({type(error).__name__}); download them and name the "
                f"file: timm:{name}@FILE"
            ) from None
    state = state_dict(file)
    head = state.get("head.weight")
    with torch.device("cpu"):
        made = timm.create_model(
            name, pretrained=False, num_classes=0 if head is None else len(head), **_geometry(name, state)
        )
    return _filled(made, state, name, file)


def _geometry(name: str, state: State) -> dict[str, Any]:
    """The image size that the file's position embedding was made for, where it differs from the model's own."""
    if "pos_embed" not in state or "patch_embed.proj.weight" not in state:
        return {}
    with torch.device("meta"):
        plain = timm.create_model(name, pretrained=False, num_classes=0)
    length, prefix = (
        state["pos_embed"].shape[1],
        0 if getattr(plain, "no_embed_class", False) else getattr(plain, "num_prefix_tokens", 1),
    )
    side = round((length - prefix) ** 0.5)
    return {"img_size": side * state["patch_embed.proj.weight"].shape[-1]} if side**2 == length - prefix else {}


def _filled(made: nn.Module, state: State, name: str, file: Path) -> nn.Module:
    ours, theirs = made.state_dict(), {k: v.float() for k, v in state.items() if k != "mask_token"}
    wrong = [f"lacks {name}" for name in ours if name not in theirs]
    wrong += [f"has {name}, which the model has not" for name in theirs if name not in ours]
    wrong += [
        f"has {name} of shape {list(v.shape)}, not {list(ours[name].shape)}"
        for name, v in theirs.items()
        if name in ours and v.shape != ours[name].shape
    ]
    if not wrong:
        made.load_state_dict(theirs)
    else:
        raise InputError(f"{file} does not fit timm's {name}: it {wrong[0]}; name the model that it was saved from")
    return made


def state_dict(file: Path) -> State:
    """A state dict from .safetensors, or from torch's format without unpickling code."""
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    content = _safetensors(file) if file.suffix == ".safetensors" else load_plain(file)
    for key in ("state_dict", "model", "teacher"):
        content = content[key] if isinstance(content, dict) and isinstance(content.get(key), dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{file} is not a state dict of tensors in timm's names")
    return content


def _safetensors(file: Path) -> State:
    try:
        return load_safetensors(file)
    except SafetensorError as error:
        raise InputError(f"{file} is not readable as safetensors, it may be truncated ({brief(error)})") from None


def from_timm(vit: nn.Module) -> BViT:
    """The stacked `BViT` with the weights and logits of a timm VisionTransformer."""
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
        layer_scale=1.0 if isinstance(block.ls1, LayerScale) else None,
        pool="mean" if vit.global_pool == "avg" else "cls",
        mean=tuple(about.get("mean", IMAGENET_MEAN)),
        std=tuple(about.get("std", IMAGENET_STD)),
    )
    model = BViT(config)
    model.load_state_dict(
        our_names({name: value.detach().float().cpu() for name, value in vit.state_dict().items()}, config)
    )
    return model.eval()


def refuse_unsupported(vit: nn.Module) -> None:
    """Raise `InputError` naming the first feature that `BViT` does not have."""
    if type(vit) is not VisionTransformer:
        raise InputError(
            f"{type(vit).__name__} is not timm's plain VisionTransformer, the only kind that loads (distilled, "
            "relative-position "
            "and hybrid models do not)"
        )
    block = vit.blocks[0]
    norm = vit.norm if not isinstance(vit.norm, nn.Identity) else vit.fc_norm
    patch = vit.patch_embed
    features = {
        "no class token (class_token=False)": vit.cls_token is None,
        "no learned position embedding": vit.pos_embed is None,
        "a norm before the blocks (pre_norm, as CLIP's)": not isinstance(vit.norm_pre, nn.Identity),
        "a norm in the patch embedding": not isinstance(getattr(patch, "norm", nn.Identity()), nn.Identity),
        f"blocks of type {type(block).__name__}": type(block) is not Block,
        "normalised queries and keys (qk_norm)": not isinstance(
            getattr(block.attn, "q_norm", nn.Identity()), nn.Identity
        ),
        "a norm inside attention (scale_attn_norm)": not isinstance(
            getattr(block.attn, "norm", nn.Identity()), nn.Identity
        ),
        f"an MLP of type {type(block.mlp).__name__}": type(block.mlp) is not Mlp,
        "a norm inside the MLP (scale_mlp_norm)": not isinstance(
            getattr(block.mlp, "norm", nn.Identity()), nn.Identity
        ),
        f"the activation {type(getattr(block.mlp, 'act', None)).__name__}": not _is_exact_gelu(
            getattr(block.mlp, "act", None)
        ),
        "no final norm": isinstance(norm, nn.Identity),
        f"a norm of type {type(norm).__name__}": not isinstance(norm, nn.LayerNorm | LayerNorm | RmsNorm),
        f"pooling {vit.global_pool!r}": vit.global_pool not in ("token", "avg"),
        "mean pooling after the final norm (fc_norm=False)": vit.global_pool == "avg"
        and isinstance(vit.fc_norm, nn.Identity),
        "a norm after pooling the class token (fc_norm=True)": vit.global_pool == "token"
        and not isinstance(vit.fc_norm, nn.Identity),
        "mean pooling over prefix tokens": vit.global_pool == "avg" and vit.pool_include_prefix,
        "images that are not square": patch.img_size is None or patch.img_size[0] != patch.img_size[1],
        "patches that are not square": patch.patch_size[0] != patch.patch_size[1],
        "images without three channels": patch.proj.in_channels != 3,
    }
    for feature, has_it in features.items():
        if has_it:
            raise InputError(
                f"this timm model has {feature}, which BViT does not represent; choose a plain ViT, DeiT or "
                "DINO-style one"
            )


def _is_exact_gelu(act: nn.Module | None) -> bool:
    x = torch.linspace(-4, 4, 33)
    return act is not None and bool(torch.allclose(act.cpu()(x), nn.functional.gelu(x), atol=1e-6))


def our_names(state: State, config: ViTConfig) -> State:
    """timm's state dict under our names: ``blocks.`` is ``core.``; missing biases are zero; the position embedding
    covers every token.
    """
    ours = {re.sub(r"^blocks\.", "core.", name).replace("fc_norm.", "norm."): value for name, value in state.items()}
    short = config.n_tokens - ours["pos_embed"].shape[1]
    if short:  # timm's no_embed_class: prefix tokens have no position
        ours["pos_embed"] = torch.cat([torch.zeros(1, short, config.d_model), ours["pos_embed"]], 1)
    for name in [
        name
        for name in ours
        if name.startswith("core.") and name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight"))
    ]:
        ours.setdefault(name.replace("weight", "bias"), torch.zeros(len(ours[name])))
    ours.setdefault("patch_embed.proj.bias", torch.zeros(config.d_model))
    return ours


# Out


def to_timm(model: BViT) -> VisionTransformer:
    """timm's ViT with the same logits: a bViT is unrolled into T blocks of equal weights."""
    config = model.config
    if config.step_embedding != "none":
        raise InputError("a step embedding has no place in timm's ViT; only models without one can be exported")
    vit = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=config.n_classes,
        embed_dim=config.d_model,
        depth=config.n_steps,
        num_heads=config.n_heads,
        mlp_ratio=(config.d_mlp + 0.5) / config.d_model,  # timm cuts the product down to a whole number
        init_values=config.layer_scale,
        reg_tokens=config.n_registers,
        global_pool="token" if config.pool == "cls" else "avg",
        norm_layer=_norm_layer(config),
    )
    vit.load_state_dict(timm_names(model))
    return vit.eval()


def _norm_layer(config: ViTConfig) -> Any:
    return partial(LayerNorm if config.norm == "ln" else RmsNorm, eps=config.norm_eps)


def timm_names(model: BViT) -> State:
    """The state dict under timm's names, one block per step."""
    state = model.state_dict()
    out = {name: value for name, value in state.items() if not name.startswith("core.")}
    for t in range(model.config.n_steps):
        block = f"core.{model.trained.block_of(t)}."
        out |= {
            f"blocks.{t}.{name.removeprefix(block)}": value for name, value in state.items() if name.startswith(block)
        }
    if model.config.pool == "mean":
        out = {re.sub(r"^norm\.", "fc_norm.", name): value for name, value in out.items()}
    return out
