"""Which weights of the shared block does each step need?"""

import numpy as np
import streamlit as st

from analyses import prune as analysis
from analyses import style
from app import live
from models.errors import InputError

CONTROLS = ("shared", "random", "shuffled", "union")

run = live.run()
st.title("Step-specific sub-networks")
st.markdown(
    "Lottery pruning finds for every step its own mask over the one shared block. How much do the masks of two steps share? Overlap grows with density "
    "alone, and all masks start from one initialisation, so it is read beside two nulls: **random masks** of the same densities, and **replicates** of one "
    "step, pruned again with other data orders. A step is specific where it overlaps with the others less than replicates do."
)
try:
    result = live.result(run, "prune", "jaccard")
    found = {name: live.result(run, f"prune_{name}", "accuracy") for name in CONTROLS}
    swap = live.result(run, "prune_swap", "swap")
except InputError as error:
    st.error(str(error))
    st.stop()
if result is None:
    pruned = [name for name in live.runs(live.runs_root()) if (live.runs_root() / name / "prune.nc").exists()]
    if pruned:
        st.info(f"This run was not pruned. Choose one that was in the sidebar: {', '.join(pruned)}. Pruning makes a run of its own:")
    else:
        st.info("This run was not pruned. Pruning makes a run of its own; an hour on one core, with the default of 8 rounds:")
    st.code("python -m probes.prune --steps 8", language="bash")
    st.stop()
controls = {name: control for name, control in found.items() if control is not None}
if result.attrs.get("note"):
    st.warning(result.attrs["note"])

rounds = [int(number) for number in result["round"].values]
live.linked("round", rounds[-1], rounds)
number = st.select_slider("Pruning round", rounds, key="round", on_change=live.remember("round")) if len(rounds) > 1 else rounds[0]
weights = [str(name) for name in result["weight"].values]
left, right = st.columns(2)
weight = left.segmented_control("Weights", weights, default="all", help="of the whole block, or of one matrix") or "all"
measure = right.segmented_control("Shared", ["jaccard", "overlap"], default="jaccard", help="of the union, or of the smaller mask") or "jaccard"
place = rounds.index(number)
row = result.isel(round=place).sel(weight=weight)

columns = st.columns(5)
columns[0].metric("kept by a step", f"{100 * float(row['density'].mean()):.1f} %")
columns[1].metric("kept by any step", f"{100 * float(row['union_density']):.1f} %")
accuracy, n = float(result["accuracy"][place]), int(result.attrs["n_val"])
columns[2].metric(
    "top-1", f"{100 * accuracy:.1f} %", f"± {100 * float(analysis.interval(np.array(accuracy), n)):.1f}, chance {100 * result.attrs['chance']:.1f} %",
    delta_color="off", delta_arrow="off",
)  # fmt: skip
between, chance = (float(analysis.mean_jaccard(result, name, weight)[place]) for name in ("jaccard", "jaccard_random"))
columns[3].metric("Jaccard between steps", f"{between:.3f}", f"random {chance:.3f}", delta_color="off", delta_arrow="off")
if result.sizes.get("pair"):
    step = style.step_label(int(result.attrs["replicated_step"]))
    columns[4].metric("between replicates", f"{float(row['replicate_jaccard'].mean()):.3f}", help=f"of {step}, grafted again with other data orders")

left, right = st.columns(2)
with left:
    st.subheader(f"What two steps share after round {number}")
    figure = analysis.interactive(result, round=place, weight=weight, name=measure)
    live.chart(figure, "prune overlap")
    live.export(figure, "prune overlap")
with right:
    st.subheader("Accuracy over the rounds")
    figure = analysis.curves(result, controls, round=place)
    live.chart(figure, "prune accuracy")
    how_to = "" if controls else " Controls: `python -m probes.prune --control random`."
    st.caption("Every round is trained from the initialisation under its masks." + how_to)
    live.export(figure, "prune accuracy")
left, right = st.columns(2)
with left:
    st.subheader("How many steps keep a weight")
    figure = analysis.shares(result, weight=weight)
    live.chart(figure, "prune usage")
    live.export(figure, "prune usage")
with right:
    st.subheader("Weights that a step keeps alone")
    figure = analysis.specialization_curves(result, weight=weight)
    live.chart(figure, "prune specialization")
    live.export(figure, "prune specialization")
if swap is not None:
    st.subheader("Step t under the mask of step s")
    st.pyplot(analysis.swap_figure(swap, result), width="content")
st.download_button("Table as CSV", lambda: result[["jaccard", "jaccard_random"]].to_dataframe().to_csv(), "prune.csv", "text/csv")
