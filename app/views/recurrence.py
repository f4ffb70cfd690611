"""What does the model answer after k steps?"""

import streamlit as st

from analyses import recurrence as analysis
from app import live

NAMES = {"accuracy": "top-1", "loss": "loss", "confidence": "confidence", "entropy": "entropy (nats)", "update": "relative update"}

run = live.run()
st.title("What does the model answer after k steps?")
st.markdown(
    "One block can be applied any number of times: fewer than it was trained for, or more. The same head reads out every state. A model that has settled "
    "on its answer keeps it when it runs on; one that was only timed for its last step loses it."
)
result = live.result_or_stop(run, "recurrence", "accuracy", "This run was not run on yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {result.attrs['note']}.")
if result.attrs["overflow_state"] >= 0:
    st.warning(f"States overflow from step {result.attrs['overflow_state']} on in some images; they count as wrong.")

trained, best = result.attrs["trained_steps"], analysis.peak(result)
steps, reached = analysis.exit_at(result)
columns = st.columns(4)
columns[0].metric(
    f"top-1 after {trained} steps", f"{100 * float(result['accuracy'].sel(state=trained)):.1f} %", f"chance {100 * result.attrs['chance']:.1f} %",
    delta_color="off", delta_arrow="off",
)  # fmt: skip
columns[1].metric("highest", f"{100 * best[1]:.1f} %", f"after {best[0]} steps", delta_color="off", delta_arrow="off")
columns[2].metric("answer final after", f"{float(result['settled'].mean()):.1f} steps", help=f"mean over images, of {trained} steps")
columns[3].metric("leaving when sure", f"{steps:.1f} steps", f"{100 * reached:.1f} % top-1", delta_color="off", delta_arrow="off", help="mean steps")

live.linked("curve", "accuracy", list(NAMES))
left, right = st.columns(2)
with left:
    st.subheader("Over the steps")
    name = st.selectbox("Curve", list(NAMES), key="curve", format_func=NAMES.get, on_change=live.remember("curve"), label_visibility="collapsed")
    figure = analysis.interactive(result, name)
    live.chart(figure, "recurrence")
    live.export(figure, "recurrence")
    st.download_button("Table as CSV", lambda: result[list(NAMES)].to_dataframe().to_csv(), "recurrence.csv", "text/csv")
with right:
    st.subheader("Leaving when sure")
    st.caption("Each image leaves at the first step whose confidence (or 1 - entropy / log classes) passes a threshold; dotted: the same step for all.")
    figure = analysis.exits(result)
    live.chart(figure, "recurrence exits")
    live.export(figure, "recurrence exits")
left, right = st.columns(2)
with left:
    st.subheader("When is the answer final?")
    figure = analysis.settling(result)
    live.chart(figure, "recurrence settled")
    live.export(figure, "recurrence settled")
with right:
    st.subheader("Every class")
    figure = analysis.per_class(result)
    live.chart(figure, "recurrence classes")
    live.export(figure, "recurrence classes")
