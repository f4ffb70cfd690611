"""What does an FFN neuron look for at each step? Pictures that maximise it, and the real images that do (figure 3 of the paper).

    python -m probes.neurons runs/demo
    python -m probes.neurons runs/demo --neurons 3,17 --steps 0,5,11
    python -m probes.neurons timm:vit_small_patch16_224 --data folder:PATH --top 4 --paper

A neuron's activation is its value after GELU at one step, mean over the patches. One pass over the data gives every neuron's mean and
its top images at every step; then pictures of the chosen neurons are optimised, all steps in one batch and each only as far as its step
(see `probes.visualise` for the two methods). Costs one forward per image (two with the untrained control), and per picture and method
iterations x copies forwards and backwards of its steps. An interrupted run goes on when it is started again with the same options.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from models.command import run
from models.errors import InputError
from probes.probe import Common

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from torch import Tensor

    from models.vit import BViT
    from probes.visualise import Pair

N_SAMPLED = 256  # images behind medians and spectra, spread evenly
N_SHOWN = 64  # real images whose pixels the result keeps


def measure(
    model: BViT,
    data: Any,
    *,
    neurons: Sequence[int] | None = None,
    top: int = 4,
    steps: Sequence[int] | None = None,
    methods: Sequence[Literal["tv", "maco"]] = ("tv", "maco"),
    iterations: int = 128,
    copies: int = 4,
    n_top: int = 9,
    control: BViT | None = None,
    thumbnails: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    partial: Path | None = None,
) -> xr.Dataset:
    """Pictures and top images of `neurons`, or of the `top` neurons whose mean activation varies most over the steps.

    `steps` are all by default; `n_top` real images are kept per neuron and step. `control` is the untrained model, of which only the
    means and overlaps are stored. `partial` is where unfinished pictures are kept, one file per method. Under several processes the
    data are shared out, and each makes all pictures, so that the result does not depend on their number. Raises `InputError` for
    neurons or steps that are not there, and where activations are not finite.
    """
    import numpy as np

    from models.data import describe
    from probes import probe, visualise

    started, config = time.time(), model.config
    refuse_small(iterations=iterations, copies=copies, n_top=n_top, top=top)
    steps = in_range(range(config.n_steps) if steps is None else steps, config.n_steps, "step")
    neurons = None if neurons is None else in_range(neurons, config.d_mlp, "neuron")
    if neurons is None and top > config.d_mlp:
        raise InputError(f"--top is {top}, the model has {config.d_mlp} neurons; choose at most that many")
    seen = observe(model, data, n_top=n_top, batch_size=batch_size, workers=workers, label="activations")
    if neurons is None:
        neurons = np.argsort(-seen["mean"].std(0), kind="stable")[:top].tolist()
    result = of_real_images(seen, steps, neurons, describe(data).indices)
    if control is not None:
        control = control.to(model.pos_embed.device)
        untrained = observe(control, data, n_top=n_top, batch_size=batch_size, workers=workers, label="untrained control")
        result["control_mean_activation"] = ("all_step", "unit"), untrained["mean"].astype(np.float32)
        result["control_overlap"] = mean_overlap(untrained["top"])
    pairs = [(step, neuron) for step in steps for neuron in neurons]
    canvas = visualise.measured(model, lambda: sampled(data, batch_size))
    options = dict(iterations=iterations, copies=copies, seed=seed)
    pictures, reached = [], []
    for method in methods:
        kept = partial and partial.with_name(f"{partial.name}.{method}.partial")
        drawn = draw(model, describe(data).fingerprint, method, pairs, canvas, options, kept)
        pictures.append(stored(drawn))
        reached.append(reached_at(model, canvas.normalised(drawn / 255), steps, neurons, batch_size))
    add_pictures(result, methods, np.stack(pictures), np.stack(reached))
    if thumbnails:
        add_thumbnails(result, model, data, seen["top"][np.ix_(steps, neurons)])
    return result.assign_attrs(
        probe.attributes(model, data, seed=seed, started=started),
        image_size=config.image_size, n_blocks=config.n_blocks, n_read=seen["n"], n_sampled=seen["n_sampled"], iterations=iterations,
        copies=copies, note="" if seen["n"] >= 100 else f"only {seen['n']} images: top images and overlaps say little",
    )  # fmt: skip


def in_range(numbers: Sequence[int], n: int, what: str) -> list[int]:
    """The numbers without repeats, in order; each must be one of the model's."""
    for number in numbers:
        if not 0 <= number < n:
            raise InputError(f"there is no {what} {number}: the model has {what}s 0 to {n - 1}, counted from 0")
    if not len(numbers):
        raise InputError(f"no {what} is named; name at least one from 0 to {n - 1}")
    return sorted({int(number) for number in numbers}) if what == "step" else list(dict.fromkeys(int(number) for number in numbers))


