"""Statistics, tables and figures of what the states say: lenses, patches, depth of the answer, and its parts."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses import looks, recurrence, style
from analyses.style import Results, as_percent

LENSES = {
    "logit": "logit lens",
    "tuned": "tuned lens",
    "powers": "powers of one map",
    "same": "one map for all",
    "jacobian": "Jacobian",
    "expansion": "Jacobian and mean",
}
METRICS = {
    "kl": "KL from the answer (nats)",
    "agreement": "same answer as at last (%)",
    "accuracy": "top-1 (%)",
}
TO = {"margin": "for the class against the others", "class": "to the class", "others": "to the other classes"}
WHERE = {
    "object": "patches of the object",
    "background": "other patches",
    "patches": "all patches",
    "registers": "registers",
}

# Statistics


def depth(answers: np.ndarray) -> np.ndarray:
    """The first state from which the answer never changes again: [lens image], of answers [lens image state]."""
    return np.stack([recurrence.settled(of_lens) for of_lens in answers])


def flips(answers: np.ndarray) -> np.ndarray:
    """How often the answer changes from a state to the next: [...], of answers [... state]."""
    return (answers[..., 1:] != answers[..., :-1]).sum(-1)


def independent(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """If every state answered as often as it does, but regardless of the others: the share of images whose answer
    stands from each state on [lens state], and the mean number of flips [lens].

    share: [lens state class], how often each class is answered.
    """
    flipped = (1 - (share[:, 1:] * share[:, :-1]).sum(-1)).sum(-1)
    return share[:, ::-1].cumprod(1).sum(-1)[:, ::-1], flipped


def chance_depth(numbers: xr.Dataset) -> xr.DataArray:
    """Mean depth if states were independent: [...]."""
    return (1 - numbers["chance_standing"]).sum("state")


def recovered(kl: xr.DataArray) -> xr.DataArray:
    """The share of what the tuned lens gains on the logit lens, over states 1 .. T - 1, that each lens has: [lens]."""
    total = kl.isel(state=slice(1, -1)).sum("state")
    logit, tuned = total.sel(lens="logit", drop=True), total.sel(lens="tuned", drop=True)
    return (logit - total) / (logit - tuned).where(logit > tuned)


def strongest(numbers: xr.Dataset, to: str = "margin") -> tuple[str, int]:
    """The part and step that add most."""
    added = numbers["contribution"].sel(to=to).stack(cell=("part", "step"))
    part, step = added["cell"].values[int(added.argmax())]
    return str(part), int(step)


def scaled(values: xr.DataArray, metric: str) -> np.ndarray:
    """As it is shown: ratios in %."""
    return values.values * (1 if metric == "kl" else 100)


def constant(result: xr.Dataset, metric: str) -> dict[str, float]:
    """What chance, or the best answer that is the same for all images, would reach."""
    if metric == "accuracy":
        return {"chance": 100 * result.attrs["chance"]}
    return {"best constant answer": float(scaled(result[f"constant_{metric}"], metric))}


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints."""
    attrs = result.attrs
    lines = [
        f"lens: {attrs['n_measured']} images, lenses fitted on {attrs['n_fitted']} others; top-1 "
        f"{100 * float(result['is_right'].mean()):.1f} %, chance {100 * attrs['chance']:.1f} %"
    ]
    for metric in ("kl", "agreement"):
        lines += ["", *metric_lines(result, metric)]
    return "\n".join([*lines, "", *map_lines(result), *patch_lines(result), *depth_lines(result), *part_lines(result)])


def metric_lines(result: xr.Dataset, metric: str) -> list[str]:
    """A line per state, a column per lens, the logit and the tuned lens of the untrained model last."""
    parts = style.models(result)
    levels = ", ".join(f"{name} {level:.3g}" for name, level in constant(result, metric).items())
    columns = [(model, lens) for model, numbers in parts.items() for lens in numbers["lens"].values]
    columns = [(model, lens) for model, lens in columns if model == "trained" or lens in ("logit", "tuned")]
    titles = [lens if model == "trained" else f"init {lens}" for model, lens in columns]
    lines = [f"{METRICS[metric]}; {levels}; init: the untrained model", style.row("read at", titles, 11)]
    digits = 3 if metric == "kl" else 1
    for state in style.some(result["state"].values.tolist()):
        cells = [float(scaled(parts[model][metric].sel(lens=lens, state=state), metric)) for model, lens in columns]
        lines.append(style.row(style.state_label(state), [f"{cell:.{digits}f}" for cell in cells], 11))
    return lines


