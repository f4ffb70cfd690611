"""The dashboard: a trained model, watched step by step.

streamlit run app/main.py -- --runs runs        (or: make demo)
"""

import streamlit as st

from app import runs, view

PAGES = [
    st.Page("pages/overview.py", title="Overview", icon=":material/home:", default=True),
    st.Page("pages/steps.py", title="Steps", icon=":material/footprint:"),
    st.Page("pages/pointing_game.py", title="Pointing game", icon=":material/target:"),
]

st.set_page_config(page_title="bViT", page_icon="🔁", layout="wide")
page = st.navigation(PAGES)
with view.complaints():
    runs.sidebar()
    page.run()
