"""A self-contained report with every figure and table of the paper that can be made from the results of some runs.

    python -m analyses.report runs/demo runs/demo-vit --out report

Writes ``report.html`` (no network, no script), ``figures/`` (PDF and PNG) and ``tables/`` (CSV). The page shows all
runs side by side, and the paper's statement next to the measurement. If a result is missing, damaged, or belongs to
another checkpoint than the run's, the page shows the command that makes it instead. A folder with a ``study.csv`` is a
study, one with a ``prune.nc`` a pruning; both have figures of their own.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etils import epy
from tyro.conf import Positional

from models import command

with epy.lazy_imports():
    import matplotlib
    import pandas as pd

    from analyses import draw, paper, results, study, style, webpage

DPI = 150
DIFFER = (
    "The paper trains on ImageNet-1K and points on ImageNet-S. What is measured here is measured on the data named "
    "with each run: the paper's statements can be held against it, its numbers cannot."
)
NOT_AT_HAND = "Its text on this figure was not at hand; the figure follows its caption, and nothing is claimed of it."
PAGE = "report.html"
LONGEST = 60  # characters of a run's name
RESERVED = "study", "capacity"  # names of a study's tables among a run's results


@dataclass
class Run:
    """A run's folder and its results by name; `refused` gives the reason why a result is not shown, by its name."""

    folder: Path
    name: str
    results: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def is_study(self) -> bool:
        return (self.folder / "study.csv").is_file()

    @property
    def is_pruning(self) -> bool:
        """Whether the folder contains a pruning and nothing else."""
        return all(name.split("_")[0] == "prune" for name in self.results | self.refused) and "prune" in self.results

    def lacks(self, item: paper.Item) -> bool:
        """Whether the item's result is missing although a run of this kind should have it."""
        if item.needs in self.results:
            return False
        is_expected = not (item.makes_run or self.is_study or self.is_pruning)
        return item.needs in self.refused or is_expected

    def made_by(self, command: str) -> str:
        """A command with this folder filled in, quoted for a shell."""
        return command.format(run=shlex.quote(str(self.folder)))


# Reading


def read(folder: Path, name: str) -> Run:
    """Reads a run's folder, with every result that belongs to its checkpoint. Raises ValueError if it is no folder."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name the folder of a run or a study")
    run, identities = Run(folder, name), {}
    checkpoint = folder / "ckpt.pt"
    if checkpoint.is_file():
        identities = {"checkpoint_sha256": results.sha256(checkpoint), "init_sha256": results.init_sha256(checkpoint)}
    for path in sorted(folder.glob("*.nc")):
        try:
            result = results.read(path)
            identity = "init_sha256" if path.stem.split("_")[0] == "prune" else "checkpoint_sha256"
            difference = results.other_model(result, identities.get(identity, ""), identity)
            if difference:
                raise ValueError(f"{path} is of another model: {difference}")
            run.results[path.stem] = result
        except ValueError as error:
            run.refused[path.stem] = str(error)
    if run.is_study:
        read_study(run)
    return run


def read_study(run: Run) -> None:
    try:
        frame = study.read(run.folder)
        run.results |= dict(zip(RESERVED, (frame, study.capacities(run.folder, frame)), strict=True))
    except Exception as error:  # the table comes from outside and may contain anything
        run.refused["study"] = f"{run.folder / 'study.csv'} cannot be read ({type(error).__name__}: {error})"


def named(folders: tuple[Path, ...]) -> list[Run]:
    """Reads runs under unique names: the folder's name or, if two runs share it, a number and the whole path."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("a run is named twice; name each once")
    short_names = [shown(folder.resolve().name) for folder in folders]
    file_names = [plain(name) for name in short_names]
    names = []
    for number, (name, folder) in enumerate(zip(short_names, folders, strict=True), start=1):
        is_unique = file_names.count(plain(name)) == 1
        names.append(name if is_unique else shown(f"{number}: {folder}"))
    return [read(folder, name) for folder, name in zip(folders, names, strict=True)]


def shown(name: str) -> str:
    """A folder's name as shown on the page and in figures: unprintable characters replaced, and shortened if long."""
    name = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"


def about(run: Run) -> dict[str, str]:
    """A run's line in the table of runs, as far as its results give the details."""
    measured = [result for name, result in run.results.items() if name not in RESERVED]
    attrs: Mapping[str, Any] = next((result.attrs for result in measured if result.attrs.get("n_images")), {})
    try:
        config = json.loads(attrs.get("config", "{}"))
        shape = ", ".join(f"{label} {config[name]}" for label, name in SHAPE.items() if name in config)
    except (ValueError, TypeError, RecursionError):
        shape = ""
    data = f"{attrs.get('data', '')} {attrs.get('split', '')}, {attrs['n_images']} images" if attrs else ""
    return {
        "run": run.name,
        "model": shape or ("a study" if run.is_study else ""),
        "data": data,
        "checkpoint": str(attrs.get("checkpoint_sha256", ""))[:8],
        "results": ", ".join(name for name in run.results if name != "capacity"),
    }


