"""Which run, which page: what runs for every visitor, at every click."""

import streamlit as st

from app import page, results
from app.contents import PAGES, RESULTS
from app.text import text


def choose_run(runs: list[str]) -> None:
    """The run's folder, from a link or the list; and what it holds."""
    asked = st.query_params.get("run", runs[0])
    if asked not in runs:
        st.warning(f"The link names the run {text(asked)}, which is not here; this is another one.")
    about = f"folders of {text(results.root())}/ that hold a checkpoint or a result"
    st.selectbox("Run", runs, key="run", help=about, **page.LINKED)
    run = results.chosen()
    here = [result.file for result in RESULTS if result.is_here(run)] + [path.name for path in results.others(run)]
    if unnamed := results.unnamed():
        st.caption(f"not shown, as no link can name it; rename the folder: {text(', '.join(unnamed))}")
    if closed := results.closed():
        st.caption(f"not shown, as this server may not read it: {text(', '.join(closed))}")
    st.caption("here: " + (text(", ".join(here)) or "nothing"))
    missing = [result for result in RESULTS if not result.is_here(run) and result.can_be_made(run)]
    if missing:
        with st.popover(f"missing: {len(missing)}"):
            st.code("\n".join(result.made_by(run) for result in missing), language=None, wrap_lines=True)


st.set_page_config("bViT, step by step", "🔍", layout="wide")
pages = [st.Page(one.path, title=one.title, icon=one.icon, default=one is PAGES[0]) for one in PAGES]
opened = st.navigation(pages, expanded=True)
runs = results.runs()
if runs:
    with st.sidebar, page.one_sentence():
        choose_run(runs)
    st.session_state[page.WHOSE] = ""
    with page.one_sentence():
        opened.run()
elif results.is_closed(results.root()):
    st.error(f"{text(results.root())} is no folder that this server may look into; name another with --runs.")
else:
    root = results.root()
    st.title("No run here yet")
    st.write(
        f"{text(root)} holds no run. This trains one on the embedded data (an hour or two on two cores, minutes on a "
        "GPU):"
    )
    st.code(f"python -m models.train --data shapes --model bvit_shapes --out {root}/first", language=None)
