"""Tables and figures of sparse dictionaries: what one for all states explains, how long its features live, what they
tell, and what is lost without them.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure

from analyses import features, looks, style
from analyses.features import TOKENS
from analyses.style import Results

KINDS = {
    "shared": "one for all states",
    "separate": "one per state, same total size",
    "larger": "one per state, each as large",
    "pca": "principal components",
    "rotated": "one for all, rotated",
}
ENDS = ("", "_low", "_high")  # of a number with its interval
MOST_FACTORS = 4  # in a panel

# Statistics


def factors(numbers: xr.Dataset, token: str) -> list[str]:
    """The factors that a kind of tokens has."""
    parts = [name.partition(" ") for name in numbers["told"].values.tolist()]
    return [factor for of_token, _, factor in parts if of_token == token]


def best_state(numbers: xr.Dataset, told: str) -> int:
    """Where the values of a factor are told best, on average."""
    return int(numbers["f1_of_factor"].sel(against="dictionary", told=told).fillna(0).argmax("state"))


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints."""
    attrs, n = result.attrs, result.sizes["feature"]
    lines = [
        f"dictionary: {attrs['n_measured']} images, trained on {attrs['n_fitted']} others; {n} features of states of "
        f"{attrs['d_model']} dimensions, {attrs['k']} fire for a row on average (L0)",
    ]
    for token in TOKENS:
        lines += ["", *explained_lines(result, token)]
    parts = (sharing_lines(result), life_lines(result), told_lines(result), effect_lines(result), kept_lines(result))
    return "\n".join([*lines, *(line for part in parts for line in ("", *part))])


def explained_lines(result: xr.Dataset, token: str) -> Iterator[str]:
    """A line per kind of dictionary: variance explained at each state; then what fires, and what never does."""
    states = style.some(result["state"].values.tolist())
    yield style.row(f"{TOKENS[token]}: explained (%)", [features.short(state) for state in states], 8, 36)
    for model, numbers in style.models(result).items():
        for kind in [kind for kind in KINDS if kind in numbers["kind"].values]:
            cells = numbers["explained"].sel(kind=kind, token=token, state=states).values
            if model == "trained" or (kind in ("shared", "rotated") and np.isfinite(cells).any()):
                yield style.row(f"  {named(kind, model)}", [percent(cell) for cell in cells], 8, 36)
        of = numbers.sel(kind="shared", token=token)
        yield style.row(f"  {named('L0', model)}", [f"{cell:.1f}" for cell in of["l0"].sel(state=states).values], 8, 36)
        dead = [percent(cell) for cell in of["dead"].sel(state=states).values]
        yield style.row(f"  {named('never fire here (%)', model)}", dead, 8, 36)


def named(what: str, model: str) -> str:
    return KINDS.get(what, what) + ("" if model == "trained" else ", untrained")


def percent(ratio: float) -> str:
    return "-" if not np.isfinite(ratio) else f"{100 * ratio:.1f}"


def sharing_lines(result: xr.Dataset) -> Iterator[str]:
    """What sharing costs, paired image by image, and what is never used at all."""
    for token, title in TOKENS.items():
        for kind in ("separate", "larger"):
            if kind in result["kind"].values:
                value, low, high = (100 * float(result[f"sharing{end}"].sel(kind=kind, token=token)) for end in ENDS)
                yield (
                    f"{title}: sharing changes what is explained by {value:+.1f} points ({low:+.1f} to {high:+.1f}) "
                    f"from {KINDS[kind]}"
                )
        dead = 100 * float(result["dead_everywhere"].sel(kind="shared", token=token))
        yield f"{title}: {dead:.1f} % of the features of the one for all states fire at no state"


def life_lines(result: xr.Dataset) -> Iterator[str]:
    """Over how many states features live."""
    yield style.row(f"features live over (of {result.sizes['state']} states)", [*features.FATES, "mean"], 15, 36)
    for model, numbers in style.models(result).items():
        for token, title in TOKENS.items():
            for prefix, said in (("", ""), ("rotated_", ", rotated")):
                of = numbers[f"{prefix}profile"].sel(token=token)
                mean = float(features.span(of)["length"].mean())
                cells = [f"{share:.0f} %" for share in features.fates(of).values()]
                yield style.row(f"  {named(title + said, model)}", [*cells, f"{mean:.1f}"], 15, 36)
    yield f"  (a feature lives where its mean activation is at least {features.LIVES:.0%} of its largest)".replace(
        "%", " %"
    )


