"""Single features of a dictionary: over which states they live, what they tell, and the images they fire on."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyses import looks, style

TOKENS = {"cls": "CLS", "patch": "patches"}
FATES = ("fade", "come and stay", "come and go", "last")
LIVES = 0.5  # a feature lives at a state where its mean activation is at least so much of its largest
N_FEATURES = {"patch": 5, "cls": 2}  # whose images are shown

# Over the states


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


# Those that are shown


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


def short(state: int) -> str:
    return "start" if state == 0 else f"step {state}"


# Tables


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


def match_frame(result: xr.Dataset, token: str, feature: int) -> pd.DataFrame:
    """What one feature tells best of every factor, and at which state, as far as the images of the training say; its F1
    beside that for the values of other images.
    """
    of = result[["match", "match_value", "match_state"]].sel(token=token, feature=feature)
    rows = []
    for factor in result["factor"].values:
        at = of.sel(factor=factor)
        if int(at["match_state"]) >= 0:
            here = (result["concept_token"] == token) & (result["concept_factor"] == factor)
            value = str(result["concept_value"].values[here.values][int(at["match_value"])])
            f1 = (round(float(at["match"].sel(against=name)), 2) for name in ("dictionary", "shuffled"))
            rows.append((str(factor), value, short(int(at["match_state"])), *f1))
    frame = pd.DataFrame(rows, columns=["factor", "value", "at", "F1", "F1, others' values"])
    return frame.sort_values("F1", ascending=False, kind="stable")


def top_frame(result: xr.Dataset, token: str, feature: int) -> pd.DataFrame:
    """The images on which one feature fires most at every state, with the patch (counted from 0, row by row)."""
    of, rows = result[["top", "top_patch"]].sel(token=token, feature=feature), []
    for state in result["state"].values.tolist():
        images, patches = (of[name].sel(state=state).values.tolist() for name in ("top", "top_patch"))
        said = [
            f"{image}" + (f" (patch {patch})" if token == "patch" else "")
            for image, patch in zip(images, patches, strict=True)
        ]
        rows.append((short(state), ", ".join(name for name, image in zip(said, images, strict=True) if image >= 0)))
    return pd.DataFrame(rows, columns=["state", "images"])


# Pictures


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


def top_pictures(result: xr.Dataset, token: str, feature: int) -> list[tuple[np.ndarray, str]]:
    """Pixels of the image on which a feature fires most at each state, where they were kept, and the state."""
    if "thumbnail" not in result:
        return []
    place = {int(number): i for i, number in enumerate(result["shown"].values)}
    top = result["top"].sel(token=token, feature=feature).isel(place=0)
    every = [(int(number), short(int(state))) for state, number in zip(result["state"], top, strict=True)]
    return [(result["thumbnail"].values[place[number]], said) for number, said in every if number in place]


def profile_map(result: xr.Dataset, token: str = "patch") -> looks.Map:
    """Mean activation of every living feature over the states, as a share of its largest; by birth and death."""
    profile = result["profile"].sel(token=token)
    of = span(profile)
    order = np.lexsort((of["dies"].values, of["born"].values))
    order = order[np.isfinite(of["born"].values[order])]
    values = (profile / profile.max("state")).transpose("feature", "state").values[order]
    states = result["state"].values.tolist()
    return looks.Map(
        values,
        states,
        order.tolist(),
        x="state after step",
        y="feature",
        bar="share of its largest",
        low=0,
        high=1,
        title=TOKENS[token],
    )


def of_feature(result: xr.Dataset, token: str, feature: int) -> go.Figure:
    """Mean activation of one feature over the states, and how often it fires."""
    at, states = dict(token=token, feature=feature), result["state"].values
    lines = [
        looks.Line(states, result["profile"].sel(at).values, label="mean activation", mark="o"),
        looks.Line(states, result["rate"].sel(at).values, label="fires for (share of rows)", colour=style.SECOND),
    ]
    return looks.Curves(lines, x="state after step", y=f"feature {feature}, {TOKENS[token]}", low=0).interactive()
