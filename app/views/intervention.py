"""What does the recurrence need?"""

import streamlit as st

from analyses import intervention as analysis
from app import page, results
from app.contents import INTERVENTION
from app.text import text

st.title("What does the recurrence need?")
st.markdown(
    "Every step is damped, given some of its start back, kept from some of its tokens, told that it is another step, "
    "or run under another step's masks; accuracy over the steps says what the model cannot do without. Each stands "
    "beside the **untouched** model and a **random change** of the same size."
)
result = results.required(INTERVENTION, "Nobody intervened in this run's steps yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
names = analysis.kinds(result)
page.keep_within("what", names, names[0])
what = st.selectbox("Intervention", names, key="what", **page.LINKED)
st.header(analysis.TITLES[what].capitalize())
st.caption(
    "Solid: the intervention, with its 95 % interval; dashed, in the same colour: a random change as large; dotted: "
    "the untrained model, mean over the settings."
)
page.show(analysis.interactive(result, what), f"intervention {what}", table=lambda: analysis.frame(result))
st.code(analysis.table(result), language=None)
