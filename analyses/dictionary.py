"""Tables and figures of sparse dictionaries: what one for all states explains, how long its features live, what they
tell, and what is lost without them.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyses import looks, style
from analyses.style import Results

KINDS = {
    "shared": "one for all states",
    "separate": "one a state, together as large",
    "larger": "one a state, each as large",
    "pca": "principal components",
    "rotated": "one for all, rotated",
}
TOKENS = {"cls": "CLS", "patch": "patches"}
LIVES = 0.5  # a feature lives at a state where its mean activation is at least so much of its largest
ENDS = ("", "_low", "_high")  # of a number with its interval
MOST_FACTORS = 4  # in a panel
N_FEATURES = {"patch": 5, "cls": 2}  # whose images are shown

# Statistics


def lives(profile: xr.DataArray) -> xr.DataArray:
    """Whether each feature lives at each state, of mean activations [... state]; a dead one nowhere."""
    largest = profile.max("state")
    return (profile >= LIVES * largest) & (largest > 0)


def span(profile: xr.DataArray) -> xr.Dataset:
    """Of each feature, over how many states it lives, the first and the last of them; NaN for a dead one."""
    alive = lives(profile)
    n, is_there = alive.sum("state"), alive.any("state")
    last = alive.sizes["state"] - 1 - alive.isel(state=slice(None, None, -1)).argmax("state")
    parts = {"length": n, "born": alive.argmax("state"), "dies": last}
    return xr.Dataset({name: of.where(is_there) for name, of in parts.items()})


def lengths(profile: xr.DataArray) -> np.ndarray:
    """The share of the living features that live over 1, 2, ... states, in %."""
    n = profile.sizes["state"]
    length = span(profile)["length"].values
    length = length[np.isfinite(length)].astype(int)
    return 100 * np.bincount(length, minlength=n + 1)[1:] / max(len(length), 1)


def fates(profile: xr.DataArray) -> dict[str, float]:
    """The share of the living features that live from the first state on but not to the last, come later and stay, come
    and go, and live at both ends, in %.
    """
    of, last = span(profile), profile.sizes["state"] - 1
    is_early, is_late = of["born"] <= 1, of["dies"] == last
    there = of["length"].notnull()
    kinds = {
        "fade": is_early & ~is_late,
        "come and stay": ~is_early & is_late,
        "come and go": ~is_early & ~is_late,
        "last": is_early & is_late,
    }
    return {name: 100 * float((of_kind & there).sum() / max(int(there.sum()), 1)) for name, of_kind in kinds.items()}


def factors(numbers: xr.Dataset, token: str) -> list[str]:
    """The factors that a kind of tokens has."""
    parts = [name.partition(" ") for name in numbers["told"].values.tolist()]
    return [factor for of_token, _, factor in parts if of_token == token]


def best_state(numbers: xr.Dataset, told: str) -> int:
    """Where the values of a factor are told best, on average."""
    return int(numbers["f1_of_factor"].sel(against="dictionary", told=told).fillna(0).argmax("state"))


def shown(result: xr.Dataset) -> list[tuple[str, int, str]]:
    """Features whose images are shown: token, number, and the concept each tells best, one for each factor."""
    rows = []
    for token, most in N_FEATURES.items():
        gain = result["f1"].sel(against="dictionary") - result["f1"].sel(against="shuffled")
        gain = gain.where(result["concept_token"] == token).fillna(-1)
        found: dict[int, tuple[str, str]] = {}
        for place in np.argsort(-gain.values, axis=None, kind="stable"):
            concept, state = np.unravel_index(place, gain.shape)
            factor, value = (str(result[f"concept_{what}"].values[concept]) for what in ("factor", "value"))
            feature = int(result["best_feature"].sel(against="dictionary").values[concept, state])
            if feature not in found and factor not in [name for name, _ in found.values()]:
                found[feature] = factor, value
            if len(found) == most:
                break
        rows += [(token, feature, f"{factor} {value}") for feature, (factor, value) in found.items()]
    return rows


def states_shown(result: xr.Dataset) -> list[int]:
    return list(style.some(result["state"].values.tolist(), 7))


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints."""
    said, n = result.attrs, result.sizes["feature"]
    lines = [
        f"dictionary: {said['n_measured']} images, trained on {said['n_fitted']} others; {n} features of states of "
        f"{said['d_model']} dimensions, {said['k']} fire for a row on average (L0)",
    ]
    for token in TOKENS:
        lines += ["", *explained_lines(result, token)]
    parts = (sharing_lines(result), life_lines(result), told_lines(result), effect_lines(result), kept_lines(result))
    return "\n".join([*lines, *(line for part in parts for line in ("", *part))])


def explained_lines(result: xr.Dataset, token: str) -> Iterator[str]:
    """A line a kind of dictionary: variance explained at each state; then what fires, and what never does."""
    states = style.some(result["state"].values.tolist())
    yield style.row(f"{TOKENS[token]}: explained (%)", [short(state) for state in states], 8, 36)
    for model, numbers in style.models(result).items():
        for kind in [kind for kind in KINDS if kind in numbers["kind"].values]:
            cells = numbers["explained"].sel(kind=kind, token=token, state=states).values
            if model == "trained" or (kind in ("shared", "rotated") and np.isfinite(cells).any()):
                yield style.row(f"  {named(kind, model)}", [percent(cell) for cell in cells], 8, 36)
        of = numbers.sel(kind="shared", token=token)
        yield style.row(f"  {named('L0', model)}", [f"{cell:.1f}" for cell in of["l0"].sel(state=states).values], 8, 36)
        dead = [percent(cell) for cell in of["dead"].sel(state=states).values]
        yield style.row(f"  {named('never fire here (%)', model)}", dead, 8, 36)


