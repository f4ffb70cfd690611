"""Are there patches of unusual norm, and who writes them?"""

import streamlit as st

from analyses import outliers as analysis
from analyses import style
from app import page, results
from app.contents import OUTLIERS
from app.text import text

st.title("Are there patches of unusual norm?")
st.markdown(
    "In large ViTs a few patches have norms many times those of the others; registers take them over. Here: how far "
    "the **largest patch** of each image stands out, where it lies, and which neurons of the FFN write it. Those "
    "neurons, chosen on other images, are moved to a **register at test time**; beside it as many **random neurons**, "
    "the same ones **silenced**, and the model **untrained**."
)
result = results.required(OUTLIERS, "Nobody has looked for outlier tokens of this run yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
threshold, state, columns = result.attrs["threshold"], analysis.worst(result), st.columns(4)
at, untrained = dict(condition="untouched", state=state), style.untrained(result, "largest")
beside = None if untrained is None else f"untrained {float(untrained.sel(at)):.2f}"
page.metric(columns[0], f"largest patch / median, step {state}", f"{float(result['largest'].sel(at)):.2f}", beside)
share = style.with_interval(result, "share", dict(at, times=threshold), digits=2)
page.metric(columns[1], f"patches above {threshold:g} x the median", f"{share.partition(' ')[0]} %", f"95 %: {share}")
for column, condition in zip(columns[2:], ("register", "random register"), strict=True):
    change = style.with_interval(result, "accuracy_change", dict(condition=condition))
    page.metric(column, f"top-1, {analysis.CONDITIONS[condition]}", change.partition(" ")[0], f"points, 95 %: {change}")


@page.part
def show_places() -> None:
    shown = page.number(st, "Largest patch after step", result.sizes["state"], "outlier_state", state)
    page.show(analysis.place_map(style.models(result)["trained"], shown).interactive(), "outliers places")


left, right = st.columns(2)
with left:
    metric = page.segments(
        st, "Over the steps", list(analysis.METRICS), "outlier_metric", help="of each image; share: of patches"
    )
    page.show(analysis.interactive(result, metric), "outliers", table=lambda: analysis.frame(result))
with right:
    show_places()
left, right = st.columns(2)
with left:
    st.header("Which neurons write it?")
    neurons = analysis.neuron_curves(result).interactive()
    page.show(neurons, "outliers neurons", table=lambda: analysis.neuron_frame(result))
on_object = analysis.object_curves(result)
if on_object is not None:
    with right:
        st.header("Is it of the object?")
        page.show(on_object.interactive(), "outliers object")
st.code(analysis.table(result), language=None)
