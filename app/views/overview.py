"""What is this model, and how does its answer form?"""

import numpy as np
import streamlit as st

from analyses import steps
from app import live

run = live.run()
st.title("A Vision Transformer that runs in steps")
st.markdown(
    "bViT (arXiv 2605.10661) applies **one** transformer block T times. The weights are the same at every step, so head 3 at step 2 and head 3 at "
    "step 9 are the same head: what changes is only what it is shown. Everything here counts steps from 1 and names the hook point beside it: "
    "`step 6 (blocks.5)`."
)


def arrow(n_blocks: int, n_steps: int) -> str:
    """The model as one line of text."""
    if n_blocks == 1:
        return f"image → patches + CLS → z₀ → [ **B** ] × {n_steps} → z_{n_steps} → norm → class"
    return f"image → patches + CLS → z₀ → [ **{n_blocks} blocks** over {n_steps} steps ] → z_{n_steps} → norm → class"


model = live.guarded(live.load, run)
if model is not None:
    from models.checkpoint import describe

    about = describe(model)
    st.markdown(arrow(about["blocks"], about["steps"]))
    columns = st.columns(5)
    columns[0].metric("steps", about["steps"], help="how often a block is applied")
    columns[1].metric("blocks", about["blocks"], help="how many different blocks there are")
    columns[2].metric("width × heads", f"{about['width']} × {about['heads']}")
    columns[3].metric("parameters", f"{about['parameters'] / 1e6:.3f} M")
    ratio = about["parameters_stacked"] / about["parameters"]
    columns[4].metric(
        "stacked ViT", f"{about['parameters_stacked'] / 1e6:.3f} M", f"{ratio:.1f}× as many", delta_color="off", delta_arrow="off"
    )
    left, right = st.columns(2)
    with left:
        st.subheader("Accuracy after each step")
        if about["data"] and model.config.n_classes:
            data = live.images_at_hand(model)
            measured = (live.measured_accuracy, run, model) if data is None else (live.accuracy, model, data, model.origin.sha256)
            found = live.guarded(*measured)
            if found is not None:
                ratio, n = found
                figure = steps.accuracy(ratio, 1.96 * np.sqrt(ratio * (1 - ratio) / n), model.config.n_classes, n)
                live.chart(figure, "accuracy after each step")
                st.caption(
                    "The final norm and head read out the CLS token after every step, though they were trained for the last one only. "
                    f"Bars: 95 % interval over {n} images of `{about['data']}`, split val."
                )
        else:
            st.info("This model names no data of its own or has no head, so there is no accuracy to show.")
    with right:
        st.subheader("Training")
        records = live.log(run)
        if records:
            live.chart(steps.training(records), "training")
            st.caption("top-1 is that of the averaged (EMA) weights on the validation split.")
        else:
            st.info(f"{run}/train.jsonl is not here.")
        st.dataframe({key: str(value) for key, value in about["metrics"].items()} or {"metrics": "none stored"}, width="stretch")
    with st.expander("Where this model comes from"):
        st.json({"checkpoint sha256": model.origin.sha256, "weights": model.origin.weights, **model.origin.provenance}, expanded=1)
