"""Trained models compared: bViT against the stacked ViT over width, steps and variants (Table 1 and Fig 2, appendix A).

    python -m analyses.study runs/study            # the tables; figures with --figure FILE.png

Reads ``study.csv``, a line for each finished training (models.study writes it). Accuracies are means over seeds with
their standard deviation; n stands beside them. Recovery is (bViT - chance) / (ViT - chance) at one width, with
Fieller's interval for a ratio of two means; NaN with fewer than two seeds. The capacity model's prediction (our
reading of appendix A) stands beside it where ``capacity.csv`` holds the ranks of the trained models.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epy
from tyro.conf import Positional

from models import command

with epy.lazy_imports():
    import numpy as np
    import pandas as pd
    import plotly.graph_objects as go
    import xarray as xr
    from matplotlib import axes as mpl_axes
    from matplotlib import figure as mpl_figure
    from scipy import stats

    from analyses import capacity, looks, results, style

NAMES = {"bvit": "bViT", "vit": "stacked ViT"}
KEYS = ["model", "fields", "lr"]  # trainings that differ in seed alone share these
CAPACITY = ["cell", "d_model", "seed", "demand", "fits", "fits_shared"]

# Reading


def read(folder: Path) -> pd.DataFrame:
    """The finished trainings of a study, one line each and group; `family` is bvit or vit."""
    path = folder / "study.csv"
    if not path.exists():
        raise ValueError(f"{folder} holds no study.csv; make it with python -m models.study FILE --out {folder}")
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    frame["fields"] = frame["fields"].fillna("")
    frame["family"] = np.where(
        frame["n_blocks"] == frame["n_steps"], np.where(frame["n_steps"] == 1, "bvit", "vit"), "bvit"
    )
    frame["group"] = frame["groups"].str.split(";")
    return frame.explode("group", ignore_index=True)


def summary(frame: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Trainings that differ in seed alone as one line: mean, sd and n of top-1, and what they share."""
    shared = [
        name for name in ("family", "d_model", "n_steps", "parameters", "flops", "n_classes", *more) if name in frame
    ]
    grouped = frame.groupby(KEYS, sort=False)
    scores = grouped["top1"].agg(top1="mean", sd=lambda values: values.std(ddof=1), n="size")
    return grouped[shared].first().join(scores).reset_index()


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Lines of a `summary` by family, steps, width and learning rate."""
    return rows.sort_values(["family", "n_steps", "d_model", "lr"], kind="stable", ignore_index=True)


# Statistics


def fieller(above: Sequence[float], below: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """The ratio of two independent samples' means, and its interval (Fieller, 1954); NaN bounds where it is open.

    Variances are those of each sample's mean, degrees of freedom those of both together.
    """
    a, b = np.asarray(above, float), np.asarray(below, float)
    ratio = a.mean() / b.mean()
    if min(len(a), len(b)) < 2:
        return ratio, np.nan, np.nan
    of_a, of_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    t = stats.t.ppf(0.5 + level / 2, len(a) + len(b) - 2)
    g = t**2 * of_b / b.mean() ** 2
    if g >= 1:
        return ratio, np.nan, np.nan
    half = t / abs(b.mean()) * np.sqrt((1 - g) * of_a + ratio**2 * of_b)
    return ratio, (ratio - half) / (1 - g), (ratio + half) / (1 - g)


def recovery(frame: pd.DataFrame, group: str = "width") -> pd.DataFrame:
    """Table 1: both families at each width, the gap, and what of the stacked ViT's gain over chance is kept."""
    rows = []
    for width, part in frame[frame["group"] == group].groupby("d_model"):
        by_family = {family: part[part["family"] == family] for family in NAMES}
        if any(each.empty for each in by_family.values()):
            continue
        chance = 1 / float(part["n_classes"].iloc[0])
        gained = {family: each["top1"].to_numpy() - chance for family, each in by_family.items()}
        ratio, low, high = fieller(gained["bvit"], gained["vit"])
        row = {"d_model": width, "chance": chance, "recovery": ratio, "low": low, "high": high}
        for family, each in by_family.items():
            row |= {f"{family}_{name}": each[name].iloc[0] for name in ("parameters", "flops")}
            row |= {
                f"{family}_top1": each["top1"].mean(),
                f"{family}_sd": each["top1"].std(ddof=1),
                f"{family}_n": len(each),
            }
        rows.append(row | {"gap": row["vit_top1"] - row["bvit_top1"]})
    return pd.DataFrame(rows)


