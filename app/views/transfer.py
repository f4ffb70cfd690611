"""How well does the model transfer to other classes?"""

import streamlit as st

from analyses import intervals, style
from analyses import transfer as analysis
from app import page, results
from app.contents import TRANSFER
from app.text import text

st.title("How well does the model transfer to other classes?")
st.markdown(
    "Five ways, from a linear probe of the CLS state to all weights. In between, low-rank adapters (LoRA) of the "
    "shared block: **one** that all steps use, or one **for each step**. Each stands beside the same from the "
    "untrained initialisation: only what lies above that was learnt before."
)
result = results.required(TRANSFER, "This run's model was not transferred yet. This does it, with data of yours:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
mean, _ = analysis.mean_and_sd(result["accuracy"])
low, high = intervals.of_ratio(mean / 100, result.attrs["n_images"], 100)
untrained = style.untrained(result, "accuracy")
for i, (column, how) in enumerate(zip(st.columns(len(mean)), result["how"].values, strict=True)):
    beside = None if untrained is None else analysis.said(*analysis.mean_and_sd(untrained.sel(how=how)))
    sure = f"95 % interval over images: {low[i]:.1f} to {high[i]:.1f} %"
    page.metric(column, analysis.NAMES[how], f"{mean[i]:.1f} %", beside and f"untrained {beside}", help=sure)
over = list(analysis.CURVES) if "state" in result.dims else list(analysis.CURVES)[:1]
chosen = page.segments(st, "Over", over, "over", help="the steps: a linear probe of the CLS state after each")
st.caption("Bands: one standard deviation over seeds; with one seed, the 95 % interval over images.")
page.show(analysis.interactive(result, chosen), f"transfer over {chosen}", table=lambda: analysis.frame(result))
if "state" in result.dims:
    best = analysis.best_state(result)
    values = analysis.mean_and_sd(result["state_accuracy"].sel(state=best))
    st.markdown(
        f"The state that transfers best, chosen on held-out training images, is the one "
        f"{'' if best == 0 else 'after '}{style.state_label(best)}: **{analysis.said(*values)} %**."
    )
st.code(analysis.table(result), language=None)
