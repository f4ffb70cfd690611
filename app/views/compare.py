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


def others(run: str) -> list[str]:
    """What the run can be put beside: the other ones, and every one untrained."""
    runs = [name for name in results.runs() if CHECKPOINT.is_here(results.root() / name)]
    return [*[name for name in runs if name != run], *[f"{name}{UNTRAINED}" for name in runs]]


def opened(name: str) -> live.Model:
    """A model by its name here."""
    is_untrained = name.endswith(UNTRAINED)
    run = results.root() / name.removesuffix(UNTRAINED)
    return live.load(run, "init" if is_untrained else "ema")


@page.part
def show_attention(traced: dict[str, dict[str, np.ndarray]]) -> None:
    st.header("What CLS attends to")
    n_steps = max(len(of["attention"]) for of in traced.values())
    step = page.number(st, "Step", n_steps, "step", shown="blocks.%d")
    at = {name: min(step, len(of["attention"]) - 1) for name, of in traced.items()}
    said = " beside ".join(f"{text(name)} at {style.step_label(t)}" for name, t in at.items())
    st.markdown(
        f"{said}; where one model has fewer steps, its last one. All maps on one scale, means over heads first."
    )
    figure = analysis.attention({name: of["attention"][at[name]] for name, of in traced.items()})
    page.show(figure, "compare attention", said)


def show_answers(traced: dict[str, dict[str, np.ndarray]], classes: dict[str, list[str]]) -> None:
    st.header("The answers as they form")
    there = {name: of["probability"] for name, of in traced.items() if "probability" in of}
    if len(there) < 2:
        st.info("One of the models has no classifier, so there is no answer to compare.")
        return
    columns = st.columns(2)
    for column, (name, of) in zip(columns, there.items(), strict=True):
        last = of[-1]
        page.metric(column, text(name), text(classes[name][int(last.argmax())]), f"{100 * last.max():.1f} %")
    likely = [classes[name][k] for name, of in there.items() for k in np.argsort(-of.max(0), kind="stable")[:SHOWN]]
    chance = 1 / max(of.shape[1] for of in there.values())
    page.show(analysis.answers(there, classes, list(dict.fromkeys(likely)), chance).interactive(), "compare answers")


@page.part
def show_probes(run: str, beside: str) -> None:
    """Curves of a probe that both runs have a result of, over each other."""
    st.header("What was measured of both")
    both = [run, beside.removesuffix(UNTRAINED)]
    common = [kind for kind in NEEDED if kind.holds and all(kind.is_here(results.root() / name) for name in both)]
    if beside.endswith(UNTRAINED) or not common:
        st.info("Results lie beside trained models; those hold their untrained control as dashed lines.")
        return
    kind = st.selectbox("Probe", common, format_func=title_of, key="probe", **page.LINKED)
    runs = tuple(results.root() / name for name in both)
    stamps, is_dark = tuple(results.stamp(run / kind.file) for run in runs), st.context.theme.type == "dark"
    content = picture(runs, kind, stamps, is_dark)
    said = f"{title_of(kind)} of {both[0]} and {both[1]}"
    address = f"data:image/png;base64,{b64encode(content).decode()}"
    st.html(f'<div style="overflow-x: auto"><img alt="{escape(said)}" src="{address}" style="{READABLE}"></div>')
    st.caption(text(said))
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
beside = st.selectbox(f"Beside {text(run)}", others(run), key="with", format_func=text, **page.LINKED)
first = live.load(results.chosen())
shown = image.chosen(first)
try:
    second = opened(beside)
except InputError as error:
    st.info(f"{text(beside)} cannot be put beside it: {text(error)}.")
    st.stop()
models = {run: first, beside: second}
seen = {name: image.seen_by(shown, model) for name, model in models.items()}
left, right = st.columns([1, 4])
left.image(shown.picture, "what the model sees", width=190, alt=shown.name)
right.header(text(shown.name))
for name, model in models.items():
    said = model.about
    blocks = "1 block" if said["blocks"] == 1 else f"{said['blocks']} blocks"
    right.markdown(f"{text(name)}: {blocks}, {said['steps']} steps, {said['parameters'] / 1e6:.3f} M parameters")
traced = {name: model.trace(seen[name].image) for name, model in models.items()}
show_attention(traced)
show_answers(traced, {name: model.classes for name, model in models.items()})
show_probes(run, beside)
