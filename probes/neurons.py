"""What does an FFN neuron look for at each step? Pictures that maximise it, and the real images that do (figure 3).

    python -m probes.neurons runs/demo
    python -m probes.neurons runs/demo --neurons 3,17 --steps 0,5,11
    python -m probes.neurons timm:vit_small_patch16_224 --data folder:PATH --top 4 --paper

A neuron's activation is its value after GELU at one step, mean over the patches. One pass over the data gives every
neuron's mean and its top images at every step; then pictures of the chosen neurons are optimised, all steps in one
batch and each only as far as its step (see `probes.methods.visualise` for the two recipes). Costs one forward per
image (two with the untrained control), and per picture and recipe iterations x copies forwards and backwards of its
steps. An interrupted run goes on when it is started again with the same options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from etils import epy

from models.command import Preset
from models.errors import InputError, require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import neurons as analysis
    from models.data import stream
    from probes.methods import pixels, top_images, visualise

N_SAMPLED = 256  # images behind spectra, spread evenly
N_SHOWN = 64  # real images whose pixels the result keeps
MOST = 1_000_000
PAPER = Preset("iterations and copies of the reference recipe of tv: 400 and 8", dict(iterations=400, copies=8))


@probe.measurement(control=("mean_activation", "overlap"), lighter=dict(methods=(), thumbnails=False))
def measure(
    model: models.BViT,
    images: Any,
    *,
    neurons: probe.Numbers = None,
    top: int = 4,
    steps: probe.Numbers = None,
    methods: tuple[Literal["tv", "maco"], ...] = ("tv", "maco"),
    iterations: int = 128,
    copies: int = 4,
    n_top: int = 9,
    thumbnails: bool = True,
) -> xr.Dataset:
    """Pictures that maximise FFN neurons at every step, beside the real images that activate them most.

    Under several processes the data are shared out, and each makes all pictures, so that the result does not depend on
    their number. Raises `InputError` for neurons or steps that are not there, and where activations are not finite.

    Args:
        neurons: neurons by number, from 0, as in 3,17; instead of --top.
        top: this many neurons, those whose mean activation varies most over the steps.
        steps: steps by number, from 0, as in 0,5,11; or all.
        methods: tv (pixels, total variation) and maco (Fourier phases under the data's own spectrum).
        iterations: of the optimisation.
        copies: augmented copies of a picture at each iteration.
        n_top: real images kept for each neuron and step.
        thumbnails: keep the pixels of the top real images for figures and dashboard.
    """
    config = model.config
    for name, value in {"iterations": iterations, "copies": copies, "n_top": n_top, "top": top}.items():
        complaint = f"--{name.replace('_', '-')} is {value}, it must lie between 1 and {MOST:,}"
        require((1 <= value <= MOST, complaint))
    steps = in_range(range(config.n_steps) if steps is None else sorted(steps), config.n_steps, "step")
    neurons = None if neurons is None else in_range(neurons, config.d_mlp, "neuron")
    complaint = f"--top is {top}, the model has {config.d_mlp} neurons; choose at most that many"
    require((neurons is not None or top <= config.d_mlp, complaint))
    real = top_images.observe(model, images, n_top)
    if neurons is None:
        neurons = np.argsort(-real.mean.std(0), kind="stable")[:top].tolist()
    result = of_real_images(real, steps, neurons, images)
    if methods:
        options = {"iterations": iterations, "copies": copies}
        result = result.assign(draw(model, images, methods, steps, neurons, options))
    if thumbnails:
        result = result.assign(top_pictures(images, real.top[np.ix_(steps, neurons)], config))
    return result.assign_attrs(
        image_size=config.image_size,
        n_blocks=config.n_blocks,
        n_read=real.n,
        n_sampled=real.n_sampled,
        iterations=iterations,
        copies=copies,
        note="" if real.n >= 100 else f"only {real.n} images: top images and overlaps say little",
    )


def in_range(numbers: Sequence[int], n: int, what: str) -> list[int]:
    """The numbers without repeats; each must be one of the model's."""
    for number in numbers:
        if not 0 <= number < n:
            raise InputError(f"there is no {what} {number}: the model has {what}s 0 to {n - 1}, counted from 0")
    if not len(numbers):
        raise InputError(f"no {what} is named; name at least one from 0 to {n - 1}")
    return list(dict.fromkeys(map(int, numbers)))


def of_real_images(real: top_images.TopImages, steps: list[int], neurons: list[int], images: probe.Pass) -> xr.Dataset:
    """What the pass over the data says: of all neurons (`unit`) at all steps, of the chosen ones with top images."""
    cell, (n_steps, n_units, k) = np.ix_(steps, neurons), real.top.shape
    overlap = analysis.jaccard(real.top)
    return xr.Dataset(
        {
            "mean_activation": (("all_step", "unit"), real.mean.astype(np.float32)),
            "change": ("unit", real.mean.std(0).astype(np.float32)),
            "unit_overlap": ("unit", analysis.off_diagonal(overlap).astype(np.float32)),
            "overlap": (("all_step", "other_all_step"), overlap.mean(0).astype(np.float32)),
            "best_real": (("step", "neuron"), real.value[cell][..., 0]),
            "median_real": (("step", "neuron"), real.median[cell]),
            "top": (("step", "neuron", "place"), images.indices(real.top[cell])),
            "top_activation": (("step", "neuron", "place"), real.value[cell]),
            "jaccard": (("neuron", "step", "other_step"), overlap[np.ix_(neurons, steps, steps)].astype(np.float32)),
            "chance_jaccard": ((), analysis.chance_jaccard(real.n, k)),
        },
        coords={
            "step": steps,
            "other_step": steps,
            "neuron": neurons,
            "unit": np.arange(n_units),
            "all_step": np.arange(n_steps),
            "other_all_step": np.arange(n_steps),
        },
    )


def draw(
    model: models.BViT,
    images: probe.Pass,
    methods: Sequence[str],
    steps: list[int],
    neurons: list[int],
    options: dict[str, int],
) -> dict[str, tuple]:
    """Pictures of every (step, neuron) by each recipe, and the activations they reach at every chosen step."""
    pairs = [(step, neuron) for step in steps for neuron in neurons]
    canvas = visualise.measured(model, lambda: sampled(images))
    pictures, transfer = [], []
    for method in methods:
        key = repr((method, pairs, options, images.seed, model.origin.sha256, images.about.fingerprint))
        with visualise.frozen(model):
            objective = visualise.of_neurons(model, pairs)
            painted = visualise.optimised(
                method,
                pairs,
                objective,
                canvas,
                **options,
                seed=images.seed,
                kept=images.unfinished(method),
                key=key,
            )
        painted = (painted * 255).round() / 255  # as they are kept
        pictures.append(pixels.as_bytes(painted))
        transfer.append(reached(model, canvas.normalised(painted), steps, neurons, images.batch_size))
    own = np.einsum("mfss->msf", transfer)
    probe.refuse_nonfinite(torch.from_numpy(own.sum((0, 2))))
    cells = (len(methods), len(steps), len(neurons))
    return {
        "recipe": ("recipe", list(methods)),
        "picture": (
            ("recipe", "step", "neuron", "y", "x", "channel"),
            np.stack(pictures).reshape(*cells, *pictures[0].shape[1:]),
        ),
        "transfer": (("recipe", "neuron", "step", "other_step"), np.stack(transfer)),
        "activation": (("recipe", "step", "neuron"), own),
    }


def sampled(images: probe.Pass) -> Any:
    """Batches of images of an evenly spread sample, the same on every process."""
    return (batch.images for batch in stream.Stream(images.sample(N_SAMPLED).data, images.batch_size))


def reached(
    model: models.BViT, inputs: torch.Tensor, steps: list[int], neurons: list[int], batch_size: int
) -> np.ndarray:
    """Activation of each picture's own neuron at every chosen step: [neuron step other_step], from [step*neuron 3 h
    w].
    """
    parts = [top_images.mean_activations(model, part)[:, steps][..., neurons] for part in inputs.split(batch_size)]
    by_picture = torch.cat(parts).unflatten(0, (len(steps), len(neurons))).cpu().numpy()
    return np.stack([by_picture[:, i, :, i] for i in range(len(neurons))])


def top_pictures(images: probe.Pass, top: np.ndarray, config: models.ViTConfig) -> dict[str, tuple]:
    """Pixels of the first few images of `top` [step neuron place], first places first, each image once."""
    shown = list(dict.fromkeys(np.moveaxis(top, -1, 0).ravel().tolist()))[:N_SHOWN]
    return {
        "thumbnail": (("image", "y", "x", "channel"), pixels.shown(images.data, shown, config)),
        "shown": ("image", images.indices(shown)),
    }


if __name__ == "__main__":
    probe.main(measure, presets={"paper": PAPER})
