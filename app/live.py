"""What the pages ask of runs and loaded models, cached, so that moving a slider computes nothing twice."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
import xarray as xr

from models.errors import InputError

N_SCORED = 500  # validation images behind the accuracy after each step


def runs_root() -> Path:
    """The folder named by ``streamlit run app/main.py -- --runs DIR``."""
    parser = argparse.ArgumentParser(prog="streamlit run app/main.py --")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder that holds the runs")
    return parser.parse_known_args()[0].runs


def runs(root: Path) -> list[str]:
    """Folders that hold a checkpoint or a result."""
    if not root.is_dir():
        return []
    return sorted(
        folder.name for folder in root.iterdir() if folder.is_dir() and (list(folder.glob("ckpt.pt")) or list(folder.glob("*.nc")))
    )


def linked(key: str, default: Any, allowed: Any = None) -> Any:
    """The value of a widget named `key` when the page opens: from the link, if it is allowed there."""
    if key not in st.session_state:
        value = st.query_params.get(key)
        value = value if value is None or isinstance(default, str) else int(value) if value.lstrip("-").isdigit() else None
        st.session_state[key] = value if value is not None and (allowed is None or value in allowed) else default
    return st.session_state[key]


def remember(*keys: str) -> Callable[[], None]:
    """A callback that writes widgets' values into the link."""

    def write() -> None:
        for key in keys:
            st.query_params[key] = str(st.session_state[key])

    return write


def guarded(function: Callable[..., Any], *args: Any) -> Any:
    """The function's value, or None with its one-sentence complaint on the page."""
    try:
        return function(*args)
    except InputError as error:
        st.error(str(error))
        return None


def run() -> Path | None:
    """The run chosen in the sidebar."""
    name = st.session_state.get("run")
    return None if name is None else runs_root() / name


def load(run: Path) -> Any:
    path = run / "ckpt.pt"
    if not path.exists():
        raise InputError(f"{run} holds no ckpt.pt; train one with: python -m models.train --data shapes --out {run}")
    return _load(str(run), path.stat().st_mtime_ns)


@st.cache_resource(max_entries=4, show_spinner="loading the model")
def _load(run: str, changed: int) -> Any:
    from models import load

    return load(run)


@st.cache_resource(max_entries=8, show_spinner="opening the data")
def dataset(_model: Any, spec: str, key: str) -> Any:
    from models import open_data

    return open_data(spec, "val", like=_model)


def images_of(model: Any) -> Any:
    """The validation images the model was trained beside."""
    return dataset(model, model.origin.data, model.origin.sha256)


def images_at_hand(model: Any) -> Any:
    """The same, or None with a word where they are not on this machine, as those of a run that came from elsewhere."""
    try:
        return images_of(model)
    except InputError as error:
        st.info(f"The images this model was trained beside are not here ({error}).")
        return None


def result(run: Path, probe: str, needed: str) -> xr.Dataset | None:
    """A probe's result, or None where there is none; a broken file, or one without the variable `needed`, is an `InputError`."""
    path = run / f"{probe}.nc"
    if not path.exists():
        return None
    found = _result(str(path), path.stat().st_mtime_ns)
    if needed not in found:
        raise InputError(f"{path} has no variable {needed}; make it anew with: python -m probes.{probe} {run}")
    return found


def result_or_stop(run: Path, probe: str, needed: str, missing: str) -> xr.Dataset:
    """A probe's result; where there is none the page ends with the word `missing` and the command that makes it."""
    try:
        found = result(run, probe, needed)
    except InputError as error:
        st.error(str(error))
        st.stop()
    if found is None:
        st.info(missing)
        st.code(f"python -m probes.{probe} {run}", language="bash")
        st.stop()
    return found


@st.cache_resource(max_entries=8)
def _result(path: str, changed: int) -> xr.Dataset:
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            return opened.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{path} is not a readable result ({type(error).__name__}); make it anew with its command") from None


def from_upload(model: Any, content: bytes, name: str) -> np.ndarray:
    """An uploaded picture as the model's normalised input [3 h w]."""
    from PIL import Image

    from models.data.images import cut, decode

    picture = cut(decode(BytesIO(content), name), model.config.image_size, Image.Resampling.BICUBIC)
    pixels = np.asarray(picture, dtype=np.float32) / 255
    return ((pixels - np.float32(model.config.mean)) / np.float32(model.config.std)).transpose(2, 0, 1)


def pixels(model: Any, image: np.ndarray) -> np.ndarray:
    """The normalised image [3 h w] as uint8 [y x channel]."""
    shown = image.transpose(1, 2, 0) * np.float32(model.config.std) + np.float32(model.config.mean)
    return (shown.clip(0, 1) * 255).round().astype(np.uint8)


def pictures(run: Path, result: xr.Dataset) -> dict[int, str]:
    """Data URIs of a result's images by their place along `image`: all where the run's data is at hand, else the stored thumbnails."""
    from models.checkpoint import relative

    try:
        model = load(run)
        data = images_of(model)
        if (relative(data.spec), data.split) == (result.attrs["data"], result.attrs["split"]):
            return _pictures(model, data, model.origin.sha256, tuple(result["index"].values.tolist()))
    except InputError:
        pass  # the page says which pictures are missing
    if "thumbnail" not in result:
        return {}
    return {int(place): data_uri(shown) for place, shown in zip(result["shown"].values, result["thumbnail"].values, strict=True)}


