"""Text that comes from a file, on a page: it is shown as it stands there, whatever it means to Markdown.

Streamlit reads almost everything it shows as Markdown: a class name could be a picture that the visitor's browser
fetches. So whatever a page says of a file (names, notes, labels, messages) goes through `text`. `app.door` holds the
browser back where one was forgotten, and a test fills every text of every file with Markdown.
"""

import re

from models.errors import without_addresses

SPECIAL = re.compile(r"[\\`*\[\]<>$~&|]|(?<![^\W_])_|_(?![^\W_])|^[#+=-]")  # an underscore within a word is none
MOST = 1000  # characters


def text(value: object) -> str:
    """A value as Markdown that shows it word for word, on one line; bytes of a file's name that are no text as ?."""
    words = " ".join(without_addresses(str(value))[: MOST + 1].encode(errors="replace").decode().split())
    shown = words if len(words) <= MOST else f"{words[:MOST]} ..."
    return SPECIAL.sub(lambda found: f"\\{found[0]}", shown)
