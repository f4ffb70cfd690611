"""The figures and tables of the paper: what it states there, which result shows it here, how, and what was found.

Every sentence of ours carries its chance level or null, and an interval where the number has one. Where the paper's
words were not at hand (its full text was not), the figure follows its caption and nothing is claimed to be stated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from analyses import capacity, intervals, looks, neurons, pointing_game, prune, rank, recurrence, study, trajectories
from analyses.style import as_percent, step_label, untrained

RunResults = Mapping[str, Any]  # the results of one run, by the name of their file; a study's lines under "study"


@dataclass(frozen=True)
class Item:
    """One figure or table of the paper; `needs` names the result that shows it, ``{run}`` in the command its folder."""

    number: str
    title: str
    needs: str
    command: str
    says: Callable[[RunResults], str]  # what was measured, in a sentence
    states: str = ""  # what the paper does
    together: Mapping[str, Callable[[RunResults], Figure | None]] = field(
        default_factory=dict
    )  # of results by their run
    apart: Mapping[str, Callable[[RunResults], Figure | None]] = field(default_factory=dict)  # of one run's results
    table: Callable[[RunResults], str] | None = None  # of one run's results, as text
    frame: Callable[[RunResults], pd.DataFrame] | None = None
    makes_run: bool = False  # the command makes a run of its own, or a study

    @property
    def name(self) -> str:
        """What its files are called."""
        return self.number.lower().replace(" ", "-")


# What was measured


def between(low: float, high: float) -> str:
    return f"95 % interval {low:.1f} to {high:.1f}"


def top1(result: xr.Dataset, state: int) -> str:
    """Accuracy of a state, with its interval."""
    accuracy = float(result["accuracy"].sel(state=state))
    return f"{100 * accuracy:.1f} % ({between(*intervals.of_ratio(accuracy, result.sizes['image'], 100))})"


def says_comparison(run: RunResults) -> str:
    rows = study.recovery(run["study"])
    if rows.empty:
        return "No width has both a bViT and a stacked ViT yet."
    each = [
        f"width {row.d_model}: {study.spread(row.bvit_top1, row.bvit_sd)} against "
        f"{study.spread(row.vit_top1, row.vit_sd)} % with {row.vit_parameters / row.bvit_parameters:.1f} times the "
        f"parameters, recovery {row.recovery:.2f} ({interval_of(row)})"
        for row in rows.itertuples()
    ]
    return f"bViT against the stacked ViT: {'; '.join(each)}. Chance {100 * rows['chance'].iloc[0]:.1f} %."


def interval_of(row: Any) -> str:
    if np.isnan(row.low):
        return f"n = {row.bvit_n} and {row.vit_n}: no interval"
    return f"95 % interval {row.low:.2f} to {row.high:.2f}"


def says_steps(run: RunResults) -> str:
    frame = run["study"]
    rows = study.summary(frame[(frame["group"] == "steps") & (frame["family"] == "bvit")]).sort_values("n_steps")
    if rows.empty:
        return "No model was trained with another number of steps yet."
    each = ", ".join(f"{row.n_steps}: {study.spread(row.top1, row.sd)} (n = {row.n})" for row in rows.itertuples())
    return f"Top-1 in % of bViTs trained with T steps: {each}; chance {100 / frame['n_classes'].iloc[0]:.1f} %."


def says_neurons(run: RunResults) -> str:
    result = run["neurons"]
    won, overlap = neurons.beats_real(result), neurons.top_overlap(result)
    n = result.sizes["step"] * result.sizes["neuron"]
    beaten = ", ".join(f"{name} {round(float(won.sel(recipe=name)) * n)} of {n}" for name in won["recipe"].values)
    levels = ", ".join(f"{name} {value:.4f}" for name, value in overlap.items() if name != "trained")
    shared = f"; top images of one neuron at two steps overlap by {overlap['trained']:.3f} (Jaccard; {levels})"
    return f"Pictures that beat the best real image: {beaten}{shared if 'trained' in overlap else ''}."


def says_pointing(run: RunResults) -> str:
    result, cell = run["pointing_game"], dict(radius=0, target="class", average="micro")
    mean, best = as_percent(result["hit_ratio"].sel(cell).mean("head")), pointing_game.best_head(result)
    levels = ", ".join(f"{name} {level:.1f} %" for name, level in pointing_game.chance_levels(result, **cell).items())
    control = untrained(result, "hit_ratio")
    levels += "" if control is None else f", untrained {100 * float(control.sel(cell).mean()):.1f} %"
    first, last = int(np.nanargmax(mean)), len(mean) - 1
    n = result.sizes["image"] - result.sizes["image"] // 2
    held = between(*intervals.of_ratio(best["held_out"], n, 100))
    return (
        f"Heads hit the class's mask on average in {mean[first]:.1f} % of the images at {step_label(first)}, where it "
        f"is highest, and {mean[last]:.1f} % at {step_label(last)} ({levels}). The best of {best['n_heads']} cells, "
        f"{pointing_game.head_label(result, best['head'])} at {step_label(best['step'])}, hits "
        f"{100 * best['held_out']:.1f} % on the images it was not chosen on ({held}); the best of as many random "
        f"pointers would reach {100 * best['chance']:.1f} %."
    )


def says_cells(run: RunResults) -> str:
    result, cell = run["pointing_game"], dict(radius=0, target="class", average="micro")
    ratio = result["hit_ratio"].sel(cell)
    centre, random = (100 * float(result["baseline"].sel(kind=kind, **cell)) for kind in ("centre", "uniform"))
    below = "?"
    if "hit_high" in result:
        below = f"{int((100 * result['hit_high'].sel(cell) < centre).sum())} of {ratio.size}"
    return (
        f"Hit ratios from {100 * float(ratio.min()):.1f} to {100 * float(ratio.max()):.1f} %; {below} cells lie with "
        f"their whole interval below the image centre ({centre:.1f} %); a random patch hits {random:.1f} %."
    )


def says_examples(run: RunResults) -> str:
    mass, lift = run["pointing_game"].get("mass"), run["pointing_game"].get("lift")
    if mass is None or lift is None:
        return "Attention of the best head of each step; white: the object, cross: the arg-max."
    return (
        f"Of the attention to patches {100 * float(mass.mean()):.0f} % lies on the class's mask, "
        f"{float(lift.mean()):.1f} times what even attention would put there (mean over steps and heads)."
    )


def says_use(run: RunResults) -> str:
    last = prune.over_rounds(run["prune"]).isel(round=-1)
    attrs = run["prune"].attrs
    top = intervals.of_ratio(float(last["accuracy"]), attrs["n_val"], 100)
    return (
        f"After {int(last['round'])} rounds a step keeps {100 * float(last['density']):.1f} % of the weights: top-1 "
        f"{100 * float(last['accuracy']):.1f} % ({between(*top)}, chance {100 * attrs['chance']:.1f} %); "
        f"{100 * float(last['dead']):.0f} % of the weights are used by no step, {100 * float(last['universal']):.1f} % "
        f"by all. Jaccard between steps {float(last['jaccard']):.2f} (random masks {float(last['jaccard_random']):.2f}"
        f", replicates of one step {float(last['jaccard_replicates']):.2f})."
    )


def says_specialization(run: RunResults) -> str:
    last = prune.over_rounds(run["prune"]).isel(round=-1)
    return (
        f"Of the weights that a step keeps after {int(last['round'])} rounds {100 * float(last['specialization']):.1f}"
        f" % are its alone (random masks of the same densities {100 * float(last['specialization_random']):.1f} %)."
    )


def says_ranks(run: RunResults) -> str:
    result, parts = run["rank"], []
    for site in ("mlp_post", "mlp_out", "cls"):
        k95 = result["k95"].sel(site=site, centred=True).values
        control = untrained(result, "k95")
        beside = "" if control is None else f", untrained {float(control.sel(site=site, centred=True).mean()):.0f}"
        overlap = rank.overlap_levels(result, site)
        parts.append(
            f"{rank.SITES[site]} {k95[0]} at step 1, {k95[-1]} at the last of {int(result['width'].sel(site=site))}"
            f"{beside}, overlap of two steps {overlap['trained']:.2f} (random {overlap['random']:.2f})"
        )
    return f"95 % rank, centred: {'; '.join(parts)}."


def says_cuts(run: RunResults) -> str:
    result = run["rank"]
    if "svd_accuracy" not in result:
        return f"The accuracies were not measured: {result.attrs.get('no_accuracy') or 'the result has none'}."
    cuts = [f"{rank.CUTS[cut]} {rank.sufficient_rank(result, cut)}" for cut in map(str, result["cut"].values)]
    whole = intervals.of_ratio(float(result["accuracy"]), int(result["n_accuracy"]), 100)
    return (
        f"The least rank of fc1 and fc2 that loses at most one point: {', '.join(cuts)}; all of the weights "
        f"{100 * float(result['accuracy']):.1f} % ({between(*whole)}), best constant answer "
        f"{100 * float(result['accuracy_chance']):.1f} %."
    )


def says_peak(run: RunResults) -> str:
    result = run["recurrence"]
    peak, last, trained = recurrence.peak(result)[0], int(result["state"].values[-1]), result.attrs["trained_steps"]
    control = untrained(result, "accuracy")
    beside = "" if control is None else f", untrained {100 * float(control.sel(state=trained)):.1f} %"
    return (
        f"Trained for {trained} steps it is highest after {peak}: {top1(result, peak)}; after {last}: "
        f"{top1(result, last)} ({recurrence.by_chance(result)}{beside})."
    )


def says_paths(run: RunResults) -> str:
    result = run["trajectories"]
    purity, states = 100 * result["purity"].sel(space="states"), trajectories.measured_states(result)
    control, last = untrained(result, "purity"), int(states[-1])
    beside = "" if control is None else f", untrained {100 * float(np.ravel(control.sel(state=last))[0]):.1f} %"
    kept = ", ".join(
        f"{trajectories.PICTURES[str(name)]} {100 * float(result['kept'].sel(picture=name, state=last)):.0f} %"
        for name in result["picture"].values
    )
    return (
        f"Of the {result.attrs['neighbors']} nearest images {float(purity.sel(state=int(states[0]))):.1f} % have the "
        f"same label after step {int(states[0])} and {float(purity.sel(state=last)):.1f} % after step {last} (chance "
        f"{100 * result.attrs['purity_chance']:.1f} %{beside}). Of the neighbours the pictures keep at the last step: "
        f"{kept} (chance {100 * result.attrs['kept_chance']:.1f} %)."
    )


def says_capacity(run: RunResults) -> str:
    need = {title: capacity.load(run["rank"], name) for name, title in capacity.DEMANDS.items()}
    each = (
        f"{title} {load['load']:.1f} times the width as a sum, {load['shared_load']:.2f} together"
        for title, load in need.items()
    )
    return f"Dimensions that the steps use: {'; '.join(each)}. A sum above 1 would not fit in separate subspaces."


# The list


def controls_of(run: RunResults) -> dict[str, xr.Dataset]:
    """The controls of a pruning that lie beside it."""
    return {
        name.removeprefix("prune_"): result
        for name, result in run.items()
        if name.startswith("prune_") and name != "prune_swap"
    }


def swap_of(run: RunResults) -> Figure | None:
    return looks.draw_maps([prune.swap_map(run["prune_swap"])]) if "prune_swap" in run else None


def probe(name: str, more: str = "") -> dict[str, str]:
    return {"needs": name, "command": f"python -m probes.{name} {{run}}{more}"}


def shown(module: Any, name: str) -> dict[str, Any]:
    """The analysis' own table and frame."""
    return {"table": lambda run: module.table(run[name]), "frame": lambda run: module.frame(run[name])}


