"""Tables and figures of activation patching: effects over steps, step x head and step x patch, beside those of an
unrelated image and of the untrained model; and T x T maps of steps that change places.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import looks, style, tiles
from analyses.style import Results, as_percent

PAIR, UNRELATED = "pair", "unrelated"
SITES = {"resid": "state that enters", "attn_out": "attention out", "mlp_out": "FFN out"}
DIRECTIONS = {"denoising": "clean into corrupt", "noising": "corrupt into clean"}
DONORS = {"own": "of the same image", "other": "of another image"}
PARTS = {"all": "all tokens", "cls": "CLS", "patches": "patches"}
EFFECT, TOP1 = "effect (%)", "top-1 (%)"
LAGS = (-8, -4, -2, -1, 0, 1, 2, 4, 8)

# Statistics


def beyond_null(result: xr.Dataset, name: str) -> xr.DataArray:
    """Where the interval of an effect does not meet that of the same patch from an unrelated image: [...]."""
    low, high = (result[f"{name}_{end}"] for end in ("low", "high"))
    apart = [
        high.sel(source=one, drop=True) < low.sel(source=other, drop=True)
        for one, other in ((PAIR, UNRELATED), (UNRELATED, PAIR))
    ]
    return apart[0] | apart[1]


def handover(result: xr.Dataset, factor: str, direction: str, share: float = 0.5) -> dict[str, int | None]:
    """The first step that CLS, and the last step that the other tokens enter with at least `share` of the effect."""
    entering = result["effect"].sel(source=PAIR, site="resid", factor=factor, direction=direction)
    at_step = {}
    for group in entering["group"].values.tolist():
        steps = np.flatnonzero(entering.sel(group=group) >= share)
        at_step[group] = None if not len(steps) else int(steps[0] if group == "cls" else steps[-1])
    return {group: step for group, step in at_step.items() if group != "background"}


def shift(numbers: xr.Dataset, donor: str, part: str, name: str = "accuracy") -> np.ndarray:
    """What is left [step other_step] when `step` gets a part of what other_step had; of "head 1", its output."""
    if part.startswith("head "):
        cell = numbers[f"head_shift_{name}"].sel(donor=donor, head=int(part.removeprefix("head ")))
    else:
        cell = numbers[f"shift_{name}"].sel(donor=donor, part=part)
    return cell.transpose("step", "other_step").values


def parts_of(result: xr.Dataset) -> list[str]:
    """Everything that changed places."""
    return [*result["part"].values.tolist(), *(f"head {h}" for h in result["head"].values)]


def of_lag(values: np.ndarray, lag: int) -> float:
    """Mean over the steps that got what stands `lag` steps later than their own, of [step other_step]."""
    return float(np.diagonal(values, lag).mean())


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: % of the way to the other image's answer; * where an unrelated image does otherwise."""
    lines = [
        f"patching: {result.sizes['step']} steps; how far a patch moves an answer to that of the image it is from (%)",
        "(* the 95 % intervals of this effect and of the same patch from an unrelated image do not meet)",
    ]
    for factor in result["factor"].values.tolist():
        for direction in DIRECTIONS:
            lines += ["", *effect_lines(result, factor, direction)]
        lines.append(handover_line(result, factor))
    if "shift_accuracy" in result:
        lines += ["", *shift_lines(result)]
    return "\n".join(lines)


