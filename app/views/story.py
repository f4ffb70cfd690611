"""What happens to one image, step by step?"""

import streamlit as st

from analyses import story
from app import gallery, image, live, page, results

AT_ONCE = 2e10  # FLOPs of what is run without being asked, well under a second

telling = st.components.v2.component("story", js=story.script())
choosing = st.components.v2.component("gallery", js=story.script())


def cells() -> dict[str, live.Cell]:
    """Every head at every step, by its name in the link."""
    config = model.config
    return {f"blocks.{t} head {h}": (t, h) for t in range(config.n_steps) for h in range(config.n_heads)}


def toggle() -> None:
    """A click on a cell: that head goes off, or on again."""
    clicked = str(st.session_state["story"].get("toggle") or "").split(".")
    if len(clicked) == 3 and (name := f"blocks.{clicked[0]} head {clicked[1]}") in cells():
        off = st.session_state["off"]
        st.session_state["off"] = [one for one in off if one != name] if name in off else [*off, name]


def open_moment() -> None:
    """A click on a picture of the gallery."""
    clicked = st.session_state["gallery"].get("moment")
    if type(clicked) is int and clicked in {one["index"] for one in gallery.of(results.chosen(), model)}:
        st.session_state["image"] = clicked


def told(shown: image.Shown) -> story.Story:
    """The image's story, from runs with and without the heads that are off."""
    every = cells()
    page.keep_known("off", every)
    look = dict(key="off", placeholder="click a cell of the story")
    off = tuple(
        every[name] for name in st.sidebar.multiselect("Heads that are off", list(every), **look, **page.LINKED)
    )
    before = model.trace(shown.image)
    if "probability" not in before:
        return story.Story(shown.name, shown.picture, (), model.trace(shown.image, off), off=off, about=about())
    untouched = before["probability"][-1]
    traced = model.trace(shown.image, off, int(untouched.argmax())) if off else before
    flips = model.flips(shown.image, off) if wants_heads() else None
    truth, mask = shown.label, shown.mask
    look = dict(off=off, truth=truth, mask=mask, factors=shown.factors, about=about())
    return story.Story(shown.name, shown.picture, model.classes, traced, untouched, flips, **look)


def wants_heads() -> bool:
    """Whether every head is switched off in turn: by itself where that is quick, else when it is asked for."""
    flops = model.flops() * (model.config.n_steps + 1) * model.config.n_heads
    return flops < AT_ONCE or st.sidebar.toggle("Switch every head off in turn", key="heads", **page.LINKED)


def about() -> str:
    """Which model it is, for the page that is saved."""
    said, origin = model.about, model.origin
    kind = "bViT" if said["blocks"] == 1 else f"ViT of {said['blocks']} blocks"
    return (
        f"{results.chosen().name}: {kind} of {said['steps']} steps, {said['heads']} heads, width {said['width']}, "
        f"{origin.weights} weights, sha256 {str(origin.sha256)[:12]}; steps count from 1, heads from 0."
    )


st.title("What happens to one image, step by step")
model = live.load(results.chosen())
shown = image.chosen(model)
drawn = story.payload(told(shown))
telling(key="story", data=drawn, on_toggle_change=toggle, on_another_change=lambda: image.another(model))
page.download("Save the story as HTML", lambda: story.page(drawn), "story.html", "text/html")
st.caption(
    "**CLS** is the token that collects the answer; the coloured pictures show which patches it attends to, brighter "
    "is more. **Read out after a step** (logit lens): the final norm and head, trained for the last step only, read "
    "the state after that one; the same on a patch says what it would answer. **Points lost**: the probability that "
    "the answer has less when one head writes nothing at one step."
)
if moments := gallery.of(results.chosen(), model):
    choosing(key="gallery", data={"moments": moments}, on_moment_change=open_moment)
