"""Which heads could write into which by their weights, beside random matrices, and how much of it a run uses."""

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from analyses import looks, style
from analyses.graph import SLOTS, between_heads

# Statistics


def is_possible(result: xr.Dataset) -> xr.DataArray:
    """Whether some step of the one block comes before some step of the other: [block other_block]."""
    blocks = np.arange(result.sizes["block"])
    several = np.bincount(blocks_of(result)) > 1
    allowed = (blocks[:, None] < blocks) | ((blocks[:, None] == blocks) & several)
    return xr.DataArray(allowed, dims=("block", "other_block"))


def blocks_of(result: xr.Dataset) -> np.ndarray:
    """The block of every step; of a pruned model every step is one: [step]."""
    return np.arange(result.sizes["step"]) * result.sizes["block"] // result.sizes["step"]


def times_chance(numbers: xr.Dataset) -> xr.DataArray:
    """Scores as multiples of those of random matrices: [slot block head other_block other_head]."""
    return numbers["composition"] / numbers["composition_chance"]


def outside(result: xr.Dataset, numbers: xr.Dataset) -> tuple[int, int, int]:
    """How many pairs lie above and below the middle 95 % of random matrices, and how many pairs there are."""
    possible = is_possible(result)
    above, below = (
        int((possible & of).sum())
        for of in (
            numbers["composition"] > numbers["composition_high"],
            numbers["composition"] < numbers["composition_low"],
        )
    )
    return above, below, int(possible.sum()) * numbers["composition"][:, 0, :, 0].size


def used(result: xr.Dataset, how: str = "integrated") -> xr.DataArray:
    """Sum of |effect| of the edges between two heads, by the step that reads: [slot head other_head other_step]."""
    return np.abs(between_heads(result).sel(how=how)).sum("step")


def used_by_weights(result: xr.Dataset, how: str = "integrated") -> xr.DataArray:
    """Sum of |effect| over all pairs of steps that a score stands for: [slot block head other_block other_head]."""
    edges, blocks = np.abs(between_heads(result).sel(how=how)), blocks_of(result)
    edges = edges.assign_coords(step=blocks, other_step=blocks)
    by_block = edges.groupby("step").sum().rename(step="block").groupby("other_step").sum()
    by_block = by_block.rename(other_step="other_block").drop_vars(["block", "other_block"])
    return by_block.transpose("slot", "block", "head", "other_block", "other_head")


def agreement(result: xr.Dataset) -> float:
    """Spearman's rank correlation of scores, as multiples of chance, with their use."""
    score, use = xr.broadcast(times_chance(result), used_by_weights(result))
    score = score.transpose(*use.dims)
    there = np.broadcast_to(is_possible(result).values[None, :, None, :, None], use.shape)
    return float(stats.spearmanr(score.values[there], use.values[there])[0]) if there.sum() > 2 else np.nan


# Tables


def lines(result: xr.Dataset) -> list[str]:
    """What the command prints of composition."""
    if not is_possible(result).any():
        return []
    said = []
    for kind, numbers in style.models(result).items():
        if "composition" in numbers:
            above, below, n = outside(result, numbers)
            said.append(f"{kind} {above} above and {below} below")
    score = times_chance(result).where(is_possible(result))
    place = {name: int(i) for name, i in score.argmax(...).items()}
    text = [
        f"composition of {n} pairs of heads by their weights, outside the middle 95 % of random matrices with the same "
        f"singular values: {', '.join(said)} (chance {0.025 * n:.1f} each)",
        f"largest: h{place['head']} -> {SLOTS[place['slot']]} of h{place['other_head']}{of_blocks(result, place)}, "
        f"{float(score.isel(place)):.2f} times chance",
    ]
    if "edge" in result:
        text.append(f"rank correlation of these scores with the effect of the edges: {agreement(result):.2f}")
    return text


def of_blocks(result: xr.Dataset, place: dict[str, int]) -> str:
    return "" if result.sizes["block"] == 1 else f" (of blocks {place['block']} and {place['other_block']})"


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Every score with its chance level and what is used of it, one line per pair and model."""
    if "edge" in result:
        result = result.assign(composition_used=used_by_weights(result))
    names = ("composition", "composition_chance", "composition_low", "composition_high", "composition_used")
    return style.tidy(result, *names)


# Figures


def score_map(result: xr.Dataset, slot: str = "v") -> looks.Map:
    """Who writes (rows) into whose q, k or v (columns) by the weights, as multiples of chance."""
    shown = times_chance(result).where(is_possible(result)).sel(slot=slot)
    values = shown.transpose("block", "head", "other_block", "other_head").values
    n_blocks, n_heads = values.shape[:2]
    names = [f"h{h}" if n_blocks == 1 else f"{b}.h{h}" for b in range(n_blocks) for h in range(n_heads)]
    far = float(np.nanmax(np.abs(values - 1), initial=0.1))
    chance = {
        name: result[f"composition{of}"].sel(slot=slot).values.reshape(len(names), -1)
        for name, of in (("score", ""), ("random from", "_low"), ("random to", "_high"))
    }
    values = values.reshape(len(names), -1)
    return looks.Map(
        values,
        names,
        names,
        low=1 - far,
        high=1 + far,
        colours=style.CHANGE,
        beside=chance,
        x=f"{slot} of head",
        y="written by",
        bar="times chance",
        title=f"{slot}-composition",
    )


def use_map(result: xr.Dataset, how: str = "integrated", n: int = 12) -> looks.Map:
    """The pairs of heads with most effect, by the step that reads: sum of |effect| over the steps that write."""
    use = used(result, how).stack(pair=("slot", "head", "other_head")).transpose("pair", "other_step")
    order = np.argsort(-use.sum("other_step").values, kind="stable")[:n]
    names = [f"h{head} -> {slot} of h{other}" for slot, head, other in use["pair"].values[order]]
    steps = [int(step) + 1 for step in result["step"].values]
    return looks.Map(
        use.values[order],
        steps,
        names,
        low=0,
        x="read at step",
        y="",
        bar="sum of |effect| (logits)",
        title="what is used",
    )


def maps(result: xr.Dataset) -> list[looks.Map]:
    """Scores of q, k and v, and what is used of them."""
    return [score_map(result, slot) for slot in SLOTS] + ([use_map(result)] if "edge" in result else [])
