"""A view is a link: what it names is shown and survives, and what is not there is passed over."""

from collections.abc import Sequence

import pytest
from streamlit.testing.v1 import AppTest

from .visits import MAIN, is_whole, turned_to

# Links

LINKS = {
    "story": dict(image=7, off="blocks.1 head 0"),
    "steps": dict(image=7, step=1, head=1),
    "transplant": dict(image=7, donor=3, unrelated=5),
    "compare": {"with": "tiny untrained", "image": 7, "step": 1},
    "pointing_game": dict(map="gradient", radius=15, target="any", average="macro", cell_step=1, cell_head=1),
    "rank": dict(site="CLS state", dimension="stable rank", centred="false"),
    "trajectories": dict(picture="PCA", colour="step", follow="7: cross checks"),
    "recurrence": dict(curve="entropy"),
    "intervention": dict(what="reinject"),
    "factors": dict(factor="shape", token="object"),
    "outliers": dict(outlier_metric="share", outlier_state=1),
    "dictionary": dict(dictionary_token="patch", feature=3),
    "prune": dict(round=1, weight="fc1", shared="overlap"),
}


MEANS = {
    "blocks.1 head 0": ["blocks.1 head 0"],
    "CLS state": "cls",
    "stable rank": "stable_rank",
    "false": False,
    "PCA": "pca",
    "7: cross checks": 7,
}


def values(app: AppTest, keys: Sequence[str]) -> dict[str, object]:
    return {key: app.session_state[key] for key in keys if key in app.session_state}


@pytest.mark.parametrize("view", LINKS)
def test_what_a_link_names_is_shown_and_survives_a_change_of_page(view, tiny_runs, opened):
    named = {key: MEANS.get(value, value) for key, value in LINKS[view].items()}
    app = opened(tiny_runs, view, **LINKS[view])
    assert is_whole(app) and values(app, named) == named
    app = turned_to(turned_to(app, "overview"), view)
    assert is_whole(app) and values(app, named) == named


WRONG = ("99999999999", "", "1e999", "-1", "x", "--5", "²", "inf", "9" * 4400)


@pytest.mark.parametrize("view", LINKS)
def test_a_link_to_what_is_not_there_opens_the_page_all_the_same(view, tiny_runs, opened):
    plain = opened(tiny_runs, view, run="nowhere")
    assert is_whole(plain) and plain.selectbox(key="run").value == "tiny"
    for wrong in WRONG if view == "steps" else WRONG[:3]:
        app = opened(tiny_runs, view, **dict.fromkeys(LINKS[view], wrong))
        assert is_whole(app) and (not wrong or values(app, LINKS[view]) == values(plain, LINKS[view]))


def test_another_run_with_fewer_steps_keeps_what_it_can(tiny_runs, opened):
    shipped = MAIN.parents[1] / "runs"
    app = opened(shipped, "pointing_game", run="demo", cell_step=9, cell_head=2)
    assert app.session_state["cell_step"] == 9
    app.session_state["cell_step"] = 99
    assert is_whole(app.run()) and app.session_state["cell_step"] < 12 and app.session_state["cell_head"] == 2