def effect_lines(result: xr.Dataset, factor: str, direction: str) -> Iterator[str]:
    """Lines of one factor and direction: sites and groups by steps, heads, and the means of null and control."""
    where = dict(factor=factor, direction=direction)
    here, shown = result.sel(where), style.some(result["step"].values.tolist())
    n, n_left_out = int(here["n_pairs"]), int(here["n_left_out"])
    yield f"{factor}, {direction} ({DIRECTIONS[direction]}): {n} pairs, {n_left_out} not answered right left out"
    yield style.row("step", [f"{step + 1} " for step in shown], 7, 30)
    cells = [("effect", dict(site=s, group=g)) for s in SITES for g in result["group"].values.tolist()]
    cells += [("head_effect", dict(head=h)) for h in result["head"].values.tolist()]
    for name, cell in cells:
        title = f"head {cell['head']}" if "head" in cell else f"{SITES[cell['site']]}, {cell['group']}"
        values = as_percent(here[name].sel(cell | dict(source=PAIR)))
        stars = beyond_null(here, name).sel(cell).values
        yield style.row(title, [f"{values[t]:.0f}{'*' if stars[t] else ' '}" for t in shown], 7, 30)
    models = style.models(result)
    nulls = {"unrelated image": (models["trained"], UNRELATED), "untrained": (models.get("untrained"), PAIR)}
    for title, (numbers, source) in nulls.items():
        for name, what in (("effect", "mean"), ("head_effect", "mean head")) if numbers is not None else ():
            values = as_percent(numbers[name].sel(where | dict(source=source)).transpose("step", ...))
            means = np.nanmean(values.reshape(len(values), -1), 1)
            yield style.row(f"{title}, {what}", [f"{means[t]:.0f} " for t in shown], 7, 30)


def handover_line(result: xr.Dataset, factor: str) -> str:
    """From which step on CLS holds half of the answer, and until which the other tokens do."""
    steps = handover(result, factor, "denoising")
    cls, (others, step) = steps.pop("cls"), next(iter(steps.items()))
    first = "never holds half of it" if cls is None else f"holds half of it when it enters {style.step_label(cls)}"
    last = "never do" if step is None else f"do last at {style.step_label(step)}"
    return f"{factor}: CLS {first}; the {'patches' if others == 'patches' else f'patches of the {others}'} {last}"


