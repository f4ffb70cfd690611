"""How many dimensions does each step use?"""

import streamlit as st

from analyses import capacity, style
from analyses import rank as analysis
from app import live

MEASURES = {"k95": "95 % of the energy", "participation_ratio": "participation ratio", "stable_rank": "stable rank"}

run = live.run()
st.title("How many dimensions does each step use?")
st.markdown(
    "Rows of activations, one a token, lie close to a subspace. Its dimension is the **95 % rank**: the least number of directions that hold 95 % of "
    "the energy, drawn as a share of the width there is and beside that of the same model **untrained** (dotted). Steps may use the same directions or "
    "different ones: their **overlap** means something only beside that of random subspaces of the same dimensions."
)
result = live.result_or_stop(run, "rank", "k95", "There are no ranks of this run yet. This makes them:")
if result.attrs["note"]:
    st.caption(f"Note: {result.attrs['note']}.")

sites = result.site.values.tolist()
live.linked("site", "mlp_out", sites)
live.linked("measure", "k95", list(MEASURES))
left, middle, right = st.columns(3)
site = left.selectbox("Site", sites, key="site", format_func=analysis.SITES.get, on_change=live.remember("site"))
measure = middle.selectbox("Dimension", list(MEASURES), key="measure", format_func=MEASURES.get, on_change=live.remember("measure"))
centred = right.toggle("Centred", value=True, help="about the mean (covariance), or about zero")
ranks, width = result["k95"].sel(dict(site=site, centred=centred)), int(result["width"].sel(site=site))
widest, narrowest = int(ranks.values.argmax()), int(ranks.values.argmin())
control = f" (untrained, mean over steps: {float(result['control_k95'].sel(dict(site=site, centred=centred)).mean()):.0f})" if "control_k95" in result else ""
st.markdown(
    f"{analysis.SITES[site]}: from **{int(ranks[narrowest])}** at {style.step_label(narrowest)} to **{int(ranks[widest])}** of {width} dimensions at "
    f"{style.step_label(widest)}{control}. Two steps' subspaces overlap by **{analysis.between_steps(result['overlap'].sel(site=site).values):.2f}** on "
    f"average, random ones by {analysis.between_steps(result['overlap_chance'].sel(site=site).values):.2f}"
    + (f", the untrained model's by {analysis.between_steps(result['control_overlap'].sel(site=site).values):.2f}." if "control_overlap" in result else ".")
)

left, right = st.columns([3, 2])
with left:
    st.subheader("Over the steps")
    figure = analysis.interactive(result, centred=centred, measure=measure)
    live.chart(figure, "rank")
    live.export(figure, "rank")
    st.download_button("Table as CSV", lambda: result[list(MEASURES)].to_dataframe().to_csv(), "rank.csv", "text/csv")
with right:
    st.subheader("Do the steps share their subspace?")
    figure = analysis.overlaps(result, site)
    live.chart(figure, "rank overlap")
    live.export(figure, "rank overlap")

st.subheader("How much rank do the FFN's weights need?")
if "svd_accuracy" in result:
    st.caption(
        f"Top-1 on {int(result['n_accuracy'])} images with fc1 and fc2 both cut to a rank. Activation-aware: projected on the subspaces of the inputs and "
        "outputs that the data use; low rank + sparse also keeps the 5 % entries that fit worst, and stores more at the same rank."
    )
    enough = ", ".join(f"{analysis.METHODS[method]} **{analysis.sufficient_rank(result, method)}**" for method in result.method.values)
    st.markdown(f"The least rank tried that loses at most one point of accuracy: {enough}.")
    figure = analysis.accuracy_curves(result)
    live.chart(figure, "rank accuracy")
    live.export(figure, "rank accuracy")
else:
    st.info(f"This result holds no accuracy: {result.attrs['no_accuracy']}.")

st.subheader("Does what the steps use fit into the width?")
st.caption(
    "The sum is what T steps with separate subspaces would need; the union is what they use together. A stacked model has one set of weights a block. "
    "Energy is not importance: accuracy may need more dimensions than hold 95 % of the energy, see the curves above."
)
st.code(capacity.table(result), language=None)
