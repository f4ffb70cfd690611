"""Which image a page of the model is about: the visitor's own, a validation image of the model's data or, where these
are elsewhere, a photograph that comes with a library; in the link as ``image`` or ``sample``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import sklearn
import streamlit as st
import xarray as xr
from PIL import Image

from app import live, page, results, words
from models.errors import InputError

SAMPLES = {  # scikit-learn's are under CC BY 2.0 (danielbuechele, vultilion on Flickr), the last in the public domain
    "temple": Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg",
    "flower": Path(sklearn.__file__).parent / "datasets" / "images" / "flower.jpg",
    "Grace Hopper": Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
}


@dataclass(frozen=True)
class Shown:
    """An image [3 h w] with its name and, where it is one of the data set, its label and the mask of its object [y x],
    where 1 is the object; `factors` are what its class is made of.
    """

    model: live.Model
    image: np.ndarray
    name: str
    label: int | None = None
    mask: np.ndarray | None = None
    factors: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def picture(self) -> np.ndarray:
        """The crop that the model sees: uint8 [y x channel]."""
        return live.pixels(self.model.config, self.image)


def chosen(model: live.Model) -> Shown:
    """The image that the link or the sidebar names."""
    upload = st.sidebar.file_uploader("Your own picture", ["png", "jpg", "jpeg", "webp", "bmp"], key="upload")
    images = model.images_at_hand()
    if upload is not None:
        return Shown(model, live.from_upload(model.config, upload.getvalue(), upload.name), upload.name)
    if images is None:
        st.info("Upload a picture in the sidebar: photographs of any size will do. Until then, one of a library's:")
        return sample(model)
    page.keep_within("image", range(len(images)), 0)
    index = st.sidebar.number_input(
        "Image of the validation split", 0, len(images) - 1, 0, key="image", **page.linked_number("image")
    )
    st.sidebar.button("Another one", on_click=another, args=(model,))
    return of_data(model, images, index)


def of_data(model: live.Model, images: Any, index: int) -> Shown:
    """An image of the validation split."""
    image, label, mask = images[index]
    outline = None if mask is None else (mask.numpy() == label + 1).astype(np.uint8)
    name = f"image {index}: {words.of_all(images.classes)[label]}"
    return Shown(model, image.numpy(), name, model.label_of(images, int(label)), outline, model.factors())


def sample(
    model: live.Model, place: Any = st.sidebar, label: str = "Photograph", key: str = "sample", default: int = 0
) -> Shown:
    """A photograph that a library brings along."""
    about = "Upload your own above; these come with scikit-learn and matplotlib."
    name = place.selectbox(label, list(SAMPLES), default, key=key, help=about, **page.LINKED)
    path = SAMPLES[name]
    return Shown(model, live.from_upload(model.config, path.read_bytes(), path.name), f"sample: {name}")


def donor(model: live.Model, place: Any, label: str, key: str, default: int = 1) -> Shown:
    """A second image, in the link under a key of its own."""
    try:
        images = model.images()
    except InputError:
        return sample(model, place, label, key, default % len(SAMPLES))
    default = min(default, len(images) - 1)
    page.keep_within(key, range(len(images)), default)
    return of_data(
        model, images, place.number_input(label, 0, len(images) - 1, default, key=key, **page.linked_number(key))
    )


def seen_by(shown: Shown, model: live.Model) -> Shown:
    """The same picture as another model's input, at its size and in its normalisation."""
    one, other = shown.model.config, model.config
    if (one.image_size, one.mean, one.std) == (other.image_size, other.mean, other.std):
        return replace(shown, model=model)
    content = BytesIO()
    Image.fromarray(shown.picture).save(content, "PNG")
    return Shown(model, live.from_upload(model.config, content.getvalue(), shown.name), shown.name)


def another(model: live.Model) -> None:
    """A click on *Another one*: an image at random, or the next photograph."""
    try:
        n = len(model.images())
    except InputError:
        names = list(SAMPLES)
        now = st.session_state.get("sample", names[0])
        st.session_state["sample"] = names[(names.index(now) + 1) % len(names)]
    else:
        st.session_state["image"] = int(np.random.default_rng().integers(n))


def to_story(place: Any, index: int, result: xr.Dataset, label: str = "story") -> None:
    """A way from an image of a result to its story, where it is one of those the model was trained beside."""
    try:
        images = live.load(results.chosen()).images()
    except InputError:
        return
    if live.is_of_data(images, result.attrs) and 0 <= index < len(images):
        link = {"run": results.chosen().name, "image": str(index)}
        place.page_link("views/story.py", label=label, query_params=link)