SHAPE = {"steps": "n_steps", "blocks": "n_blocks", "width": "d_model", "heads": "n_heads", "px": "image_size"}


# Files


@dataclass
class Folder:
    """The folder that a report is written to, each file atomically."""

    out: Path

    def make(self) -> None:
        """Makes the folders, so that writing cannot fail after all the drawing. Raises ValueError if it would."""
        page = self.out / PAGE
        if page.exists() and not (page.is_file() and page.read_bytes().startswith(webpage.START.encode())):
            raise ValueError(f"--out: {page} was not written by this command; name another folder")
        for folder in (self.out, self.out / "figures", self.out / "tables"):
            if folder != self.out and folder.is_symlink():
                raise ValueError(f"--out: {folder} is a link, which is not followed; name another folder")
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"--out: {folder} cannot be made a folder ({error.strerror}); name another") from None
            if not os.access(folder, os.W_OK):
                raise ValueError(f"--out: {folder} cannot be written to; name another folder")

    def write(self, name: str, content: bytes) -> str:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return name

    def picture(self, figure: Any, name: str, alt: str) -> tuple[webpage.Picture, list[str]]:
        """Writes a figure as PDF and PNG; returns it as embedded in the page, with `alt` text, and the files' names."""
        content = {}
        for kind in ("png", "pdf"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI)
            figure.set_layout_engine("none")  # the first save has computed the layout, which the second one keeps
            content[kind] = buffer.getvalue()
        files = [self.write(f"figures/{name}.{kind}", data) for kind, data in content.items()]
        return webpage.embedded(content["png"], DPI, alt), files

    def table(self, frame: pd.DataFrame, name: str) -> list[str]:
        return [self.write(f"tables/{name}.csv", frame.to_csv(index=False).encode(errors="replace"))]


def plain(name: str) -> str:
    """A name reduced to characters that any file system accepts."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"


# Sections


def section_of(item: paper.Item, runs: list[Run], folder: Folder) -> webpage.Section:
    """The section of one figure or table of the paper, with all runs."""
    section = webpage.Section(plain(item.name), item.number, item.title, item.states or NOT_AT_HAND)
    measured = [run for run in runs if item.needs in run.results]
    if measured:
        by_run = {run.name: run.results[item.needs] for run in measured}
        for name, figure in item.together.items():
            draw_part(section, folder, "", name, lambda figure=figure: figure(by_run))
    frames = []
    for run in measured:
        part = webpage.Part(run.name if len(runs) > 1 else "", data_of(run.results[item.needs]))
        section.parts.append(part)
        with_care(part, lambda part=part, run=run: add_words(part, item, run, frames))
        for name, figure in item.apart.items():
            draw_part(section, folder, run.name, name, lambda figure=figure, run=run: figure(run.results))
    if frames:
        section.files += folder.table(pd.concat(frames, ignore_index=True), item.name)
    section.parts += missing(item, runs, measured)
    return section


def add_words(part: webpage.Part, item: paper.Item, run: Run, frames: list[pd.DataFrame]) -> None:
    """Adds one run's sentence and table to a part, and its rows to the CSV's frames."""
    part.text = f"{item.says(run.results)}\n{part.text}".strip()
    if item.table is not None:
        part.table = item.table(run.results)
    if item.frame is not None:
        frames.append(item.frame(run.results).assign(run=run.name))


def data_of(result: Any) -> str:
    """A sentence that names the weights and images of a result; empty for a study."""
    return "" if isinstance(result, pd.DataFrame) else f"Measured: {style.caption(result)}."


def draw_part(section: webpage.Section, folder: Folder, run: str, name: str, figure: Callable[[], Any]) -> None:
    """Draws one figure into a section: of one run, or of all runs if `run` is empty."""
    part = webpage.Part(is_of_all=not run)
    details = ", ".join(word for word in (name, run) if word)
    alt = f"{section.number}: {section.title}" + (f" ({details})" if details else "")

    def add() -> None:
        drawn = figure()
        if drawn is not None:
            file = "_".join(plain(word) for word in (section.anchor, name, run) if word)
            picture, files = folder.picture(drawn, file, alt)
            part.pictures.append(picture)
            section.files.extend(files)

    with_care(part, add)
    section.parts.append(part)


def with_care(part: webpage.Part, add: Callable[[], None]) -> None:
    """Runs `add`; an error caused by a result becomes a sentence in the report, a failed write is raised."""
    try:
        add()
    except OSError:
        raise
    except Exception as error:
        part.missing = f"This could not be made of the result ({type(error).__name__}: {str(error)[:200]})."


def missing(item: paper.Item, runs: list[Run], measured: list[Run]) -> Iterator[webpage.Part]:
    """The runs that lack the item's result, each with the command that makes it."""
    lacking = [run for run in runs if run.lacks(item)]
    for run in lacking:
        reason = run.refused.get(item.needs, f"{run.name} has no {item.needs}.nc")
        yield webpage.Part(missing=f"{reason}. To measure:", command=run.made_by(item.command))
    if not measured and not lacking:
        yield webpage.Part(missing="None of these runs holds it. To make it:", command=item.command)


