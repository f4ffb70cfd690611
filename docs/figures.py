"""``make figures``: the README's pictures anew, from the shipped results, and the dashboard where there is a browser.

Nothing is measured here: the results are those of ``runs/``, each figure the one its analysis draws for the paper.
"""

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from analyses import (
    ablation,
    attribution,
    dictionary,
    dynamics,
    factors,
    intervention,
    lens,
    neurons,
    outliers,
    patching,
    pointing_game,
    prune,
    rank,
    recurrence,
    results,
    trajectories,
)

HERE, RUNS = Path(__file__).parent, Path(__file__).parents[1] / "runs"
PORT = 8599
FIGURES: dict[str, tuple[str, Callable[[xr.Dataset], Figure | None]]] = {
    "pointing_game_steps": ("demo/pointing_game", pointing_game.figure),
    "pointing_game_examples": ("demo/pointing_game", pointing_game.examples),
    "neurons": ("demo/neurons", neurons.figure),
    "rank": ("demo/rank", rank.figure),
    "trajectories": ("demo/trajectories", trajectories.figure),
    "recurrence": ("demo/recurrence", recurrence.figure),
    "ablation": ("demo/ablation", ablation.figure),
    "attribution": ("demo/attribution", attribution.figure),
    "patching": ("demo/patching", patching.figure),
    "lens": ("demo/lens", lens.figure),
    "dictionary": ("demo/dictionary", dictionary.figure),
    "dictionary_examples": ("demo/dictionary", dictionary.FIGURES["examples"]),
    "outliers": ("demo/outliers", outliers.figure),
    "factors": ("demo/factors", factors.figure),
    "factors_codes": ("demo/factors", factors.codes),
    "intervention": ("demo/intervention", intervention.figure),
    "dynamics": ("demo/dynamics", dynamics.figure),
}


def result(name: str) -> xr.Dataset:
    return results.read(RUNS / f"{name}.nc")


def save(figure: Figure, name: str) -> None:
    figure.savefig(HERE / f"{name}.png", dpi=110)
    print(f"wrote docs/{name}.png")


def dashboard(name: str, path: str, until: str = ".js-plotly-plot") -> None:
    """A picture of a page of the dashboard, taken by a headless browser once an element is there."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print(f"docs/{name}.png is left as it is: there is no Chromium to take it with")
        return
    server = subprocess.Popen([sys.executable, "-m", "app.demo", "--headless", "--port", str(PORT)])
    try:
        wait_for(f"http://localhost:{PORT}/_stcore/health")
        with sync_playwright() as driver:
            page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
            page.set_viewport_size({"width": 1400, "height": 1260})
            page.goto(f"http://localhost:{PORT}/{path}")
            page.wait_for_selector(until, timeout=120_000)
            page.wait_for_timeout(4000)
            page.screenshot(path=HERE / f"{name}.png")
        print(f"wrote docs/{name}.png")
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, seconds: float = 60) -> None:
    for _ in range(int(seconds * 2)):
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"the dashboard did not answer at {address}")


def main() -> None:
    for name, (of, draw) in FIGURES.items():
        save(draw(result(of)), name)
    controls = {kind: result(f"pruned/prune_{kind}") for kind in ("shared", "random")}
    save(prune.figure(result("pruned/prune"), controls), "prune")
    dashboard("story", "?run=demo&image=419&step=5&head=2", ".story .film canvas")


if __name__ == "__main__":
    main()
