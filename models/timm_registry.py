"""bViT in timm's registry: after ``import models.timm_registry``, ``timm.create_model("bvit_base_patch16_224")`` works.

Features, intermediates, gradient checkpointing, other image sizes and new heads are asked for as of timm's own ViT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from models.block import scale
from models.config import IMAGENET_MEAN, IMAGENET_STD, ViTConfig
from models.errors import InputError
from models.vit import BViT

__all__: list[str] = []
default_cfgs: dict[str, Any] = {}
POOLS = {"token": "cls", "avg": "mean", "": ""}


class TimmBViT(BViT):
    """A bViT with the members that timm's users expect. ``global_pool=""`` returns the tokens as they are."""

    def __init__(self, config: ViTConfig, global_pool: str = "token"):
        super().__init__(replace(config, pool=POOLS[global_pool] or config.pool))
        self.global_pool, self.grad_checkpointing = global_pool, False
        self._describe()

    def _describe(self) -> None:
        """The facts of the config under timm's names."""
        self.num_classes, self.num_prefix_tokens = self.config.n_classes, self.config.n_prefix
        self.num_features = self.head_hidden_size = self.embed_dim = self.config.d_model
        reduction = self.config.patch_size
        self.feature_info = [
            dict(module=f"blocks.{t}", num_chs=self.config.d_model, reduction=reduction)
            for t in range(self.config.n_steps)
        ]

    def forward(self, images: Tensor, n_steps: int | None = None, *, stop_at_step: int | None = None) -> Tensor:
        if isinstance(n_steps, fx.Proxy):  # torch.fx traces every argument; timm's users give images alone
            n_steps = stop_at_step = None
        if self.global_pool or stop_at_step is not None:
            return super().forward(images, n_steps, stop_at_step=stop_at_step)
        return self.forward_head(self.forward_features(images))

    def run_steps(self, z: Tensor, first: int, last: int) -> Tensor:
        if not (self.grad_checkpointing and self.training):
            return super().run_steps(z, first, last)
        for t in range(first, last):
            z = checkpoint(super().run_steps, z, t, t + 1, use_reentrant=False)
        return z

    def forward_features(self, images: Tensor) -> Tensor:
        """Tokens after the last step, normalised where they are pooled as they are: [batch pos d_model]."""
        tokens = self.run_steps(self.embed(images), 0, self.config.n_steps)
        return tokens if self.global_pool == "avg" else self.norm(tokens, self.ln_final)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features, or logits, from what `forward_features` gives."""
        if self.global_pool == "avg":
            pooled = self.norm(tokens[:, self.config.n_prefix :].mean(1, keepdim=True), self.ln_final)[:, 0]
        else:
            pooled = tokens[:, 0] if self.global_pool else tokens
        return pooled if pre_logits else self.head(pooled)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """States after the steps `indices` (the last so many for a number), as timm's ViT gives those of its layers."""
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt is {output_fmt!r}, not NCHW or NLC")
        config, z, states = self.config, self.embed(images), []
        wanted, last = feature_take_indices(config.n_steps, indices)
        for t in range(last + 1 if stop_early else config.n_steps):
            z = self.run_steps(z, t, t + 1)
            if t in wanted:
                states.append(self.norm(z, self.ln_final) if norm else z)
        prefix, patches = [z[:, : config.n_prefix] for z in states], [z[:, config.n_prefix :] for z in states]
        if output_fmt == "NCHW":
            side = config.side
            patches = [z.unflatten(1, (side, side)).permute(0, 3, 1, 2).contiguous() for z in patches]
        if output_dict:
            named = {"image_intermediates": patches}
            named |= {"image_intermediates_prefix": prefix} if return_prefix_tokens else {}
            return named if intermediates_only else named | {"image_features": self.norm(z, self.ln_final)}
        if return_prefix_tokens:
            patches = list(zip(patches, prefix, strict=True))
        return patches if intermediates_only else (self.norm(z, self.ln_final), patches)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out the steps after the last of `indices`; the block's weights serve those that stay."""
        wanted, last = feature_take_indices(self.config.n_steps, indices)
        self.config = self.config.at_steps(last + 1)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = Unnormalised()
        if prune_head:
            self.reset_classifier(0, "")
        self._describe()
        return wanted

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep one state per step for the backward pass, and run each step again there."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = r"^cls_token|reg_token|pos_embed|patch_embed|step_embed|norm_pre"
        return dict(stem=stem, blocks=[(r"^core\.(\d+)", None), (r"^norm", (99999,))])

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes` classes, 0 for none; `global_pool`: token, avg, or "" for all tokens."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise InputError(f"global_pool is {global_pool!r}, not token, avg or '' (all tokens)")
            self.global_pool = global_pool
        pool = POOLS[self.global_pool] or self.config.pool
        self.config, self.trained = (
            replace(config, n_classes=num_classes, classes=None, pool=pool) for config in (self.config, self.trained)
        )
        d, like = self.config.d_model, self.pos_embed
        self.head = nn.Linear(d, num_classes).to(like) if num_classes else nn.Identity()
        self.head.train(self.training)
        self._describe()


class Unnormalised(nn.Module):
    """In the place of a final norm that is not wanted."""

    def forward(self, z: Tensor, hooks: Any) -> Tensor:
        return scale(z, None)


def config_of(size: str, **asked: Any) -> ViTConfig:
    """The preset with what timm's ``create_model`` was asked for, by timm's names or ours."""
    ours = {"img_size": "image_size", "reg_tokens": "n_registers", "depth": "n_steps", "embed_dim": "d_model"}
    ours |= {"num_heads": "n_heads", "drop_path_rate": "drop_path", "num_classes": "n_classes"}
    fields = {ours.get(name, name): value for name, value in asked.items() if value is not None}
    if isinstance(fields.get("image_size"), tuple | list):
        height, width = fields["image_size"]
        if height != width:
            raise InputError(f"img_size is {fields['image_size']}; a bViT takes square images")
        fields["image_size"] = height
    if fields.pop("in_chans", 3) != 3:
        raise InputError("in_chans: a bViT takes images of three channels")
    if fields.pop("dynamic_img_size", False):
        raise InputError("dynamic_img_size: a bViT takes images of one size; ask for it with img_size")
    return ViTConfig.preset(f"bvit_{size}", **fields)


def registered(size: str) -> Callable[..., TimmBViT]:
    """One entry of timm's registry."""
    name = f"bvit_{size}_patch16_224"

    def make(global_pool: str = "token", **asked: Any) -> TimmBViT:
        if global_pool not in POOLS:
            raise InputError(f"global_pool is {global_pool!r}, not token, avg or '' (all tokens)")
        return TimmBViT(config_of(size, **asked), global_pool)

    def entry(pretrained: bool = False, **asked: Any) -> TimmBViT:
        if pretrained:
            raise InputError(f"{name} has no published weights; train some with python -m models.train")
        return build_model_with_cfg(make, name, False, feature_cfg=dict(out_indices=3, feature_cls="getter"), **asked)

    about = dict(
        url="",
        num_classes=1000,
        input_size=(3, 224, 224),
        pool_size=None,
        fixed_input_size=True,
        crop_pct=0.9,
        interpolation="bicubic",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        first_conv="patch_embed.proj",
        classifier="head",
    )
    entry.__name__, entry.__module__ = name, __name__
    __all__.append(name)
    default_cfgs.update(generate_default_cfgs({name: about}))
    globals()[name] = entry
    return register_model(entry)


for _size in ("tiny", "small", "base", "large"):
    registered(_size)
