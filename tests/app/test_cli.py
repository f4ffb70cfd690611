"""The command ``bvit``, and what ``python -m`` says where a folder hides the toolkit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app import cli
from tests.test_house import COMMANDS

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; sys.path.pop(0); sys.argv[0] = 'bvit'; from app.cli import main; main()"  # as an installed script


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with packages of its own under the toolkit's names."""
    for name in ("models", "analyses"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a stranger was run')")
    (tmp_path / "app.py").write_text("raise SystemExit('a stranger was run')")
    return tmp_path


def call(folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_every_command_has_a_name_and_nothing_else_has() -> None:
    assert sorted(map(cli.module_of, cli.commands().values())) == sorted(COMMANDS)
    assert {"train", "prune", "pointing-game", "app"} <= cli.commands().keys()


def test_no_folder_hides_it(hostile: Path) -> None:
    done = call(hostile, "-c", SCRIPT)
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in cli.commands()), done.stderr
    done = call(hostile, "-c", SCRIPT, "pointing-game", "--help")
    assert done.returncode == 0 and "usage: bvit pointing-game" in done.stdout, done.stderr
    done = call(hostile, "-c", SCRIPT, "prune", "--paper", "--quick")
    assert done.returncode == 2 and done.stderr.startswith("bvit prune: --paper and --quick exclude each other")
    done = call(hostile, "-c", SCRIPT, "rnak")
    assert done.returncode == 2 and "no command 'rnak'; there are" in done.stderr and "Traceback" not in done.stderr


def test_a_new_file_that_ends_as_a_command_appears_by_itself(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "of_mine.py").write_text('"""How long is it?"""\n' + cli.END + "    print(1)\n")
    (tmp_path / "probes" / "walk.py").write_text('"""No command."""\n')
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bvit"])
    cli.main()
    assert capsys.readouterr().out.splitlines()[2:] == ["  of-mine         How long is it?"]


def test_python_says_in_one_sentence_that_a_stranger_hides_a_package(hostile: Path) -> None:
    done = call(hostile, "-m", "probes.rank", "runs/demo")
    assert done.returncode == 2 and "is not the toolkit's package models" in done.stderr
    assert "the command bvit" in done.stderr and done.stderr.count("\n") == 1


def test_a_command_names_itself_as_it_was_typed(hostile: Path) -> None:
    for name in ("report", "study-table"):
        done = call(hostile, "-c", SCRIPT, name, "nowhere")
        assert done.returncode == 2 and done.stderr.startswith(f"bvit {name}: "), done.stderr