STUDY = {
    "needs": "study",
    "command": "python -m models.study studies/core.yaml --out runs/study",
    "makes_run": True,
}
PRUNE = {"needs": "prune", "command": "python -m probes.prune --out runs/prune", "makes_run": True}
POINTING, RANK = shown(pointing_game, "pointing_game"), shown(rank, "rank")

ITEMS = (
    Item(
        "Table 1",
        "bViT against the stacked ViT",
        **STUDY,
        says=says_comparison,
        states="A 12-step bViT-B is comparable to ViT-B on ImageNet-1K with an order of magnitude fewer parameters; "
        "narrow variants lose clearly and wide ones recover most of it.",
        table=lambda run: study.table(run["study"], run["capacity"]),
        frame=lambda run: study.recovery(run["study"]),
    ),
    Item(
        "Fig 2",
        "Accuracy when trained with T steps, and over the width",
        **STUDY,
        says=says_steps,
        states="Training bViT-S with more than 12 steps does not help; larger embeddings do.",
        apart={"": lambda run: study.figure(run["study"], run["capacity"])},
        frame=lambda run: run["study"].drop(columns="group"),
    ),
    Item(
        "Fig 3",
        "What maximises one neuron, step by step",
        **probe("neurons"),
        says=says_neurons,
        together={"": neurons.figure},
        **shown(neurons, "neurons"),
    ),
    Item(
        "Fig 4",
        "Attention against segmentation, step by step",
        **probe("pointing_game"),
        says=says_pointing,
        together={"": pointing_game.figure},
        **POINTING,
    ),
    Item(
        "Fig 5",
        "Weights by the number of steps that keep them, and overlap between steps",
        **PRUNE,
        says=says_use,
        apart={"": lambda run: prune.figure(run["prune"], controls_of(run)), "swap": swap_of},
        **shown(prune, "prune"),
    ),
    Item(
        "Fig 6", "95 % energy rank of FFN and CLS", **probe("rank"), says=says_ranks, together={"": rank.figure}, **RANK
    ),
    Item(
        "Fig 7",
        "Accuracy after truncated SVD of the FFN weights",
        **probe("rank"),
        says=says_cuts,
        together={"": rank.accuracy_figure},
    ),
    Item(
        "Fig 8",
        "Accuracy read out after k steps",
        **probe("recurrence", " --max-steps 48"),
        says=says_peak,
        states="The trained model's accuracy peaks near step 12 and falls when run further.",
        together={"": recurrence.figure},
        **shown(recurrence, "recurrence"),
    ),
    Item(
        "Fig 9",
        "CLS states of all steps in one PaCMAP fit",
        **probe("trajectories"),
        says=says_paths,
        together={"": trajectories.figure},
        **shown(trajectories, "trajectories"),
    ),
    Item(
        "Fig 10-12",
        "Hit ratio of every head at every step",
        **probe("pointing_game"),
        says=says_cells,
        states="One map each of bViT-B, bViT-B-TE and a third variant; here one of each run.",
        apart={"": lambda run: pointing_game.heat_map(run["pointing_game"])},
    ),
    Item(
        "Fig 13",
        "Attention of the best heads on single images",
        **probe("pointing_game"),
        says=says_examples,
        apart={"": lambda run: pointing_game.examples(run["pointing_game"])},
    ),
    Item(
        "Fig 14",
        "Specialisation of the steps over the pruning rounds",
        **PRUNE,
        says=says_specialization,
        apart={"": lambda run: prune.specialization_figure(run["prune"])},
    ),
    Item(
        "Appendix A",
        "Does what the steps use fit into the width they share?",
        **probe("rank"),
        says=says_capacity,
        states="A capacity model: the sum of the steps' utilised ranks against d (the equations are our reading).",
        together={"": capacity.figure},
        table=lambda run: capacity.table(run["rank"]),
        frame=lambda run: capacity.frame(run["rank"]),
    ),
    Item(
        "Appendix G",
        "The pruning loop",
        **PRUNE,
        says=lambda run: (
            "\n".join(
                prune.compared(control, run["prune"]) for name, control in run.items() if name.startswith("prune_")
            )
            or "No control was measured beside the steps' own masks."
        ),
        states="30 rounds of 200 epochs with grafts of 100 epochs, 20 % of the remaining weights cut in each.",
    ),
)
