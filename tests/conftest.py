"""What every test stands on: offline, one thread, seeded, and a headless browser where there is one."""

import gc
import os
import random
import runpy
import shutil
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["STREAMLIT_BROWSER_GATHER_USAGE_STATS"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import pytest
import torch
from jaxtyping import config as shapes

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LONGEST = {"quickstart", "test_browser", "test_processes", "test_result_pages", "test_shipped", "test_walkthrough"}
USERS = {"analyses", "app", "probes", "test_walkthrough"}  # tests of what uses the model: of it, they check no shapes

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish() -> None:
    """What is imported stays, so that collecting garbage need not look through all of it each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A model of 16 channels spends more time on the check of its shapes than on its sums."""
    shapes.update("jaxtyping_disable", bool(USERS & {item.path.parent.name, item.path.stem}))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``python -m module arguments`` in this process: its exit code, what it printed, and what it said beside."""

    def run(module: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium driven by playwright; the tests that need it are skipped where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()
