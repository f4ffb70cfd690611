"""A visitor with a browser: through the pages, along the slider, into a cell of the map. Skipped where there is no
Chromium.
"""

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from app.demo import free_port, streamlit_arguments

PATIENCE = 15_000  # milliseconds for a page on a slow machine


@pytest.fixture(scope="module")
def address(tiny_runs):
    """A dashboard on a run with every result."""
    port = free_port(8650)
    command = [sys.executable, *streamlit_arguments(port, True, tiny_runs)]
    server = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/_stcore/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def wait_for(url: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.fixture
def visit(browser, address):
    """Opens an address of the dashboard;."""
    pages = []

    def go(path: str = ""):
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}/{path}")
        page.wait_for_selector("h1")
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.close()


def settled(page) -> None:
    """Until the script has run, with nothing on the page that should not be there."""
    page.wait_for_selector(".js-plotly-plot .main-svg")
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.locator("[data-testid=stAlertContentError]").count() == 0
    assert page.locator("[role=dialog]").count() == 0  # streamlit's "page not found"


def test_every_page_opens_from_the_menu(visit):
    page = visit()
    settled(page)
    titles = {page.locator("h1").first.inner_text()}
    for name in ("Steps", "Pointing game", "Neurons", "Rank", "Trajectories", "Recurrence", "Pruning"):
        before = page.locator("h1").first.inner_text()
        page.locator("[data-testid=stSidebarNav]").get_by_text(name, exact=True).click()
        page.wait_for_function(
            "before => document.querySelector('h1') && document.querySelector('h1').innerText !== before", arg=before
        )
        settled(page)
        titles.add(page.locator("h1").first.inner_text())
    assert len(titles) == 8


def test_the_mouse_on_a_point_shows_its_image_and_play_walks_on(visit):
    page = visit("trajectories")
    settled(page)
    frame = page.frame_locator("iframe").first
    frame.locator(".js-plotly-plot .main-svg").first.wait_for()
    drawn = page.frames[-1]
    x, y = drawn.evaluate(
        """() => {
            const plot = document.querySelector('.js-plotly-plot'), {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.d2p(plot._fullData[0].x[5]), box.top + yaxis._offset + yaxis.d2p(plot._fullData[0].y[5])];
        }"""
    )
    outer = page.locator("iframe").first.bounding_box()
    page.mouse.move(outer["x"] + x - 5, outer["y"] + y)
    page.mouse.move(outer["x"] + x, outer["y"] + y)
    drawn.wait_for_function(
        "() => [...document.querySelectorAll('body > img')].some(i => i.style.display === 'block' && "
        "i.src.startsWith('data:image'))"
    )
    frame.get_by_text("play", exact=False).first.click()
    drawn.wait_for_function("() => document.querySelector('.js-plotly-plot')._fullLayout.sliders[0].active === 2")


def test_the_slider_moves_the_page_and_its_link(visit):
    page = visit("steps?image=2&step=1")
    settled(page)
    assert page.get_by_text("step 2 (blocks.1)").count()
    page.get_by_role("slider").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.search.includes('step=2')")
    page.get_by_text("step 3 (blocks.2)").first.wait_for()
    settled(page)
    assert "image=2" in page.url


def test_a_click_on_a_cell_shows_that_cell_and_makes_it_the_link(visit):
    page = visit("pointing_game")
    settled(page)
    for step, head in ((2, 1), (0, 0)):
        x, y = cell_on_screen(page, step, head)
        page.mouse.move(x, y)
        page.wait_for_selector(".hoverlayer .hovertext")
        page.mouse.click(x, y)
        page.wait_for_function(f"location.search.includes('step={step}') && location.search.includes('head={head}')")
        page.locator("[data-testid=stMain]").get_by_text(
            f"step {step + 1} (blocks.{step})", exact=False
        ).first.wait_for()
        settled(page)


def cell_on_screen(page, step: int, head: int) -> tuple[float, float]:
    """Where the browser has drawn a cell of the first map that can be clicked."""
    return tuple(
        page.evaluate(
            """([step, head]) => {
                const plot = [...document.querySelectorAll('.js-plotly-plot')].find(p => p.data.some(t => t.type === 'heatmap'));
                plot.scrollIntoView({block: 'center'});
                const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
                return [box.left + xaxis._offset + xaxis.d2p(step + 1), box.top + yaxis._offset + yaxis.d2p(head)];
            }""",
            [step, head],
        )
    )
