"""The story of one image: what its numbers say in sentences, and a page of it that plays without a server.

`payload` is everything that the drawing needs, as plain JSON; ``story.js`` draws it, in the dashboard and in the page.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from analyses import style

SCRIPT = Path(__file__).with_name("story.js")
LIKELY, TOP = 5, 5  # classes drawn over the steps, and named at each
DECISIVE = 0.5  # of what is lost without a head: where a random change loses as much, the head is not said to decide
STOPS = 17  # of a colour map
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}: step by step</title>
<style>:root {{ color-scheme: light dark }} body {{ font: 16px/1.5 sans-serif; margin: 1rem auto; max-width: 75rem;
padding: 0 1rem; overflow-wrap: anywhere }}</style></head>
<body><h1>What happens to one image, step by step</h1>
<main id="story"></main>
<footer><p>{caption}</p></footer>
<script type="application/json" id="data">{data}</script>
<script type="module">
{script}
const of = (name) => document.getElementById(name);
story({{ data: JSON.parse(of("data").textContent), parentElement: of("story") }});
</script></body></html>
"""


@dataclass(frozen=True)
class Story:
    """One image's run, with some heads off or none, beside the run with all of them on.

    picture: [y x channel] uint8; mask: [y x], what is 1 is the object; traced: as `probes.methods.one_image.trace`
    gives it; untouched: class probabilities [class] of the run with all heads on; flips: [2 step head class] as
    `one_image.flipped` gives it, once it is known; factors: the value that each class has of a factor, by its name.
    """

    name: str
    picture: np.ndarray
    classes: Sequence[str]
    traced: Mapping[str, np.ndarray]
    untouched: np.ndarray | None = None
    flips: np.ndarray | None = None
    off: Sequence[tuple[int, int]] = ()
    truth: int | None = None
    mask: np.ndarray | None = None
    factors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    about: str = ""  # which model

    @property
    def has_answer(self) -> bool:
        return "probability" in self.traced

    @cached_property
    def answer(self) -> int:
        """The class that the story is about: what the model answers with all heads on."""
        return int(self.traced["probability"][-1].argmax() if self.untouched is None else self.untouched.argmax())

    @cached_property
    def lost(self) -> np.ndarray:
        """Probability of the answer that each head is worth: with it less without it [step head]."""
        now = self.traced["probability"][-1, self.answer]
        lost = now - self.flips[0, :, :, self.answer].astype(np.float64)
        for step, head in self.off:
            lost[step, head] *= -1
        return lost


# What the numbers say


def known_from(values: Sequence[int]) -> int:
    """The first place from which on the last value holds."""
    values = np.asarray(values)
    others = np.flatnonzero(values != values[-1])
    return int(others[-1]) + 1 if len(others) else 0


def factor_path(probability: np.ndarray, of_class: Sequence[str]) -> list[str]:
    """The likeliest value of a factor in every state, from class probabilities [state class]."""
    values = list(dict.fromkeys(of_class))
    sums = np.stack([probability[:, [one == value for one in of_class]].sum(1) for value in values], 1)
    return [values[i] for i in sums.argmax(1)]


def when(state: int) -> str:
    return "from the start" if state == 0 else f"from step {state} on"


def percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def sentences(story: Story) -> list[str]:
    """The story in words, from the numbers alone."""
    if not story.has_answer:
        return ["This model has no classifier, so there is no answer to read out."]
    told = [said_of_answer(story), said_of_path(story)]
    if story.off:
        told.append(said_of_off(story))
    if story.flips is not None:
        told.append(said_of_heads(story))
    if story.mask is not None and story.mask.any() and not story.mask.all():
        told.append(said_of_attention(story))
    return told


def said_of_answer(story: Story) -> str:
    last, classes = story.traced["probability"][-1], story.classes
    now = int(last.argmax())
    said = f"The model answers {classes[now]} ({percent(last[now])}; chance {percent(1 / len(last))})"
    if story.truth is None:
        return f"{said}."
    return f"{said}, which is right." if now == story.truth else f"{said}; it is {classes[story.truth]}."


