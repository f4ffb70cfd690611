"""The page that opens first: one image's story, the heads that a link or a click switches off, and the page saved."""

import json

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from analyses import story
from app import gallery, live
from models import load, open_data

from .visits import changed, is_whole


def drawn(app: AppTest) -> dict:
    """What the browser gets to draw."""
    return of_component(app, "story")


def of_component(app: AppTest, name: str) -> dict:
    return next(json.loads(one.proto.json) for one in app.get("bidi_component") if one.proto.component_name == name)


def test_it_tells_of_the_image_that_the_link_names(tiny_runs, opened):
    app = opened(tiny_runs, image=7)
    told, model = drawn(app), load(tiny_runs / "tiny")
    image, label, _ = open_data("shapes-easy", like=model)[7]
    with torch.inference_mode():
        answer = model(image[None])[0].softmax(-1)
    assert is_whole(app) and told["title"].startswith("image 7: ") and told["truth"] == label
    assert told["answer"] == int(answer.argmax())
    assert story.unpacked(told["topProbability"])[-1, 0] == pytest.approx(float(answer.max()), abs=1e-5)
    assert len(told["sentences"]) == 4 and "fill" in told["sentences"][1]


def test_heads_that_a_link_switches_off_are_off(tiny_runs, opened):
    app = opened(tiny_runs, image=7, off="blocks.1 head 0")
    model = live.load(tiny_runs / "tiny")
    image = open_data("shapes-easy", like=model.config)[7][0].numpy()
    before, after = model.trace(image)["probability"][-1], model.trace(image, ((1, 0),))["probability"][-1]
    told = drawn(app)
    assert is_whole(app) and told["off"] == [[1, 0]] and not np.allclose(before, after)
    assert told["answer"] == before.argmax()
    assert story.unpacked(told["topProbability"])[-1, 0] == pytest.approx(after.max(), abs=1e-6)
    assert after == pytest.approx(model.without_head(image, 1, 0), abs=1e-6)
    assert model.flips(image)[0, 1, 0] == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize("wrong", ["blocks.9 head 0", "", "x", "blocks.1 head -1", "1" * 3000])
def test_a_link_to_a_head_that_is_not_there_switches_nothing_off(wrong, tiny_runs, opened):
    app = opened(tiny_runs, off=wrong, image=wrong)
    assert is_whole(app) and drawn(app)["off"] == [] and drawn(app)["title"].startswith("image 0: ")


def test_moments_are_of_this_run_s_images_and_open_their_story(tiny_runs, opened):
    moments = of_component(opened(tiny_runs), "gallery")["moments"]
    assert len({one["index"] for one in moments}) == len(moments) >= 3
    one = moments[0]
    assert one["picture"].startswith("data:image/jpeg") and one["title"] and one["step"] < 3
    assert drawn(opened(tiny_runs, image=one["index"]))["title"].startswith(f"image {one['index']}: ")


@pytest.mark.parametrize("about", [dict(checkpoint_sha256="0123456789abcdef"), dict(weights="init")])
def test_results_of_another_model_have_no_moments(about, runs, opened):
    for kind in gallery.SOURCES:
        changed(runs / "tiny" / kind.file, **about)
    app = opened(runs)
    assert is_whole(app) and [one.proto.component_name for one in app.get("bidi_component")] == ["story"]


def test_heads_off_are_kept_where_another_run_has_them(opened):
    app = opened(live.results.folders().runs, run="demo", off="blocks.11 head 2")
    assert is_whole(app) and drawn(app)["off"] == [[11, 2]]
