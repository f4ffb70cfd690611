"""What does a neuron look for at each step?"""

import numpy as np
import pandas as pd
import streamlit as st
import xarray as xr

from analyses import neurons as analysis
from analyses import style
from app import image, page, results
from app.contents import NEURONS

WIDTH, REAL = 140, 3  # of a picture in pixels, and real images under each
LISTED = 8  # neurons that change most, and least

st.title("What does a neuron look for at each step?")
st.markdown(
    "A neuron's **activation** is its value after GELU, mean over the patches. Each picture was optimised to maximise "
    "it at one step; below it stand the real images that do. A picture is worth something if it activates the neuron "
    "more than the **best real image**; real images of two steps overlap only as far as they do beyond random sets and "
    "beyond the untrained model."
)
result = results.required(NEURONS, "There are no pictures of this run's neurons yet. This makes them:")

neurons, recipes, steps = (result[name].values.tolist() for name in ("neuron", "recipe", "step"))
left, right = st.columns(2)
about = f"those of the model's {result.sizes['unit']} neurons that pictures were made of; below is how to add others"
neuron = left.selectbox("Neuron", neurons, key="neuron", help=about, **page.LINKED)
best = recipes.index(analysis.best_recipe(result))
about = "tv: pixels, total variation; maco: Fourier phases, real spectrum"
recipe = right.selectbox("Recipe", recipes, best, key="recipe", help=about, **page.LINKED)
here, n_top = result.sel(neuron=neuron, recipe=recipe), result.sizes["place"]
won = int((here["activation"] > here["best_real"]).sum())
overlap = analysis.top_overlap(result)
untrained = f"; mean over the untrained model's neurons {overlap['untrained']:.2f}" if "untrained" in overlap else ""
st.markdown(
    f"The picture beats the best of {result.attrs['n_read']} real images at **{won} of {len(steps)}** steps. The top "
    f"{n_top} real images of two steps overlap by **{analysis.off_diagonal(here['jaccard'].values):.2f}** (Jaccard; "
    f"random sets {overlap['random']:.3f}{untrained})."
)


def show_step(cell: xr.Dataset) -> None:
    """The picture made for one step, and the real images that activate the neuron most there."""
    label, activation = style.step_label(int(cell["step"])), float(cell["activation"])
    st.image(cell["picture"].values, f"{label}: {activation:.2f}", width="stretch", alt=f"picture by {label}")
    top = zip(cell["top"].values.tolist(), cell["top_activation"].values.tolist(), strict=True)
    real = [(index, reached) for index, reached in top if index in thumbnails][:REAL]
    if real:
        row = np.concatenate([thumbnails[index] for index, _ in real], 1)
        said = "real: " + ", ".join(f"{reached:.2f} (#{index})" for index, reached in real)
        st.image(row, said, width="stretch", alt=f"real images, {label}")
        image.to_story(st, real[0][0], result, f"story of #{real[0][0]}")
    else:
        st.caption(f"best real image: #{int(cell['top'].values[0])}, {float(cell['best_real']):.2f}")


has_pixels = "thumbnail" in result
thumbnails = dict(zip(result["shown"].values.tolist(), result["thumbnail"].values, strict=True)) if has_pixels else {}
for place, step in zip(page.tiles(len(steps), WIDTH), steps, strict=True):
    with place:
        show_step(here.sel(step=step))
if not has_pixels:
    st.info(results.without_pixels(result, "its real images are"))

over_steps, transfer, overlaps = st.tabs(
    ["Activation over the steps", "Transfer between steps", "Overlap of the top images"]
)
with over_steps:
    figure = analysis.curves(result, neuron=neuron)
    page.show(figure, f"neuron {neuron}", table=lambda: analysis.frame(result), key="neuron")
with transfer:
    st.caption(
        "The activation that the picture made for one step (row) reaches at another (column), over that of the best "
        "real image there."
    )
    page.show(
        analysis.interactive(result, neuron=neuron, recipe=recipe), f"neuron {neuron} transfer {recipe}", key="transfer"
    )
with overlaps:
    st.caption(f"Jaccard overlap of the top {n_top} real images of this neuron at two steps.")
    page.show(analysis.overlaps(result, neuron=neuron), f"neuron {neuron} overlap", key="overlap")


def show_changing() -> None:
    """Of all neurons those that change most and least, apart by whether they can be opened here."""
    st.header("Which neurons change over the steps?")
    st.markdown(f"Of all {result.sizes['unit']} neurons, as the real images activate them, the {LISTED} of each kind.")
    spread = analysis.spread_of(result, LISTED)
    rows = {
        what: {
            "opened above": ", ".join(str(unit) for unit in units if unit in neurons) or "none",
            "no pictures yet": ", ".join(str(unit) for unit in units if unit not in neurons) or "none",
        }
        for what, units in spread.items()
    }
    st.table(pd.DataFrame.from_dict(rows, orient="index"))
    others = [unit for units in spread.values() for unit in units if unit not in neurons]
    if others:
        st.caption(
            f"This opens neuron {others[0]} too; any others can be named. It writes {NEURONS.file} anew, with the "
            "neurons that it names alone: it names those that are there now."
        )
        named = ",".join(map(str, [*neurons, others[0]]))
        st.code(f"{NEURONS.made_by(results.chosen())} --neurons {named}", language=None, wrap_lines=True)


show_changing()
