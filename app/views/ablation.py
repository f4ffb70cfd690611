"""What is lost without a part of a step?"""

import streamlit as st

from analyses import ablation as analysis
from analyses import style
from app import page, results
from app.contents import ABLATION
from app.text import text

st.title("What is lost without a part of a step?")
st.markdown(
    "Each head, all of attention, the FFN, or a group of neurons (by the size of their effect) is taken out at one "
    "step, or from a step on. What that changes means something only beside a change as large in a **random "
    "direction**."
)
result = results.required(ABLATION, "Nothing was taken out of this run's model yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
left, right = st.columns(2)
metric = page.segments(left, "Change of", list(analysis.METRICS), "metric")
scope = page.segments(right, "Missing", list(analysis.SCOPES), "scope", help="at one step, or from a step on")
part, step = analysis.strongest(result, scope)
cell = result.sel(scope=scope, part=part, step=step)
lost, random = (100 * float(cell["accuracy"].sel(kind=kind)) for kind in (analysis.ABLATED, analysis.RANDOM))
st.markdown(
    f"Untouched the model answers **{100 * float(result['untouched_accuracy']):.1f} %** of "
    f"{result.attrs['n_measured']} images (chance {100 * result.attrs['chance']:.1f} %). What matters most "
    f"{analysis.SCOPES[scope]} is **{text(part)}** at {style.step_label(step)}: {lost:+.1f} points, a random change "
    f"as large {random:+.1f}."
)
places = st.columns(2)
for place, kind, title in zip(places, (analysis.ABLATED, analysis.RANDOM), ("Without it", "Random"), strict=True):
    with place:
        st.header(title)
        figure = analysis.interactive(result, metric, scope, kind)
        page.show(figure, f"ablation {kind}", table=lambda: analysis.frame(result))
st.code(analysis.table(result), language=None)