def capacities(folder: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """What the capacity model predicts of each bViT: from ``capacity.csv``, and from the ``rank.nc`` of cells that
    have one.
    """
    path = folder / "capacity.csv"
    known = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=CAPACITY)
    rows = []
    for cell in frame.drop_duplicates("cell").itertuples():
        measured = folder / str(cell.cell) / "rank.nc"
        if measured.exists() and cell.cell not in set(known["cell"]):
            rows += of_ranks(results.of_checkpoint(measured), cell)
    made = pd.DataFrame(rows, columns=CAPACITY)
    return made if known.empty else pd.concat([known, made], ignore_index=True) if rows else known


def of_ranks(result: xr.Dataset, cell: Any) -> list[dict]:
    """One line per demand (see `analyses.capacity`) of one trained model."""
    loads = {demand: capacity.load(result, demand) for demand in capacity.DEMANDS}
    about = {"cell": cell.cell, "d_model": cell.d_model, "seed": cell.seed}
    return [
        about | {"demand": demand, "fits": load["fits"], "fits_shared": load["fits_shared"]}
        for demand, load in loads.items()
    ]


# Tables


def table(frame: pd.DataFrame, predicted: pd.DataFrame | None = None) -> str:
    """What the command prints: Table 1, then every group's trainings."""
    parts = [recovery_table(recovery(frame), predicted)]
    for group, part in frame.groupby("group", sort=False):
        if group != "width":
            parts.append(group_table(str(group), in_order(summary(part))))
    return "\n\n".join(part for part in parts if part)


