"""Results that no page of their own shows, such as those of a probe of one's own."""

from types import ModuleType

import streamlit as st
import xarray as xr

from analyses import draw, plain, style
from app import page, results
from app.text import text

run = results.chosen()
st.title("Other results")
st.markdown(
    "Every result in the run's folder that has no page of its own, such as that of a probe of your own: what runs over "
    "steps, states or rounds is drawn, the rest is in the table; the **untrained** model stands beside, where it was "
    "measured."
)
paths = {path.name: path for path in results.others(run)}
if not paths:
    st.info(
        f"{text(run)} holds no such result. A probe is ten lines; the head of probes/probe.py is one, which this runs:"
    )
    st.code(f"python my_probe.py {run}", language=None)
    st.stop()


def show_figure(result: xr.Dataset, analysis: ModuleType, name: str) -> None:
    """The figure of the result's own analysis; without one, of a variable to choose; and the table as a file."""
    look, variables = {}, plain.of_kind(result, *plain.DRAWN)
    if analysis is plain and variables:
        look["name"] = st.selectbox("Variable", variables, key="variable", **page.LINKED)
    if analysis is plain and not variables:
        st.info("This result holds nothing over steps, states or rounds that could be drawn.")
        page.save_table(lambda: analysis.frame(result), name)
    else:
        figure, title = analysis.interactive(result, **look), " ".join([name, *look.values()])
        page.show(figure, title, style.caption(result), table=lambda: analysis.frame(result))


file = st.selectbox("Result", list(paths), key="result", **page.LINKED)
name, result = paths[file].stem, results.read(paths[file])
analysis = draw.of(name)
results.introduce(result, run)
with page.one_sentence():
    show_figure(result, analysis, name)
with page.one_sentence():
    st.code(analysis.table(result), language=None)
