"""A loaded model behind the dashboard: what it answers, and that visitors do not read each other's activations."""

import dataclasses
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from streamlit.runtime import Runtime
from streamlit.testing.v1 import app_test

from app import live, words
from models import load, open_data
from models.errors import InputError
from models.vit import BViT

from .visits import is_whole


@pytest.fixture(scope="module")
def model(tiny_runs) -> live.Model:
    return live.load(tiny_runs / "tiny")


@pytest.fixture(scope="module")
def images(model) -> np.ndarray:
    data = open_data("shapes-easy", like=model.config)
    return np.stack([data[i][0].numpy() for i in range(48)])


@pytest.fixture
def uncached():
    """Caches that know nothing of earlier tests."""
    methods = (live.Model.trace, live.Model.flips, live.Model.without_head, live.Model.accuracy)
    for method in methods:
        method.clear()


def expected(run: Path, image: np.ndarray) -> np.ndarray:
    """Probabilities read out of every state [state class], by the plain forward of a model of one's own."""
    model, batch = load(run), torch.from_numpy(image)[None]
    with torch.inference_mode():
        return torch.cat([model(batch, n_steps=k) for k in range(model.config.n_steps + 1)]).softmax(-1).numpy()


def test_a_trace_is_what_the_model_answers_and_attends_to(model, images, tiny_runs, uncached):
    traced = model.trace(images[0])
    assert traced["probability"] == pytest.approx(expected(tiny_runs / "tiny", images[0]), abs=1e-6)
    assert traced["attention"].shape == (3, 2, 4, 4) and traced["norm"].shape == (4, model.config.n_tokens)
    assert traced["attention"].sum((2, 3)) + traced["to_cls"] == pytest.approx(np.ones((3, 2)), abs=1e-5)


def test_answers_that_are_no_numbers_are_refused(images, tiny_runs):
    diverged = load(tiny_runs / "tiny")
    diverged.head.bias.data[0] = torch.nan
    diverged.origin = dataclasses.replace(diverged.origin, sha256="of nobody else")
    with pytest.raises(InputError, match="what the head reads out is not finite; the checkpoint diverged"):
        live.Model(diverged).trace(images[0])


def test_without_head_equals_the_plain_forward_with_that_head_s_columns_zeroed(model, images, tiny_runs, uncached):
    """A head reaches the stream through its columns of the output projection: these are zeroed at a single step."""
    plain = load(tiny_runs / "tiny")
    with torch.no_grad():
        z = plain.run_steps(plain.embed(torch.from_numpy(images[3])[None]), 0, 1)
        weight = plain.core[0].attn.proj.weight
        kept = weight.clone()
        weight[:, :16] = 0
        z = plain.run_steps(z, 1, 2)
        weight.copy_(kept)
        answer = plain.read_out(plain.run_steps(z, 2, 3))[0].softmax(-1)
    assert model.without_head(images[3], 1, 0) == pytest.approx(answer.numpy(), abs=1e-6)


# Classes


def test_classes_of_one_word_are_told_apart():
    assert words.of_all(["n02012849", "n03126707", "a", "b", "b"]) == [
        "crane (n02012849)",
        "crane (n03126707)",
        "a",
        "b (3)",
        "b (4)",
    ]


def test_an_image_of_the_second_of_two_classes_of_one_name_is_of_that_class(tiny_runs):
    two = load(tiny_runs / "tiny")
    two.config = dataclasses.replace(two.config, classes=(*two.config.classes[:-1], two.config.classes[0]))
    model, last = live.Model(two), two.config.n_classes - 1
    alike, other = ([*names] for names in (two.config.classes, two.config.classes[::-1]))
    labels = [model.label_of(SimpleNamespace(classes=names), last) for names in (alike, other)]
    assert labels == [last, None] and model.label_of(SimpleNamespace(classes=other), 1) == last - 1


# One at a time


