"""The page of a report: HTML that needs nothing from outside, runs no script, and escapes whatever a file says.

Sections are laid out and painted when they come into view (``content-visibility``), all of them when printed. A wide
picture or table scrolls by itself where the window is narrow.
"""

import base64
import io
from dataclasses import dataclass, field

import jinja2
from PIL import Image

LARGE = 50_000  # bytes of a picture without loss, beyond which a little of it does not show
WIDEST = 1600  # pixels of a picture: a third more than the page is wide


@dataclass
class Picture:
    """A picture as the address that holds it, its width in CSS pixels, and what it is in words."""

    address: str
    width: int
    said: str


@dataclass
class Part:
    """What a section says of one run, or shows of all of them."""

    title: str = ""
    text: str = ""
    table: str = ""
    missing: str = ""  # why there is nothing
    command: str = ""  # that makes it
    pictures: list["Picture"] = field(default_factory=list)
    is_of_all: bool = False  # runs


@dataclass
class Section:
    """One figure or table: its number, what the paper states, and the parts."""

    anchor: str
    number: str
    title: str
    states: str = ""
    parts: list[Part] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not any(part.text or part.pictures or part.table for part in self.parts)


def embedded(png: bytes, dpi: int, said: str) -> Picture:
    """A picture for the page, no finer than it can show: WebP, without loss where that is small."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    width = picture.width * 96 // dpi
    picture.thumbnail((WIDEST, picture.height))
    content = webp(picture, lossless=True, quality=70)
    if len(content) > LARGE:
        content = min(content, webp(picture, quality=60), key=len)
    return Picture(f"data:image/webp;base64,{base64.b64encode(content).decode()}", width, said)


def webp(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "webp", method=4, **options)
    return buffer.getvalue()


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto; max-width: 76rem;
  padding: 1rem; overflow-wrap: break-word }
h1 { line-height: 1.2 } h2 { margin: 0 0 .5rem; line-height: 1.25 } h3 { font-size: 1rem; margin: 1rem 0 .2rem }
a { color: #14507a } code, pre { font-family: ui-monospace, monospace; font-size: .8rem }
section { border-top: 1px solid #868e96; padding: 1.2rem 0; content-visibility: auto;
  contain-intrinsic-size: auto 900px }
.wide { overflow-x: auto; max-width: 100% } .wide:focus-visible { outline: 2px solid #14507a }
.wide img { max-width: 100%; height: auto } figure { margin: .5rem 0 }
.parts { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 36rem), 1fr)) }
.parts > * { min-width: 0 } .parts > .all { grid-column: 1 / -1 }
pre { background: #f4f6f8; padding: .6rem; margin: .3rem 0; overflow-x: auto }
pre.command { white-space: pre-wrap }
.paper { border-left: 4px solid #2a6f97; padding: .1rem .8rem; background: #f4f6f8 }
.lines { white-space: pre-line } .files, .note { color: #495057; font-size: .85rem }
table { border-collapse: collapse; font-size: .85rem } td, th { text-align: left; padding: .2rem .7rem .2rem 0;
  vertical-align: top }
nav ul { columns: 20rem; column-gap: 2rem; padding: 0; list-style: none }
@media (max-width: 40rem) { body { padding: .6rem } .wide img { max-width: none } }
@media print { section { content-visibility: visible; break-inside: auto } figure, pre { break-inside: avoid }
  pre { white-space: pre-wrap; font-size: 6pt } .wide { overflow: visible } .wide img { max-width: 100% }
  .parts { display: block }
  a { color: inherit; text-decoration: none } }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<title>{{ title }}</title><style>{{ style | safe }}</style></head>
<body>
<header><h1>{{ title }}</h1>
{% for line in introduction %}<p>{{ line }}</p>
{% endfor %}
<div class="wide" tabindex="0" role="region" aria-label="the runs"><table>
<thead><tr>{% for name in runs[0] %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for run in runs %}<tr>{% for value in run.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% for note in notes %}<p class="note">{{ note }}</p>
{% endfor %}
<nav aria-label="Contents"><ul>
{% for section in sections %}<li><a href="#{{ section.anchor }}">{{ section.number }}</a> {{ section.title }}
{%- if section.is_empty %} (nothing measured){% endif %}</li>
{% endfor %}</ul></nav></header>
<main>
{% for section in sections %}<section id="{{ section.anchor }}">
<h2>{{ section.number }}: {{ section.title }}</h2>
{% if section.states %}<p class="paper"><strong>The paper:</strong> {{ section.states }}</p>
{% endif %}
<div class="parts">
{% for part in section.parts %}<div{% if part.is_of_all %} class="all"{% endif %}>
{% if part.title %}<h3>{{ part.title }}</h3>{% endif %}
{% if part.text %}<p class="lines">{{ part.text }}</p>{% endif %}
{% for picture in part.pictures %}
<figure class="wide" tabindex="0" role="region" aria-label="{{ picture.said }}">
<img src="{{ picture.address }}" width="{{ picture.width }}" alt="{{ picture.said }}" decoding="async"></figure>
{% endfor %}
{% if part.table %}<pre tabindex="0">{{ part.table }}</pre>{% endif %}
{% if part.missing %}<p>{{ part.missing }}</p>{% endif %}
{% if part.command %}<pre class="command">{{ part.command }}</pre>{% endif %}
</div>
{% endfor %}</div>
{% if section.files %}<p class="files">Beside this page: {{ section.files | join(", ") }}</p>{% endif %}
</section>
{% endfor %}
</main></body></html>
"""

START = PAGE.partition("<title>")[0]  # by which a page of this is known


def written(title: str, introduction: list[str], runs: list[dict], notes: list[str], sections: list[Section]) -> str:
    """The whole page. Everything that is not ours passes through jinja2's escaping."""
    page = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(PAGE)
    return page.render(style=STYLE, title=title, introduction=introduction, runs=runs, notes=notes, sections=sections)