def short(state: int) -> str:
    return "start" if state == 0 else f"step {state}"


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
    yield style.row(f"features live over (of {result.sizes['state']} states)", [*FATES, "mean"], 15, 36)
    for model, numbers in style.models(result).items():
        for token, title in TOKENS.items():
            for prefix, said in (("", ""), ("rotated_", ", rotated")):
                of = numbers[f"{prefix}profile"].sel(token=token)
                mean = float(span(of)["length"].mean())
                cells = [f"{share:.0f} %" for share in fates(of).values()]
                yield style.row(f"  {named(title + said, model)}", [*cells, f"{mean:.1f}"], 15, 36)
    yield f"  (a feature lives where its mean activation is at least {LIVES:.0%} of its largest)".replace("%", " %")


FATES = ("fade", "come and stay", "come and go", "last")


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
            cells += ["-" if np.isnan(beside) else f"{beside:.2f}", short(state)]
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
    """What every dictionary explains of every state, one line a cell and model."""
    return style.tidy(result, "explained", "explained_low", "explained_high", "l0", "dead")


def feature_frame(result: xr.Dataset) -> pd.DataFrame:
    """Every feature: over which states it lives, how often it fires at its best, and what it tells best."""
    frames = []
    for token in result["token"].values:
        of = span(result["profile"].sel(token=token)).to_dataframe()
        match = result["match"].sel(against="dictionary", token=token).fillna(0)
        factor = match.argmax("factor")
        of["largest rate"] = result["rate"].sel(token=token).max("state").values
        of["tells"] = [str(name) for name in result["factor"].values[factor.values]]
        of["f1 (chosen)"] = match.max("factor").values
        frames.append(of.reset_index().assign(token=str(token)))
    return pd.concat(frames, ignore_index=True)


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
            share = lengths(model.numbers[f"{prefix}profile"].sel(token=token))
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
    look = dict(x="feature, by its weight", y="change of the class's logit", title=TOKENS[token])
    return looks.Curves(lines, **look) if lines else None


def profile_map(result: xr.Dataset, token: str = "patch") -> looks.Map:
    """Mean activation of every living feature over the states, as a share of its largest; by birth and death."""
    profile = result["profile"].sel(token=token)
    of = span(profile)
    order = np.lexsort((of["dies"].values, of["born"].values))
    order = order[np.isfinite(of["born"].values[order])]
    values = (profile / profile.max("state")).transpose("feature", "state").values[order]
    states = result["state"].values.tolist()
    look = dict(x="state after step", y="feature", bar="share of its largest", low=0, high=1, title=TOKENS[token])
    return looks.Map(values, states, order.tolist(), **look)


def figure(results: Results) -> Figure:
    """Two rows a result: what is explained, how much fires, every feature's profile; how long features live, what they
    tell, and what is lost without them.
    """
    named_results, columns = style.named(results), 4
    drawn, axes = looks.panels(2 * len(named_results), columns, height=3.8)
    for i, (name, result) in enumerate(named_results.items()):
        here = axes[2 * columns * i :][: 2 * columns]
        parts = [explained_curves(result, token) for token in TOKENS] + [l0_curves(result), profile_map(result)]
        parts += [life_curves(result), *(told_curves(result, token) for token in TOKENS), effect_curves(result)]
        for ax, part in zip(here, parts, strict=True):
            ax.set_visible(part is not None)
            if part is not None:
                part.draw(ax)
        here[0].set_title(f"{name} {here[0].get_title()}".strip(), fontsize=9)
    return drawn


def examples(result: xr.Dataset) -> Figure | None:
    """The image on which a feature fires most at each state, its patch framed; None where no pixels were kept."""
    if "thumbnail" not in result:
        return None
    rows, states, side = shown(result), states_shown(result), result.attrs["side"]
    place = {int(number): i for i, number in enumerate(result["shown"].values)}

    def draw(ax: Axes, row: int, column: int) -> str:
        token, feature, _ = rows[row]
        at = dict(token=token, feature=feature, state=states[column])
        top = result[["top", "top_patch", "top_activation"]].sel(at).isel(place=0)
        if int(top["top"]) not in place:
            return ""
        picture = result["thumbnail"].values[place[int(top["top"])]]
        ax.imshow(picture)
        if token == "patch":
            size, (y, x) = len(picture) / side, divmod(int(top["top_patch"]), side)
            ax.add_patch(Rectangle((x * size - 0.5, y * size - 0.5), size, size, fill=False, ec="#d55e00", lw=1.2))
        return f"{float(top['top_activation']):.1f}"

    titles = [short(state) for state in states]
    return looks.grid(draw, titles, [f"{TOKENS[token]} {feature}\n{what}" for token, feature, what in rows])


FIGURES = {"dictionary": figure, "examples": examples}


def interactive(result: xr.Dataset, token: str = "patch") -> go.Figure:
    """What is explained of every state, to hover over."""
    return explained_curves(result, token).interactive()


def of_feature(result: xr.Dataset, token: str, feature: int) -> go.Figure:
    """Mean activation of one feature over the states, and how often it fires."""
    at, states = dict(token=token, feature=feature), result["state"].values
    lines = [
        looks.Line(states, result["profile"].sel(at).values, label="mean activation", mark="o"),
        looks.Line(states, result["rate"].sel(at).values, label="fires for (share of rows)", colour=style.SECOND),
    ]
    return looks.Curves(lines, x="state after step", y=f"feature {feature}, {TOKENS[token]}", low=0).interactive()
