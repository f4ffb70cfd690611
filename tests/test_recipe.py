"""Schedule, averaged weights and mixing against closed forms. Run with: pytest tests/test_recipe.py"""

import math
from dataclasses import replace

import pytest
import torch

from models import recipe as recipes
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