def told_lines(result: xr.Dataset) -> Iterator[str]:
    """How well single features tell the values of each factor, at the state where they do best."""
    titles = ["F1", "95 %", "others' values", "rotated", "untrained", "at"]
    yield style.row("best feature of a value, mean over values", titles, 15, 42)
    untrained = style.untrained(result, "f1_of_factor")
    for token, title in TOKENS.items():
        for factor in factors(result, token):
            told = f"{token} {factor}"
            state = best_state(result, told)
            of = result.sel(told=told, state=state)
            value, low, high = (float(of[f"f1_of_factor{end}"].sel(against="dictionary")) for end in ENDS)
            cells = [f"{value:.2f}", f"{low:.2f} to {high:.2f}"]
            cells += [f"{float(of['f1_of_factor'].sel(against=name)):.2f}" for name in ("shuffled", "rotated")]
            beside = np.nan if untrained is None else float(untrained.sel(against="dictionary", told=told).max())
            cells += ["-" if np.isnan(beside) else f"{beside:.2f}", features.short(state)]
            yield style.row(f"  {title}: {factor}", cells, 15, 42)
    yield "  chosen on images of the training, scored on the others; F1 of firing as a sign of the value"


def effect_lines(result: xr.Dataset) -> Iterator[str]:
    """What is lost without the strongest features, beside as large a change elsewhere."""
    if "effect" not in result:
        yield "no feature was switched off"
        return
    yield style.row(
        f"switched off, the {result.sizes['rank']} of most weight", [*result["how"].values, "untrained"], 20, 36
    )
    for token, title in TOKENS.items():
        for name, what, scale in (("effect", "class's logit", 1), ("effect_accuracy", "top-1 (points)", 100)):
            cells = [
                f"{scale * float(result[name].sel(token=token, how=how).mean()):+.2f}" for how in result["how"].values
            ]
            untrained = style.untrained(result, name)
            beside = None if untrained is None else scale * float(untrained.sel(token=token, how="switched off").mean())
            cells.append("-" if beside is None else f"{beside:+.2f}")
            yield style.row(f"  {title}: {what}", cells, 20, 36)
        rank = int(result["effect"].sel(token=token, how="switched off").argmin("rank"))
        at = result.sel(token=token).isel(rank=rank)
        value, low, high = (float(at[f"effect{end}"].sel(how="switched off")) for end in ENDS)
        yield (
            f"  strongest: feature {int(at['tested'])}, logit {value:+.2f} ({low:+.2f} to {high:+.2f}), another "
            f"feature's direction {float(at['effect'].sel(how='another feature')):+.2f}"
        )


def kept_lines(result: xr.Dataset) -> Iterator[str]:
    """The answers that are kept when states or the FFN are replaced at every step."""
    explained = style.some(result["ffn_explained"].values.tolist())
    yield (
        f"transcoder of the FFN: explains {100 * float(result['ffn_explained'].mean()):.1f} % on average over "
        f"{result.sizes['step']} steps ({100 * min(explained):.1f} to {100 * max(explained):.1f}), L0 "
        f"{float(result['ffn_l0'].mean()):.1f}, {100 * float(result['ffn_dead']):.1f} % of its features dead"
    )
    yield style.row("replaced at every step", ["top-1 (%)", "95 %", "same answer (%)", "95 %", "untrained"], 16, 24)
    untrained = style.untrained(result, "agreement")
    for way in result["replaced"].values:
        cells = []
        for name in ("accuracy", "agreement"):
            value, low, high = (100 * float(result[f"{name}{end}"].sel(replaced=way)) for end in ENDS)
            cells += [f"{value:.1f}", f"{low:.1f} to {high:.1f}"]
        cells.append("-" if untrained is None else f"{100 * float(untrained.sel(replaced=way)):.1f}")
        yield style.row(f"  {way}", cells, 16, 24)


def frame(result: xr.Dataset) -> pd.DataFrame:
    """What every dictionary explains of every state, one line per cell and model."""
    return style.tidy(result, "explained", "explained_low", "explained_high", "l0", "dead")


# Figures


def line(model: style.Model, name: str, what: str, at: dict, scale: float = 100, **look) -> looks.Line:
    """A number over its last dimension, with its interval."""
    value, low, high = (scale * model.numbers[f"{name}{end}"].sel(at).values for end in ENDS)
    return looks.Line(np.arange(len(value)), value, low, high, **model.look(what, mark="", **look))


