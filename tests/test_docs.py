"""The pages of the site hold together: every probe has its page, what is linked is there, what the API names exists.

`make docs` builds them (strictly). Run with: pytest tests/test_docs.py
"""

import functools
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import yaml

from analyses import results
from tests.test_house import PROBES, ROOT, tree

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
HEADINGS = (
    *("Definition", "Chance level", "Reading the figure", "Running it"),
    *("What it found", "Variables", "Options and result"),
)
ROW = re.compile(r"^\| (`.+`) \| `\[(.*)\]` \| (\S.*) \| (\S.*) \|$", re.M)  # of a table of variables


def pages_of(nav) -> set[str]:
    """The files that a menu names, at any depth."""
    if isinstance(nav, str):
        return {nav}
    return set().union(*(pages_of(part) for part in (nav.values() if isinstance(nav, dict) else nav)))


def test_the_menu_holds_every_page_and_nothing_else() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert pages_of(nav) == {str(page.relative_to(DOCS)) for page in PAGES}


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_has_its_page(probe) -> None:
    text = (DOCS / "questions" / f"{probe}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M) == list(HEADINGS) and f"python -m probes.{probe}" in text
    sections = dict(zip(HEADINGS, re.split(r"^## .+$", text, flags=re.M)[1:], strict=True))
    assert re.search(r"\d", sections["What it found"]) and len(sections["Chance level"].split()) > 3


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_what_a_page_links_is_there(page) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    inner = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in inner if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "\n::: " in page.read_text()], ids=lambda page: page.stem)
def test_what_the_api_names_exists(page) -> None:
    for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M):
        assert exists(name), f"{name} is no module and nothing in one"


def exists(name: str) -> bool:
    """Whether a dotted name is a module of ours, or defined at the top of one."""
    whole = ROOT / name.replace(".", "/")
    if whole.with_suffix(".py").is_file() or (whole / "__init__.py").is_file():
        return True
    module, _, member = name.rpartition(".")
    path = ROOT / f"{module.replace('.', '/')}"
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    return Path(file).is_file() and member in {getattr(node, "name", "") for node in tree(file).body}


def test_a_name_that_does_not_exist_is_noticed() -> None:
    assert exists("models.source.load") and exists("models.hub") and not exists("models.source.lode")


# The variables of a result


@functools.cache
def shipped(probe: str) -> dict[tuple[str, tuple[str, ...]], str]:
    """Variables with their dimensions in the shipped results of a probe, and a file that has each."""
    paths = [path for path in ROOT.glob("runs/*/*.nc") if re.fullmatch(rf"{probe}([._]\w+)?", path.stem)]
    return {variable: f"{path.parent.name}/{path.name}" for path in paths for variable in dimensions(path).items()}


def dimensions(path: Path) -> dict[str, tuple[str, ...]]:
    """Dimensions by variable of a result, under today's names; no values are read."""
    with h5py.File(path) as file:
        labels = " ".join(str(part.attrs.get("coordinates", "")) for part in (file, *file.values())).split()
        stored = {
            name: tuple(dim[0].name.lstrip("/") for dim in variable.dims)
            for name, variable in file.items()
            if not variable.is_scale and name not in labels
        }
    empty = {name: (dims, np.empty([0] * len(dims))) for name, dims in stored.items()}
    return {str(name): values.dims for name, values in results.updated(xr.Dataset(empty)).data_vars.items()}


def rows_of(page: str) -> list[tuple[list[str], tuple[str, ...], str]]:
    """The rows of a page's table: variables, dimensions, what they are."""
    table = page.split("\n## Variables\n")[1].split("\n## ")[0]
    rows = [(re.findall(r"`(\w+)`", row[1]), tuple(row[2].split()), row[4]) for row in ROW.finditer(table)]
    assert len(rows) == len(re.findall(r"^\| `", table, re.M)), "a row is not: variables, dimensions, unit, what it is"
    return rows


@functools.cache
def meant(name: str) -> tuple[str, ...]:
    """What a variable's row may be called: by its name, without the untrained model's prefix, without an end of an
    interval.
    """
    own = name.removeprefix("control_")
    return name, own, re.sub("_(low|high)$", "", own)


def disagreements(rows: list[tuple[list[str], tuple[str, ...], str]], probe: str) -> list[str]:
    """Where a table and results differ; the ends of an interval and the untrained model's have the row of theirs."""
    listed = {name: dims for names, dims, _ in rows for name in names}
    wrong, met = [], set()
    for (name, dims), file in shipped(probe).items():
        row = next((each for each in meant(name) if each in listed), None)
        met.add(row)
        if row is None or listed[row] != dims:
            wrong.append(f"{file}: {name} {[*dims]}, in the table {row and [*listed[row]]}")
    for names, _, text in rows:
        if "only with" not in text:
            wrong += [f"no result has {name}" for name in names if name not in met]
    return wrong


@pytest.mark.parametrize("probe", PROBES)
def test_the_variables_of_a_result_are_explained(probe) -> None:
    rows = rows_of((DOCS / "questions" / f"{probe}.md").read_text(encoding="utf-8"))
    assert shipped(probe) and disagreements(rows, probe) == []
    known = {name for name, _ in shipped(probe)}
    for i, (names, dims, text) in enumerate(rows):
        if known & {*names}:
            assert disagreements(rows[:i] + rows[i + 1 :], probe), f"{names} could be left out unnoticed"
            other = (names, (*dims, "more"), text)
            assert disagreements([*rows[:i], other, *rows[i + 1 :]], probe), f"{names} could have any dimensions"
    assert disagreements([*rows, (["no_such"], (), "")], probe) == ["no result has no_such"]
