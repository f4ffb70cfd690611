"""How do two models look at the same image?"""

import io
from base64 import b64encode
from html import escape
from pathlib import Path

import numpy as np
import streamlit as st

from analyses import compare as analysis
from analyses import dark, draw, style
from app import image, live, page, results
from app.contents import CHECKPOINT, NEEDED, Result
from app.text import text
from models.errors import InputError

UNTRAINED = " untrained"
SHOWN = 3  # classes of each model
READABLE = "width: 100%; min-width: 640px; border-radius: 8px"  # a narrow window scrolls over the picture


def others(run: str) -> dict[str, tuple[str, str]]:
    """What the run can be put beside, its run and weights by its name here: the other ones, and every one untrained. A
    run's own name goes before what another would be called untrained.
    """
    runs = [name for name in results.runs() if CHECKPOINT.is_here(results.root() / name)]
    trained, untrained = (
        {name: (name, "ema") for name in runs},
        {f"{name}{UNTRAINED}": (name, "init") for name in runs},
    )
    every = trained | {name: model for name, model in untrained.items() if name not in trained}
    return {name: model for name, model in every.items() if name != run}


@page.part
def show_attention(traced: dict[str, dict[str, np.ndarray]]) -> None:
    st.header("What CLS attends to")
    n_steps = max(len(arrays["attention"]) for arrays in traced.values())
    step = page.number(st, "Step", n_steps, "step", shown="blocks.%d")
    at = {name: min(step, len(arrays["attention"]) - 1) for name, arrays in traced.items()}
    caption = " beside ".join(f"{text(name)} at {style.step_label(t)}" for name, t in at.items())
    st.markdown(
        f"{caption}; where one model has fewer steps, its last one. All maps on one scale, means over heads first."
    )
    maps = {name: arrays["attention"][at[name]] for name, arrays in traced.items()}
    page.show(analysis.attention(maps), "compare attention", caption, table=lambda: analysis.frame(maps))


def show_answers(traced: dict[str, dict[str, np.ndarray]], classes: dict[str, list[str]]) -> None:
    st.header("The answers as they form")
    there = {name: arrays["probability"] for name, arrays in traced.items() if "probability" in arrays}
    if len(there) < 2:
        st.info("One of the models has no classifier, so there is no answer to compare.")
        return
    columns = st.columns(2)
    for column, (name, probability) in zip(columns, there.items(), strict=True):
        last = probability[-1]
        page.metric(column, text(name), text(classes[name][int(last.argmax())]), f"{100 * last.max():.1f} %")
    likely = []
    for name, probability in there.items():
        order = np.argsort(-probability.max(0), kind="stable")
        likely += [classes[name][k] for k in order[:SHOWN]]
    page.show(analysis.answers(there, classes, list(dict.fromkeys(likely))).interactive(), "compare answers")


@page.part
def show_probes(run: str, beside: str, weights: str) -> None:
    """Curves of a probe that both runs have a result of, over each other."""
    st.header("What was measured of both")
    both = [run, beside]
    common = [kind for kind in NEEDED if kind.holds and all(kind.is_here(results.root() / name) for name in both)]
    if weights == "init" or not common:
        st.info("Results lie beside trained models; those hold their untrained control as dashed lines.")
        return
    kind = st.selectbox("Probe", common, format_func=title_of, key="probe", **page.LINKED)
    runs = tuple(results.root() / name for name in both)
    for one in runs:
        results.introduce(results.of(one, kind), one, kind)
    stamps, is_dark = tuple(results.stamp(run / kind.file) for run in runs), st.context.theme.type == "dark"
    content = picture(runs, kind, stamps, is_dark)
    caption = f"{title_of(kind)} of {both[0]} and {both[1]}"
    address = f"data:image/png;base64,{b64encode(content).decode()}"
    st.html(f'<div style="overflow-x: auto"><img alt="{escape(caption)}" src="{address}" style="{READABLE}"></div>')
    st.caption(text(caption))
    page.download(
        "Save as PNG", lambda: picture(runs, kind, stamps, False), f"compare {title_of(kind)}.png", "image/png"
    )


@st.cache_data(max_entries=16, show_spinner="drawing", hash_funcs={Result: lambda kind: kind.file})
def picture(runs: tuple[Path, ...], kind: Result, stamps: tuple, is_dark: bool) -> bytes:
    """A PNG of a probe's curves of two runs, drawn once for their results as they are now."""
    content = io.BytesIO()
    drawn = draw.of(kind.file.removesuffix(".nc")).figure({run.name: results.of(run, kind) for run in runs})
    if drawn is None:
        raise InputError(f"{kind.file} of these runs holds nothing to draw over each other")
    (dark.on_dark(drawn) if is_dark else drawn).savefig(content, format="png", dpi=130)
    return content.getvalue()


def title_of(kind: Result) -> str:
    return kind.file.removesuffix(".nc").replace("_", " ")


st.title("Two models, one image")
run = results.chosen().name
known = others(run)
beside = st.selectbox(f"Beside {text(run)}", list(known), key="with", format_func=text, **page.LINKED)
first = live.load(results.chosen())
shown = image.chosen(first)
beside_run, weights = known[beside]
try:
    second = live.load(results.root() / beside_run, weights)
except InputError as error:
    st.info(f"{text(beside)} cannot be put beside it: {text(error)}.")
    st.stop()
models = {run: first, beside: second}
seen = {name: image.seen_by(shown, model) for name, model in models.items()}
left, right = st.columns([1, 4])
left.image(shown.picture, "what the model sees", width=190, alt=shown.name)
right.header(text(shown.name))
for name, model in models.items():
    about = model.about
    blocks = "1 block" if about["blocks"] == 1 else f"{about['blocks']} blocks"
    right.markdown(f"{text(name)}: {blocks}, {about['steps']} steps, {about['parameters'] / 1e6:.3f} M parameters")
traced = {name: model.trace(seen[name].image) for name, model in models.items()}
show_attention(traced)
show_answers(traced, {name: model.classes for name, model in models.items()})
show_probes(run, beside, weights)
