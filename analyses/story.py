"""The story of one image: sentences generated from its numbers, and a standalone page that needs no server.

`payload` holds everything the drawing needs, as plain JSON; ``story.js`` draws it in the dashboard and on the page.
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
LIKELY = 5  # classes whose probability is drawn over the steps
TOP = 5  # classes named at each step
DECISIVE = 0.5  # a head is not called decisive if a random change causes more than this share of its loss
STOPS = 17  # colours sampled from a colour map
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
const byId = (name) => document.getElementById(name);
story({{ data: JSON.parse(byId("data").textContent), parentElement: byId("story") }});
</script></body></html>
"""


@dataclass(frozen=True)
class Story:
    """One image's run, possibly with some heads switched off, compared with the run that keeps all heads on.

    picture: [y x channel] uint8; mask: [y x], 1 on the object; traced: the result of `probes.methods.one_image.trace`;
    untouched: class probabilities [class] with all heads on; flips: [2 step head class], the result of
    `one_image.flipped`, None until it is computed; factors: by factor name, the value of the factor for each class.
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
    about: str = ""  # describes the model

    @property
    def has_answer(self) -> bool:
        return "probability" in self.traced

    @cached_property
    def answer(self) -> int:
        """The class that the story is about: the model's prediction with all heads on."""
        return int(self.traced["probability"][-1].argmax() if self.untouched is None else self.untouched.argmax())

    @cached_property
    def lost(self) -> np.ndarray:
        """The drop in the answer's probability when each head is switched off [step head]."""
        now = self.traced["probability"][-1, self.answer]
        lost = now - self.flips[0, :, :, self.answer].astype(np.float64)
        for step, head in self.off:
            lost[step, head] *= -1
        return lost


# Sentences


def settled_at(values: Sequence[int]) -> int:
    """The first index from which the sequence stays at its last value."""
    values = np.asarray(values)
    differing = np.flatnonzero(values != values[-1])
    return int(differing[-1]) + 1 if len(differing) else 0


def factor_path(probability: np.ndarray, of_class: Sequence[str]) -> list[str]:
    """The most probable value of a factor at every state, from class probabilities [state class].

    `of_class` gives the factor's value for each class.
    """
    values = list(dict.fromkeys(of_class))
    class_values = np.array(of_class)
    value_probability = np.stack([probability[:, class_values == value].sum(1) for value in values], 1)
    return [values[i] for i in value_probability.argmax(1)]


def when(state: int) -> str:
    return "from the start" if state == 0 else f"from step {state} on"


def percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def sentences(story: Story) -> list[str]:
    """The story in words, generated from the numbers alone."""
    if not story.has_answer:
        return ["This model has no classifier, so there is no answer to read out."]
    lines = [answer_sentence(story), path_sentence(story)]
    if story.off:
        lines.append(switched_off_sentence(story))
    if story.flips is not None:
        lines.append(heads_sentence(story))
    if story.mask is not None and story.mask.any() and not story.mask.all():
        lines.append(attention_sentence(story))
    return lines


def answer_sentence(story: Story) -> str:
    """The prediction, its probability beside chance, and whether it is right."""
    probability = story.traced["probability"][-1]
    prediction = int(probability.argmax())
    chance = percent(1 / len(probability))
    text = f"The model answers {story.classes[prediction]} ({percent(probability[prediction])}; chance {chance})"
    if story.truth is None:
        return f"{text}."
    return f"{text}, which is right." if prediction == story.truth else f"{text}; it is {story.classes[story.truth]}."


def path_sentence(story: Story) -> str:
    """The step from which the answer no longer changes, and the same for each factor of the answer."""
    probability = story.traced["probability"]
    predictions = probability.argmax(1)
    first = settled_at(predictions)
    text = f"Read out after each step, this is the answer {when(first)}"
    if first > 0:
        text += f"; before that it was {story.classes[predictions[first - 1]]}"
    paths = {name: factor_path(probability, of_class) for name, of_class in story.factors.items()}
    settled = sorted((settled_at(values), f"the {name} ({values[-1]})") for name, values in paths.items())
    factors = " and ".join(f"{name} is settled {when(state)}" for state, name in settled)
    return f"{text}. {factors[0].upper()}{factors[1:]}." if factors else f"{text}."


def switched_off_sentence(story: Story) -> str:
    """Which heads are off, and how the answer's probability changes without them."""
    names = [f"head {head} at step {step + 1}" for step, head in story.off]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    if story.untouched is None:
        return f"Off: {shown}."
    final = story.traced["probability"][-1]
    before, after = float(story.untouched[story.answer]), float(final[story.answer])
    is_same_answer = int(final.argmax()) == story.answer
    return (
        f"With {shown} off, {story.classes[story.answer]} goes from {percent(before)} to {percent(after)}"
        f"{'' if is_same_answer else ', and the answer is another one'}."
    )


