"""Draws a result into a file: which analysis is whose, and what each kind of file holds."""

import importlib
import io
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import xarray as xr

from analyses import looks, plain, style

IMAGES = (".png", ".pdf", ".svg")
SUFFIXES = (*IMAGES, ".html", ".csv")


def of(probe: str) -> ModuleType:
    """The analysis of a probe, by its name, or by that of a file of its own (pointing_game.chefer); `analyses.plain`
    where it has none of its own.
    """
    probe = probe.partition(".")[0]
    if not (probe.isidentifier() and find_spec(f"analyses.{probe}")):
        return plain
    module = importlib.import_module(f"analyses.{probe}")
    return module if all(hasattr(module, name) for name in ("table", "figure", "interactive", "frame")) else plain


def check(path: Path) -> None:
    """Raise ValueError, in one sentence, for a file of a kind that nothing can be drawn into."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file; name one of these")


def save(result: xr.Dataset, analysis: ModuleType, path: Path) -> None:
    """A result's figure, or its table where the file is a .csv. Raises ValueError where it cannot be drawn."""
    check(path)
    title = path.stem if analysis is plain else analysis.__name__.rpartition(".")[2]
    path.write_bytes(drawn(result, analysis, path.suffix, title.replace("_", " ")))


def drawn(result: xr.Dataset, analysis: ModuleType, suffix: str, title: str = "") -> bytes:
    """What such a file holds."""
    if suffix == ".csv":
        return analysis.frame(result).to_csv(index=False).encode()
    if suffix == ".html":
        return looks.as_html(analysis.interactive(result), title, style.caption(result)).encode()
    figure, content = analysis.figure(result), io.BytesIO()
    if figure is None:
        raise ValueError(f"this result of {title or analysis.__name__} holds nothing to draw; write its table as .csv")
    figure.savefig(content, format=suffix[1:])
    return content.getvalue()
