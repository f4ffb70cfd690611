"""What is installed: every import declared, every dependency justified, and a wheel that works in an empty folder."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.test_house import COMMANDS, MAY_IMPORT, ROOT, imported, name_of, sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "pyyaml": "yaml"}  # where the name of the import is another
NOT_IMPORTED = {"tensorboard", "h5netcdf"}  # through torch and xarray
BUILD = "import sys, setuptools.build_meta as build; build.build_wheel(sys.argv[1])"
SCRIPT = "import sys; sys.path.pop(0); sys.argv[0] = 'bvit'; from app.cli import main; main()"


def named(requirements: list[str]) -> list[str]:
    return [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    tops = {name.partition(".")[0] for path in sources(*MAY_IMPORT) for name in imported(path)}
    tops -= {*sys.stdlib_module_names, *MAY_IMPORT}
    declared = {MODULES.get(name, name) for name in named(PROJECT["dependencies"])}
    assert tops - declared == set() and declared - tops <= NOT_IMPORTED


def test_every_dependency_is_justified_with_its_licence() -> None:
    rows = re.findall(r"^\| ([\w, -]+) \| (.+) \| (.+) \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.M)
    justified = {name for names, *_ in rows[0:] if names != "package" for name in names.split(", ")}
    assert justified == {
        *named(PROJECT["dependencies"]),
        *named([need for extra in PROJECT["optional-dependencies"].values() for need in extra]),
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel's content, as an installation lays it out."""
    pytest.importorskip("setuptools")
    source, made, installed = (tmp_path_factory.mktemp(name) for name in ("source", "made", "installed"))
    kept = [*sources(*MAY_IMPORT), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE"))]
    for path in (*kept, ROOT / "app" / ".streamlit" / "config.toml"):
        (source / name_of(path)).parent.mkdir(parents=True, exist_ok=True)
        (source / name_of(path)).write_bytes(path.read_bytes())
    done = subprocess.run([sys.executable, "-c", BUILD, str(made)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    zipfile.ZipFile(next(made.glob("*.whl"))).extractall(installed)
    return installed


def test_the_wheel_carries_what_it_needs_and_nothing_else(wheel: Path) -> None:
    held = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    assert {name_of(path) for path in sources(*MAY_IMPORT)} <= held and "app/.streamlit/config.toml" in held
    assert {name.partition("/")[0] for name in held} == {*MAY_IMPORT, "bvit_toolkit-0.1.0.dist-info"}
    about = next(wheel.glob("*.dist-info"))
    assert "bvit = app.cli:main" in (about / "entry_points.txt").read_text()
    assert "# bViT toolkit" in (about / "METADATA").read_text() and (about / "licenses" / "LICENSE").is_file()


def test_the_wheel_trains_and_measures_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(wheel)}

    def bvit(*words: str) -> str:
        command = [sys.executable, "-c", SCRIPT, *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len(bvit().splitlines()) == 2 + len(COMMANDS)
    small = ["--fields", "d_model=8", "n_heads=2", "n_steps=2", "--batch-size", "16", "--val-limit", "16"]
    bvit("train", "--data", "shapes-easy:32", "--model", "bvit_easy", *small, "--epochs", "1", "--out", "mine")
    assert "step 2 (blocks.1)" in bvit("pointing-game", "mine", "--limit", "8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    assert (tmp_path / "mine" / "pointing_game.nc").is_file()
