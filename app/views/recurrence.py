"""What does the model answer after k steps?"""

import streamlit as st

from analyses import recurrence as analysis
from app import page, results
from app.contents import RECURRENCE
from app.text import text

st.title("What does the model answer after k steps?")
st.markdown(
    "One block can be applied any number of times: fewer than it was trained for, or more. The same head reads out "
    "every state. A model that has settled on its answer keeps it when it runs on; one that was only timed for its "
    "last step loses it."
)
result = results.required(RECURRENCE, "This run was not run on yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
if result.attrs["overflow_state"] >= 0:
    st.warning(f"States overflow from step {result.attrs['overflow_state']} on in some images; they count as wrong.")

trained, (best, highest) = result.attrs["trained_steps"], analysis.peak(result)
steps, reached = analysis.exit_at(result)
accuracy, chance = float(result["accuracy"].sel(state=trained)), result.attrs["chance"]
columns = st.columns(4)
page.metric(columns[0], f"top-1 after {trained} steps", f"{100 * accuracy:.1f} %", f"chance {100 * chance:.1f} %")
page.metric(columns[1], "highest", f"{100 * highest:.1f} %", f"after {best} steps")
final, about = float(result["settled"].mean()), f"mean over images, of {trained} steps"
page.metric(columns[2], "answer final after", f"{final:.1f} steps", help=about)
page.metric(columns[3], "leaving when sure", f"{steps:.1f} steps", f"{100 * reached:.1f} % top-1", help="mean steps")

left, right = st.columns(2)
with left:
    st.header("Over the steps")
    name = st.selectbox("Curve", list(analysis.CURVES), key="curve", label_visibility="collapsed", **page.LINKED)
    page.show(analysis.interactive(result, name), "recurrence", table=lambda: analysis.frame(result))
with right:
    st.header("Leaving when sure")
    st.caption(
        "Each image leaves at the first step whose confidence (or 1 - entropy / log classes) passes a threshold; "
        "dotted: the same step for all."
    )
    page.show(analysis.exits(result), "recurrence exits")
left, right = st.columns(2)
with left:
    st.header("When is the answer final?")
    page.show(analysis.settling(result), "recurrence settled")
with right:
    st.header("Every class")
    page.show(analysis.per_class(result), "recurrence classes")
