"""The rules of the house that a machine can hold: who imports whom, what a command costs to ask, what belongs to a
probe.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "app": {"probes", "analyses", "models"},
    "probes": {"models", "analyses"},
    "models": set(),
    "analyses": {"models"},  # of which models.command alone
}
HEAVY = ("torch", "timm", "transformer_lens", "xarray")
LONG = ("models/data/shapes.py",)  # the renderer of the embedded data
DRAWN = ("table", "figure", "interactive", "frame")  # without one of them `analyses.draw` falls back on the plain looks
FORBIDDEN_WORDS = ("utils", "helpers", "common", "manager")

# Runs the help of each command it is given, one after the other; says how each ended and what it loaded of what is
# heavy.
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


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path, root: Path = ROOT) -> set[str]:
    """Full names of what a file imports, at any depth, lazily and for typing alike; relative ones made absolute."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(root).parts[: -node.level] if node.level else ()
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


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
        assert {name for name in imported(path) if name.startswith("models")} <= {"models", "models.command"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_before_anything_heavy_is_loaded(command, answers):
    answer = answers[command]
    assert answer["code"] == 0
    assert f"python -m {command}" in answer["text"]
    assert answer["heavy"] == []


def lacking(probe: str, root: Path = ROOT) -> list[str]:
    """What a probe still costs: analysis, page, test, a part in the test of several processes, a line in the README."""
    pages = sorted((root / "app" / "views").glob("*.py"))
    processes = (root / "tests" / "probes" / "test_processes.py").read_text()
    analysis = root / "analyses" / f"{probe}.py"
    drawn = {function.name for function in functions(analysis)} if analysis.is_file() else set()
    needed = {
        f"analyses/{probe}.py with {', '.join(DRAWN)}": drawn.issuperset(DRAWN),
        f"tests/probes/test_{probe}.py": (root / "tests" / "probes" / f"test_{probe}.py").is_file(),
        f"a page in app/views that imports analyses.{probe}": any(
            f"analyses.{probe}" in imported(page, root) for page in pages
        ),
        f"its options in tests/probes/test_processes.py: {probe}": f'"{probe}": dict(' in processes,
        f"a line in the README: probes.{probe}": f"probes.{probe}" in (root / "README.md").read_text(encoding="utf-8"),
    }
    return [what for what, is_there in needed.items() if not is_there]


def test_a_model_is_there_before_the_compiler_is_loaded():
    """It takes a second, and only who compiles needs it."""
    code = "import sys, models; models.BViT; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_has_an_analysis_a_page_tests_and_a_line_in_the_readme(probe):
    assert lacking(probe) == []


def test_a_probe_without_them_is_noticed():
    assert len(lacking("made_up")) == 5


def test_no_two_files_need_each_other():
    """Imports for typing and lazy ones count too: nobody has to know two files at once to read one."""
    of_file = {module_of(path): path for path in sources(*MAY_IMPORT)}
    needs = {module: {name for name in imported(path) if name in of_file} for module, path in of_file.items()}
    while leaves := [module for module, others in needs.items() if not others & needs.keys()]:
        for module in leaves:
            del needs[module]
    assert needs == {}, f"a circle among {', '.join(needs)}"


@pytest.mark.parametrize("path", sources(*MAY_IMPORT, "tests", "docs"), ids=name_of)
def test_files_and_functions_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    if name_of(path) not in LONG:
        assert len(text.splitlines()) <= 400
    for function in functions(path):
        assert function.end_lineno - function.lineno < 60, f"{function.name} is too long to read at once"
    assert not re.search(r"# fmt: (skip|off)", text), "the formatter lays out everything"


@pytest.mark.parametrize("path", sources(*MAY_IMPORT), ids=name_of)
def test_imports_stand_at_the_top(path):
    for function in functions(path):
        inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not inner, f"{function.name} imports inside; import at the top, through epy.lazy_imports if it is slow"


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")], ids=str)
def test_lines_of_prose_are_short(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith(("|", "![", "- ["))] == []


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