def shift_lines(result: xr.Dataset) -> Iterator[str]:
    """Lines of steps that changed places: means over steps that are equally far apart."""
    lags = [lag for lag in LAGS if abs(lag) < result.sizes["step"]]
    n, chance = int(result["n_shifted"]), 100 * result.attrs["chance"]
    yield f"step-shifted: {n} images, {TOP1} when a step gets what one so many steps later had; chance {chance:.1f}"
    yield style.row("", [f"{lag:+d}" for lag in lags], 8, 34)
    for donor, whose in DONORS.items():
        for part in parts_of(result):
            values = as_percent(shift(result, donor, part))
            yield style.row(f"{PARTS.get(part, part)} {whose}", [f"{of_lag(values, lag):.0f}" for lag in lags], 8, 34)


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Every number with its interval, one line per cell and model."""
    frames = []
    for name in ("effect", "head_effect", "shift_margin", "head_shift_margin"):
        if name in result:
            part = style.tidy(result, name, f"{name}_low", f"{name}_high")
            part = part.rename(columns={name: "value", f"{name}_low": "low", f"{name}_high": "high"})
            frames.append(part.assign(what=name.replace("_margin", "").replace("_", " ")))
    return pd.concat(frames, ignore_index=True)


# Figures


def curves(result: xr.Dataset, factor: str, direction: str, site: str, *, title: str = "") -> looks.Curves:
    """Effect over the steps of every group of tokens, the same from an unrelated image dashed, untrained dotted."""
    lines, models = [], style.models(result)
    cells = [
        ("", models["trained"], PAIR, "solid"),
        (", unrelated image", models["trained"], UNRELATED, "dash"),
        (", untrained", models.get("untrained"), PAIR, "dot"),
    ]
    for group, colour in zip(result["group"].values.tolist(), style.SEQUENCE, strict=False):
        for what, numbers, source, dash in cells:
            if numbers is None:
                continue
            where = dict(factor=factor, direction=direction, site=site, group=group, source=source)
            values, *bounds = (as_percent(numbers[f"effect{end}"].sel(where)) for end in ("", "_low", "_high"))
            name = "CLS" if group == "cls" else group
            lines.append(
                looks.Line(
                    numbers["step"].values + 1,
                    values,
                    *bounds,
                    label=f"{name}{what}",
                    colour=colour,
                    dash=dash,
                    mark="" if what else "o",
                    width=0.9 if what else 1.5,
                )
            )
    return looks.Curves(lines, y=EFFECT, title=title)


def head_map(result: xr.Dataset, factor: str, direction: str, source: str = PAIR, *, title: str = "") -> looks.Map:
    """Step x head, white where nothing changes."""
    cells = result.sel(factor=factor, direction=direction)
    limit = 100 * max(float(np.nanmax(np.abs(result["head_effect"].values))), 0.05)
    values, *beside = (
        100 * cells[f"head_effect{end}"].sel(source=whose).transpose("head", "step")
        for end, whose in (("", source), ("_low", source), ("_high", source), ("", UNRELATED))
    )
    hover = dict(zip(("95 % from", "to", "from an unrelated image"), (whose.values for whose in beside), strict=True))
    return looks.head_map(values, low=-limit, high=limit, colours=style.CHANGE, bar=EFFECT, title=title, beside=hover)


def figure(results: Results, direction: str = "denoising") -> Figure:
    """A row per result and factor: effect of the state, attention's and the FFN's output, and of every head."""
    rows = [(name, of, factor) for name, of in style.named(results).items() for factor in of["factor"].values.tolist()]
    drawn, axes = looks.panels(len(rows), 4, width=3.5, height=2.6)
    for i, (name, result, factor) in enumerate(rows):
        *left, right = axes[4 * i : 4 * i + 4]
        for ax, (site, what) in zip(left, SITES.items(), strict=True):
            curves(result, factor, direction, site, title=f"{name} {factor}: {what}".strip()).draw(ax, legend=False)
        head_map(result, factor, direction, title=f"{name} {factor}: heads".strip()).draw(right)
    looks.legend_below(drawn, axes[0], 3)
    return drawn


def shift_map(result: xr.Dataset, donor: str, part: str, *, title: str = "") -> looks.Map:
    """Steps by steps: accuracy left when a step (down) gets what another (across) had; "heads" for their mean."""
    parts = [f"head {h}" for h in result["head"].values] if part == "heads" else [part]
    values = np.mean([as_percent(shift(result, donor, name)) for name in parts], 0)
    margins = np.mean(
        [[shift(result, donor, name, f"margin{end}") for end in ("", "_low", "_high")] for name in parts], 0
    )
    hover = dict(zip(("margin (logits)", "95 % from", "to"), margins, strict=True)) if len(parts) == 1 else {}
    return looks.step_map(
        values,
        result["step"].values,
        levels={"chance": 100 * result.attrs["chance"]},
        x="what step ... had",
        y="put into step",
        low=0,
        high=100,
        bar=TOP1,
        title=title,
        beside=hover,
    )


def shifts(results: Results) -> Figure | None:
    """T x T maps of steps that changed places, of the same image and, below, of another one."""
    rows = [
        (name, of, donor) for name, of in style.named(results).items() if "shift_accuracy" in of for donor in DONORS
    ]
    if not rows:
        return None
    columns = (*PARTS, "heads")
    drawn, axes = looks.panels(len(rows), len(columns), width=2.6, height=2.5)
    for i, (name, result, donor) in enumerate(rows):
        here = axes[len(columns) * i : len(columns) * (i + 1)]
        for ax, part in zip(here, columns, strict=True):
            title = f"{name} {PARTS.get(part, 'heads, mean')} {DONORS[donor]}".strip()
            shift_map(result, donor, part, title=title).draw(ax, bar=None if ax is here[-1] else ())
    return drawn


def grid_of(result: xr.Dataset, pair: int, direction: str, site: str) -> np.ndarray:
    """Effect of every patch alone in %: [step row column]."""
    tokens = result["token_effect"].isel(pair=pair).sel(direction=direction, site=site).transpose("step", "token")
    patches = as_percent(tokens)[:, result.attrs["n_prefix"] :]
    return patches.reshape(len(patches), round(patches.shape[1] ** 0.5), -1)


def of_cls(result: xr.Dataset, pair: int, direction: str, site: str) -> np.ndarray:
    """Effect of CLS alone in %: [step]."""
    return as_percent(result["token_effect"].isel(pair=pair, token=0).sel(direction=direction, site=site))


def name_of_pair(result: xr.Dataset, pair: int) -> str:
    """The classes of the two images of a pair."""
    classes, labels = result.attrs["classes"], result["pair_label"].isel(pair=pair).values
    return " / ".join(str(classes[label]) for label in labels)


def tokens(results: Results, direction: str = "denoising") -> Figure | None:
    """Step x patch: the first pair of each factor, a row per site; below each map the effect of CLS alone."""
    named = [(name, of) for name, of in style.named(results).items() if "token_effect" in of]
    if not named:
        return None
    firsts = [
        (of, int(np.argmax(of["pair_factor"].values == factor)), site)
        for _, of in named
        for factor in dict.fromkeys(of["pair_factor"].values.tolist())
        for site in SITES
    ]
    shown = style.some(max((of["step"].values.tolist() for _, of in named), key=len))
    titles = ["clean", "corrupt", *(f"step {step + 1}" for step in shown)]

    def draw(ax: Axes, row: int, column: int) -> str:
        result, pair, site = firsts[row]
        if column < 2:
            if "thumbnail" in result:
                ax.imshow(result["thumbnail"].isel(pair=pair, run=column))
            return str(result.attrs["classes"][int(result["pair_label"][pair, column])])
        step = shown[column - 2]
        if step >= result.sizes["step"]:
            return ""
        values = grid_of(result, pair, direction, site)
        limit = max(float(np.nanmax(np.abs(values))), 1.0)
        ax.imshow(colormaps[style.CHANGE](0.5 + values[step] / limit / 2))
        return f"{values[step].max():.0f}, CLS {of_cls(result, pair, direction, site)[step]:.0f}"

    labels = [SITES[site] for *_, site in firsts]
    return looks.grid(draw, titles, labels, f"effect of one patch alone, {direction}; below: the largest, and CLS (%)")


FIGURES = {"effects": figure, "shifts": shifts, "tokens": tokens}


def interactive(result: xr.Dataset, factor: str = "", direction: str = "denoising", site: str = "resid") -> go.Figure:
    """Effect over the steps to hover over."""
    factor = factor or str(result["factor"].values[0])
    return curves(result, factor, direction, site).interactive(420)


def heads(result: xr.Dataset, factor: str, direction: str) -> go.Figure:
    """Step x head to hover over."""
    return head_map(result, factor, direction).interactive(height=150 + 30 * result.sizes["head"])


def steps_map(result: xr.Dataset, donor: str, part: str) -> go.Figure:
    """Steps that changed places, to hover over."""
    return shift_map(result, donor, part).interactive()


def token_maps(result: xr.Dataset, pair: int, direction: str, site: str) -> go.Figure:
    """Step x patch of one pair, a map per step; in its title the effect of CLS alone."""
    values, cls = grid_of(result, pair, direction, site), of_cls(result, pair, direction, site)
    limit, across = max(float(np.nanmax(np.abs(values))), 1.0), min(6, len(values))
    down = -(-len(values) // across)
    titles = [f"step {t + 1}<br>CLS {effect:z.0f}" for t, effect in enumerate(cls)]
    drawn = tiles.panels(titles, down, across)
    hover = "patch %{y}, %{x}: %{z:.1f} %<extra></extra>"
    for t, patches in enumerate(values):
        heat = go.Heatmap(z=patches, coloraxis="coloraxis", hovertemplate=hover)
        drawn.add_trace(heat, row=t // across + 1, col=t % across + 1)
    drawn.update_yaxes(autorange="reversed")
    bar = dict(colorscale=style.CHANGE, cmin=-limit, cmax=limit, colorbar=tiles.bar(EFFECT))
    return tiles.settled(drawn.update_layout(coloraxis=bar))
