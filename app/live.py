"""A loaded model as the pages may use it: by one visitor at a time, and cached, so that nothing runs twice."""

from __future__ import annotations

import threading
import time
import warnings
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from etils import epy
from PIL import Image

from app import results, words
from app.contents import CHECKPOINT, RECURRENCE
from app.text import text
from models.errors import InputError, UnreadableImage, brief

if TYPE_CHECKING:
    import xarray as xr

    from models import BViT, ViTConfig
    from models.origin import Origin

with epy.lazy_imports():
    import torch

    import models
    from models import checkpoint, flops, hooks, origin
    from models import data as datasets
    from models.data import images as pictures_on_disk
    from models.data import shapes, stream
    from probes.methods import one_image

MOST_PIXELS, FORMATS = 40_000_000, ("PNG", "JPEG", "WEBP", "BMP")  # of a picture that is uploaded
SHORT = 0.5  # seconds, after which a bar says that work goes on
N_SCORED = 500  # validation images behind the accuracy after each step
BY_WEIGHTS = {"app.live.Model": lambda model: f"{model.origin.sha256} {model.origin.weights}"}  # what caches know it by


Cell = tuple[int, int]  # a step and a head


class Model:
    """A model that all visitors share. Only `alone` runs it, so only inside of this class, by one visitor at a time.

    Hooks are set on the model itself, and a pruned one's weights are exchanged while a step runs: two at once would
    read each other's activations.
    """

    def __init__(self, model: BViT):
        self._model, self._lock = model, threading.Lock()
        self.config: ViTConfig = model.config
        self.origin: Origin = model.origin
        self.about: dict[str, Any] = checkpoint.describe(model)
        self.names = list(model.config.classes or map(str, range(model.config.n_classes)))
        self.classes = words.of_all(self.names)

    @contextmanager
    def alone(self) -> Iterator[BViT]:
        """The model itself, to whoever is next; without gradients."""
        with self._lock, torch.inference_mode():
            yield self._model

    @st.cache_data(max_entries=64, show_spinner="running the model", hash_funcs=BY_WEIGHTS)
    def trace(self, image: np.ndarray, off: tuple[Cell, ...] = (), target: int | None = None) -> dict[str, np.ndarray]:
        """Everything that one run on an image [3 h w] shows, with these heads off; see `one_image.trace`."""
        with self.alone() as model:
            traced = one_image.trace(model, torch.from_numpy(image), off, target)
        refuse_nonfinite(traced["norm"][1:])
        if not traced.get("probability", traced["norm"]).isfinite().all():
            raise InputError("what the head reads out is not finite; the checkpoint diverged, use an earlier one")
        return {name: values.numpy() for name, values in traced.items()}

    @st.cache_data(max_entries=64, show_spinner=False, hash_funcs=BY_WEIGHTS)
    def flips(self, image: np.ndarray, off: tuple[Cell, ...] = ()) -> np.ndarray:
        """Class probabilities of the last state with each head off that is on, or on that is off, and with a random
        change as large: [2 step head class]; see `one_image.flipped`.
        """
        found = []
        with self.alone() as model:
            state = model.embed(torch.from_numpy(image)[None])
        for step in steps_with_bar(self.config.n_steps, "switching every head off"):
            with self.alone() as model:  # a step at a time, so that others get between
                found.append(one_image.flipped(model, state, step, off))
                state = one_image.after_step(model, state, step, off)
        return torch.stack(found, 1).numpy()

    @st.cache_data(max_entries=64, show_spinner=False, hash_funcs=BY_WEIGHTS)
    def transplant(self, image: np.ndarray, donor: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Class probabilities of the last state when some tokens, bool [set pos], of the state that enters a step are
        those of the donor's: [step set class].
        """
        found = []
        with self.alone() as model:
            states = model.embed(torch.from_numpy(np.stack([image, donor])))
        for step in steps_with_bar(self.config.n_steps, "putting states in"):
            with self.alone() as model:
                found.append(one_image.transplanted(model, states[:1], states[1:], step, torch.from_numpy(tokens)))
                states = model.run_steps(states, step, step + 1)
        return torch.stack(found).numpy()

    @st.cache_data(max_entries=256, show_spinner=False, hash_funcs=BY_WEIGHTS)
    def without_head(self, image: np.ndarray, step: int, head: int) -> np.ndarray:
        """Class probabilities of the last state when one head's output is set to zero at one step."""
        off = (f"blocks.{step}.attn.hook_z", hooks.head(head, hooks.zero))
        with self.alone() as model:
            return model.run_with_hooks(torch.from_numpy(image)[None], fwd_hooks=[off])[0].softmax(-1).numpy()

    @st.cache_data(max_entries=16, show_spinner=False, hash_funcs=BY_WEIGHTS)
    def accuracy(self) -> tuple[np.ndarray, int]:
        """Top-1 read out of every state [state], on images spread evenly over the validation split; and how many."""
        images = self.images()
        part = torch.utils.data.Subset(images, stream.evenly(len(images), N_SCORED))
        where = torch.tensor(datasets.match_classes(datasets.describe(images).classes, self.names))
        correct, done = np.zeros(self.config.n_steps + 1), 0
        bar = st.progress(0.0, "measuring accuracy after each step")
        for batch in stream.Stream(part, 50):
            with self.alone() as model:  # a batch at a time, so that others get between
                answers = answers_of(model, batch.images)
            correct += (answers == where[batch.labels]).sum(1).numpy()
            done += len(batch.labels)
            bar.progress(done / len(part))
        bar.empty()
        return correct / max(done, 1), done

    def images(self) -> Any:
        """The validation images the model was trained beside; `InputError` where they are not on this machine, and
        `NotAsked` where this visitor did not ask for them yet.
        """
        spec = self.origin.data
        if spec is None:
            raise InputError("its checkpoint names none")
        if not may_open(spec):
            raise NotAsked(f"{spec} is opened when you ask for it")
        return opened(spec, self.config)

    def spec(self) -> str | None:
        """The name of those images: their own or, where they are elsewhere, the checkpoint's."""
        try:
            return self.images().spec
        except InputError:
            return self.origin.data

    def flops(self) -> int:
        """Of a run on one image."""
        return flops.of_forward(self.config)

    def label_of(self, images: Any, label: int) -> int | None:
        """The model's class of a label of the data, None where it has none or nothing tells which."""
        if list(images.classes) == self.names:
            return label  # several classes may have one name
        name = images.classes[label]
        return self.names.index(name) if self.names.count(name) == 1 else None

    def factors(self) -> dict[str, list[str]]:
        """What each class is made of, by the name of the factor; empty but for the embedded data's classes."""
        if tuple(self.names) != shapes.CLASSES:
            return {}
        return {name: [words.split()[place] for words in self.names] for place, name in enumerate(shapes.FACTORS)}

    def images_at_hand(self) -> Any:
        """The same, or None with a word where they are elsewhere, as those of a run that came from elsewhere, and with
        a button where the checkpoint alone says what would be opened.
        """
        try:
            return self.images()
        except NotAsked as error:
            st.info(f"The images this model was trained beside are named by its checkpoint alone: {text(error)}.")
            st.button(f"Open {text(self.origin.data)}", key="open data", on_click=ask_for, args=(self.origin.data,))
        except InputError as error:
            st.info(f"The images this model was trained beside are not here ({text(error)}).")
        return None


def steps_with_bar(n: int, what: str) -> Iterator[int]:
    """0 .. n - 1, with a bar once it takes long; a visitor who goes on in the meantime ends it there."""
    begun, bar = time.monotonic(), None
    for step in range(n):
        yield step
        if bar or time.monotonic() - begun > SHORT:
            bar = bar or st.progress(0.0)
            bar.progress((step + 1) / n, what)
    if bar:
        bar.empty()


def answers_of(model: BViT, images: torch.Tensor) -> torch.Tensor:
    """The class read out of every state: [state image]."""
    z, answers = model.embed(images), []
    for t in range(model.config.n_steps):
        answers.append(model.read_out(z).argmax(-1))
        z = model.run_steps(z, t, t + 1)
    return torch.stack([*answers, model.read_out(z).argmax(-1)])


def refuse_nonfinite(norms: torch.Tensor) -> None:
    """Stop with the first step after which the stream is no number, by its tokens' norms [step pos]."""
    bad = [t for t, norm in enumerate(norms) if not norm.isfinite().all()]
    if bad:
        raise InputError(
            f"activations are not finite from step {bad[0] + 1} (blocks.{bad[0]}) on; the checkpoint diverged, "
            "use an earlier one"
        )


# Loading


def load(run: Path, weights: str = "ema") -> Model:
    """A run's model; with weights "init" as it was before training."""
    path = run / CHECKPOINT.file
    if not path.exists():
        raise InputError(f"{run} holds no ckpt.pt; train one with: {CHECKPOINT.made_by(run)}")
    return _load(str(run), results.stamp(path), weights)


@st.cache_resource(max_entries=4, show_spinner="loading the model")
def _load(run: str, changed: tuple[int, ...], weights: str) -> Model:
    return Model(models.load(run, weights))


# Data. A checkpoint names what it was trained on, and may be a stranger's: the name alone makes the server do nothing.

EMBEDDED = ("shapes", "shapes-easy")


class NotAsked(InputError):
    """Data that are opened only after a click that names them."""


def may_open(spec: str) -> bool:
    """Whether data are opened: the embedded ones, those below --data-root, and without that those asked for. Raises
    `InputError` for data outside of it.
    """
    if spec.partition(":")[0] in EMBEDDED:
        return True
    root = results.folders().data_root
    if root is None:
        return spec in st.session_state.get("asked for", ())
    if not all(place.is_relative_to(root.resolve()) for place in places_of(spec)):
        raise InputError(f"{spec} is not below {root}, and only what is there is opened (--data-root)")
    return True


def places_of(spec: str) -> list[Path]:
    """The files and folders that a spec names, links followed; what names none could be anywhere."""
    names = [name for name in spec.partition(":")[2].split("@") if name]
    return [Path(name).expanduser().resolve() for name in names] or [Path("/")]


def ask_for(spec: str) -> None:
    """The visitor's click."""
    st.session_state["asked for"] = (*st.session_state.get("asked for", ()), spec)


@st.cache_resource(max_entries=8, show_spinner="opening the data")
def opened(spec: str, config: ViTConfig) -> Any:
    try:
        return models.open_data(spec, "val", like=config)
    except (OSError, ValueError, LookupError, TypeError) as error:
        said = error if isinstance(error, InputError) else f"{spec} cannot be opened: {brief(error)}"
        raise InputError(str(said)) from None


def accuracy_of(run: Path, model: Model) -> tuple[np.ndarray, int] | None:
    """Top-1 after every state and the number of images, as the stored sweep over this model's own data has it, which
    answers at once; else measured now, where the data are at hand.
    """
    stored = results.of(run, RECURRENCE)
    own = origin.relative(model.spec()), "val"
    speaks = stored is not None and results.speaks_for(stored, run, model.origin.weights)
    if not speaks or data_of(stored.attrs) != own:
        return None if model.images_at_hand() is None else model.accuracy()
    return stored["accuracy"].values[: model.config.n_steps + 1], stored.sizes["image"]


# Pictures


def from_upload(config: ViTConfig, content: bytes, name: str) -> np.ndarray:
    """An uploaded picture as the model's normalised input [3 h w]."""
    refuse_large(content, name)
    decoded = pictures_on_disk.decode(BytesIO(content), name)
    picture = pictures_on_disk.cut(decoded, config.image_size, Image.Resampling.BICUBIC)
    values = np.asarray(picture, dtype=np.float32) / 255
    return ((values - np.float32(config.mean)) / np.float32(config.std)).transpose(2, 0, 1)


def refuse_large(content: bytes, name: str) -> None:
    """Look at the header alone: at most `MOST_PIXELS`, in a format that visitors have."""
    try:
        with warnings.catch_warnings(), Image.open(BytesIO(content), formats=FORMATS) as picture:
            warnings.simplefilter("ignore")
            width, height = picture.size
    except Image.DecompressionBombError as error:
        raise UnreadableImage(name, brief(error)) from None
    except Exception:  # a damaged file raises anything inside a decoder
        raise UnreadableImage(name, f"it is none of {', '.join(FORMATS)}; save it as one of these") from None
    if width * height > MOST_PIXELS:
        raise UnreadableImage(
            name, f"it has {width} x {height} pixels, more than {MOST_PIXELS // 10**6} million; make it smaller"
        )


def pixels(config: ViTConfig, image: np.ndarray) -> np.ndarray:
    """The normalised image [3 h w] as uint8 [y x channel]."""
    values = image.transpose(1, 2, 0) * np.float32(config.std) + np.float32(config.mean)
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def pictures(run: Path, result: xr.Dataset) -> dict[int, str]:
    """Data URIs of a result's images by their place along `image`: all where the run's data is at hand, else the
    stored thumbnails.
    """
    try:
        model = load(run)
        images = model.images()
        indices = tuple(result["index"].values.tolist())
        if is_of(images, indices, result.attrs):
            return _pictures(model.origin.data, model.config, indices)
    except (InputError, LookupError):
        pass  # the page says which pictures are missing
    if "thumbnail" not in result:
        return {}
    stored = zip(result["shown"].values, result["thumbnail"].values, strict=True)
    return {int(place): data_uri(thumbnail) for place, thumbnail in stored}


def is_of(images: Any, indices: Sequence[int], said: Mapping[str, Any]) -> bool:
    """Whether a result is of these very images: all of them, or those at `indices`."""
    if not is_of_data(images, said):
        return False
    part = torch.utils.data.Subset(images, indices)
    return said.get("data_fingerprint") in (images.fingerprint, datasets.describe(part).fingerprint)


def is_of_data(images: Any, said: Mapping[str, Any]) -> bool:
    """Whether a result says that it is of this data, or of a part of it."""
    return data_of(said) == (origin.relative(images.spec), images.split)


def data_of(said: Mapping[str, Any]) -> tuple[Any, Any]:
    """The data and the split that a result says it is of."""
    return said.get("data"), said.get("split")


@st.cache_data(max_entries=4, show_spinner="drawing the images")
def _pictures(spec: str, config: ViTConfig, indices: tuple[int, ...]) -> dict[int, str]:
    images = opened(spec, config)
    return {place: data_uri(pixels(config, images[index][0].numpy())) for place, index in enumerate(indices)}


def data_uri(picture: np.ndarray) -> str:
    """A picture [y x channel], at most 64 px wide, as an address that holds it."""
    small, buffer = Image.fromarray(picture), BytesIO()
    small.thumbnail((64, 64))
    small.save(buffer, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
