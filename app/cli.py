"""``bvit``: every command of the toolkit under one name, which no folder can hide.

    bvit                              # the list; bvit --version
    bvit pointing-game runs/demo      # what python -m probes.pointing_game runs/demo does

Every file of the four packages that ends as a command is one; nothing else has to be told of it. An installed script
finds the toolkit's own packages whatever lies in the working directory, where ``python -m`` looks first.
"""

import ast
import os
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

from models import command

ROOT, PACKAGES = Path(__file__).parents[1], ("models", "probes", "analyses", "app")
NAMES = {"app.demo": "app", "analyses.study": "study-table"}  # where the file's name says too little
END = '\nif __name__ == "__main__":\n'


def commands() -> dict[str, Path]:
    """The file of each command, by the command's name."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).glob("*.py"))]
    modules = {module_of(file): file for file in files if END in file.read_text(encoding="utf-8")}
    return {NAMES.get(module, file.stem.replace("_", "-")): file for module, file in modules.items()}


def module_of(file: Path) -> str:
    return f"{file.parent.name}.{file.stem}"


def listed() -> str:
    """A line a command: its name, and the first line of what its file says of itself."""
    lines = ["usage: bvit COMMAND ...   (bvit COMMAND --help says more)", ""]
    for name, file in commands().items():
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<15} {text.partition(chr(10))[0]}")
    return "\n".join(lines)


def main() -> None:
    """Run the command that the first word names, as ``python -m`` would."""
    name, known = (sys.argv[1:2] or ["--help"])[0], commands()
    if name in ("-h", "--help"):
        print(listed())
        return
    if name == "--version":
        print(f"bvit-toolkit {version('bvit-toolkit')}")
        return
    if name not in known:
        print(f"bvit: there is no command {name!r}; there are {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    module = module_of(known[name])
    command.called[f"python -m {module}"] = f"bvit {name}"
    os.environ["PYTHONSAFEPATH"] = "1"  # the processes that it starts do not look in the working directory either
    sys.argv = [f"bvit {name}", *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
