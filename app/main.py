"""The dashboard: which run, which page. ``streamlit run app/main.py -- --runs DIR`` (default runs/)."""

from pathlib import Path

import streamlit as st

from app import live

VIEWS = Path(__file__).parent / "views"  # a folder called pages would be served by Streamlit on its own, without this file
PROBES = {
    "ckpt.pt": "python -m models.train --data shapes --out {run}",
    "pointing_game.nc": "python -m probes.pointing_game {run}",
}

st.set_page_config("bViT, step by step", "🔍", layout="wide")
pages = [
    st.Page(VIEWS / "overview.py", title="Overview", icon=":material/home:", default=True),
    st.Page(VIEWS / "steps.py", title="Steps", icon=":material/footprint:"),
    st.Page(VIEWS / "pointing_game.py", title="Pointing game", icon=":material/my_location:"),
]
page = st.navigation(pages)
root = live.runs_root()
found = live.runs(root)
with st.sidebar:
    if found:
        live.linked("run", found[0], found)
        st.selectbox("Run", found, key="run", on_change=live.remember("run"), help=f"folders of {root}/ that hold a checkpoint or a result")
        there = {name: (root / st.session_state["run"] / name).exists() for name in PROBES}
        st.caption("here: " + (", ".join(name for name, is_there in there.items() if is_there) or "nothing"))
        for name in (name for name, is_there in there.items() if not is_there):
            st.caption(f"{name} is missing; this makes it:")
            st.code(PROBES[name].format(run=root / st.session_state["run"]), language="bash")
if found:
    page.run()
else:
    st.title("No run here yet")
    st.write(f"`{root}` holds no run. This trains one on the embedded data (an hour or two on two cores, minutes on a GPU):")
    st.code(f"python -m models.train --data shapes --model bvit_shapes --out {root}/first", language="bash")
