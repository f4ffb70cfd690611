"""What causes the answer, and through whom: which edges there are, circuits of them, tables and figures.

Effects are in logits: what the answer's logit difference loses without a node or an edge. Positive ones help the
answer.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from matplotlib.figure import Figure
from scipy import stats

from analyses import composition, intervals, looks, style
from analyses.graph import graph_of, ranked, step_to_step
from analyses.style import Results

HOWS = ("gradient", "integrated")
SHARE = 0.8  # of the logit difference that a circuit has to keep

# Circuits


def faithfulness(result: xr.Dataset, name: str = "kept_difference") -> xr.DataArray:
    """The share of the logit difference that circuits keep: 0 with every edge cut, 1 for the whole model."""
    clean, corrupted = float(result["exact_clean"]), float(result["exact_corrupted"])
    return (result[name] - corrupted) / (clean - corrupted)


def smallest(result: xr.Dataset, share: float = SHARE, how: str = "integrated") -> int | None:
    """The least number of edges tried that keeps this share of the logit difference; None where none does."""
    enough = np.flatnonzero(faithfulness(result).sel(how=how).values >= share)
    return int(result["n_edges"][enough[0]]) if len(enough) else None


# Statistics


def agreement(attributed: np.ndarray, exact: np.ndarray) -> tuple[float, float, int]:
    """Spearman's rank correlation with the exact effects, the worst miss, and where (its flat place)."""
    attributed, exact = np.ravel(attributed), np.ravel(exact)
    varies = len(exact) > 1 and np.ptp(attributed) > 0 and np.ptp(exact) > 0
    missed = np.abs(attributed - exact)
    return float(stats.spearmanr(attributed, exact)[0]) if varies else np.nan, float(missed.max()), int(missed.argmax())


def trust(result: xr.Dataset, kind: str, how: str) -> tuple[float, float, int]:
    """`agreement` of nodes or edges with their exact patches, both as means over the images held out."""
    return agreement(result[f"sample_{kind}"].sel(how=how).values, result[f"exact_{kind}"].values)


def strongest_node(result: xr.Dataset, how: str = "integrated") -> tuple[str, int, float]:
    """Part, step and effect of the node without which the answer loses most."""
    node = result["node"].sel(how=how)
    cell = node.isel(node.argmax(...))
    return str(cell["part"].item()), int(cell["step"]), float(cell)


