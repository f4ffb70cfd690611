"""What does each head see at each step, and what would the model answer if it stopped there?"""

import numpy as np
import streamlit as st

from analyses import steps, style
from app import image, live, page, results
from app.text import text


@page.part
def at_step(shown: image.Shown, traced: dict[str, np.ndarray]) -> None:
    """Everything that moves with the slider; the model is not run again."""
    step = page.number(st, "Step", model.config.n_steps, "step", shown="blocks.%d")
    show_attention(shown, traced, step)
    left, right = st.columns(2)
    with left:
        show_answer(shown, traced, step)
    with right:
        show_norms(traced, step)


def show_attention(shown: image.Shown, traced: dict[str, np.ndarray], step: int) -> None:
    st.markdown(f"**What CLS attends to at {style.step_label(step)}**, one panel per head")
    figure = page.drawn(steps.attention, shown.picture, traced["attention"][step], shown.mask)
    page.show(figure, "attention", f"{shown.name}, {style.step_label(step)}")
    to_itself = ", ".join(f"{100 * share:.0f} %" for share in traced["to_cls"][step])
    st.caption(
        "Attention from the CLS token to the patches (brighter is more), the cross at its maximum with the "
        f"share that the patch there has (peak), the object outlined in white. To itself CLS pays {to_itself} (head 0 "
        f"to {model.config.n_heads - 1})."
    )


def show_answer(shown: image.Shown, traced: dict[str, np.ndarray], step: int) -> None:
    st.markdown("**The answer as it forms** (logit lens)")
    if "probability" not in traced:
        st.info("This model has no classifier, so there is no answer to read out.")
        return
    figure = page.drawn(steps.lens, traced["probability"], model.classes, step=step, truth=shown.label)
    page.show(figure, "lens", shown.name)
    off = f"Switch a head off at {style.step_label(step)}"
    head = st.segmented_control(off, range(model.config.n_heads), key="head", **page.LINKED)
    if head is not None:
        before, after = traced["probability"][-1], model.without_head(shown.image, step, head)
        was, now = int(before.argmax()), int(after.argmax())
        st.write(
            f"{text(model.classes[was])}: {100 * before[was]:.1f} % → {100 * after[was]:.1f} %; the answer is now "
            f"**{text(model.classes[now])}** ({100 * after[now]:.1f} %)"
        )


def show_norms(traced: dict[str, np.ndarray], step: int) -> None:
    st.markdown("**Norm of every token**")
    n_prefix, (rows, columns) = model.config.n_prefix, traced["attention"].shape[-2:]
    norm = traced["norm"]
    patches = norm[:, n_prefix:].reshape(len(norm), rows, columns)
    page.show(page.drawn(steps.norms, patches, norm[:, 0], norm[:, 1:n_prefix], step=step), "norms")
    st.caption("Patches of unusually high norm on plain background are the artefact that registers were made for.")


st.title("One image, step by step")
model = live.load(results.chosen())
shown = image.chosen(model)
traced = model.trace(shown.image)
left, right = st.columns([1, 4])
left.image(shown.picture, "what the model sees", width=190, alt=shown.name)
right.header(text(shown.name))
if "probability" in traced:
    last = traced["probability"][-1]
    right.markdown(f"The model answers **{text(model.classes[int(last.argmax())])}** ({100 * last.max():.1f} %).")
at_step(shown, traced)
