"""Moments worth a look, on results in which the images that stand out are planted."""

import numpy as np
import pytest
import xarray as xr

from analyses import moments

N = 20


@pytest.fixture
def results() -> dict[str, xr.Dataset]:
    """Recurrence and lens of 20 images in different orders, attribution and pointing game of some."""
    settled, by_max, right = np.full(N, 2), np.full(N, 2), np.ones(N, bool)
    settled[3], settled[7], by_max[5], right[[9, 12]] = 6, 3, 16, False
    settled[12] = 6
    recurrence = dict(settled=("image", settled), settled_by_max=("image", by_max), index=("image", np.arange(N)))
    order = np.arange(N)[::-1]
    flips = np.zeros((2, N), int)
    flips[1, 4] = 5
    lens = dict(flips=(("lens", "image"), flips[:, order]), is_right=("image", right[order]), index=("image", order))
    node = np.full((1, 4, 6, 3), 0.1)
    node[0, 1, 2, 1] = 50
    hit = np.zeros((1, 1, N, 6, 2))
    hit[0, 0, 8] = 1
    hit[0, 0, :, 4, 1] = 1
    return {
        "recurrence": xr.Dataset(recurrence, {"state": np.arange(25)}, {"trained_steps": 6}),
        "lens": xr.Dataset(lens, {"lens": ["tuned", "logit"]}),
        "attribution": xr.Dataset(
            dict(node_of_image=(("how", "image", "step", "part"), node), index=("image", [0, 11, 2, 13])),
            {"part": ["h0", "h1", "ffn"]},
        ),
        "pointing_game": xr.Dataset(
            dict(hit=(("radius", "target", "image", "step", "head"), hit), index=("image", np.arange(N))),
            {"radius": [0], "target": ["class"]},
        ),
    }


def test_what_was_planted_is_found_once_each(results):
    found = {one.index: one for one in moments.worth_a_look(results)}
    assert len(found) == len(moments.worth_a_look(results))
    assert found[3].title == "right only from step 6 on" and found[3].step == 5
    assert found[7].title == "wrong until step 3"
    assert found[12].title == "wrong in the end, decided at step 6" and "sure of it from step 2" in found[9].title
    assert found[5].title == "right at step 6, forgotten by step 24"
    assert found[4].title == "changes its mind 5 times and ends right"
    assert found[11].title.startswith("one head does 98 %") and (found[11].step, found[11].head) == (2, 1)
    assert found[8].title == "12 of 12 pointers on the object"


def test_with_fewer_results_there_are_fewer_moments(results):
    assert moments.worth_a_look({}) == []
    assert [one.index for one in moments.worth_a_look({"lens": results["lens"]})] == [4]
    assert len(moments.worth_a_look({"attribution": results["attribution"]})) == 2
