"""One image's story: what it says of planted numbers, what is packed, and a page that strange texts cannot bend."""

import json
import re

import numpy as np
import pytest

from analyses import story

CLASSES = ("disc dots", "disc plain", "ring dots", "ring plain")
FACTORS = {"shape": [name.split()[0] for name in CLASSES], "fill": [name.split()[1] for name in CLASSES]}


def told(classes=CLASSES, **changed) -> story.Story:
    """4 steps of 2 heads: the fill is settled from step 1 on, the shape from 3 on, and head 1 at step 2 decides."""
    probability = np.full((5, 4), 0.04)
    for state, answer in enumerate([1, 2, 2, 0, 0]):
        probability[state, answer] = 0.88
    attention = np.full((4, 2, 4, 4), 0.05)
    attention[2, 1] = 0
    attention[2, 1, :2, :2] = 0.2
    flips = np.broadcast_to(probability[-1], (2, 4, 2, 4)).copy()
    flips[0, 1, 1] = [0.1, 0.05, 0.8, 0.05]
    flips[1, 1, 1, 0] = 0.85
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4] = 1
    traced = dict(probability=probability, attention=attention, to_cls=np.full((4, 2), 0.2))
    traced |= dict(patch_answer=np.zeros((5, 4, 4), int), patch_certainty=np.full((5, 4, 4), 0.5))
    traced |= dict(patch_target=np.full((5, 4, 4), 0.5), norm=np.ones((5, 17)))
    given = dict(traced=traced, untouched=probability[-1], flips=flips, truth=0, mask=mask, factors=FACTORS)
    picture = np.zeros((8, 8, 3), np.uint8)
    return story.Story(**(dict(name="image 7", picture=picture, classes=classes, about="a model") | given | changed))


def test_sentences_are_written_from_the_numbers():
    answer, path, heads, looks = story.sentences(told())
    assert answer == "The model answers disc dots (88.0 %; chance 25.0 %), which is right."
    assert path == (
        "Read out after each step, this is the answer from step 3 on; before that it was ring dots. The fill (dots) is "
        "settled from step 1 on and the shape (disc) is settled from step 3 on."
    )
    assert heads.startswith("Head 1 at step 2 decides: without it the answer's probability goes from 88.0 % to 10.0 %")
    assert heads.endswith("random change to 85.0 %. Switched off alone, 1 of 8 heads change the answer.")
    assert looks.startswith("Head 1 attends to the object most at step 3: 100.0 %") and "25.0 % of the image" in looks


def test_what_a_random_change_does_as_well_is_no_decision():
    flips = told().flips.copy()
    flips[1, 1, 1, 0] = 0.2
    assert story.heads_sentence(told(flips=flips)).endswith(
        "so much of the loss is due to the disturbance itself. Switched off alone, 1 of 8 heads change the answer."
    )
    assert story.heads_sentence(told(flips=np.stack([flips[1]] * 2) * 0 + 0.88)).startswith("No single head decides")


def test_a_head_that_is_off_is_named_and_what_it_is_worth_counts_the_other_way():
    off = told(off=((1, 1),), untouched=np.array([0.1, 0.7, 0.1, 0.1]))
    assert off.answer == 1 and off.lost[1, 1] == pytest.approx(0.05 - 0.04)
    assert "With head 1 at step 2 off, disc plain goes from 70.0 % to 4.0 %, and the answer is another one." in (
        story.sentences(off)
    )


def test_a_model_without_a_head_has_a_story_of_attention_alone():
    traced = {name: told().traced[name] for name in ("attention", "to_cls")}
    drawn = story.payload(told(traced=traced, untouched=None, flips=None, classes=()))
    assert "classes" not in drawn and len(drawn["sentences"]) == 1


def test_what_is_packed_is_the_numbers_themselves():
    one = told()
    drawn = story.payload(one)
    assert story.unpacked(drawn["attention"]) == pytest.approx(one.traced["attention"])
    assert story.unpacked(drawn["top"])[:, 0].tolist() == [1, 2, 2, 0, 0]
    assert story.unpacked(drawn["heads"]["lost"]) == pytest.approx(one.lost, abs=1e-6)
    assert drawn["heads"]["lost"]["shape"] == [4, 2] and story.unpacked(drawn["heads"]["answer"])[1, 1] == 2
    assert 0 in drawn["likely"] and len(drawn["likely"]) == 4


def test_the_last_of_many_classes_keeps_its_name():
    probability = np.full((5, 70_000), 0.0)
    probability[:, 69_999] = 1
    traced = told().traced | dict(probability=probability, patch_answer=np.full((5, 4, 4), 69_999))
    names = [f"class {k}" for k in range(70_000)]
    drawn = story.payload(told(names, traced=traced, untouched=probability[-1], flips=None, factors={}))
    assert story.unpacked(drawn["top"])[-1, 0] == story.unpacked(drawn["patchAnswer"])[0, 0, 0] == 69_999


def test_the_outline_has_every_edge_of_the_object_once():
    mask = np.zeros((6, 6), np.uint8)
    mask[1:3, 2:5] = 1
    edges = re.findall(r"M(\d+) (\d+)([vh])1", story.outline(mask))
    assert len(edges) == len(set(edges)) == 2 * (2 + 3)
    assert {x for x, _, kind in edges if kind == "v"} == {"2", "5"}
    assert {y for _, y, kind in edges if kind == "h"} == {"1", "3"}
    assert len(re.findall("M", story.outline(np.ones((3, 3))))) == 12


EVIL = "</script><script>alert(1)</script><!--<img src=x onerror=alert(1)>&amp;\u2028"


def test_strange_texts_stay_texts_in_the_saved_page():
    drawn = story.payload(told(name=EVIL, about=EVIL, classes=[EVIL, "b", "c", "d"], factors={}))
    page = story.page(drawn)
    assert page.count("<script") == page.count("</script") == 2 and "<img" not in page and "<!--" not in page
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data) == json.loads(json.dumps(drawn))
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "").replace(
        "http://www.w3.org", ""
    )
