"""Where do images travel, step by step?"""

from pathlib import Path

import pandas as pd
import streamlit as st

from analyses import style
from analyses import trajectories as analysis
from app import door, image, live, page, results
from app.contents import TRAJECTORIES
from app.text import text

st.title("Where do images travel?")
st.markdown(
    "Every image has a state after each step; all states of all images are laid out in one picture, so positions of "
    "different steps compare. **Play** walks through the steps; the lines are the classes' mean paths; rest the mouse "
    "on a point to see its image. A picture in two dimensions leaves things out, so the numbers below say how far to "
    "trust it."
)
result = results.required(TRAJECTORIES, "There are no trajectories of this run yet. This makes them:")

indices, classes = result["index"].values.tolist(), list(result.attrs["classes"])
names = {index: f"{index}: {classes[label]}" for index, label in zip(indices, result["label"].values, strict=True)}
left, middle, right = st.columns(3)
look = dict(key="picture", format_func=analysis.PICTURES.get)
picture = left.selectbox("Picture", analysis.PICTURES, **look, **page.LINKED)
colour = middle.selectbox("Colour by", ["class", "step"], key="colour", **page.LINKED)
look = dict(key="follow", placeholder="none", format_func=names.get)
follow = right.selectbox("Follow one image", indices, None, **look, **page.LINKED)
titles = page.titles("trajectories", f"{analysis.PICTURES[picture]}, by {colour}")
place = None if follow is None else indices.index(follow)


def positions() -> pd.DataFrame:
    """Where every image is after each step, in both pictures."""
    return result[["pacmap", "pca"]].to_dataframe().reset_index()


@st.cache_data(max_entries=16, show_spinner=False)
def framed(file: str, changed: tuple[int, ...], look: tuple[str, str, int | None], script: str, scheme: str) -> str:
    """The page in the frame, made once for all visitors from what this file holds since it was changed."""
    return analysis.page(analysis.interactive(results.read(Path(file)), *look), script, door.PLOTLY, scheme)


def saved(pictures: dict[int, str]) -> str:
    """The same as a page that needs nothing from outside."""
    return analysis.page(analysis.interactive(result, picture, colour, place), pictures, titles=titles)


def show_paths() -> None:
    pictures = live.pictures(results.chosen(), result)
    script = door.serve(analysis.pictures_script(pictures), ".js")
    file = results.chosen() / TRAJECTORIES.file
    look = picture, colour, place
    drawn = framed(str(file), results.stamp(file), look, script, st.context.theme.type or "light")
    st.iframe(f"/{door.ASSETS}/{door.serve(drawn, '.html')}", height=680)
    left, right = st.columns([1, 3])
    if place in pictures:
        left.image(pictures[place], f"image {text(names[follow])}", width=160, alt=names[follow])
        image.to_story(left, follow, result)
    with right.container(horizontal=True, horizontal_alignment="right"):
        page.download("Save as HTML", lambda: saved(pictures), "trajectories.html", "text/html")
        page.save_table(positions, "trajectories positions", "Positions as CSV")
    if len(pictures) < len(indices):
        here = f"Pictures of {len(pictures)} of the {len(indices)} images are at hand"
        st.caption(f"{here}; the others are in {text(result.attrs['data'])}, split {text(result.attrs['split'])}.")


def show_neighbours() -> None:
    """How far to trust the picture: after the last step, of the nearest images in the full space."""
    st.header("Are the nearest images of the same class?")
    last, columns = result.isel(state=-1), st.columns(4)
    same, chance = float(last["purity"].sel(space="states")), result.attrs["purity_chance"]
    title, about = f"same label among {result.attrs['neighbors']} nearest", "in the full space, after the last step"
    page.metric(columns[0], title, f"{100 * same:.1f} %", f"chance {100 * chance:.1f} %", help=about)
    untrained = style.untrained(last, "purity")
    page.metric(columns[1], "untrained", "-" if untrained is None else f"{100 * float(untrained):.1f} %")
    beside = f"chance {100 * result.attrs['kept_chance']:.1f} %"
    about = "of the nearest images in the full space, after the last step"
    for column, (name, title) in zip(columns[2:], analysis.PICTURES.items(), strict=True):
        kept = 100 * float(last["kept"].sel(picture=name))
        page.metric(column, f"neighbours {title} keeps", f"{kept:.1f} %", beside, help=about)
    page.show(analysis.curves(result), "trajectories neighbours", table=lambda: analysis.frame(result))


show_paths()
show_neighbours()
