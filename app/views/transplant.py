"""What if a part of another image's state is put into this one's run?"""

import numpy as np
import streamlit as st

from analyses import transplant as analysis
from app import image, live, page, results
from app.text import text

AT_ONCE = 3e11  # FLOPs of what is run without being asked, a few seconds
MAP = "transplant patches"


def follow_choice() -> None:
    """Patches that were clicked, or that a box was drawn around, are those chosen."""
    points = st.session_state[f"chart {MAP}"]["selection"]["points"]
    if points:
        st.session_state["patches"] = sorted({int(point["point_index"]) for point in points})


def sets_of(chosen: list[int], masks: list[np.ndarray | None]) -> dict[str, np.ndarray]:
    """Which tokens are put in, by name: bool [pos]."""
    config, places = model.config, np.arange(model.config.n_tokens)
    sets = {"CLS": places == 0, "all patches": places >= config.n_prefix}
    if all(mask is not None for mask in masks):
        patch = config.patch_size
        either = np.any([mask == 1 for mask in masks], axis=0).reshape(side, patch, side, patch).any((1, 3))
        sets["patches of either object"] = np.concatenate([np.zeros(config.n_prefix, bool), either.ravel()])
    if chosen:
        sets["chosen patches"] = np.isin(places - config.n_prefix, chosen) & (places >= config.n_prefix)
    return sets


def show_grid(receiver: image.Shown, donor: image.Shown, wanted: int, of_cls: np.ndarray) -> None:
    """Every patch alone at every step; class probabilities after CLS alone [step class] stand above."""
    st.header("One token at a time")
    flops = model.flops() * model.config.n_tokens * (model.config.n_steps + 1) / 2
    about = "as many runs as there are tokens and steps"
    if flops > AT_ONCE and not st.toggle("Put every token in alone", key="tokens", help=about, **page.LINKED):
        return
    patches = np.eye(model.config.n_tokens, dtype=bool)[model.config.n_prefix :]
    found = model.transplant(receiver.image, donor.image, patches)  # [step patch class]
    flips = found.argmax(-1) == wanted
    st.markdown(
        f"CLS alone turns the answer into {text(model.classes[wanted])} "
        f"{analysis.flips_at(of_cls.argmax(-1) == wanted)}; of {side * side} patches {int(flips.any(0).sum())} do so "
        "alone at some step (crosses). Colours: how far one patch alone moves the difference of both answers' logits "
        "from this run (0 %) to the other's (100 %)."
    )
    before, after = (model.trace(one.image)["probability"][-1] for one in (receiver, donor))
    by_patch = [values.reshape(-1, side, side) for values in (analysis.effect(found, before, after), flips)]
    figure = analysis.grid(*by_patch, analysis.effect(of_cls, before, after))
    page.show(figure, "transplant tokens", f"{donor.name} into {receiver.name}")


def show(receiver: image.Shown, donor: image.Shown, other: image.Shown, chosen: list[int]) -> None:
    """The curves of every set of tokens, beside an unrelated image's, and the grid of single tokens."""
    before, wanted = (int(model.trace(one.image)["probability"][-1].argmax()) for one in (receiver, donor))
    said = f"**{text(model.classes[before])}** alone; the other is answered **{text(model.classes[wanted])}**."
    st.markdown(f"This image is answered {said}")
    if before == wanted:
        st.info("Both have the same answer, so nothing can flip: choose another image to put in.")
        return
    sets = sets_of(chosen, [receiver.mask, donor.mask])
    tokens = np.stack(list(sets.values()))
    moved, unrelated = (model.transplant(receiver.image, one.image, tokens) for one in (donor, other))
    for place, name in enumerate(sets):
        st.markdown(f"- {name}: the answer flips {analysis.flips_at(moved[:, place].argmax(-1) == wanted)}")
    parts = [dict(zip(sets, of[:, :, wanted].T, strict=True)) for of in (moved, unrelated)]
    figure = analysis.curves(*parts, model.classes[wanted], model.config.n_classes).interactive()
    page.show(figure, "transplant", f"{donor.name} into {receiver.name}")
    st.caption(f"Dashed: the same tokens of {text(other.name)}, which disturb as much and know nothing of the donor.")
    show_grid(receiver, donor, wanted, moved[:, list(sets).index("CLS")])


st.title("What if another image's state is put in?")
st.markdown(
    "Both images are run; at one step some tokens of this run are replaced by those of the other, and it goes on from "
    "there. Where the answer follows, that is where it was held: in the patches first, in **CLS** (the token that "
    "collects the answer) later."
)
model = live.load(results.chosen())
side = model.config.side
receiver = image.chosen(model)
left, middle, right = st.columns(3)
donor = image.donor(model, middle, "Image that the state is from", "donor")
other = image.donor(model, right, "Unrelated image, for comparison", "unrelated", 2)
left.image(receiver.picture, f"this run: {text(receiver.name)}", width="stretch", alt=receiver.name)
with middle:
    st.caption(f"put in: {text(donor.name)}; draw a box to choose patches")
    page.keep_known("patches", range(side * side))
    held = st.session_state.get("patches", [])
    figure = page.Clickable(analysis.chooser(donor.picture, held, side))
    modes = ["points", "box", "lasso"]
    st.plotly_chart(figure, key=f"chart {MAP}", theme=None, on_select=follow_choice, selection_mode=modes)
right.image(other.picture, text(other.name), width="stretch", alt=other.name)
chosen = st.multiselect("Chosen patches (row by row, from 0)", range(side * side), key="patches", **page.LINKED)
if model.config.n_classes:
    show(receiver, donor, other, chosen)
else:
    st.info("This model has no classifier, so there is no answer to flip.")