def explained_curves(results: Results, token: str = "patch") -> looks.Curves:
    """What every kind of dictionary explains of every state; of the untrained model that of all states, dashed."""
    lines = []
    for model in style.series(results, "explained"):
        for kind, colour in zip(KINDS, style.SEQUENCE, strict=False):
            at = dict(kind=kind, token=token)
            is_shown = kind in model.numbers["kind"].values and (model.is_trained or kind == "shared")
            if is_shown:
                lines.append(line(model, "explained", KINDS[kind], at, colour=colour))
    return looks.Curves(lines, x="state after step", y="variance explained (%)", title=TOKENS[token], low=0, high=100)


def l0_curves(results: Results) -> looks.Curves:
    """How many features fire for a row of every state."""
    lines = []
    for model in style.series(results, "l0"):
        for token, colour in zip(TOKENS, style.SEQUENCE, strict=False):
            of = model.numbers["l0"].sel(kind="shared", token=token).values
            lines.append(looks.Line(np.arange(len(of)), of, **model.look(TOKENS[token], mark="", colour=colour)))
    levels = style.levels(results, lambda result: {"mean in training": result.attrs["k"]})
    sizes = {result.attrs["d_model"] for result in style.named(results).values()}
    title = f"of {', '.join(map(str, sorted(sizes)))} dimensions"
    return looks.Curves(lines, x="state after step", y="features that fire (L0)", title=title, levels=levels, low=0)


def life_curves(results: Results, token: str = "patch") -> looks.Curves:
    """Over how many states features live, beside those of the rotated dictionary, dotted."""
    lines = []
    for model in style.series(results, "profile", "rotated_profile"):
        for prefix, what, look in (("", "", {}), ("rotated_", "rotated", dict(dash="dot"))):
            share = features.lengths(model.numbers[f"{prefix}profile"].sel(token=token))
            lines.append(looks.Line(np.arange(1, len(share) + 1), share, **model.look(what, mark="", **look)))
    return looks.Curves(lines, x="states a feature lives over", y="features (%)", title=TOKENS[token], low=0)


def told_curves(results: Results, token: str = "patch") -> looks.Curves:
    """How well the best feature tells a value, mean over the values of a factor; dotted: values of other images."""
    lines = []
    for model in style.series(results, "f1"):
        for factor, colour in zip(factors(model.numbers, token)[:MOST_FACTORS], style.SEQUENCE, strict=False):
            for against, look in (("dictionary", {}), ("shuffled", dict(dash="dot"))):
                if model.is_trained or against == "dictionary":
                    what = factor if against == "dictionary" else f"{factor}, others'"
                    at = dict(told=f"{token} {factor}", against=against)
                    lines.append(line(model, "f1_of_factor", what, at, 1, colour=colour, **look))
    return looks.Curves(lines, x="state after step", y="F1 of the best feature", title=TOKENS[token], low=0)


def effect_curves(results: Results, token: str = "patch") -> looks.Curves | None:
    """What is lost without each of the strongest features, beside as large a change elsewhere; None without any."""
    lines = []
    for model in style.series(results, "effect"):
        for how, colour in zip(model.numbers["how"].values, style.SEQUENCE, strict=False):
            if model.is_trained or how == "switched off":
                lines.append(line(model, "effect", how, dict(token=token, how=how), 1, colour=colour))
    return (
        looks.Curves(lines, x="feature, by its weight", y="change of the class's logit", title=TOKENS[token])
        if lines
        else None
    )


def figure(results: Results) -> Figure:
    """Two rows per result: what is explained, how much fires, every feature's profile; how long features live, what
    they tell, and what is lost without them.
    """
    named_results, columns = style.named(results), 4
    drawn, axes = looks.panels(2 * len(named_results), columns, height=3.8)
    for i, (name, result) in enumerate(named_results.items()):
        here = axes[2 * columns * i :][: 2 * columns]
        parts = [explained_curves(result, token) for token in TOKENS] + [
            l0_curves(result),
            features.profile_map(result),
        ]
        parts += [life_curves(result), *(told_curves(result, token) for token in TOKENS), effect_curves(result)]
        for ax, part in zip(here, parts, strict=True):
            ax.set_visible(part is not None)
            if part is not None:
                part.draw(ax)
        here[0].set_title(f"{name} {here[0].get_title()}".strip(), fontsize=9)
    return drawn


FIGURES = {"dictionary": figure, "examples": features.examples}


def interactive(result: xr.Dataset, token: str = "patch") -> go.Figure:
    """What is explained of every state, to hover over."""
    return explained_curves(result, token).interactive()