def recovery_table(rows: pd.DataFrame, predicted: pd.DataFrame | None = None) -> str:
    if rows.empty:
        return ""
    lines = [
        f"bViT against the stacked ViT, top-1 in % (mean +- sd over seeds, chance {100 * rows['chance'].iloc[0]:.1f})",
        f"{'width':>5}{'bViT':>16}{'params':>10}{'ViT':>16}{'params':>10}{'MFLOPs':>8}{'gap':>7}{'recovery':>10}"
        f"{'95 %':>16}{'predicted':>11}",
    ]
    for row in rows.itertuples():
        interval = "-" if np.isnan(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        fits = prediction(predicted, row.d_model)
        lines.append(
            f"{row.d_model:5d}{spread(row.bvit_top1, row.bvit_sd):>16}{row.bvit_parameters:10,}"
            f"{spread(row.vit_top1, row.vit_sd):>16}{row.vit_parameters:10,}{row.bvit_flops / 1e6:8.1f}"
            f"{100 * row.gap:7.1f}{row.recovery:10.3f}{interval:>16}{'-' if np.isnan(fits) else f'{fits:.3f}':>11}"
        )
    n = sorted({*rows["bvit_n"], *rows["vit_n"]})
    return "\n".join(
        [*lines, f"n = {' or '.join(map(str, n))} seeds; predicted: min(1, d / sum of the steps' 95 % ranks)"]
    )


def prediction(predicted: pd.DataFrame | None, width: int, demand: str = "mlp_out", name: str = "fits") -> float:
    """The capacity model's mean over seeds at a width; NaN where no ranks were measured."""
    if predicted is None or predicted.empty:
        return np.nan
    of_width = predicted[(predicted["d_model"] == width) & (predicted["demand"] == demand)]
    return float(of_width[name].mean()) if len(of_width) else np.nan


def group_table(group: str, rows: pd.DataFrame) -> str:
    lines = [f"{group}{'':{max(0, 44 - len(group))}}{'params':>11}{'MFLOPs':>8}{'top-1 in %':>16}{'n':>3}"]
    for row in rows.itertuples():
        lines.append(
            f"{named(row):44}{row.parameters:11,}{row.flops / 1e6:8.1f}{spread(row.top1, row.sd):>16}{row.n:3d}"
        )
    return "\n".join(lines)


def named(row: Any) -> str:
    """A training as a reader calls it."""
    fields = row.fields.replace(";", ", ").replace("_", " ").replace("=", " ") or "as preset"
    return f"{NAMES[row.family]}, {fields}, lr {row.lr:g}"


def spread(mean: float, sd: float) -> str:
    return f"{100 * mean:.1f}" + ("" if np.isnan(sd) else f" +- {100 * sd:.1f}")


# Figures


def over(frame: pd.DataFrame, group: str, x: str) -> looks.Curves:
    """Top-1 of every family of a group against a field: mean and sd over seeds, all said under the mouse."""
    rows = summary(frame[frame["group"] == group])
    lines = []
    for family, colour in zip(NAMES, style.SEQUENCE, strict=False):
        of_family = rows[rows["family"] == family].sort_values(x)
        if len(of_family):
            low, high = (100 * (of_family["top1"] + sign * of_family["sd"].fillna(0)).to_numpy() for sign in (-1, 1))
            hover = [f"{named(row)}: {spread(row.top1, row.sd)} % (n = {row.n})" for row in of_family.itertuples()]
            lines.append(
                looks.Line(
                    of_family[x].to_numpy(),
                    100 * of_family["top1"].to_numpy(),
                    low,
                    high,
                    label=NAMES[family],
                    colour=colour,
                    mark="o",
                    hover=hover,
                )
            )
    chance = {"chance": 100 / float(frame["n_classes"].iloc[0])}
    return looks.Curves(
        lines, x={"n_steps": "trained with T steps", "d_model": "width d"}[x], y="top-1 (%)", levels=chance
    )


def recovery_curve(frame: pd.DataFrame, predicted: pd.DataFrame | None = None) -> looks.Curves:
    """Recovery over width with its interval, the capacity model's prediction beside it."""
    rows = recovery(frame)
    x = rows["d_model"].to_numpy()
    lines = [
        looks.Line(
            x, rows["recovery"].to_numpy(), rows["low"].to_numpy(), rows["high"].to_numpy(), label="measured", mark="o"
        )
    ]
    names = {"fits": "predicted: d / sum of ranks", "fits_shared": "predicted: d / rank of the union"}
    for (name, label), colour in zip(names.items(), style.SEQUENCE[1:], strict=False):
        y = np.array([prediction(predicted, width, name=name) for width in x])
        if not np.isnan(y).all():
            lines.append(looks.Line(x, y, label=label, colour=colour, dash="dash", mark="s"))
    return looks.Curves(lines, x="width d", y="recovery", levels={"all of it": 1.0})


def figure(frame: pd.DataFrame, predicted: pd.DataFrame | None = None) -> mpl_figure.Figure:
    """Fig 2: (a) over the steps trained with, (b) over width, (c) recovery; and every other group as points."""
    others = [group for group in frame["group"].unique() if group not in ("width", "steps")]
    drawn, axes = looks.panels(1, 3 + bool(others), width=4.0)
    for ax, curves in zip(axes, pictures(frame, predicted).values(), strict=False):
        curves.draw(ax)
    if others:
        draw_points(axes[-1], frame, others)
    return drawn


def pictures(frame: pd.DataFrame, predicted: pd.DataFrame | None = None) -> dict[str, looks.Curves]:
    """The curves of a study by title, as far as it has them."""
    groups = set(frame["group"])
    curves = {}
    if "steps" in groups:
        curves["Over the number of steps"] = over(frame, "steps", "n_steps")
    if "width" in groups:
        curves["Over the width"] = over(frame, "width", "d_model")
        if len(recovery(frame)):
            curves["What of the stacked ViT is recovered"] = recovery_curve(frame, predicted)
    return curves


def draw_points(ax: mpl_axes.Axes, frame: pd.DataFrame, groups: Sequence[str]) -> None:
    """Mean and sd of each training of the groups, one line a training."""
    rows = in_order(summary(frame[frame["group"].isin(groups)])).iloc[::-1]
    places = np.arange(len(rows))
    colours = [style.SEQUENCE[list(NAMES).index(family)] for family in rows["family"]]
    ax.errorbar(100 * rows["top1"], places, xerr=100 * rows["sd"].fillna(0), fmt="none", ecolor=style.UNTRAINED)
    ax.scatter(100 * rows["top1"], places, color=colours, s=18, zorder=3)
    ax.set_yticks(places, [named(row) for row in rows.itertuples()], fontsize=6)
    ax.set_xlabel("top-1 (%)")


def interactive(frame: pd.DataFrame, predicted: pd.DataFrame | None = None) -> dict[str, go.Figure]:
    """The curves of a study for the dashboard, by title."""
    return {title: curves.interactive() for title, curves in pictures(frame, predicted).items()}


# The command


def show(folder: Positional[Path], *, figure: Path | None = None) -> None:
    """Table 1 and the other tables of a study, as far as its trainings are finished.

    Args:
        folder: the study's, with its study.csv.
        figure: also draw them into this .png, .pdf or .svg.
    """
    frame = read(folder)
    predicted = capacities(folder, frame)
    print(table(frame, predicted))
    if figure is not None:
        draw(frame, predicted, figure)


def draw(frame: pd.DataFrame, predicted: pd.DataFrame, path: Path) -> None:
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--figure is {path}; name a .png, .pdf or .svg file")
    figure(frame, predicted).savefig(path, dpi=110)
    print(f"wrote {path}", file=sys.stderr)


if __name__ == "__main__":
    command.run(show, "python -m analyses.study", bad=ValueError)