def bounds(result: xr.Dataset, how: str) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals of node effects, images resampled: (low, high), each [step part]."""
    values = result["node_of_image"].sel(how=how).transpose("image", "step", "part").values
    low, high = intervals.bootstrap(values, np.zeros(len(values), int))
    return low[0], high[0]


# Tables


def table(result: xr.Dataset) -> str:
    """What the command prints: nodes of every step, how far to trust them, the strongest edges, the circuit."""
    attrs, parts = result.attrs, result["part"].values
    lines = [
        f"attribution: {result.sizes['image']} images; the logit difference of the answer is "
        f"{float(result['clean']):.2f}, {float(result['corrupted']):.2f} with everything corrupted "
        f"({attrs['corrupt']})",
        style.row("lost without (logits)", [*parts, "untrained"], 10),
        *(_step_line(result, step) for step in range(result.sizes["step"])),
    ]
    if "exact_node" in result:
        lines += [_trust(result, "node", how) for how in HOWS]
    if "exact_edge" in result:
        lines += [_trust(result, "edge", how) for how in HOWS] + [_beside_random(result)]
    if "edge" in result:
        lines += _strongest_lines(result)
    if "kept_difference" in result:
        lines += [_circuit_line(result, how) for how in HOWS]
    lines += composition.lines(result)
    return "\n".join(lines)


def _step_line(result: xr.Dataset, step: int) -> str:
    cells = [f"{float(value):.2f}" for value in result["node"].sel(how="integrated", step=step)]
    untrained = style.untrained(result, "node")
    size = "-" if untrained is None else f"{float(np.abs(untrained.sel(how='integrated', step=step)).mean()):.3f}"
    return style.row(style.step_label(step), [*cells, size], 10)


def names(result: xr.Dataset, kind: str) -> list[str]:
    """Names of the nodes, or of the checked edges, that were patched exactly."""
    if kind == "node":
        return graph_of(result).sources[1:]
    pairs = zip(result["checked_source"].values, result["checked_target"].values, strict=True)
    return [f"{source} -> {target}" for source, target in pairs]


def _trust(result: xr.Dataset, kind: str, how: str) -> str:
    correlation, missed, place = trust(result, kind, how)
    exact, attributed = result[f"exact_{kind}"].values.ravel(), result[f"sample_{kind}"].sel(how=how).values.ravel()
    return (
        f"{how} against {exact.size} exact {kind} patches: rank correlation {correlation:.2f}, worst miss {missed:.2f} "
        f"({names(result, kind)[place]}: {attributed[place]:.2f} for {exact[place]:.2f})"
    )


def _beside_random(result: xr.Dataset) -> str:
    size = np.abs(result["exact_edge"].values)
    strong = result["checked_as"].values == "strongest"
    line = f"exact |effect| of an edge: {size[strong].mean():.3f} of the strongest"
    return line + ("" if strong.all() else f", {size[~strong].mean():.4f} of random")


def _strongest_lines(result: xr.Dataset, n: int = 5) -> list[str]:
    graph, edge = graph_of(result), result["edge"].sel(how="integrated").values
    places = [divmod(int(place), graph.n_targets) for place in ranked(edge, graph)[:n]]
    named = [
        f"{graph.sources[source]} -> {graph.targets[target]} {edge[source, target]:.2f}" for source, target in places
    ]
    return ["strongest edges: " + ", ".join(named)]


def _circuit_line(result: xr.Dataset, how: str) -> str:
    n, total = smallest(result, how=how), int(graph_of(result).is_edge.sum())
    if n is None:
        return f"no circuit ({how}) tried keeps {100 * SHARE:.0f} % of the logit difference"
    return (
        f"{n} of {total} edges ({how}) keep {100 * SHARE:.0f} % of the logit difference; as many random ones "
        f"{random_kept(result, n)}"
    )


def random_kept(result: xr.Dataset, n_edges: int | None) -> str:
    """What random circuits of that size keep: mean and range in words; nothing for no circuit."""
    if n_edges is None:
        return ""
    kept = 100 * faithfulness(result, "random_difference").sel(n_edges=n_edges).values
    return f"{kept.mean():.0f} % ({kept.min():.0f} to {kept.max():.0f})"


def frame(result: xr.Dataset) -> pd.DataFrame:
    """Effects of nodes, one line a node, way of attribution and model."""
    return style.tidy(result, "node")


def edges(result: xr.Dataset) -> pd.DataFrame:
    """Effects of all edges, strongest first."""
    graph, edge = graph_of(result), result["edge"]
    effects = {how: edge.sel(how=how).values.ravel() for how in HOWS}
    order = ranked(edge.sel(how="integrated").values, graph)
    source, target = np.divmod(order, graph.n_targets)
    named = {"source": np.array(graph.sources)[source], "target": np.array(graph.targets)[target]}
    return pd.DataFrame(named | {how: values[order] for how, values in effects.items()})


# Figures


def node_map(result: xr.Dataset, how: str = "integrated", title: str = "") -> looks.Map:
    """Effects of heads and FFN over the steps, about zero."""
    values = result["node"].sel(how=how).transpose("part", "step").values
    steps, most = [int(step) + 1 for step in result["step"].values], float(np.abs(values).max()) or 1.0
    beside = {}
    if "node_of_image" in result:
        low, high = bounds(result, how)
        beside = {"95 % from": low.T, "to": high.T}
    return looks.Map(
        values,
        steps,
        result["part"].values.tolist(),
        beside=beside,
        y="",
        bar="lost without it (logits)",
        title=title,
        colours=style.CHANGE,
        low=-most,
        high=most,
    )


def edge_map(result: xr.Dataset, how: str = "integrated") -> looks.Map:
    """Who writes to whom: sum of |effect| between steps."""
    values = step_to_step(result, how)
    values[np.tril_indices(len(values), -1)] = np.nan
    return looks.step_map(
        values,
        range(len(values)),
        x="read at step",
        y="written at step",
        bar="sum of |effect| (logits)",
        title="edges between steps",
    )


def circuit_curves(results: Results) -> looks.Curves:
    """The share of the logit difference that circuits keep, by their number of edges, beside random ones."""
    lines = []
    for model in style.series(results, "kept_difference"):
        x = model.numbers["n_edges"].values
        for how, dash in zip(HOWS, ("dash", "solid"), strict=True):
            kept = 100 * faithfulness(model.numbers).sel(how=how).values
            lines.append(looks.Line(x, kept, **model.look(how, dash=dash)))
        random = 100 * faithfulness(model.numbers, "random_difference").values
        colour = model.colour if model.name else style.CHANCE
        lines.append(
            looks.Line(
                x,
                random.mean(0),
                random.min(0),
                random.max(0),
                label=f"{model.name} random edges".strip(),
                colour=colour,
                dash="dot",
            )
        )
    return looks.Curves(
        lines,
        levels={f"{100 * SHARE:.0f} %": 100 * SHARE},
        x="edges kept",
        y="logit difference kept (%)",
        log="x",
        title="circuits",
        low=-20,
        high=140,
    )


def exact_curves(result: xr.Dataset, kind: str = "node") -> looks.Curves:
    """Attributed against exact effects, one dot each."""
    exact, lines = result[f"exact_{kind}"].values.ravel(), []
    ends = exact.min(), exact.max()
    for how, colour, mark in zip(HOWS, style.SEQUENCE, "so", strict=False):
        values = result[f"sample_{kind}"].sel(how=how).values.ravel()
        hover = [
            f"{name}: {a:.3g}, exact {b:.3g}" for name, a, b in zip(names(result, kind), values, exact, strict=True)
        ]
        lines.append(looks.Line(exact, values, label=how, colour=colour, mark=mark, width=0, hover=hover))
    lines.append(looks.Line(ends, ends, label="exact", colour=style.CHANCE, dash="dot"))
    return looks.Curves(
        lines,
        ticks=[],
        x=f"exact patch of the {kind} (logits)",
        y="attributed (logits)",
        title=f"{kind}s against exact patches",
    )


def figure(results: Results) -> Figure:
    """Nodes, edges between steps, and circuits: a row per result."""
    named = style.named(results)
    drawn, axes = looks.panels(len(named), 3, width=4.4, height=3.4)
    for row, (name, result) in enumerate(named.items()):
        nodes, edges_, circuit = axes[3 * row : 3 * row + 3]
        node_map(result, title=f"{name} nodes".strip()).draw(nodes)
        for ax, variable, draw in ((edges_, "edge", edge_map), (circuit, "kept_difference", circuit_curves)):
            draw(result).draw(ax) if variable in result else ax.set_visible(False)
    return drawn


def exact_figure(results: Results) -> Figure | None:
    """Attributed against exact effects of nodes and of edges; None where nothing was patched."""
    named = {name: result for name, result in style.named(results).items() if "exact_node" in result}
    if not named:
        return None
    fig, axes = looks.panels(len(named), 2, width=4.2)
    for row, result in enumerate(named.values()):
        for ax, kind in zip(axes[2 * row :], ("node", "edge"), strict=False):
            exact_curves(result, kind).draw(ax) if f"exact_{kind}" in result else ax.set_visible(False)
    return fig


def interactive(result: xr.Dataset, how: str = "integrated") -> go.Figure:
    """Effects of nodes over the steps, with their intervals under the mouse."""
    return node_map(result, how).interactive()


def composition_figure(results: Results) -> Figure:
    """Who could write into whom, and who does: a row per result."""
    rows = [composition.maps(result) for result in style.named(results).values()]
    drawn, axes = looks.panels(len(rows), max(map(len, rows)), width=3.6)
    for place, ax in enumerate(axes):
        row, column = divmod(place, len(axes) // len(rows))
        rows[row][column].draw(ax) if column < len(rows[row]) else ax.set_visible(False)
    return drawn


FIGURES = {"nodes": figure, "exact": exact_figure, "composition": composition_figure}
