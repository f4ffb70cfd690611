"""How do the states move?"""

import streamlit as st

from analyses import dynamics as analysis
from analyses import style
from app import page, results
from app.contents import DYNAMICS
from app.text import text

st.title("How do the states move?")
st.markdown(
    "The steps as a dynamical system: how far and which way each one moves the states, what it stretches and shrinks "
    "(its **Jacobian**), how alike two steps are (**CKA**, debiased: 0 for what is independent), what becomes of a "
    "**perturbation**, and where the states are far **beyond** the trained steps. Dashed: the same model untrained; "
    "dotted: what chance would give."
)
result = results.required(DYNAMICS, "Nobody has followed this run's states yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")


def show_numbers() -> None:
    columns = st.columns(4)
    trained, untrained = result, style.models(result).get("untrained")

    def metric(column, title: str, name: str, shown: str, **at: object) -> None:
        value, low, high = (float(trained[f"{name}{end}"].sel(at)) for end in ("", "_low", "_high"))
        beside = f"95 %: {low:{shown}} to {high:{shown}}"
        if untrained is not None:
            beside += f", untrained {float(untrained[name].sel(at)):{shown}}"
        page.metric(column, title, f"{value:{shown}}", beside)

    last = int(result["step"][-1])
    metric(columns[0], "last step moves CLS by", "update", ".3f", token="cls", step=last)
    metric(columns[1], "and turns it by (degrees)", "angle", ".1f", token="cls", step=last)
    metric(columns[2], "stable rank of its update", "stable_rank", ".2f", step=last)
    if "fixed" in result:
        metric(columns[3], f"at rest after {result.attrs['max_steps']} steps", "fixed", ".1%", form="direction")


@page.part
def show_quantity() -> None:
    there = [name for name, (_, parts) in analysis.QUANTITIES.items() if parts[0].variable in result]
    page.keep_within("quantity", there, there[0])
    quantity = st.selectbox(
        "Quantity", there, key="quantity", format_func=lambda name: analysis.QUANTITIES[name][0], **page.LINKED
    )
    page.show(analysis.interactive(result, quantity), f"dynamics {quantity}", table=lambda: analysis.frame(result))


@page.part
def show_alike() -> None:
    maps = analysis.maps(result)
    page.keep_within("alike", list(maps), next(iter(maps)))
    name = st.selectbox("Map", list(maps), key="alike", **page.LINKED)
    page.show(maps[name].interactive(height=420), f"dynamics {name}", table=lambda: analysis.cka_frame(result))


show_numbers()
left, right = st.columns(2)
with left:
    st.header("Over the steps")
    show_quantity()
with right:
    st.header("Which steps are alike?")
    show_alike()
phases = [f"{kind}s: {analysis.phase_names(result, kind, 2)}" for kind in ("increment", "state")]
st.caption(
    f"Two phases by max-cut: {'; '.join(phases)}. The table below says how clear they are, beside a steady path."
)
if "eigenvalue" in result:
    st.header("What does a step stretch?")
    st.caption("Eigenvalues of the CLS row's Jacobian on a few images; beyond the dotted circle, what grows.")
    step = page.number(st, "Step", result.sizes["step"], "eigen_step", result.sizes["step"] - 1, shown="blocks.%d")
    page.show(analysis.eigenvalues(result, step), "dynamics eigenvalues")
st.code(analysis.table(result), language=None)
