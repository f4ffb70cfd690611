"""What decides the answer, at which step, and can steps change places?"""

import streamlit as st
import xarray as xr

from analyses import patching as analysis
from app import image, page, results
from app.contents import PATCHING
from app.text import text

st.title("What decides the answer, and where?")
st.markdown(
    "Two images differ in one thing. An activation of one run is put into the run of the other: if the answer follows, "
    "that is where the difference lay. **100 %** is the answer of the image that the patch is from, **0 %** no change. "
    "It means something only beside the same patch from an **unrelated** image, which disturbs and tells nothing."
)
result = results.required(PATCHING, "Nothing was patched in this run's model yet. This does it:")
if result.attrs["note"]:
    st.caption(f"Note: {text(result.attrs['note'])}.")


def said(words: dict[str, str]) -> str:
    """What the names of a choice mean, for whoever asks."""
    return "; ".join(f"{name}: {meaning}" for name, meaning in words.items())


@page.part
def show_examples(result: xr.Dataset, factor: str, direction: str, site: str) -> None:
    """The pairs of a factor: both pictures, and every patch alone, step by step."""
    st.header("Patch by patch")
    places = [i for i, of in enumerate(result["pair_factor"].values) if of == factor]
    pair = places[page.number(st, "Pair", len(places), "patch_pair", shown="pair %d")]
    left, right = st.columns([1, 4])
    if "thumbnail" in result:
        classes, index = result.attrs["classes"], int(result["pair_index"][pair])
        for run, name in enumerate(("clean", "corrupt")):
            picture, label = result["thumbnail"].isel(pair=pair, run=run).values, int(result["pair_label"][pair, run])
            number = f" ({index})" if run == 0 else ""
            left.image(picture, f"{name}: {text(classes[label])}{number}", width="stretch", alt=classes[label])
        image.to_story(left, index, result, "story of the clean one")
    else:
        left.info(results.without_pixels(result, "its images are"))
    with right:
        st.caption(
            "How far one patch alone moves the answer; above each map, its step and the effect of CLS alone (%)."
        )
        page.show(analysis.token_maps(result, pair, direction, site), "patching patches")


left, middle, right = st.columns(3)
factor = page.segments(left, "The images differ in", result["factor"].values.tolist(), "patch_factor")
direction = page.segments(middle, "Patch", list(analysis.DIRECTIONS), "patch_direction", help=said(analysis.DIRECTIONS))
site = page.segments(right, "Where", list(analysis.SITES), "patch_site", help=said(analysis.SITES))
here = result.sel(factor=factor)
st.markdown(
    f"{int(here['n_pairs'])} pairs whose two images the model answers right (left out: {int(here['n_left_out'])}). "
    f"{text(analysis.handover_line(result, factor))}."
)
left, right = st.columns([3, 2])
with left:
    st.header(f"The {analysis.SITES[site]}, over the steps")
    figure = analysis.interactive(result, factor, direction, site)
    page.show(figure, "patching", table=lambda: analysis.frame(result))
with right:
    st.header("Every head")
    page.show(analysis.heads(result, factor, direction), "patching heads")
if "token_effect" in result:
    show_examples(result, factor, direction, site)
if "shift_accuracy" in result:
    st.header("Steps that change places")
    st.markdown(
        f"Step t (down) gets what stood at step s (across), from the same image or from one of another class; of "
        f"{int(result['n_shifted'])} images. The diagonal is the untouched model; chance is "
        f"{100 * result.attrs['chance']:.1f} %."
    )
    part = st.selectbox("What", analysis.parts_of(result), key="patch_part", **page.LINKED)
    for place, donor in zip(st.columns(2), analysis.DONORS, strict=True):
        with place:
            st.markdown(f"**{text(analysis.PARTS.get(part, part))} {analysis.DONORS[donor]}**")
            page.show(analysis.steps_map(result, donor, part), f"patching steps {donor}")
st.code(analysis.table(result), language=None)
