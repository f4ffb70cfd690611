"""Visitors with a browser: through the pages, along the slider, into a cell of the map, two at once.

Skipped where there is no Chromium.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from PIL import Image

from app.contents import PAGES
from models import load, open_data

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
PATIENCE = 300_000  # milliseconds for a page on a busy machine
ANSWER = re.compile(r"The model answers (.+) \((.+) %\)")


@pytest.fixture
def visit(browser, served) -> Iterator[Callable]:
    """Opens an address of the dashboard, each time as another visitor; nothing may be asked of anybody else."""
    visitors, asked = [], set()

    def go(path: str = "", until: str = "load"):
        page = browser.new_context(viewport={"width": 1400, "height": 1200}).new_page()
        visitors.append(page.context)
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
        page.goto(f"{served}/{path}", wait_until=until)
        return page

    yield go
    for visitor in visitors:
        visitor.close()
    assert asked - {""} == {urlsplit(served).netloc}


def settled(page, has_chart: bool = True) -> None:
    """Until the script has run, with nothing on the page that should not be there."""
    page.wait_for_selector("h1")
    if has_chart:
        page.wait_for_selector("iframe, .js-plotly-plot .main-svg")
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    wrong = "[data-testid=stException], [data-testid=stAlertContentError], [role=dialog]"  # the last: no such page
    expect(page.locator(wrong)).to_have_text([])


def turn_to(page, title: str) -> None:
    """By the menu."""
    before = page.locator("h1").first.inner_text()
    page.locator("[data-testid=stSidebarNav]").get_by_text(title, exact=True).click()
    changed = "before => document.querySelector('h1') && document.querySelector('h1').innerText !== before"
    page.wait_for_function(changed, arg=before)
    settled(page, has_chart=title != "Other results")


def link(page) -> dict[str, str]:
    """What the address bar says."""
    return {name: values[-1] for name, values in parse_qs(urlsplit(page.url).query).items()}


def test_the_menu_names_every_page_and_opens_it(visit):
    """Three of them: that each draws is tested without a browser."""
    page = visit("overview")
    settled(page)
    for entry in PAGES:
        page.get_by_test_id("stSidebarNav").get_by_text(entry.title, exact=True).wait_for()
    titles = {page.locator("h1").first.inner_text()}
    for entry in PAGES[2::8]:
        turn_to(page, entry.title)
        titles.add(page.locator("h1").first.inner_text())
    assert len(titles) == 1 + len(PAGES[2::8])


def test_the_story_follows_keys_and_clicks_and_can_be_taken_along(visit, browser, tmp_path):
    page = visit("?image=2&step=1&head=1")
    frames = page.locator(".story .film canvas")
    frames.first.wait_for()
    settled(page, has_chart=False)
    assert frames.count() == 2 * 3  # of one head at 3 steps, and what the patches answer there
    for key, expected in (("ArrowRight", ("2", "1")), ("ArrowRight", ("0", "1")), ("ArrowUp", ("0", "0"))):
        page.keyboard.press(key)
        assert (link(page)["step"], link(page)["head"]) == expected
    assert quickest_step(page) < 50
    page.get_by_role("button", name="All heads, one step").click()
    assert link(page)["film"] == "heads" and frames.count() == 2 + 3
    page.keyboard.press(" ")
    page.wait_for_function("location.search.includes('step=2')")
    page.keyboard.press(" ")
    page.locator('.story [data-place="1 1"]').click()
    page.locator('.story .off[data-place="1 1"][aria-pressed=true]').wait_for()
    page.locator(".story .said").get_by_text("With head 1 at step 2 off").wait_for()
    settled(page, has_chart=False)
    at = link(page)
    assert at["off"] == "blocks.1 head 1" and at["step"] == "1"
    with page.expect_download() as download:
        page.get_by_role("button", name="Frame as PNG").click()
    with Image.open(download.value.path()) as frame:
        assert frame.format == "PNG" and len(frame.convert("RGB").getcolors(2**24)) > 50
    with page.expect_download() as download:
        page.get_by_text("Save the story as HTML").click()
    download.value.save_as(tmp_path / "story.html")
    page.reload()
    page.locator('.story .off[data-place="1 1"]').wait_for()
    assert link(page) == at
    page.keyboard.press("n")
    page.wait_for_function("new URLSearchParams(location.search).get('image') !== '2'")
    plays_alone(browser, tmp_path / "story.html")


def quickest_step(page) -> float:
    """Milliseconds in which the browser draws another step, at best."""
    return page.evaluate(
        """() => Math.min(...Array.from({length: 9}, () => {
            const begun = performance.now(), event = new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true});
            document.dispatchEvent(event);
            return performance.now() - begun;
        }))"""
    )


def plays_alone(browser, path: Path) -> None:
    """A saved story moves without a server, asks nobody and complains of nothing."""
    page, said = browser.new_page(), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    page.locator(".story .film canvas").first.wait_for()
    page.get_by_role("button", name="2", exact=True).click()
    page.keyboard.press("ArrowRight")
    page.get_by_text("The answer after step 3").wait_for()
    assert page.title().startswith("image 2: ") and not said
    page.close()


def test_a_view_is_a_link_that_survives_a_change_of_page_and_a_reload(visit):
    view = {"image": "2", "step": "1", "head": "1"}
    page = visit("steps?image=2&step=1&head=1")
    settled(page)

    def is_shown() -> bool:
        page.get_by_text("What CLS attends to at step 2 (blocks.1)").wait_for()
        page.get_by_text("the answer is now").wait_for()
        page.get_by_text(re.compile("^image 2: ")).wait_for()
        return link(page) == view

    assert is_shown()
    turn_to(page, "Rank")
    assert not link(page)
    page.go_back()  # Streamlit writes the page's bare address before the next one's: it lies between
    page.go_back()
    settled(page)
    assert is_shown()
    turn_to(page, "Rank")
    turn_to(page, "Steps")
    assert is_shown()
    page.reload()
    settled(page)
    assert is_shown()


def test_the_slider_and_the_choice_of_an_image_move_the_page_and_its_link(visit):
    page = visit("steps?image=2&step=1")
    settled(page)
    page.get_by_role("slider").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.search.includes('step=2')")
    page.get_by_text("step 3 (blocks.2)").first.wait_for()
    settled(page)
    assert link(page) == {"image": "2", "step": "2"}
    page.get_by_text("Another one").click()
    page.wait_for_function("new URLSearchParams(location.search).get('image') !== '2'")
    settled(page)
    index = link(page).get("image", "0")
    page.get_by_text(re.compile(f"^image {index}: ")).wait_for()


def test_the_mouse_on_a_point_shows_its_image_and_play_walks_on(visit):
    page = visit("trajectories")
    settled(page)
    frame = page.frame_locator("iframe").first
    frame.locator(".js-plotly-plot .main-svg").first.wait_for()
    drawn = page.frames[-1]
    x, y = drawn.evaluate(
        """() => {
            const plot = document.querySelector('.js-plotly-plot'), box = plot.getBoundingClientRect();
            const {xaxis, yaxis} = plot._fullLayout, {x, y} = plot._fullData[0];
            return [box.left + xaxis._offset + xaxis.d2p(x[5]), box.top + yaxis._offset + yaxis.d2p(y[5])];
        }"""
    )
    outer = page.locator("iframe").first.bounding_box()
    shown = """() => [...document.querySelectorAll('body > img')].some(
        image => image.style.display === 'block' && image.src.startsWith('data:image'))"""
    for _ in range(60):  # on a busy machine the chart hears the mouse some time after it is drawn
        page.mouse.move(outer["x"] + x - 5, outer["y"] + y)
        page.mouse.move(outer["x"] + x, outer["y"] + y)
        page.wait_for_timeout(1000)
        if drawn.evaluate(shown):
            break
    assert drawn.evaluate(shown)
    frame.get_by_text("play", exact=False).first.click()
    drawn.wait_for_function("() => document.querySelector('.js-plotly-plot')._fullLayout.sliders[0].active === 2")


def test_a_click_on_a_cell_shows_that_cell_and_makes_it_the_link(visit):
    page = visit("pointing_game")
    settled(page)
    for step, head in ((2, 1), (1, 0), (2, 0)):
        x, y = cell_on_screen(page, step, head)
        page.mouse.move(x, y)
        named = f"step {step + 1} (blocks.{step}), head {head}"
        page.locator(".hoverlayer .hovertext").get_by_text(named).wait_for()
        page.mouse.click(x, y)
        page.locator("h2").get_by_text(named).wait_for()
        settled(page)
    at = link(page)
    page.reload()
    settled(page)
    assert link(page) == at
    page.locator("h2").get_by_text("step 3 (blocks.2), head 0").wait_for()


def cell_on_screen(page, step: int, head: int) -> tuple[float, float]:
    """Where the browser has drawn a cell of the first map that can be clicked."""
    return tuple(
        page.evaluate(
            """([step, head]) => {
                const is_map = plot => plot.data.some(trace => trace.type === 'heatmap');
                const plot = [...document.querySelectorAll('.js-plotly-plot')].find(is_map);
                plot.scrollIntoView({block: 'center'});
                const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
                return [box.left + xaxis._offset + xaxis.d2p(step + 1), box.top + yaxis._offset + yaxis.d2p(head)];
            }""",
            [step, head],
        )
    )


def test_visitors_at_once_get_the_answer_for_their_own_image(visit, tiny_runs):
    indices = range(100, 104)
    pages = [visit(f"steps?image={index}&step=1&head=0", until="commit") for index in indices]
    model = load(tiny_runs / "tiny")
    data = open_data("shapes-easy", like=model)
    with torch.inference_mode():
        right = model(torch.stack([data[index][0] for index in indices])).softmax(-1)
    for page, index, expected in zip(pages, indices, right, strict=True):
        settled(page)
        page.get_by_text(re.compile(f"^image {index}: ")).wait_for()
        name, percent = ANSWER.search(page.locator("[data-testid=stMain]").inner_text()).groups()
        assert (name, percent) == (data.classes[int(expected.argmax())], f"{100 * float(expected.max()):.1f}")