def said_of_path(story: Story) -> str:
    """From which step on the answer, and what it is made of, no longer changes."""
    probability = story.traced["probability"]
    path = probability.argmax(1)
    first = known_from(path)
    said = f"Read out after each step, that is the answer {when(first)}"
    if first > 0:
        said += f"; before, it was {story.classes[path[first - 1]]}"
    paths = {name: factor_path(probability, of_class) for name, of_class in story.factors.items()}
    since = sorted((known_from(values), f"the {name} ({values[-1]})") for name, values in paths.items())
    parts = [f"{name} stands {when(state)}" for state, name in since]
    return f"{said}. Of it, {' and '.join(parts)}." if parts else f"{said}."


def said_of_off(story: Story) -> str:
    names = [f"head {head} at step {step + 1}" for step, head in story.off]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    if story.untouched is None:
        return f"Off: {shown}."
    was, now = (float(of[story.answer]) for of in (story.untouched, story.traced["probability"][-1]))
    kept = int(story.traced["probability"][-1].argmax()) == story.answer
    return (
        f"With {shown} off, {story.classes[story.answer]} goes from {percent(was)} to {percent(now)}"
        f"{'' if kept else ', and the answer is another one'}."
    )


def said_of_heads(story: Story) -> str:
    """Which head decides, beside a change as large in a random direction at the same place."""
    lost, now = story.lost, float(story.traced["probability"][-1, story.answer])
    on = np.ones_like(lost, bool)
    for step, head in story.off:
        on[step, head] = False
    if not on.any():
        return "Every head is off."
    step, head = np.unravel_index(np.where(on, lost, -np.inf).argmax(), lost.shape)
    without, random = (float(of) for of in story.flips[:, step, head, story.answer])
    others = story.flips[0].argmax(-1) != int(story.traced["probability"][-1].argmax())
    changed = int((others & on).sum())
    cell = f"head {head} at step {step + 1}"
    left = f"without it {percent(without)} are left of {percent(now)}; a random change as large there leaves "
    left += percent(random)
    is_held = int(story.traced["probability"][-1].argmax()) == story.answer
    if not is_held or int(story.flips[0, step, head].argmax()) == story.answer:
        said = f"No single head decides; {cell} matters most: {left}."
    elif now - random > DECISIVE * lost[step, head]:
        said = f"Most is lost without {cell}: {left}, so disturbing alone does much of it."
    else:
        said = f"{cell.capitalize()} decides: {left}."
    return f"{said} Alone, {changed} of {int(on.sum())} heads change the answer."


def said_of_attention(story: Story) -> str:
    """The head and step with the largest share of its attention on the object, and the share of the image it covers."""
    rows, columns = story.traced["attention"].shape[-2:]
    inside = on_object(story.mask, rows, columns)
    maps = story.traced["attention"]
    share = (maps * inside).sum((-2, -1)) / np.maximum(maps.sum((-2, -1)), 1e-12)
    step, head = np.unravel_index(share.argmax(), share.shape)
    return (
        f"Head {head} looks at the object most at step {step + 1}: {percent(share[step, head])} of its attention to "
        f"the patches, where the object covers {percent(inside.mean())} of the image; on average over heads and steps "
        f"{percent(share.mean())}."
    )


