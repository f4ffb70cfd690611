"""How does a bViT compare with a stacked ViT, over width, steps and seeds?"""

from pathlib import Path

import streamlit as st

from analyses import study as analysis
from app import page, results
from app.text import text
from models.errors import InputError

st.title("How does a bViT compare with a stacked ViT?")
st.markdown(
    "A study trains many models that differ in one thing: width, number of steps, variant, seed. Points are means over "
    "seeds, shaded: ± one standard deviation; **recovery** is what of the stacked ViT's gain over chance a bViT of its "
    "width keeps."
)
folders = {path.parent.name: path.parent for path in sorted(results.root().glob("*/study.csv"))}
if not folders:
    where = text(results.root())
    st.info(f"{where} holds no study yet. This trains one (tens of hours on one core; it can be interrupted):")
    st.code(f"python -m models.study studies/core.yaml --out {results.root()}/study", language=None)
    st.stop()


def show(folder: Path) -> None:
    try:
        frame = analysis.read(folder)
        predicted = analysis.capacities(folder, frame)
        figures = analysis.interactive(frame, predicted)
    except (KeyError, ValueError) as error:
        raise InputError(f"{folder}/study.csv cannot be read ({error}); models.study writes it anew") from None
    places = st.columns(2)
    for i, (title, figure) in enumerate(figures.items()):
        with places[i % 2]:
            st.header(title)
            page.show(figure, title, f"{folder}/study.csv", table=lambda: frame)
    st.code(analysis.table(frame, predicted), language=None)


show(folders[st.selectbox("Study", list(folders), key="study", **page.LINKED)])
