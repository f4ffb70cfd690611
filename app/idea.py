"""The idea of a bViT as a picture: the image's tokens, one block that they pass T times, the answer."""

import html
from collections.abc import Iterator

INK, FAINT, ACCENT = ("#1b1f24", "#f1f3f5"), ("#5c6670", "#a9b1b8"), ("#2a6f97", "#7cc4ee")  # on light, on dark
SIDE = 4  # patches of the small picture
NARROW = "@media (max-width: 500px) { text { font-size: 21px } .fine { display: none } }"  # a phone: few, large words
DOTS = 24  # steps beyond which they are no longer drawn one by one


def said(n_blocks: int, n_steps: int) -> str:
    """The same in a sentence, for who does not see it."""
    passed = f"one block {n_steps} times" if n_blocks == 1 else f"{n_blocks} blocks over {n_steps} steps"
    return f"An image in patches, with the CLS token, passes {passed}; then norm and head turn CLS into a class."


def picture(n_blocks: int, n_steps: int, *, dark: bool) -> str:
    """An SVG of the model in its theme's colours; only numbers enter it. A stack of blocks has no loop."""
    ink, faint, accent = (pair[dark] for pair in (INK, FAINT, ACCENT))
    block = "one block" if n_blocks == 1 else f"{n_blocks} blocks"
    times = f"× {n_steps}" if n_blocks == 1 else f"over {n_steps} steps"
    is_loop = n_blocks < n_steps
    parts = [
        *_patches(20, 50, faint, accent),
        _words(54, 148, "image", faint, kind="fine"),
        *_tokens(168, ink, faint, accent),
        _words(174, 148, "patches + CLS", faint),
        *(_arrow(x, y, ink) for x, y in ((100, 150), (198, 252), (418, 472), (580, 632))),
        f"<style>{NARROW}</style>",
        f'<rect x="260" y="52" width="150" height="64" rx="12" fill="{accent}" fill-opacity="0.14" stroke="{accent}" '
        'stroke-width="2"/>',
        _words(335, 80, block, ink, 17, 600),
        _words(335, 101, "attention, then FFN", faint, kind="fine"),
        *(_loop(times, accent) if is_loop else ()),
        *_steps(n_steps, accent),
        _words(335, 148, "the same at every step" if n_blocks == 1 else "each with its weights", faint, kind="fine"),
        _words(526, 80, "norm", ink, 15),
        _words(526, 101, "and head", ink, 15),
        _words(526, 148, "of CLS", faint),
        _words(676, 90, "class", accent, 17, 600),
    ]
    look = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 -8 720 168" font-family="sans-serif"'
    return f"<svg {look}>{''.join(parts)}</svg>"


def _loop(times: str, accent: str) -> Iterator[str]:
    """An arrow from the block's end back to its start."""
    yield f'<path d="M398 52 C398 6 272 6 272 44" fill="none" stroke="{accent}" stroke-width="2.5"/>'
    yield f'<path d="M272 52 l-6 -11 h12 z" fill="{accent}"/>'
    yield _words(335, 11, times, accent, 15, 600)


def _words(x: float, y: float, words: str, colour: str, size: int = 13, weight: int = 400, kind: str = "") -> str:
    look = f'class="{kind}" font-size="{size}" font-weight="{weight}" text-anchor="middle" fill="{colour}"'
    return f'<text x="{x}" y="{y}" {look}>{html.escape(words)}</text>'


def _arrow(start: float, end: float, colour: str, y: float = 84) -> str:
    line = f'<path d="M{start} {y} H{end - 8}" stroke="{colour}" stroke-width="2"/>'
    return line + f'<path d="M{end} {y} l-10 -5 v10 z" fill="{colour}"/>'


def _patches(x: float, y: float, faint: str, accent: str) -> Iterator[str]:
    """A picture of an object in patches."""
    for place in range(SIDE**2):
        row, column = divmod(place, SIDE)
        is_object = row in (1, 2) and column in (1, 2)
        look = f'fill="{accent if is_object else faint}" fill-opacity="{0.85 if is_object else 0.35}"'
        yield f'<rect x="{x + 17 * column}" y="{y + 17 * row}" width="15" height="15" rx="2" {look}/>'


def _tokens(x: float, ink: str, faint: str, accent: str) -> Iterator[str]:
    """A column of tokens, CLS first."""
    for place in range(6):
        colour = ink if place == 0 else accent if place in (2, 3) else faint
        yield f'<rect x="{x}" y="{40 + 15 * place}" width="13" height="13" rx="3" fill="{colour}"/>'


def _steps(n_steps: int, accent: str) -> Iterator[str]:
    """A dot per step along the block's lower edge, stronger towards the last."""
    n = min(n_steps, DOTS)
    for step in range(n):
        x = 335 + 130 * ((step + 0.5) / n - 0.5)
        yield f'<circle cx="{x:.1f}" cy="126" r="2.5" fill="{accent}" fill-opacity="{0.3 + 0.7 * (step + 1) / n:.2f}"/>'