def heads_sentence(story: Story) -> str:
    """The head that matters most, compared with a random change of the same size at the same head and step."""
    final = story.traced["probability"][-1]
    prediction, current = int(final.argmax()), float(final[story.answer])
    is_on = np.ones_like(story.lost, bool)
    for step, head in story.off:
        is_on[step, head] = False
    if not is_on.any():
        return "Every head is off."
    step, head = np.unravel_index(np.where(is_on, story.lost, -np.inf).argmax(), story.lost.shape)
    without_head, after_random = map(float, story.flips[:, step, head, story.answer])
    changes_answer = story.flips[0].argmax(-1) != prediction
    n_changing = int((changes_answer & is_on).sum())
    cell = f"head {head} at step {step + 1}"
    comparison = (
        f"without it the answer's probability goes from {percent(current)} to {percent(without_head)}, with an equally "
        f"large random change to {percent(after_random)}"
    )
    keeps_answer = int(story.flips[0, step, head].argmax()) == story.answer
    if prediction != story.answer or keeps_answer:
        text = f"No single head decides; {cell} matters most: {comparison}."
    elif current - after_random > DECISIVE * story.lost[step, head]:
        text = f"{cell.capitalize()} matters most: {comparison}, so much of the loss is due to the disturbance itself."
    else:
        text = f"{cell.capitalize()} decides: {comparison}."
    return f"{text} Switched off alone, {n_changing} of {int(is_on.sum())} heads change the answer."


def attention_sentence(story: Story) -> str:
    """The head and step with the largest share of its attention on the object, and the share of the image it covers."""
    rows, columns = story.traced["attention"].shape[-2:]
    inside = on_object(story.mask, rows, columns)
    maps = story.traced["attention"]
    share = (maps * inside).sum((-2, -1)) / np.maximum(maps.sum((-2, -1)), 1e-12)
    step, head = np.unravel_index(share.argmax(), share.shape)
    return (
        f"Head {head} attends to the object most at step {step + 1}: {percent(share[step, head])} of its attention to "
        f"patches lies on the object, which covers {percent(inside.mean())} of the image; the average over heads and "
        f"steps is {percent(share.mean())}."
    )


def on_object(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The share of every patch that the object covers [row column]."""
    mask = (np.asarray(mask) == 1).astype(np.float64)
    return mask.reshape(rows, mask.shape[0] // rows, columns, mask.shape[1] // columns).mean((1, 3))


# The drawing's data


def payload(story: Story) -> dict[str, Any]:
    """The whole story as JSON; arrays are packed as little-endian float32 or uint32."""
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
        drawn |= readout_payload(story)
        if story.flips is not None:
            drawn["heads"] = {
                "lost": packed(story.lost),
                "left": packed(story.flips[0, :, :, story.answer]),
                "random": packed(story.flips[1, :, :, story.answer]),
                "answer": packed(story.flips[0].argmax(-1), np.uint32),
            }
    return drawn


def readout_payload(story: Story) -> dict[str, Any]:
    """The class probabilities read out at every state, and the prediction at each of its patches."""
    traced, probability = story.traced, story.traced["probability"]
    top = np.argsort(-probability, axis=1, kind="stable")[:, :TOP]
    most_likely = np.argsort(-probability[1:].max(0), kind="stable")[:LIKELY].tolist()
    required = [k for k in (story.answer, story.truth) if k is not None and k not in most_likely]
    likely = most_likely[: LIKELY - len(required)] + required
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


def unpacked(array: Mapping[str, Any]) -> np.ndarray:
    """The array that `packed` packed."""
    kind = np.dtype(array["type"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(array["bytes"]), kind).reshape(array["shape"])


def png(picture: np.ndarray) -> str:
    """A picture [y x channel] as a data URL."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def outline(mask: np.ndarray) -> str:
    """The boundary of the object's pixels, as an SVG path in pixels."""
    inside = np.pad(np.asarray(mask) == 1, 1)
    vertical = np.argwhere(inside[1:-1, 1:] != inside[1:-1, :-1])  # an edge at the left of pixel (y, x)
    horizontal = np.argwhere(inside[1:, 1:-1] != inside[:-1, 1:-1])  # an edge at the top of pixel (y, x)
    segments = [f"M{x} {y}v1" for y, x in vertical.tolist()]
    segments += [f"M{x} {y}h1" for y, x in horizontal.tolist()]
    return "".join(segments)


def stops(name: str) -> list[list[int]]:
    """A colour map sampled at equal distances, as 8-bit red, green, blue."""
    return (255 * colormaps[name](np.linspace(0, 1, STOPS))[:, :3]).round().astype(int).tolist()


def page(drawn: Mapping[str, Any]) -> str:
    """A payload as one self-contained page, which loads nothing from the network and sends nothing to it."""
    parts = {"title": drawn["title"], "caption": drawn["about"]}
    safe = {name: html.escape(text) for name, text in parts.items()}
    return PAGE.format(policy=POLICY, data=as_json(drawn), script=script(), **safe)


def as_json(value: Any) -> str:
    """JSON that is safe inside a script element, whatever text it contains."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script() -> str:
    """The JavaScript module that exports the drawing."""
    return SCRIPT.read_text(encoding="utf-8")
