"""What causes the answer, and through whom?"""

import streamlit as st

from analyses import attribution as analysis
from analyses import composition, style
from analyses.graph import SLOTS
from app import page, results
from app.contents import ATTRIBUTION
from app.text import text

st.title("What causes the answer, and through whom?")
st.markdown(
    "The **effect** of a head or FFN at a step is what the answer's logit difference (the true class against the best "
    "other one) loses when it adds what it adds on average, or on another image. Gradients give all of them at once, "
    "and all edges from one to another; **exact patches** on other images say how far to trust them."
)
result = results.required(ATTRIBUTION, "Nothing was attributed on this run yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")
how = page.segments(st, "Gradient", list(reversed(analysis.HOWS)), "how", help="averaged on the way, or at the image")
columns = st.columns(4)
about = f"{float(result['corrupted']):.2f} with everything corrupted"
page.metric(columns[0], "logit difference", f"{float(result['clean']):.2f}", about)
part, step, value = analysis.strongest_node(result, how)
page.metric(columns[1], "most is lost without", f"{text(part)}, step {step + 1}", f"{value:.2f} logits")
if "exact_node" in result:
    correlation, missed, _ = analysis.trust(result, "node", how)
    page.metric(columns[2], "rank correlation with exact patches", f"{correlation:.2f}", f"worst miss {missed:.2f}")
if "kept_difference" in result:
    n, title = analysis.smallest(result, how=how), f"edges that keep {100 * analysis.SHARE:.0f} %"
    random = analysis.random_kept(result, n)
    page.metric(columns[3], title, "none tried" if n is None else f"{n}", random and f"random ones keep {random}")

left, right = st.columns(2)
with left:
    st.header("Heads and FFNs")
    page.show(analysis.interactive(result, how), "attribution nodes", table=lambda: analysis.frame(result))
untrained = style.models(result).get("untrained")
with right:
    st.header("Untrained")
    if untrained is None:
        st.caption("The untrained model could not be rebuilt.")
    else:
        page.show(analysis.node_map(untrained, how).interactive(), "attribution untrained")
if "edge" in result:
    left, right = st.columns(2)
    with left:
        st.header("From step to step")
        page.show(
            analysis.edge_map(result, how).interactive(), "attribution edges", table=lambda: analysis.edges(result)
        )
    with right:
        st.header("What is used of the heads' composition")
        page.show(composition.use_map(result, how).interactive(), "composition use")
if "kept_difference" in result:
    left, right = st.columns(2)
    with left:
        st.header("Circuits")
        page.show(analysis.circuit_curves(result).interactive(), "attribution circuits")
    with right:
        st.header("Against exact patches")
        kind = page.segments(st, "Of", ["node", "edge"], "kind")
        page.show(analysis.exact_curves(result, kind).interactive(), f"attribution exact {kind}")
if composition.is_possible(result).any():
    st.header("Who could write into whom, by the weights")
    slot = page.segments(st, "Read through", list(SLOTS), "slot")
    page.show(
        composition.score_map(result, slot).interactive(),
        f"composition {slot}",
        table=lambda: composition.frame(result),
    )
st.code(analysis.table(result), language=None)
