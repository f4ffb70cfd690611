"""What does a model cost?"""

import streamlit as st

from analyses import cost as analysis
from app import page, results
from app.contents import COST

st.title("What does a model cost?")
st.markdown(
    "One shared block saves parameters, not operations: every step computes what a block of the stacked ViT computes. "
    "Both models ran in turn on the same images, so their ratio holds though the machine did other things as well."
)
result = results.required(COST, "The cost of this run's model was not measured yet. This measures it:")
columns = st.columns(4)
page.metric(columns[0], "FLOPs of an image", f"{int(result['flops_forward']) / 1e6:,.1f} M")
for column, model in zip(columns[1:3], result["model"].values, strict=False):
    page.metric(column, f"{analysis.NAMES[model]}: parameters", f"{int(result['parameters'].sel(model=model)):,}")
middle, low, high = analysis.ratio(result, "training")
if middle == middle:
    beside = f"{low:.2f} to {high:.2f}"
    page.metric(columns[3], "training, bViT / ViT", f"{middle:.2f} ×", beside, help="range over the rounds")
page.show(analysis.interactive(result), "cost", table=lambda: analysis.frame(result))
st.code(analysis.table(result), language=None)
