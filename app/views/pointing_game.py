"""Which heads point at the object, and at which step?"""

import streamlit as st

from analyses import pointing_game as analysis
from analyses import style
from app import image, page, results
from app.contents import MAPS
from app.text import text

SHOWN_AS = {
    "best": "Images on which most heads point at the object",
    "random": "Drawn at random",
    "worst": "On which fewest do",
}
MAP = "pointing game"  # the figure that is clicked on
SHOWN, WIDTH = 8, 100  # images of each kind, and their width in pixels

st.title("Pointing game")
st.markdown(
    "For every image, head and step, take the patch that CLS attends to most: does it lie on the object? The **hit "
    "ratio** is the share of images where it does. It means something only beside its chance levels: the image centre, "
    "a random patch, and the same model untrained. Maps of **relevance** for the class point in its place: attention "
    "times gradient, Chefer's, or attention rolled out from a step on."
)
about = "attention and gradient: of each head; chefer and rollout: of all heads, up to a step and from a step on"
pointer = page.segments(st, "Map", list(MAPS), "map", help=about)
kind = MAPS[pointer]
result = results.required(kind, f"There is no pointing game of {pointer} of this run yet. This makes it:")

left, middle, right = st.columns(3)
radius = page.segments(left, "Radius (px at 224)", result["radius"].values.tolist(), "radius")
target = page.segments(middle, "Target", ["class", "any"], "target", help="the image's own class, or any object")
average = page.segments(right, "Average", ["micro", "macro"], "average", help="over images, or over classes")
cell = dict(radius=radius, target=target, average=average)
chance = {where: 100 * float(result["baseline"].sel(kind=where, **cell)) for where in ("centre", "uniform")}
best = results.drawn(kind, analysis.best_head, radius=radius, target=target)
named = analysis.head_label(result, best["head"])
st.markdown(
    f"Chance: image centre **{chance['centre']:.1f} %**, random patch **{chance['uniform']:.1f} %**. Best head, chosen "
    f"on one half of the {result.sizes['image']} images and scored on the other: {named} at "
    f"{style.step_label(best['step'])}, **{100 * best['held_out']:.1f} %** (the best of {best['n_heads']} random "
    f"pointers would reach {100 * best['chance']:.1f} %)."
)


def follow_click() -> None:
    """A click on a cell of the map moves the sliders, which are the link."""
    for point in st.session_state[f"chart {MAP}"]["selection"]["points"]:
        st.session_state["cell_step"], st.session_state["cell_head"] = int(point["x"]) - 1, int(point["y"])


def show_images(step: int, head: int) -> None:
    st.caption(
        f"{pointer.capitalize()} over the image, the object outlined, the cross at the maximum; below each the share "
        "of it inside the object."
    )
    classes = list(result.attrs["classes"])
    for chosen_as, title in SHOWN_AS.items():
        st.markdown(f"**{title}**")
        places = [i for i, shown_as in enumerate(result["shown_as"].values) if shown_as == chosen_as][:SHOWN]
        for column, place in zip(page.tiles(len(places), WIDTH), places, strict=True):
            index, label = (int(result[name].values[result["shown"].values[place]]) for name in ("index", "label"))
            picture, inside = analysis.pixels_of_example(result, place, step, head)
            said = f"{index}: {text(classes[label])}, {inside}"
            column.image(picture, said, alt=f"attention over image {index}, {classes[label]}")
            image.to_story(column, index, result)


@page.part
def show_cell() -> None:
    """One head at one step: its numbers, and the images."""
    left, right = st.columns(2)
    step = page.number(left, "Step", result.sizes["step"], "cell_step", best["step"], shown="blocks.%d")
    head = page.number(right, "Head", result.sizes["head"], "cell_head", best["head"], shown="head %d")
    st.header(f"{style.step_label(step)}, {analysis.head_label(result, head)}")
    here, at = result.sel(step=step, head=head), dict(step=step, head=head)
    ratio, low, high = (100 * float(here[name].sel(cell)) for name in ("hit_ratio", "hit_low", "hit_high"))
    columns = st.columns(5)
    page.metric(columns[0], "hit ratio", f"{ratio:.1f} %", f"95 %: {low:.1f} to {high:.1f}")
    untrained = style.untrained(result, "hit_ratio")
    if untrained is not None:
        page.metric(columns[1], "untrained", f"{100 * float(untrained.sel(at | cell)):.1f} %")
    page.metric(columns[2], "random patch", f"{chance['uniform']:.1f} %")
    inside = f"chance {100 * float(result['chance'].sel(companion='mass')):.1f} %"
    page.metric(columns[3], "mass on the object", f"{100 * float(here['mass']):.1f} %", inside)
    control = style.untrained(result, "to_cls")
    beside = None if control is None else f"untrained {100 * float(control.sel(at)):.1f} %"
    page.metric(columns[4], "on CLS itself", f"{100 * float(here['to_cls']):.1f} %", beside)
    if "thumbnail" in result:
        show_images(step, head)
    else:
        st.info(results.without_pixels(result, "its images are"))


left, right = st.columns([3, 2])
with left:
    st.header("Every head at every step")
    figure = results.drawn(kind, analysis.interactive, **cell)
    page.show(figure, MAP, table=lambda: analysis.frame(result), on_select=follow_click, selection_mode="points")
with right:
    st.header("Over the steps")
    page.show(results.drawn(kind, analysis.curves, **cell), "pointing game curves")

show_cell()
