"""Where do images travel, step by step?"""

import numpy as np
import streamlit as st

from analyses import trajectories as analysis
from app import live

run = live.run()
st.title("Where do images travel?")
st.markdown(
    "Every image has a state after each step; all states of all images are laid out in one picture, so positions of different steps compare. "
    "**Play** walks through the steps; the lines are the classes' mean paths; rest the mouse on a point to see its image. A picture in two dimensions "
    "leaves things out, so the numbers below say how far to trust it."
)
result = live.result_or_stop(run, "trajectories", "pacmap", "There are no trajectories of this run yet. This makes them:")

indices = [int(index) for index in result["index"].values]
live.linked("picture", "pacmap", list(analysis.PICTURES))
live.linked("colour", "class", ["class", "step"])
live.linked("follow", -1, [-1, *indices])
left, middle, right = st.columns(3)
picture = left.selectbox("Picture", list(analysis.PICTURES), key="picture", format_func=analysis.PICTURES.get, on_change=live.remember("picture"))
colour = middle.selectbox("Colour by", ["class", "step"], key="colour", on_change=live.remember("colour"))
classes, labels = list(result.attrs["classes"]), result["label"].values
follow = right.selectbox(
    "Follow one image", [-1, *indices], key="follow", on_change=live.remember("follow"),
    format_func=lambda index: "none" if index < 0 else f"{index}: {classes[int(labels[indices.index(index)])]}",
)  # fmt: skip
place = None if follow < 0 else indices.index(follow)

pictures = live.pictures(run, result)
drawn = analysis.interactive(result, picture, colour, place)
st.iframe(analysis.page(drawn, pictures), height=680)
columns = st.columns(4)
if place is not None and place in pictures:
    columns[0].image(pictures[place], caption=f"image {follow}: {classes[int(labels[place])]}", width=160)
with columns[-1]:
    st.download_button("Save as HTML", lambda: analysis.page(drawn, pictures), "trajectories.html", "text/html")
    st.download_button("Table as CSV", lambda: result[["pacmap", "pca"]].to_dataframe().to_csv(), "trajectories.csv", "text/csv")
if len(pictures) < len(indices):
    here = f"Pictures of {len(pictures)} of the {len(indices)} images are at hand"
    st.caption(f"{here}; the others are in `{result.attrs['data']}`, split {result.attrs['split']}.")

st.subheader("Are the nearest images of the same class?")
last = result.isel(state=-1)
full, control = float(last["purity"].sel(space="states")), float(last["control_purity"]) if "control_purity" in result else np.nan
kept = {name: float(last["kept"].sel(picture=name)) for name in analysis.PICTURES}
columns = st.columns(4)
columns[0].metric(
    f"same label among {result.attrs['neighbors']} nearest", f"{100 * full:.1f} %", f"chance {100 * result.attrs['purity_chance']:.1f} %",
    delta_color="off", delta_arrow="off", help="in the full space, after the last step",
)  # fmt: skip
columns[1].metric("untrained", "-" if np.isnan(control) else f"{100 * control:.1f} %")
for column, (name, share) in zip(columns[2:], kept.items(), strict=True):
    column.metric(
        f"neighbours {analysis.PICTURES[name]} keeps", f"{100 * share:.1f} %", f"chance {100 * result.attrs['kept_chance']:.1f} %",
        delta_color="off", delta_arrow="off", help="of the nearest images in the full space, after the last step",
    )  # fmt: skip
figure = analysis.curves(result)
live.chart(figure, "trajectories neighbours")
live.export(figure, "trajectories neighbours")