@st.cache_data(max_entries=4, show_spinner="drawing the images")
def _pictures(_model: Any, _data: Any, key: str, indices: tuple[int, ...]) -> dict[int, str]:
    return {place: data_uri(pixels(_model, _data[index][0].numpy())) for place, index in enumerate(indices)}


def data_uri(shown: np.ndarray) -> str:
    """A picture [y x channel], at most 64 px wide, as an address that holds it."""
    from base64 import b64encode

    from PIL import Image

    picture, buffer = Image.fromarray(shown), BytesIO()
    picture.thumbnail((64, 64))
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"


@st.cache_data(max_entries=64, show_spinner="running the model")
def trace(_model: Any, key: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """Everything the Steps page shows of one image, from one run.

    attention: [step head row column]; to_cls: [step head]; norm: [state pos]; probability: [state class] (absent without a head).
    """
    import torch

    model, config = _model, _model.config
    side = config.image_size // config.patch_size
    wanted = {
        "blocks.*.attn.hook_pattern": lambda pattern: pattern[:, :, 0],
        "blocks.*.hook_resid_post": lambda stream: stream,
        "hook_embed": lambda stream: stream,
        "hook_pos_embed": lambda stream: stream,
    }
    with torch.inference_mode():
        _, cache = model.run_with_cache(torch.from_numpy(image)[None], names_filter=wanted)
        streams = [cache["hook_embed"] + cache["hook_pos_embed"]]
        streams += [cache[f"blocks.{t}.hook_resid_post"] for t in range(config.n_steps)]
        rows = torch.stack([cache[f"blocks.{t}.attn.hook_pattern"][0] for t in range(config.n_steps)])
        bad = [t for t in range(config.n_steps) if not streams[t + 1].isfinite().all()]
        if bad:
            raise InputError(
                f"activations are not finite from step {bad[0] + 1} (blocks.{bad[0]}) on; the checkpoint diverged, use an earlier one"
            )
        seen = {
            "attention": rows[:, :, config.n_prefix :].unflatten(-1, (side, side)).numpy(),
            "to_cls": rows[:, :, 0].numpy(),
            "norm": torch.stack([stream[0].norm(dim=-1) for stream in streams]).numpy(),
        }
        if config.n_classes:
            seen["probability"] = torch.stack([model.read_out(stream)[0] for stream in streams]).softmax(-1).numpy()
    return seen


@st.cache_data(max_entries=256, show_spinner=False)
def without_head(_model: Any, key: str, image: np.ndarray, step: int, head: int) -> np.ndarray:
    """Class probabilities of the last state when one head's output is set to zero at one step."""
    import torch

    from models.hooks import head as at_head
    from models.hooks import zero

    with torch.inference_mode():
        logits = _model.run_with_hooks(torch.from_numpy(image)[None], fwd_hooks=[(f"blocks.{step}.attn.hook_z", at_head(head, zero))])
    return logits[0].softmax(-1).numpy()


@st.cache_data(max_entries=16, show_spinner=False)
def accuracy(_model: Any, _data: Any, key: str) -> tuple[np.ndarray, int]:
    """Top-1 read out of every state [state], on images spread evenly over the validation split; and how many they are."""
    import torch
    from torch.utils.data import Subset

    from models.data import Stream, describe, match_classes

    n = min(N_SCORED, len(_data))
    subset = Subset(_data, [i * len(_data) // n for i in range(n)])
    where = torch.tensor(match_classes(describe(_data).classes, _model.config.classes))
    correct, done = torch.zeros(_model.config.n_steps + 1), 0
    bar = st.progress(0.0, "measuring accuracy after each step")
    for batch in Stream(subset, 50):
        with torch.inference_mode():
            z = _model.embed(batch.images)
            for t in range(_model.config.n_steps + 1):
                correct[t] += (_model.read_out(z).argmax(-1) == where[batch.labels]).sum()
                z = _model.run_steps(z, t, t + 1) if t < _model.config.n_steps else z
        done += len(batch.labels)
        bar.progress(done / n)
    bar.empty()
    return (correct / max(done, 1)).numpy(), done


def measured_accuracy(run: Path, model: Any) -> tuple[np.ndarray, int] | None:
    """The same as `accuracy` from the stored recurrence sweep, if this model made it."""
    found = result(run, "recurrence", "accuracy")
    if found is None or found.attrs["checkpoint_sha256"] != model.origin.sha256:
        return None
    return found["accuracy"].values[: model.config.n_steps + 1], found.sizes["image"]


def log(run: Path) -> list[dict]:
    """The records of train.jsonl."""
    path = run / "train.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]  # a run that is being written may end in half a line


def export(figure: Any, name: str) -> None:
    """A button that saves a plotly figure as a page of its own (PNG: the camera in the figure's corner)."""
    st.download_button("Save as HTML", lambda: figure.to_html(include_plotlyjs=True), f"{name}.html", "text/html", key=f"save {name}")


def chart(figure: Any, name: str, **options: Any) -> Any:
    """A plotly figure that saves as PNG under its own name."""
    return st.plotly_chart(
        figure, key=f"chart {name}", config={"toImageButtonOptions": {"filename": name, "scale": 2}, "displaylogo": False}, **options
    )