def map_lines(result: xr.Dataset) -> list[str]:
    """Whether the tuned lens is powers of one map."""
    lines = ["share of what the tuned lens gains on the logit lens (KL, states 1 .. T - 1; trained, untrained):"]
    for lens in result["lens"].values:
        if lens not in ("logit", "tuned"):
            of_models = style.models(result).values()
            each = [style.with_interval(of, "recovered", dict(lens=lens), unit=" %") for of in of_models]
            lines.append(style.row(f"  {LENSES[lens]}", each, 26, 26))
    return lines


def patch_lines(result: xr.Dataset) -> list[str]:
    """What patches say after the first, the middle and the last step."""
    last = int(result["state"].values[-1])
    shown = sorted({1, max(1, last // 2), last})
    lines = ["", style.row("patches that say the class", map(style.state_label, shown), 24, 40)]
    for model, numbers in style.models(result).items():
        said = "" if model == "trained" else ", untrained"
        rows = {WHERE[where]: ("patch_share", dict(where=where)) for where in result["where"].values}
        if "patch_agreement" in numbers:
            rows |= {"agreement with the mask": ("patch_agreement", {}), "surest one on the object": ("patch_hit", {})}
        for title, (name, at) in rows.items():
            how = dict(scale=1, digits=2) if name == "patch_agreement" else dict(unit=" %")
            each = [style.with_interval(numbers, name, dict(at, state=state), **how) for state in shown]
            lines.append(style.row(f"  {title}{said}", each, 24, 40))
    if "patch_agreement" in result:
        lines.append(
            "  agreement: area under the ROC curve; chance 0.5, nearness to the centre "
            f"{float(result['centre_agreement']):.2f}; a random patch is on the object in "
            f"{100 * float(result['random_hit']):.1f} %"
        )
    return lines


def depth_lines(result: xr.Dataset) -> list[str]:
    """From which step the answer stands, and how often it flips."""
    titles = ["mean", "right", "wrong", "independent", "flips", "independent"]
    lines = ["", style.row("the answer stands from step", titles, 12, 28)]
    for model, numbers in style.models(result).items():
        for lens in ("logit", "tuned"):
            of = numbers.sel(lens=lens)
            each = [of["mean_depth"], *of["depth_of"], chance_depth(of), of["mean_flips"], of["chance_flips"]]
            title = f"  {lens} lens{'' if model == 'trained' else ', untrained'}"
            lines.append(style.row(title, [f"{float(value):.2f}" for value in each], 12, 28))
    return [
        *lines,
        "  right, wrong: images whose last answer is; independent: if states answered regardless of the others",
    ]


def part_lines(result: xr.Dataset) -> list[str]:
    """What the parts of every step add to the class against the others."""
    steps = style.some(result["step"].values.tolist())
    whole = {
        name: float(result["whole_contribution"].sel(to="margin", whole=name))
        for name in result["whole"]["whole"].values
    }
    lines = [
        "",
        style.row("adds to the class's logit", [f"step {step + 1}" for step in steps], 8, 26),
    ]
    for model, numbers in style.models(result).items():
        for part in numbers["part"].values:
            added = numbers["contribution"].sel(to="margin", part=part)
            if model == "trained":
                lines.append(style.row(f"  {part}", [f"{float(added.sel(step=step)):+.2f}" for step in steps], 8, 26))
        total = numbers["contribution"].sel(to="margin").sum("part")
        title = "  all parts" + ("" if model == "trained" else ", untrained")
        lines.append(style.row(title, [f"{float(total.sel(step=step)):+.2f}" for step in steps], 8, 26))
    parts = " + ".join([f"{name} {whole[name]:+.2f}" for name in ("embedding", "bias")])
    return [
        *lines,
        f"  less what it adds to the other classes on average; all of it + {parts} = {whole['logit']:+.2f}, but for "
        f"{float(result['rest']):.0e} at most on an image",
    ]


def frame(result: xr.Dataset) -> pd.DataFrame:
    """What every lens says of every state with its interval, one line per cell and model."""
    return style.tidy(result, *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")))


def part_frame(result: xr.Dataset) -> pd.DataFrame:
    """What every part adds, one line per cell and model."""
    return style.tidy(result, *(f"contribution{end}" for end in ("", "_low", "_high")))


# Figures


def line(model: style.Model, name: str, what: str, scale: float = 100, at: dict | None = None, **look) -> looks.Line:
    """A mean over the states, with its interval."""
    value, low, high = (scale * model.numbers[f"{name}{end}"].sel(at or {}).values for end in ("", "_low", "_high"))
    return looks.Line(np.arange(len(value)), value, low, high, **model.look(what, mark="", **look))


def lens_curves(results: Results, metric: str = "kl") -> looks.Curves:
    """Every lens over the states; of the untrained model the logit and the tuned lens, dashed."""
    lines, scale = [], 1 if metric == "kl" else 100
    for model in style.series(results, metric):
        for lens, colour in zip(LENSES, style.SEQUENCE, strict=True):
            is_shown = lens in model.numbers["lens"].values and (model.is_trained or lens in ("logit", "tuned"))
            if is_shown:
                lines.append(line(model, metric, LENSES[lens], scale, dict(lens=lens), colour=colour))
    levels = style.levels(results, lambda result: constant(result, metric))
    return looks.Curves(lines, x="read after step", y=METRICS[metric], levels=levels, low=0)


def patch_curves(results: Results) -> looks.Curves:
    """Share of the patches that say the class, on the object and off it, or of all where there are no masks."""
    lines = []
    for model in style.series(results, "patch_share"):
        there = set(model.numbers["where"].values)
        shown = [where for where in WHERE if where in there and not (where == "patches" and "object" in there)]
        for where, colour in zip(shown, (style.MAIN, style.SECOND, "#009e73"), strict=False):
            lines.append(line(model, "patch_share", WHERE[where], 100, dict(where=where), colour=colour))
    levels = style.levels(results, lambda result: {"chance": 100 * result.attrs["chance"]})
    return looks.Curves(lines, x="read after step", y="say the class (%)", levels=levels, low=0)


def agreement_curves(results: Results) -> looks.Curves | None:
    """Agreement of what patches say with the mask; None without masks."""
    lines = [line(model, "patch_agreement", "", 1) for model in style.series(results, "patch_agreement")]
    levels = style.levels(
        results, lambda result: {"chance": 0.5, "nearness to the centre": float(result.get("centre_agreement", 0.5))}
    )
    return looks.Curves(lines, levels=levels, x="read after step", y="agreement with the mask") if lines else None


def depth_curves(results: Results) -> looks.Curves:
    """Share of the images whose answer stands from each state on, and what it would be if states were independent."""
    lines, at = [], dict(lens="logit")
    for model in style.series(results, "standing"):
        lines.append(line(model, "standing", "", 100, at))
        chance = as_percent(model.numbers["chance_standing"].sel(at))
        look = model.look("independent", dash="dot", mark="")
        lines.append(looks.Line(np.arange(len(chance)), chance, **look))
    return looks.Curves(lines, x="after step", y="answer stands (%)", low=0)


def part_map(numbers: xr.Dataset, to: str = "margin", *, limit: float | None = None, title: str = "") -> looks.Map:
    """Part x step, white where nothing is added."""
    added = numbers["contribution"].sel(to=to).transpose("part", "step").values
    ends = (("95 % from", "low"), ("to", "high"))
    bounds = {name: numbers[f"contribution_{end}"].sel(to=to).transpose("part", "step").values for name, end in ends}
    limit = limit or largest(numbers, to)
    steps, parts = [int(step) + 1 for step in numbers["step"].values], numbers["part"].values.tolist()
    return looks.Map(
        added, steps, parts, y="", beside=bounds, low=-limit, high=limit, colours=style.CHANGE, bar="logit", title=title
    )


def figure(results: Results) -> Figure:
    """Two rows per result: lenses, what patches say, their agreement with the mask; when the answer stands, what adds
    it in the trained and in the untrained model.
    """
    named, columns = style.named(results), 3
    drawn, axes = looks.panels(2 * len(named), columns, height=3.6)
    for i, (name, result) in enumerate(named.items()):
        here, models = axes[2 * columns * i :][: 2 * columns], style.models(result)
        curves = [lens_curves(result), patch_curves(result), agreement_curves(result), depth_curves(result)]
        for ax, of in zip(here, curves, strict=False):
            if of is not None:
                of.draw(ax)
            ax.set_visible(of is not None)
        limit = largest(result)
        for ax, model in zip(here[4:], ("trained", "untrained"), strict=True):
            if model in models:
                part_map(models[model], limit=limit, title=f"for the class, {model}").draw(ax)
            ax.set_visible(model in models)
        here[0].set_title(name, fontsize=9)
    return drawn


def examples(result: xr.Dataset, n: int = 6) -> Figure | None:
    """What the patches of a few images say at every state; None where no pixels were kept."""
    if "thumbnail" not in result:
        return None
    n, states = min(n, result.sizes["place"]), style.some(result["state"].values.tolist(), 7)
    labels = [result.attrs["classes"][k] for k in result["thumbnail_class"].values[:n]]

    def draw(ax: Axes, row: int, column: int) -> str:
        if column == 0:
            ax.imshow(result["thumbnail"].values[row])
            return ""
        return draw_patches(ax, result, row, states[column - 1])

    titles = ["", *(f"after {state}" for state in states)]
    return looks.grid(draw, titles, labels, "probability of the class, patch by patch; below: the answer of CLS")


def draw_patches(ax: Axes, result: xr.Dataset, place: int, state: int) -> str:
    """One image under the probability that each patch gives its class; returns the model's answer at that state."""
    picture = result["thumbnail"].values[place]
    extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
    ax.imshow(picture.mean(-1), cmap="gray", alpha=0.5)
    sure = result["thumbnail_sure"].sel(state=state).values[place] / 255
    ax.imshow(sure, cmap=style.MAP, vmin=0, vmax=1, alpha=0.75, extent=extent)
    if "thumbnail_mask" in result:
        ax.contour(result["thumbnail_mask"].values[place] > 0, [0.5], colors="white", linewidths=0.7)
    return result.attrs["classes"][int(result["thumbnail_answer"].sel(lens="logit", state=state).values[place])]


def patches(result: xr.Dataset, place: int, state: int) -> go.Figure:
    """One image: how sure each patch is of the class after a state, and what it says, to hover over."""
    sure = as_percent(result["thumbnail_sure"].sel(state=state)[place]) / 255
    says = np.array(result.attrs["classes"])[result["thumbnail_says"].sel(state=state).values[place]]
    places = (range(1, 1 + length) for length in sure.shape)
    rows, columns = map(list, places)
    hover = np.array(
        [
            [f"{word}<br>the class: {p:.1f} %" for word, p in zip(*of, strict=True)]
            for of in zip(says, sure, strict=True)
        ]
    )
    return looks.Map(
        sure,
        columns,
        rows,
        hover=hover,
        x="column",
        y="row",
        bar="probability of the class (%)",
        low=0,
        high=100,
        is_square=True,
    ).interactive(height=380)


def largest(result: xr.Dataset, to: str = "margin") -> float:
    """The largest thing a part adds: one colour scale for all models."""
    return max(float(np.abs(of["contribution"].sel(to=to)).max()) for of in style.models(result).values()) or 1.0


FIGURES = {"lens": figure, "examples": examples}


def interactive(result: xr.Dataset, metric: str = "kl") -> go.Figure:
    """Every lens over the states."""
    return lens_curves(result, metric).interactive()
