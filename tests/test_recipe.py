"""Schedule, averaged weights and mixing against closed forms. Run with: pytest tests/test_recipe.py"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import ViTConfig
from models import recipe as recipes
from models.checkpoint import fresh
from models.errors import InputError
from models.loop import seed_all, share
from models.recipe import RECIPES


@pytest.mark.parametrize(
    ("updates", "per_epoch", "lr"),
    [(9372, 1562, 4e-3), (20, 10, 4e-3), (7, 7, 4e-3), (2, 1, 4e-3), (1, 1, 1e-3), (50, 10, 1e-6)],
)
def test_the_schedule_ends_at_its_floor_and_never_exceeds_its_peak(updates: int, per_epoch: int, lr: float) -> None:
    recipe = replace(RECIPES["plain"], lr=lr)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = recipes.schedule(optimizer, recipe, updates, per_epoch)
    rates = []
    for update in range(updates):
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]["lr"])
    warmup = min(round(recipe.warmup_epochs * per_epoch), max(updates // 5, 1))
    assert max(rates) <= lr * (1 + 1e-12)
    assert warmup == 0 or rates[0] == pytest.approx(min(1e-6, lr))
    if updates > 2:
        assert rates[-1] == pytest.approx(min(recipe.min_lr, lr), rel=1e-9)
        assert rates[warmup] == pytest.approx(lr)
        middle = warmup + (updates - 1 - warmup) // 2
        share = (middle - warmup) / (updates - 1 - warmup)
        assert rates[middle] == pytest.approx(
            min(1e-5, lr) + (lr - min(1e-5, lr)) * (1 + math.cos(math.pi * share)) / 2
        )


def test_two_updates_are_the_start_and_the_floor() -> None:
    recipe = replace(RECIPES["plain"], warmup_epochs=0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = recipes.schedule(optimizer, recipe, 2, 2)
    rates = [schedule.step_update(update) or optimizer.param_groups[0]["lr"] for update in range(2)]
    assert rates == pytest.approx([recipe.lr, recipe.min_lr])


@pytest.mark.parametrize(
    ("data", "n_images", "name"),
    [
        ("shapes", 10**6, "plain"),
        ("shapes-easy:40000", 40000, "plain"),
        ("imagenet", 100_000, "deit"),
        ("my_shapes", 99_999, "small"),
    ],
)
def test_data_that_name_no_recipe_have_one_by_kind_and_size(data: str, n_images: int, name: str) -> None:
    assert recipes.default_recipe(data, n_images) == name
    assert recipes.named(None, data, n_images) == RECIPES[name]
    assert recipes.named("small", data, n_images, lr=0.5, epochs=None) == replace(RECIPES["small"], lr=0.5)


def test_recipes_that_mix_need_even_batches() -> None:
    assert recipes.named("plain", "shapes", 10, batch_size=7).batch_size == 7
    with pytest.raises(InputError, match="^--batch-size is 7, this recipe mixes images in pairs; choose an even one$"):
        recipes.named("small", "shapes", 10, batch_size=7)


def test_the_optimizer_is_the_recipe_s_and_leaves_biases_undecayed() -> None:
    model = fresh(ViTConfig(image_size=16, patch_size=8, d_model=16, n_heads=2, n_steps=2, n_classes=3), 0)
    made = recipes.optimizer(model, replace(RECIPES["small"], lr=0.3, weight_decay=0.7))
    assert type(made) is torch.optim.AdamW and {group["lr"] for group in made.param_groups} == {0.3}
    decay = {id(of): group["weight_decay"] for group in made.param_groups for of in group["params"]}
    of_name = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert of_name["core.0.attn.qkv.weight"] == 0.7 and of_name["core.0.attn.qkv.bias"] == 0
    assert of_name["pos_embed"] == of_name["cls_token"] == of_name["norm.weight"] == 0


def test_augmentation_is_timm_s_with_the_recipe_s_numbers() -> None:
    config = ViTConfig(image_size=24, patch_size=8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert recipes.augmentation(RECIPES["plain"], config) is None
    deit = recipes.augmentation(RECIPES["deit"], config).transforms
    assert type(deit[0]).__name__ == "RandomResizedCropAndInterpolation" and deit[0].size == (24, 24)
    assert deit[0].interpolation.value == "bicubic"
    small = recipes.augmentation(RECIPES["small"], config).transforms
    resize, crop = small[0].transforms
    assert (resize.size, resize.interpolation.value) == (24, "bicubic")
    assert (crop.size, crop.padding, crop.pad_if_needed, crop.padding_mode) == ((24, 24), 4, True, "reflect")
    for made, policy in ((deit, "RandAugment"), (small, "AutoAugment")):
        kinds = {type(each).__name__: each for each in made}
        assert policy in kinds and "ColorJitter" not in kinds and kinds["RandomErasing"].probability == 0.25
        assert np.allclose([*kinds["Normalize"].mean, *kinds["Normalize"].std], [*config.mean, *config.std])
    jitter = replace(RECIPES["deit"], auto_augment=None, erasing=0.0)
    kinds = {type(each).__name__: each for each in recipes.augmentation(jitter, config).transforms}
    assert np.allclose(kinds["ColorJitter"].brightness, [0.7, 1.3]) and "RandomErasing" not in kinds


def test_mixing_is_timm_s_with_the_recipe_s_numbers() -> None:
    recipe = replace(RECIPES["small"], mixup=0.7, cutmix=0.3, mix_probability=0.6, smoothing=0.2)
    mixing = recipes.mixing(recipe, 9)
    assert (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.mix_prob) == (0.7, 0.3, 0.6)
    assert (mixing.label_smoothing, mixing.num_classes) == (0.2, 9)


def test_the_average_of_the_weights_warms_up() -> None:
    """Update k keeps 1 - k^(-2/3) of it, at most the recipe's share: soon after the start it is near the weights."""
    model, recipe = torch.nn.Linear(1, 1, bias=False), replace(RECIPES["plain"], ema_decay=0.6)
    average, expected = recipes.ema(model, recipe), 0.0
    for update in range(1, 9):
        torch.nn.init.constant_(model.weight, update**2)
        average.update(model, step=update)
        kept = min(1 - update ** (-2 / 3), 0.6)
        expected = kept * expected + (1 - kept) * update**2
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_mixing_pairs_the_same_images_on_any_number_of_processes() -> None:
    """Of a batch shared by two, each half mixed apart is the batch mixed as a whole."""
    recipe, images, labels = RECIPES["small"], torch.randn(8, 3, 8, 8), torch.arange(8)
    mixing = recipes.mixing(replace(recipe, mix_probability=1.0), 8)

    def mixed(places: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        seed_all(0, 5)
        return mixing(images[places].clone(), labels[places])

    whole = mixed(list(range(8)))
    for rank in range(2):
        mine = share(range(8), rank, 2)
        for part, expected in zip(mixed(mine), whole, strict=True):
            assert torch.allclose(part, expected[mine])
