"""Which weights of the shared block does each step need?"""

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from analyses import intervals, style
from analyses import prune as analysis
from app import page, results
from app.contents import CONTROLS, PRUNE, SWAP, Result
from app.text import text

run = results.chosen()
st.title("Step-specific sub-networks")
st.markdown(
    "Lottery pruning finds for every step its own mask over the one shared block. How much do the masks of two steps "
    "share? Overlap grows with density alone, and all masks start from one initialisation, so it is read beside two "
    "nulls: **random masks** of the same densities, and **replicates** of one step, pruned again with other data "
    "orders. A step is specific where it overlaps with the others less than replicates do."
)


def how_to() -> str:
    """What to say where this run was not pruned."""
    pruned = [name for name in results.runs() if PRUNE.is_here(results.root() / name)]
    if pruned:
        return (
            f"This run was not pruned. Choose one that was in the sidebar: {text(', '.join(pruned))}. Pruning makes a "
            "run of its own:"
        )
    return "This run was not pruned. Pruning makes a run of its own; an hour on one core, with the default of 8 rounds:"


def control(kind: Result) -> xr.Dataset | None:
    """A control of this pruning, if it is there; one of another pruning is named instead."""
    measured = results.of(run, kind)
    if measured is None or all(measured.attrs.get(name) == result.attrs.get(name) for name in ("init_sha256", "plan")):
        return measured
    st.warning(f"{kind.file} is of another pruning and not shown; this measures anew: {text(kind.made_by(run))}")
    return None


result = results.required(PRUNE, how_to())
controls = {name: masks for name, kind in CONTROLS.items() if (masks := control(kind)) is not None}
swap = control(SWAP)
if result.attrs.get("note"):
    st.warning(text(result.attrs["note"]))

rounds, weights = result["round"].values.tolist(), result["weight"].values.tolist()
number = rounds[0]
if len(rounds) > 1:
    number = st.select_slider("Pruning round", rounds, rounds[-1], key="round", **page.LINKED)
left, right = st.columns(2)
weight = page.segments(left, "Weights", weights, "weight", help="of the whole block, or of one matrix")
about = "of the union, or of the smaller mask"
shared = page.segments(right, "Shared", ["jaccard", "overlap"], "shared", help=about)
place = rounds.index(number)


def show_numbers() -> None:
    row, n = result.isel(round=place).sel(weight=weight), result.attrs["n_val"]
    columns = st.columns([2, 2, 3, 2, 2])
    page.metric(columns[0], "kept by a step", f"{100 * float(row['density'].mean()):.1f} %")
    page.metric(columns[1], "kept by any step", f"{100 * float(row['union_density']):.1f} %")
    accuracy, chance = float(row["accuracy"]), 100 * result.attrs["chance"]
    low, high = intervals.of_ratio(np.array(accuracy), n, 100)
    beside = f"95 %: {low:.1f} to {high:.1f}, chance {chance:.1f} %"
    page.metric(columns[2], "top-1", f"{100 * accuracy:.1f} %", beside)
    between, random = (analysis.mean_jaccard(result, name, weight)[place] for name in ("jaccard", "jaccard_random"))
    page.metric(columns[3], "Jaccard between steps", f"{between:.3f}", f"random {random:.3f}")
    if result.sizes.get("pair"):
        steps = [style.step_label(t) for t in analysis.replicated(result)]
        about = f"of {' and of '.join(steps)}, grafted again with other data orders"
        replicates = float(row["replicate_jaccard"].mean())
        page.metric(columns[4], "between replicates", f"{replicates:.3f}", help=about)


def pairs() -> pd.DataFrame:
    """What every two steps share, beside random masks."""
    return result[["jaccard", "jaccard_random"]].to_dataframe().reset_index()


show_numbers()
left, right = st.columns(2)
with left:
    st.header(f"What two steps share after round {number}")
    figure = results.drawn(PRUNE, analysis.interactive, round=place, weight=weight, name=shared)
    page.show(figure, "prune overlap", table=pairs)
with right:
    st.header("Accuracy over the rounds")
    figure = analysis.curves(result, controls, round=place)
    page.show(figure, "prune accuracy", table=lambda: analysis.frame(result))
    more = "" if controls else " Controls: `python -m probes.prune --control random`."
    st.caption("Every round is trained from the initialisation under its masks." + more)
left, right = st.columns(2)
with left:
    st.header("How many steps keep a weight")
    page.show(results.drawn(PRUNE, analysis.shares, weight=weight), "prune usage")
with right:
    st.header("Weights that a step keeps alone")
    page.show(results.drawn(PRUNE, analysis.specialization_curves, weight=weight), "prune specialization")
if swap is not None:
    with st.columns(2)[0]:
        st.header("Step t under the mask of step s")
        page.show(results.drawn(SWAP, analysis.swap_map), "prune swap")
        own, chance = np.diag(swap["swap"].values[-1]).mean(), result.attrs["chance"]
        st.caption(
            f"After round {int(swap['round'][-1])}: from {100 * own:.1f} % under the steps' own masks, on at most "
            f"1,000 images; chance {100 * chance:.1f} %."
        )