def further(runs: list[Run], folder: Folder) -> Iterator[webpage.Section]:
    """Sections for results that the paper does not have, each drawn by its own analysis."""
    of_paper = {item.needs for item in paper.ITEMS} | {*RESERVED}
    names = {name for run in runs for name in run.results if not name.startswith("prune_")}
    for name in sorted(names - of_paper):
        by_run = {run.name: run.results[name] for run in runs if name in run.results}
        yield beyond(name, by_run, folder)


def beyond(name: str, by_run: Mapping[str, Any], folder: Folder) -> webpage.Section:
    """One kind of result: its main figure with all runs together, its other figures and its table for each run."""
    analysis = draw.of(name)
    section = webpage.Section(f"beyond-{plain(name)}", "Beyond the paper", name.replace("_", " "))
    for title, figure in analysis.FIGURES.items():
        if figure is analysis.figure:
            draw_part(section, folder, "", title, lambda figure=figure: figure(by_run))
            continue
        for run, result in by_run.items():
            draw_part(section, folder, run, title, lambda figure=figure, result=result: figure(result))
    for run, result in by_run.items():
        part = webpage.Part(run, data_of(result))
        with_care(part, lambda part=part, result=result: setattr(part, "table", analysis.table(result)))
        section.parts.append(part)
    return section


# The command


def write(folders: tuple[Path, ...], out: Path) -> Path:
    """Writes the report of some runs into `out` and returns the page's path. Raises ValueError for bad input."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {out}, a file; name a folder")
    runs, folder, sections = named(folders), Folder(out), []
    folder.make()
    with matplotlib.rc_context({"text.parse_math": False, "pdf.fonttype": 42}):
        for item in paper.ITEMS:
            print(f"\r{item.number:12}", end="", file=sys.stderr, flush=True)
            sections.append(section_of(item, runs, folder))
        sections += further(runs, folder)
    print("\r", end="", file=sys.stderr)
    notes = [note for run in runs for note in notes_of(run)]
    title = f"bViT: {', '.join(run.name for run in runs)}"
    page = webpage.written(title, [INTRODUCTION, DIFFER], [about(run) for run in runs], notes, sections)
    folder.write(PAGE, page.encode(errors="replace"))
    return out / PAGE


INTRODUCTION = (
    "The figures and tables of “bViT: Investigating Single-Block Recurrence in Vision Transformers for Image "
    "Recognition” (arXiv 2605.10661), made anew from results of this toolkit and numbered as in the paper. Steps are "
    "counted from 1, hook points (blocks.0) from 0."
)


def notes_of(run: Run) -> Iterator[str]:
    """Warnings about a run's results."""
    for name, reason in run.refused.items():
        is_named = name in reason or str(run.folder) in reason
        yield f"Not shown: {reason}." if is_named else f"Not shown: {name}: {reason}."
    if run.results and not (run.is_study or (run.folder / "ckpt.pt").is_file()):
        yield f"{run.name} has no ckpt.pt, so its results could not be checked against a checkpoint."
    for name, result in run.results.items():
        if name not in RESERVED and result.attrs.get("weights") == "init" and not name.startswith("prune"):
            yield f"{run.name}: {name} was measured with the untrained weights."


def report(runs: Positional[tuple[Path, ...]], *, out: Path | None = None) -> None:
    """One page with every figure and table of the paper that can be made from the results of these runs.

    Args:
        runs: folders of runs (of probes' results), of a pruning, of a study.
        out: folder of report.html, figures/ and tables/; by default report/ in the first run's folder.
    """
    if not runs:
        raise ValueError("no run is named; name the folder of one, such as runs/demo")
    path = write(runs, out or runs[0] / "report")
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB), figures/ and tables/ beside it")


if __name__ == "__main__":
    command.run(report, "python -m analyses.report", bad=ValueError)
