"""Which heads point at the object, and at which step?"""

import io

import streamlit as st
from matplotlib.figure import Figure

from analyses import pointing_game as analysis
from analyses import style
from app import live

run = live.run()
st.title("Pointing game")
st.markdown(
    "For every image, head and step, take the patch that CLS attends to most: does it lie on the object? The **hit ratio** is the share of images where "
    "it does. It means something only beside its chance levels: the image centre, a random patch, and the same model untrained."
)
result = live.result_or_stop(run, "pointing_game", "hit_ratio", "There is no pointing game of this run yet. This makes it:")

left, middle, right = st.columns(3)
tolerance = left.segmented_control("Tolerance", result.tolerance.values.tolist(), default=0, format_func=lambda t: f"{t} px at 224") or 0
target = middle.segmented_control("Target", ["class", "any"], default="class", help="the image's own class, or any object") or "class"
average = right.segmented_control("Average", ["micro", "macro"], default="micro", help="over images, or over classes") or "micro"
cell = dict(tolerance=tolerance, target=target, average=average)
levels = {name: 100 * float(result["baseline"].sel(dict(kind=name, **cell))) for name in ("centre", "uniform", "area")}
best = analysis.best_head(result, tolerance=tolerance, target=target)
st.markdown(
    f"Chance: image centre **{levels['centre']:.1f} %**, random patch **{levels['uniform']:.1f} %**. Best head, chosen on one half of the "
    f"{result.sizes['image']} images and scored on the other: head {best['head']} at {style.step_label(best['step'])}, **{100 * best['held_out']:.1f} %** "
    f"(the best of {best['n_heads']} random pointers would reach {100 * best['chance']:.1f} %)."
)


def clicked(event: dict) -> tuple[int, int]:
    """[step, head] of the clicked cell, else of the link, else of the best head."""
    found = event["selection"]["points"]
    if found:
        step, head = int(found[0]["x"]) - 1, int(found[0]["y"])
        st.query_params["step"], st.query_params["head"] = str(step), str(head)
        return step, head
    step, head = (st.query_params.get(name, "") for name in ("step", "head"))
    is_link = step.isdigit() and head.isdigit() and int(step) < result.sizes["step"] and int(head) < result.sizes["head"]
    return (int(step), int(head)) if is_link else (best["step"], best["head"])


def panel(place: int, step: int, head: int) -> bytes:
    """One stored image under the head's attention, as PNG."""
    figure = Figure(figsize=(1.9, 2.0), layout="constrained", dpi=110)
    analysis.draw_example(figure.subplots(), result, place, step, head, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


left, right = st.columns([3, 2])
with left:
    st.subheader("Every head at every step")
    figure = analysis.interactive(result, **cell)
    event = live.chart(figure, "pointing game", on_select="rerun", selection_mode="points")
    live.export(figure, "pointing game")
    st.download_button("Table as CSV", lambda: result["hit_ratio"].to_dataframe().to_csv(), "pointing_game.csv", "text/csv")
with right:
    st.subheader("Over the steps")
    curves = analysis.curves(result, **cell)
    live.chart(curves, "pointing game curves")
    live.export(curves, "pointing game curves")

step, head = clicked(event)
here = dict(step=step, head=head, **cell)
ratio, low, high = (100 * float(result[name].sel(here)) for name in ("hit_ratio", "hit_low", "hit_high"))
st.subheader(f"{style.step_label(step)}, head {head}")
columns = st.columns(5)
columns[0].metric("hit ratio", f"{ratio:.1f} %", f"95 %: {low:.1f} to {high:.1f}", delta_color="off", delta_arrow="off")
if "control_hit_ratio" in result:
    columns[1].metric("untrained", f"{100 * float(result['control_hit_ratio'].sel(here)):.1f} %")
columns[2].metric("random patch", f"{levels['uniform']:.1f} %")
mass = float(result["mass"].sel(dict(step=step, head=head)))
columns[3].metric(
    "attention mass on the object",
    f"{100 * mass:.1f} %",
    f"chance {100 * float(result['chance'].sel(companion='mass')):.1f} %",
    delta_color="off",
    delta_arrow="off",
)
columns[4].metric("attention to CLS itself", f"{100 * float(result['to_cls'].sel(dict(step=step, head=head))):.1f} %")
if "thumbnail" not in result:
    st.info(f"This result was made without pixels; its images are those of `{result.attrs['data']}`, split {result.attrs['split']}.")
    st.stop()
st.caption(
    "Attention over the image, the object outlined, the cross at the maximum; below each the share of the attention inside the object."
)
for kind, title in (
    ("best", "Images on which most heads point at the object"),
    ("random", "Drawn at random"),
    ("worst", "On which fewest do"),
):
    st.markdown(f"**{title}**")
    places = [i for i, name in enumerate(result["shown_as"].values) if name == kind][:8]
    for column, place in zip(st.columns(8), places, strict=False):
        index, label = (int(result[name].values[int(result["shown"].values[place])]) for name in ("index", "label"))
        column.image(panel(place, step, head), caption=f"{index}: {list(result.attrs['classes'])[label]}")
