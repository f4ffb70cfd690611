"""What does a neuron look for at each step?"""

import numpy as np
import streamlit as st

from analyses import neurons as analysis
from analyses import style
from app import live

run = live.run()
st.title("What does a neuron look for at each step?")
st.markdown(
    "A neuron's **activation** is its value after GELU, mean over the patches. Each picture was optimised to maximise it at one step; below it stand the "
    "real images that do. A picture is worth something if it activates the neuron more than the **best real image**; real images of two steps overlap "
    "only as far as they do beyond random sets and beyond the untrained model."
)
result = live.result_or_stop(run, "neurons", "picture", "There are no pictures of this run's neurons yet. This makes them:")

neurons, methods, steps = (result[name].values.tolist() for name in ("neuron", "method", "step"))
live.linked("neuron", neurons[0], neurons)
live.linked("method", analysis.best_method(result), methods)
left, right = st.columns(2)
neuron = left.selectbox("Neuron", neurons, key="neuron", on_change=live.remember("neuron"))
method = right.selectbox(
    "Method", methods, key="method", on_change=live.remember("method"), help="tv: pixels, total variation; maco: Fourier phases, real spectrum"
)
here = result.sel(dict(neuron=neuron, method=method))
won = int((here["activation"] > here["best_real"]).sum())
st.markdown(
    f"The picture beats the best of {result.attrs['n_read']} real images at **{won} of {len(steps)}** steps. The top {result.sizes['place']} real images of "
    f"two steps overlap by **{analysis.off_diagonal(here['jaccard'].values):.2f}** (Jaccard; random sets {float(result['chance_jaccard']):.3f}"
    + (f"; mean over the untrained model's neurons {analysis.off_diagonal(result['control_overlap'].values):.2f}" if "control_overlap" in result else "")
    + ")."
)

per_row = 6
shown = {int(index): place for place, index in enumerate(result["shown"].values)} if "shown" in result else {}
for first in range(0, len(steps), per_row):
    for column, step in zip(st.columns(per_row), steps[first : first + per_row], strict=False):
        cell = here.sel(step=step)
        reached, best = float(cell["activation"]), float(cell["best_real"])
        column.image(cell["picture"].values, caption=f"{style.step_label(step)}: {reached:.2f}", width="stretch")
        found = [(int(i), float(a)) for i, a in zip(cell["top"].values, cell["top_activation"].values, strict=True) if int(i) in shown][:3]
        if found:
            row = np.concatenate([result["thumbnail"].values[shown[i]] for i, _ in found], 1)
            column.image(row, caption="real: " + ", ".join(f"{a:.2f} (#{i})" for i, a in found), width="stretch")
        else:
            column.caption(f"best real image: #{int(cell['top'].values[0])}, {best:.2f}")
if not shown:
    st.info(f"This result was made without pixels; its real images are those of `{result.attrs['data']}`, split {result.attrs['split']}.")

tabs = st.tabs(["Activation over the steps", "Transfer between steps", "Overlap of the top images"])
curves = analysis.curves(result, neuron=neuron)
with tabs[0]:
    live.chart(curves, f"neuron {neuron}")
    live.export(curves, f"neuron {neuron}")
    st.download_button("Table as CSV", lambda: result["activation"].to_dataframe().to_csv(), "neurons.csv", "text/csv")
with tabs[1]:
    st.caption("The activation that the picture made for one step (row) reaches at another (column), over that of the best real image there.")
    transfer = analysis.interactive(result, neuron=neuron, method=method)
    live.chart(transfer, f"neuron {neuron} transfer {method}")
    live.export(transfer, f"neuron {neuron} transfer {method}")
with tabs[2]:
    st.caption(f"Jaccard overlap of the top {result.sizes['place']} real images of this neuron at two steps.")
    overlaps = analysis.overlaps(result, neuron=neuron)
    live.chart(overlaps, f"neuron {neuron} overlap")
    live.export(overlaps, f"neuron {neuron} overlap")
st.subheader("Which neurons change over the steps?")
st.table({what: ", ".join(map(str, units)) for what, units in analysis.spread_of(result, 8).items()})
