"""How a model is trained: named recipes, and what timm makes of them (optimiser, schedule, augmentation, mixing, EMA).

`deit` is DeiT's recipe (Touvron et al., 2021), for 100,000 images and more; `small` the one of the
study of ViTs on small data sets (Lee et al., 2021); `plain` is flips and EMA only, for the embedded
data, where colour jitter would erase a factor and mixing starves a short run. Its optimiser is Muon
(Jordan et al., 2024): after 40,000 images it was at 34 % where AdamW was at 24 % (docs/log.md).
Gradients sum over the T uses of a shared block, so all recipes clip their norm at 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torchvision import transforms

from models.config import ViTConfig
from models.errors import require
from models.vit import BViT


@dataclass(frozen=True)
class Recipe:
    """Everything about training that is not the model, the data, or where it runs."""

    epochs: int
    warmup_epochs: float
    batch_size: int
    lr: float
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    min_lr: float = 1e-5
    clip: float = 1.0  # of the gradient's norm
    ema_decay: float = 0.9998
    drop_path: float = 0.0
    auto_augment: str | None = None  # timm's RandAugment or AutoAugment, by timm's name
    color_jitter: float = 0.0
    erasing: float = 0.0  # probability of random erasing
    crop: str = "none"  # none, resized (random resized crop) or padded (pad 4 and crop)
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    smoothing: float = 0.0
    repeats: int = 1  # repeated augmentation: how often an image stands in one epoch's order

    @property
    def is_mixed(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


RECIPES = {
    "deit": Recipe(
        epochs=300,
        warmup_epochs=5,
        batch_size=1024,
        lr=1e-3,
        ema_decay=0.9998,
        drop_path=0.1,
        auto_augment="rand-m9-mstd0.5-inc1",
        color_jitter=0.3,
        erasing=0.25,
        crop="resized",
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
        repeats=3,
    ),
    "small": Recipe(
        epochs=100,
        warmup_epochs=10,
        batch_size=128,
        lr=1e-3,
        ema_decay=0.999,
        drop_path=0.1,
        auto_augment="original",
        erasing=0.25,
        crop="padded",
        mixup=0.8,
        cutmix=1.0,
        mix_probability=0.5,
        smoothing=0.1,
    ),
    "plain": Recipe(
        epochs=20, warmup_epochs=0.5, batch_size=64, lr=4e-3, optimizer="muon", weight_decay=0.02, ema_decay=0.9995
    ),
}


def default_recipe(data_spec: str, n_images: int) -> str:
    """The recipe for a data set that names none: by kind and size."""
    if data_spec.startswith("shapes"):
        return "plain"
    return "deit" if n_images >= 100_000 else "small"


def named(name: str | None, data_spec: str, n_images: int, **asked: Any) -> Recipe:
    """The recipe of that name, or the default for such data, with the fields that are asked for (not None)."""
    recipe = RECIPES[name or default_recipe(data_spec, n_images)]
    recipe = replace(recipe, **{field: value for field, value in asked.items() if value is not None})
    complaint = f"--batch-size is {recipe.batch_size}, this recipe mixes images in pairs; choose an even one"
    require((not recipe.is_mixed or recipe.batch_size % 2 == 0, complaint))
    return recipe


def optimizer(model: BViT, recipe: Recipe) -> torch.optim.Optimizer:
    """timm's optimiser; biases, norms, embeddings and tokens are not decayed."""
    return create_optimizer_v2(model, recipe.optimizer, recipe.lr, recipe.weight_decay)


def schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, updates: int, updates_per_epoch: int
) -> CosineLRScheduler:
    """Linear warm-up to the peak, then cosine; update ``updates - 1``, the last one, runs at `min_lr` (at the peak,
    where that is lower).
    """
    warmup = min(round(recipe.warmup_epochs * updates_per_epoch), max(updates // 5, 1))
    start, floor = min(1e-6, recipe.lr), min(recipe.min_lr, recipe.lr)
    decay = max(updates - 1 - warmup, 1)  # timm counts the cosine from the end of the warm-up
    return CosineLRScheduler(
        optimizer, decay, lr_min=floor, warmup_t=warmup, warmup_lr_init=start, warmup_prefix=True, t_in_epochs=False
    )


def mixing(recipe: Recipe, n_classes: int) -> Mixup | None:
    """timm's mixup and cutmix of a batch, or None."""
    if not recipe.is_mixed:
        return None
    return Mixup(
        recipe.mixup,
        recipe.cutmix,
        prob=recipe.mix_probability,
        label_smoothing=recipe.smoothing,
        num_classes=n_classes,
    )


def ema(model: BViT, recipe: Recipe) -> ModelEmaV3:
    """timm's exponential moving average of the weights, warmed up."""
    return ModelEmaV3(model, recipe.ema_decay, use_warmup=True)


def augmentation(recipe: Recipe, config: ViTConfig) -> Any:
    """timm's transform of a PIL image into a normalised tensor, or None for flips alone."""
    if recipe.crop == "none":
        return None

    made = create_transform(
        config.image_size,
        is_training=True,
        color_jitter=recipe.color_jitter or None,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.erasing,
        interpolation="bicubic",
        mean=config.mean,
        std=config.std,
    )
    if recipe.crop == "padded":
        made.transforms[0] = transforms.Compose(
            [
                transforms.Resize(config.image_size, transforms.InterpolationMode.BICUBIC),
                transforms.RandomCrop(config.image_size, padding=4, pad_if_needed=True, padding_mode="reflect"),
            ]
        )
    return made
