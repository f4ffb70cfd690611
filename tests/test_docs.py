"""The pages of the site hold together: every probe has its page, what is linked is there, what the API names exists.

`make docs` builds them (strictly). Run with: pytest tests/test_docs.py
"""

import re
from pathlib import Path

import pytest
import yaml

from tests.test_house import PROBES, ROOT, tree

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
HEADINGS = ("Definition", "Chance level", "Reading the figure", "Running it", "What it found", "Options and result")


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