def in_two_threads(work: Callable[[int], object], n: int) -> list:
    """What `work` gives for 0 .. n - 1, from threads that change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(work, range(n)))
    finally:
        sys.setswitchinterval(before)


def test_two_visitors_get_their_own_image_s_attention(model, images, uncached):
    """Without the lock most of these are wrong: both set their hooks on the one model."""
    alone = [model.trace(image) for image in images]
    live.Model.trace.clear()
    together = in_two_threads(lambda i: model.trace(images[i]), len(images))
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_head_switched_off_by_one_visitor_stays_on_for_the_others(model, images, uncached):
    right = [model.without_head(image, 0, 1) if i % 2 else model.trace(image)["norm"] for i, image in enumerate(images)]
    live.Model.trace.clear(), live.Model.without_head.clear()
    got = in_two_threads(
        lambda i: model.without_head(images[i], 0, 1) if i % 2 else model.trace(images[i])["norm"], len(images)
    )
    assert all(np.array_equal(one, other) for one, other in zip(right, got, strict=True))


def test_everything_that_runs_the_model_waits_for_its_turn(model, images, uncached, monkeypatch):
    inside, most = [], []

    def watched(name: str) -> Callable:
        original = getattr(BViT, name)

        def call(self, *args, **options):
            inside.append(threading.get_ident())
            most.append(len(set(inside)))
            try:
                return original(self, *args, **options)
            finally:
                inside.remove(threading.get_ident())

        return call

    for name in ("run_with_cache", "run_with_hooks", "embed", "run_steps", "read_out"):
        monkeypatch.setattr(BViT, name, watched(name))
    work = (
        lambda i: model.trace(images[i]),
        lambda i: model.without_head(images[i], 0, 0),
        lambda i: model.flips(images[i]),
        lambda i: model.accuracy(),
    )
    in_two_threads(lambda i: work[i % 4](i), 12)
    assert len(most) > 12 and max(most) == 1


class Keeping(type):
    """Takes the server that a run of an AppTest sets for itself, and keeps it when the run takes it away at its end."""

    def __setattr__(cls, name: str, value: object) -> None:
        if value is not None:
            setattr(Runtime, name, value)


class Kept(Runtime, metaclass=Keeping):
    """A runtime as AppTest sees it."""


@pytest.fixture
def meeting(monkeypatch):
    """Runs of AppTests may meet: what each sets and takes away is there throughout."""
    monkeypatch.setattr(Runtime, "_instance", None)
    monkeypatch.setattr(app_test, "Runtime", Kept)
    with app_test.patch_config_options({"global.appTest": True}):
        monkeypatch.setattr(app_test, "patch_config_options", lambda options: nullcontext())
        yield


def test_two_sessions_at_once_show_their_own_image_s_answer(opened, meeting, tiny_runs, images, uncached):
    """As two browsers do: each has its session, both run the page on the one model."""
    sessions = [opened(tiny_runs, "steps", image=start) for start in (46, 47)]

    def answers(place: int) -> dict[int, str]:
        said, app = {}, sessions[place]
        for index in range(place, 20, 2):
            app.sidebar.number_input(key="image").set_value(index).run()
            assert is_whole(app)
            said[index] = next(found[1] for line in app.markdown if (found := re.search(r"\((.+) %\)", line.value)))
        return said

    odd, even = in_two_threads(answers, 2)
    right = {i: f"{100 * expected(tiny_runs / 'tiny', images[i])[-1].max():.1f}" for i in range(20)}
    assert odd | even == right


def test_pages_get_no_model_that_they_could_run(model):
    assert not callable(model)
    assert not any(isinstance(value, torch.nn.Module) for name, value in vars(model).items() if name[0] != "_")
    for view in Path(live.__file__).parent.joinpath("views").glob("*.py"):
        assert "._model" not in view.read_text() and ".alone(" not in view.read_text()


# Uploads


def encoded(mode: str) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((90, 50), 60).convert(mode).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16"])
def test_an_upload_of_any_kind_becomes_the_model_s_input(mode, model):
    image = live.from_upload(model.config, encoded(mode), "mine")
    assert image.shape == (3, 32, 32) and np.isfinite(image).all()


def test_an_unreadable_upload_is_one_sentence_that_names_it(model):
    with pytest.raises(InputError, match=r"mine\.png cannot be read as an image"):
        live.from_upload(model.config, b"no picture", "mine.png")
