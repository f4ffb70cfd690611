"""The rules of the house that a machine can hold: who imports whom, what a command costs to ask, what belongs to a probe."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"app": {"probes", "analyses", "models"}, "probes": {"models", "analyses"}, "models": set(), "analyses": set()}
HEAVY = ("torch", "timm", "transformer_lens", "xarray")
FORBIDDEN_WORDS = ("utils", "helpers", "common", "manager")

# Runs the help of each command it is given, one after the other; says how each ended and what it loaded of what is heavy.
ASK_FOR_HELP = """
import contextlib, io, json, runpy, sys
commands, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
answers = {}
for command in commands:
    sys.argv, text, code, before = [command, "--help"], io.StringIO(), "did not exit", set(sys.modules)
    with contextlib.redirect_stdout(text):
        try:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    answers[command] = {"code": code, "text": text.getvalue(), "heavy": sorted({*heavy} & {*sys.modules} - before)}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("models", "probes", "analyses", "app")]:
        del sys.modules[name]
print(json.dumps(answers))
"""


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at any depth and for typing alike; relative ones made absolute."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


def is_command(path: Path) -> bool:
    return any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree(path).body)


def is_probe(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "measure" for node in tree(path).body)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


COMMANDS = [module_of(path) for path in sources(*MAY_IMPORT) if is_command(path)]
PROBES = [path.stem for path in sources("probes") if is_probe(path)]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def answers() -> dict[str, dict]:
    command = [sys.executable, "-c", ASK_FOR_HELP, json.dumps(COMMANDS), json.dumps(HEAVY)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("path", sources(*MAY_IMPORT), ids=name_of)
def test_imports_point_down_only(path):
    package = path.relative_to(ROOT).parts[0]
    tops = {name.partition(".")[0] for name in imported(path)}
    assert tops & (MAY_IMPORT.keys() | {"tests"}) <= MAY_IMPORT[package] | {package}
    if package == "analyses":
        assert not tops & {"torch", "timm", "transformer_lens"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_before_anything_heavy_is_loaded(command, answers):
    answer = answers[command]
    assert answer["code"] == 0
    assert f"python -m {command}" in answer["text"]
    assert answer["heavy"] == []


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_has_an_analysis_a_page_a_test_and_a_line_in_the_readme(probe, readme):
    assert (ROOT / "analyses" / f"{probe}.py").is_file()
    assert (ROOT / "tests" / "probes" / f"test_{probe}.py").is_file()
    assert any(f"analyses.{probe}" in imported(page) for page in sources("app/views")), f"no page shows analyses.{probe}"
    assert f"probes.{probe}" in readme


def test_no_file_is_named_after_nothing():
    files = [path.relative_to(ROOT) for path in sources(*MAY_IMPORT, "tests")]
    assert [file for file in files for word in FORBIDDEN_WORDS if word in str(file)] == []


def test_the_readme_starts_with_targets_that_exist(readme):
    named = re.findall(r"^\s*make (\w+)", readme, flags=re.MULTILINE)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert "demo" in named
    assert set(named) <= set(targets)


def test_constraints_pin_every_dependency_and_hold_no_address():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.match(r"[\w-]+", requirement)[0].replace("_", "-") for requirement in wanted}
    assert names <= {line.partition("==")[0] for line in lines}
