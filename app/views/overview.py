"""What is this model, and how does its answer form?"""

import json

import streamlit as st

from analyses import steps
from app import idea, live, page, results
from app.text import text

run = results.chosen()
st.title("A Vision Transformer that runs in steps")
model = live.load(run)
about = model.about
shape = about["blocks"], about["steps"]
st.image(idea.picture(*shape, dark=st.context.theme.type == "dark"), width=900, alt=idea.said(*shape))
idea_of = (
    "The weights are the same at every step, so head 0 at step 2 and head 0 at step 9 are the same head: what changes "
    "is only what it is shown."
    if about["blocks"] == 1
    else f"This model has {about['blocks']} blocks, so the weights differ from one block to the next."
)
st.markdown(
    f"bViT (arXiv 2605.10661) applies **one** transformer block T times. {idea_of} Everything here counts steps from 1 "
    "and names the hook point beside it: `step 6 (blocks.5)`."
)


def show_accuracy() -> None:
    st.header("Accuracy after each step")
    if not (model.origin.data and model.config.n_classes):
        st.info("This model names no data of its own or has no head, so there is no accuracy to show.")
        return
    measured = live.accuracy_of(run, model)
    if measured is not None:
        ratio, n = measured
        page.show(steps.accuracy(ratio, model.config.n_classes, n), "accuracy after each step")
        st.caption(
            "The final norm and head read out the CLS token after every step, though they were trained for the last "
            f"one only. Shaded: 95 % interval over {n} images of {text(model.origin.data)}, split val."
        )


def show_training() -> None:
    st.header("Training")
    records = results.log(run)
    if records:
        page.show(steps.training(records), "training")
        st.caption("top-1 is that of the averaged (EMA) weights on the validation split.")
    else:
        st.info(f"{text(run)}/train.jsonl is not here.")
    metrics = {name: str(value) for name, value in model.origin.metrics.items()}
    st.dataframe(metrics or {"metrics": "none stored"}, width="stretch")


columns = st.columns(5)
page.metric(columns[0], "steps", about["steps"], help="how often a block is applied")
page.metric(columns[1], "blocks", about["blocks"], help="how many different blocks there are")
page.metric(columns[2], "width × heads", f"{about['width']} × {about['heads']}")
page.metric(columns[3], "parameters", f"{about['parameters'] / 1e6:.3f} M")
if about["blocks"] < about["steps"]:
    times = about["parameters_stacked"] / about["parameters"]
    page.metric(columns[4], "stacked ViT", f"{about['parameters_stacked'] / 1e6:.3f} M", f"{times:.1f}× as many")
left, right = st.columns(2)
with right, page.one_sentence():
    show_training()
with left, page.one_sentence():  # last: where no sweep is stored, it is measured
    show_accuracy()
with st.expander("Where this model comes from"):
    origin = {"checkpoint sha256": model.origin.sha256, "weights": model.origin.weights}
    st.code(json.dumps(origin | model.origin.provenance, indent=2, default=str), language=None, wrap_lines=True)