def on_object(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The share of every patch that the object covers [row column]."""
    mask = (np.asarray(mask) == 1).astype(np.float64)
    return mask.reshape(rows, mask.shape[0] // rows, columns, mask.shape[1] // columns).mean((1, 3))


# What is drawn


def payload(story: Story) -> dict[str, Any]:
    """All of the story as JSON; arrays are packed as little-endian float32 or uint32."""
    traced = story.traced
    drawn = {
        "title": story.name,
        "about": story.about,
        "sentences": sentences(story),
        "picture": png(story.picture),
        "size": len(story.picture),
        "outline": "" if story.mask is None else outline(story.mask),
        "attention": packed(traced["attention"]),
        "toCls": packed(traced["to_cls"]),
        "off": [list(map(int, cell)) for cell in story.off],
        "colours": {
            "attention": stops(style.ATTENTION),
            "probability": stops(style.MAP),
            "lines": list(style.SEQUENCE),
            "onDark": style.ON_DARK,
        },
        "lossColours": [style.MAIN, style.SECOND],
    }
    if story.has_answer:
        drawn |= said_by_states(story)
        if story.flips is not None:
            drawn["heads"] = {
                "lost": packed(story.lost),
                "left": packed(story.flips[0, :, :, story.answer]),
                "random": packed(story.flips[1, :, :, story.answer]),
                "answer": packed(story.flips[0].argmax(-1), np.uint32),
            }
    return drawn


def said_by_states(story: Story) -> dict[str, Any]:
    """What is read out of every state, and of every patch in it."""
    traced, probability = story.traced, story.traced["probability"]
    top = np.argsort(-probability, axis=1, kind="stable")[:, :TOP]
    ever = np.argsort(-probability[1:].max(0), kind="stable")[:LIKELY].tolist()
    must = [k for k in (story.answer, story.truth) if k is not None and k not in ever]
    likely = ever[: LIKELY - len(must)] + must
    return {
        "classes": list(story.classes),
        "answer": story.answer,
        "truth": story.truth,
        "chance": 1 / probability.shape[1],
        "top": packed(top, np.uint32),
        "topProbability": packed(np.take_along_axis(probability, top, 1)),
        "likely": likely,
        "likelyProbability": packed(probability[:, likely]),
        "patchAnswer": packed(traced["patch_answer"], np.uint32),
        "patchCertainty": packed(traced["patch_certainty"]),
        "patchTarget": packed(traced["patch_target"]),
    }


def packed(values: np.ndarray, kind: type = np.float32) -> dict[str, Any]:
    values = np.ascontiguousarray(values, np.dtype(kind).newbyteorder("<"))
    return {"shape": list(values.shape), "type": np.dtype(kind).name, "bytes": base64.b64encode(values).decode()}


def unpacked(one: Mapping[str, Any]) -> np.ndarray:
    """The array that `packed` packed."""
    kind = np.dtype(one["type"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(one["bytes"]), kind).reshape(one["shape"])


def png(picture: np.ndarray) -> str:
    """A picture [y x channel] as an address that holds it."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def outline(mask: np.ndarray) -> str:
    """The edges between an object's pixels and others, as an SVG path in pixels."""
    inside = np.pad(np.asarray(mask) == 1, 1)
    across = np.argwhere(inside[1:-1, 1:] != inside[1:-1, :-1])  # an upright edge left of column x
    down = np.argwhere(inside[1:, 1:-1] != inside[:-1, 1:-1])
    return "".join([f"M{x} {y}v1" for y, x in across.tolist()] + [f"M{x} {y}h1" for y, x in down.tolist()])


def stops(name: str) -> list[list[int]]:
    """A colour map at even places, as 8-bit red, green, blue."""
    return (255 * colormaps[name](np.linspace(0, 1, STOPS))[:, :3]).round().astype(int).tolist()


def page(drawn: Mapping[str, Any]) -> str:
    """A payload as one page that needs nothing from outside and sends nothing there."""
    parts = {"title": drawn["title"], "caption": drawn["about"]}
    safe = {name: html.escape(text) for name, text in parts.items()}
    return PAGE.format(policy=POLICY, data=as_json(drawn), script=script(), **safe)


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever its texts hold."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script() -> str:
    """The drawing, as a module that exports it."""
    return SCRIPT.read_text(encoding="utf-8")
