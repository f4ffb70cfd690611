"""The dashboard: which run, which page. ``streamlit run app/main.py -- --runs DIR`` (default runs/)."""

from pathlib import Path

import streamlit as st

from app import live

VIEWS = Path(__file__).parent / "views"  # a folder called pages would be served by Streamlit on its own, without this file
PROBES = {
    "ckpt.pt": "python -m models.train --data shapes --out {run}",
    "pointing_game.nc": "python -m probes.pointing_game {run}",
    "neurons.nc": "python -m probes.neurons {run}",
    "rank.nc": "python -m probes.rank {run}",
    "trajectories.nc": "python -m probes.trajectories {run}",
    "recurrence.nc": "python -m probes.recurrence {run}",
}

st.set_page_config("bViT, step by step", "🔍", layout="wide")
pages = [
    st.Page(VIEWS / "overview.py", title="Overview", icon=":material/home:", default=True),
    st.Page(VIEWS / "steps.py", title="Steps", icon=":material/footprint:"),
    st.Page(VIEWS / "pointing_game.py", title="Pointing game", icon=":material/my_location:"),
    st.Page(VIEWS / "neurons.py", title="Neurons", icon=":material/neurology:"),
    st.Page(VIEWS / "rank.py", title="Rank", icon=":material/stacked_line_chart:"),
    st.Page(VIEWS / "trajectories.py", title="Trajectories", icon=":material/timeline:"),
    st.Page(VIEWS / "recurrence.py", title="Recurrence", icon=":material/repeat:"),
    st.Page(VIEWS / "prune.py", title="Pruning", icon=":material/content_cut:"),
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
        missing = [PROBES[name].format(run=root / st.session_state["run"]) for name, is_there in there.items() if not is_there]
        if missing:
            st.caption("missing; this makes it:")
            st.code("\n".join(missing), language="bash")
if found:
    page.run()
else:
    st.title("No run here yet")
    st.write(f"`{root}` holds no run. This trains one on the embedded data (an hour or two on two cores, minutes on a GPU):")
    st.code(f"python -m models.train --data shapes --model bvit_shapes --out {root}/first", language="bash")
