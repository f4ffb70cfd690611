"""How many dimensions does each step use?"""

import streamlit as st

from analyses import capacity, style
from analyses import rank as analysis
from app import page, results
from app.contents import RANK
from app.text import text

DIMENSIONS = {"k95": "95 % of the energy", "participation_ratio": "participation ratio", "stable_rank": "stable rank"}

st.title("How many dimensions does each step use?")
st.markdown(
    "Rows of activations, one a token, lie close to a subspace. Its dimension is the **95 % rank**: the least number "
    "of directions that hold 95 % of the energy, drawn as a share of the width there is and beside that of the same "
    "model **untrained** (dashed). Steps may use the same directions or different ones: their **overlap** means "
    "something only beside that of random subspaces of the same dimensions."
)
result = results.required(RANK, "There are no ranks of this run yet. This makes them:")

sites = result["site"].values.tolist()
left, middle, right = st.columns(3)
site = left.selectbox("Site", sites, sites.index("mlp_out"), key="site", format_func=analysis.SITES.get, **page.LINKED)
dimension = middle.selectbox("Dimension", DIMENSIONS, key="dimension", format_func=DIMENSIONS.get, **page.LINKED)
about = "about the mean (covariance), or about zero"
centred = right.toggle("Centred", value=True, key="centred", help=about, **page.LINKED)


def in_words() -> str:
    """How many dimensions there are at the site, and what two steps share of them."""
    ranks, width = result["k95"].sel(site=site, centred=centred), int(result["width"].sel(site=site))
    narrowest, widest = int(ranks.values.argmin()), int(ranks.values.argmax())
    untrained, overlap = style.untrained(result, "k95"), analysis.overlap_levels(result, site)
    mean = None if untrained is None else float(untrained.sel(site=site, centred=centred).mean())
    beside = "" if mean is None else f" (untrained, mean over steps: {mean:.0f})"
    shared = f", the untrained model's by {overlap['untrained']:.2f}" if "untrained" in overlap else ""
    return (
        f"{analysis.SITES[site]}: from **{int(ranks[narrowest])}** at {style.step_label(narrowest)} to "
        f"**{int(ranks[widest])}** of {width} dimensions at {style.step_label(widest)}{beside}. Two steps' subspaces "
        f"overlap by **{overlap['trained']:.2f}** on average, random ones by {overlap['random']:.2f}{shared}."
    )


def show_accuracy() -> None:
    st.header("How much rank do the FFN's weights need?")
    if "svd_accuracy" not in result:
        st.info(f"This result holds no accuracy: {text(result.attrs['no_accuracy'])}.")
        return
    st.caption(
        f"Top-1 on {int(result['n_accuracy'])} images with fc1 and fc2 both cut to a rank. Activation-aware: projected "
        "on the subspaces of the inputs and outputs that the data use; low rank + sparse also keeps the 5 % entries "
        "that fit worst, and stores more at the same rank."
    )
    cuts = result["cut"].values.tolist()
    enough = ", ".join(f"{analysis.CUTS[cut]} **{analysis.sufficient_rank(result, cut)}**" for cut in cuts)
    st.markdown(f"The least rank tried that loses at most one point of accuracy: {enough}.")
    page.show(analysis.accuracy_curves(result), "rank accuracy")


if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
st.markdown(in_words())
left, right = st.columns([3, 2])
with left:
    st.header("Over the steps")
    figure = analysis.interactive(result, centred=centred, measure=dimension)
    page.show(figure, "rank", table=lambda: analysis.frame(result))
with right:
    st.header("Do the steps share their subspace?")
    page.show(analysis.overlaps(result, site), "rank overlap")
show_accuracy()
st.header("Does what the steps use fit into the width?")
st.caption(
    "The sum is what T steps with separate subspaces would need; the union is what they use together. A stacked model "
    "has one set of weights a block. Energy is not importance: accuracy may need more dimensions than hold 95 % of the "
    "energy, see the curves above."
)
st.code(capacity.table(result), language=None)