def refuse_small(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise InputError(f"--{name.replace('_', '-')} is {value}, it must be at least 1")


# ---------------------------------------------------------------- the data


def observe(model: BViT, data: Any, *, n_top: int, batch_size: int, workers: int = 0, label: str = "") -> dict[str, Any]:
    """One pass over the data, of which nothing grows with the number of images.

    mean: [step unit] float64; top: [step unit place] positions of the images that activate each neuron most, ties by position, and
    value: their activations; median: [step unit], of a sample of the images; n: images read; n_sampled.
    """
    import numpy as np
    import torch

    from models.data import Stream
    from probes.probe import gathered, processes, progress, refuse_nonfinite

    shard, stride = processes(), max(1, len(data) // N_SAMPLED)
    n, total, best, sample = 0, 0, None, []
    for batch in progress(Stream(data, batch_size, workers=workers, shard=shard), len(data), label):
        values = mean_activations(model, batch.images.to(model.pos_embed.device))
        n, total = n + len(values), total + values.double().sum(0)
        best = merged(best, values, torch.as_tensor(batch.index, device=values.device), n_top)
        sample += [(int(i), value) for i, value in zip(batch.index, values.cpu().numpy(), strict=True) if i % stride == 0]
    own = (n, None if best is None else (total.cpu().numpy(), *(part.cpu().numpy() for part in best)))
    everyone = gathered([(shard[0], own)])
    n = sum(count for count, _ in everyone)
    if not n:
        raise InputError("no image could be read")
    totals, values, tops = zip(*(part for _, part in everyone if part is not None), strict=True)
    refuse_nonfinite(torch.from_numpy(sum(totals).sum(1)))
    values, tops = np.concatenate(values, -1), np.concatenate(tops, -1)
    order = np.lexsort((tops, -values))[..., :n_top]
    sample = gathered(sample) or [np.full(values.shape[:2], np.nan, np.float32)]
    return {
        "n": n, "mean": sum(totals) / n, "value": np.take_along_axis(values, order, -1), "top": np.take_along_axis(tops, order, -1),
        "median": np.median(np.stack(sample), 0), "n_sampled": len(sample),
    }  # fmt: skip


def mean_activations(model: BViT, images: Tensor) -> Tensor:
    """Mean over the patches of every neuron after GELU at every step: [batch step unit]."""
    import torch

    config = model.config
    reduce = {"blocks.*.mlp.hook_post": lambda post: post[:, config.n_prefix :].mean(1)}
    with torch.inference_mode():
        _, cache = model.run_with_cache(images, names_filter=reduce, stop_at_step=config.n_steps)
        return torch.stack([cache[f"blocks.{t}.mlp.hook_post"] for t in range(config.n_steps)], 1)


def merged(best: tuple[Tensor, Tensor] | None, values: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values so far and their images, [step unit place] each, after a batch of values [batch step unit].

    Batches come in ascending order of `index`, and the sort is stable, so that the lower index wins a tie.
    """
    import torch

    candidates = values.permute(1, 2, 0)
    index = index.expand_as(candidates)
    if best is not None:
        candidates, index = torch.cat([best[0], candidates], -1), torch.cat([best[1], index], -1)
    ordered, order = candidates.sort(dim=-1, descending=True, stable=True)
    return ordered[..., :k].clone(), index.gather(-1, order[..., :k])


def of_real_images(seen: dict[str, Any], steps: list[int], neurons: list[int], indices: np.ndarray) -> xr.Dataset:
    """What the pass over the data says: of all neurons (`unit`) at all steps, and of the chosen ones with their top images."""
    import numpy as np
    import xarray as xr

    from analyses import neurons as analysis

    cell, (n_steps, n_units, k) = np.ix_(steps, neurons), seen["top"].shape
    overlap = analysis.jaccard(seen["top"])
    return xr.Dataset(
        {
            "mean_activation": (("all_step", "unit"), seen["mean"].astype(np.float32)),
            "change": (("unit",), seen["mean"].std(0).astype(np.float32)),
            "unit_overlap": (("unit",), analysis.off_diagonal(overlap).astype(np.float32)),
            "overlap": mean_overlap(seen["top"]),
            "best_real": (("step", "neuron"), seen["value"][cell][..., 0]),
            "median_real": (("step", "neuron"), seen["median"][cell]),
            "top": (("step", "neuron", "place"), indices[seen["top"][cell]]),
            "top_activation": (("step", "neuron", "place"), seen["value"][cell]),
            "jaccard": (("neuron", "step", "other_step"), overlap[np.ix_(neurons, steps, steps)].astype(np.float32)),
            "chance_jaccard": ((), analysis.chance_jaccard(seen["n"], k)),
        },
        coords={
            "step": steps, "other_step": steps, "neuron": neurons, "unit": np.arange(n_units),
            "all_step": np.arange(n_steps), "other_all_step": np.arange(n_steps),
        },
    )  # fmt: skip


def mean_overlap(top: np.ndarray) -> tuple[tuple[str, str], np.ndarray]:
    """Jaccard overlap of the top images between steps, mean over all neurons."""
    from analyses import neurons as analysis

    return ("all_step", "other_all_step"), analysis.jaccard(top).mean(0).astype("float32")


def sampled(data: Any, batch_size: int) -> Any:
    """Batches of images of an evenly spread sample."""
    from models.data import Stream
    from probes.probe import limited

    return (batch.images for batch in Stream(limited(data, N_SAMPLED), batch_size))


# ---------------------------------------------------------------- the pictures


def draw(
    model: BViT, fingerprint: str, method: Any, pairs: list[Pair], canvas: Any, options: dict[str, int], kept: Path | None
) -> Tensor:
    """Pictures as they will be stored, in steps of 1/255: uint8 [pair 3 h w]."""
    from probes import visualise

    key = repr((method, pairs, options, model.origin.sha256, model.origin.weights, fingerprint))
    with visualise.frozen(model):
        floats = visualise.optimised(method, pairs, visualise.of_neurons(model, pairs), canvas, **options, kept=kept, key=key)
    return (floats * 255).round().byte()


def reached_at(model: BViT, inputs: Tensor, steps: list[int], neurons: list[int], batch_size: int) -> np.ndarray:
    """Activation of each picture's own neuron at every chosen step: [neuron step other_step], from inputs [step*neuron 3 h w]."""
    import numpy as np
    import torch

    every = torch.cat([mean_activations(model, part)[:, steps][..., neurons] for part in inputs.split(batch_size)])
    own = every.unflatten(0, (len(steps), len(neurons))).cpu().numpy()  # [step neuron other_step of_neuron]
    return np.stack([own[:, i, :, i] for i in range(len(neurons))])


def stored(drawn: Tensor) -> np.ndarray:
    """Pixels for the result [pair y x channel], at most 224 a side."""
    import torch.nn.functional as F

    if drawn.shape[-1] > 224:
        drawn = F.interpolate(drawn.float(), (224, 224), mode="area").round().byte()
    return drawn.permute(0, 2, 3, 1).cpu().numpy()


def add_pictures(result: xr.Dataset, methods: Sequence[str], pictures: np.ndarray, reached: np.ndarray) -> None:
    """Pictures [method pair y x channel] and what they reached [method neuron step other_step], in place."""
    import numpy as np
    import torch

    from probes.probe import refuse_nonfinite

    refuse_nonfinite(torch.from_numpy(np.einsum("mfss->s", reached)))
    cells = (len(methods), result.sizes["step"], result.sizes["neuron"])
    result.coords["method"] = list(methods)
    result["picture"] = ("method", "step", "neuron", "y", "x", "channel"), pictures.reshape(*cells, *pictures.shape[2:])
    result["transfer"] = ("method", "neuron", "step", "other_step"), reached
    result["activation"] = ("method", "step", "neuron"), np.einsum("mfss->msf", reached)


def add_thumbnails(result: xr.Dataset, model: BViT, data: Any, top: np.ndarray) -> None:
    """Pixels of the first few images of `top` [step neuron place], first places first, each image once, in place."""
    import numpy as np
    import torch

    from models.data import describe

    shown = list(dict.fromkeys(np.moveaxis(top, -1, 0).ravel().tolist()))[:N_SHOWN]
    images = torch.stack([data[i][0] for i in shown])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.config.mean, model.config.std))
    result["thumbnail"] = ("image", "y", "x", "channel"), stored(((images * std + mean).clamp(0, 1) * 255).round().byte())
    result["shown"] = ("image",), describe(data).indices[shown]


# ---------------------------------------------------------------- the command


def command(
    common: Annotated[Common, tyro.conf.arg(name="")],
    *,
    neurons: str | None = None,
    top: int = 4,
    steps: str = "all",
    methods: tuple[Literal["tv", "maco"], ...] = ("tv", "maco"),
    iterations: int = 128,
    copies: int = 4,
    paper: bool = False,
    n_top: int = 9,
    control: bool = True,
    thumbnails: bool = True,
) -> None:
    """Pictures that maximise FFN neurons at every step, beside the real images that activate them most.

    Args:
        common: the options of every probe.
        neurons: neurons by number, from 0, as in 3,17; instead of --top.
        top: this many neurons, those whose mean activation varies most over the steps.
        steps: steps by number, from 0, as in 0,5,11; or all.
        methods: tv (pixels, total variation) and maco (Fourier phases under the data's own spectrum).
        iterations: of the optimisation.
        copies: augmented copies of a picture at each iteration.
        paper: the reference recipe of tv for Vision Transformers: 400 iterations, 8 copies.
        n_top: real images kept for each neuron and step.
        control: also measure the means and top images of the untrained model, where the checkpoint can rebuild it.
        thumbnails: keep the pixels of the top real images for figures and dashboard.
    """
    from analyses import neurons as analysis
    from probes import probe

    chosen = numbers(neurons, "--neurons"), None if steps == "all" else numbers(steps, "--steps")
    model = probe.open_model(common)
    out = probe.result_path(common, model, "neurons")
    result = measure(
        model, probe.open_images(common, model),
        neurons=chosen[0], top=top, steps=chosen[1], methods=methods, n_top=n_top, thumbnails=thumbnails, partial=out,
        iterations=400 if paper else iterations, copies=8 if paper else copies,
        control=probe.untrained_of(common) if control and common.weights != "init" else None,
        batch_size=common.batch_size, workers=common.workers, seed=common.seed,
    )  # fmt: skip
    probe.save(result, out)
    if probe.processes()[0] == 0:
        for method in methods:
            out.with_name(f"{out.name}.{method}.partial").unlink(missing_ok=True)
        print(analysis.table(result))


def numbers(text: str | None, option: str) -> list[int] | None:
    """The numbers of a list such as 3,17."""
    if text is None:
        return None
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise InputError(f"{option} is {text!r}; write numbers from 0 with commas between, as in 3,17")
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    run(command, prog="python -m probes.neurons")
