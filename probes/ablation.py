"""What is lost without a head, attention, the FFN or a group of neurons, at one step or from a step on?

    python -m probes.ablation runs/demo --limit 1000
    python -m probes.ablation runs/demo --how zero

A part is replaced by its mean over the data (or zero, or its value on another image); the change of accuracy, loss and
logit difference is paired image by image and stands beside that of a random direction of the same norm. Neurons are
grouped by the size of their effect to first order, then measured. All parts of a step run in one batch from the clean
state that enters it; with the random changes and both scopes an image costs 2 x parts x (T + 1) plain forwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from etils import epy

from models.errors import InputError, require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import intervals
    from models.data import stream
    from probes.methods import means, parts, reading

METRICS = ("accuracy", "loss", "logit_diff")
SCOPES = ("one", "onwards")
KINDS = ("ablated", "random direction")
ROWS = 1024  # images in one forward


@probe.measurement
def measure(
    model: models.BViT, data: Any, *, images: int = 500, how: Literal["mean", "zero", "resample"] = "mean"
) -> xr.Dataset:
    """Change of accuracy, loss and logit difference without each part of each step, beside a random change as large.

    The logit difference is that of the true class and the best other one of the untouched model. Intervals: 95 %,
    paired bootstrap by photograph (Poisson weights); where no answer changes, of accuracy, Wilson's of none in so many
    images. Raises `InputError` for a model without a head or of one class.

    Args:
        images: how many are measured, spread evenly over the data.
        how: what is put in a part's place: its mean over the data, zero, or resample, its value on another image.
    """
    require(
        (images >= 1, f"--images is {images}, it must be at least 1"),
        (how in ("mean", "zero", "resample"), f"--how is {how!r}, not mean, zero or resample"),
    )
    config, walk = model.config, data.sample(images)
    if config.n_classes < 2:
        raise InputError("the model tells no classes apart, so nothing can be lost; name a checkpoint with a head")
    class_of_label = walk.classes_of(model)

    def target(batch: stream.Batch) -> torch.Tensor:
        return class_of_label[batch.labels].to(model.pos_embed.device)

    substitute = parts.substitute(model, walk, how)
    mean = substitute if how == "mean" else parts.substitute(model, walk, "mean")
    ablated = parts.parts_of(model, parts.ranked_neurons(model, walk, mean, target))
    measured = walk.over(lambda batch: read(model, batch, target(batch), ablated, substitute, walk))
    n, resampled = len(measured["position"]), measured["resampled"] / measured["weight"]
    low, high = np.quantile(resampled.transpose("resample", "metric", ...), [0.025, 0.975], axis=0)
    change, untouched = measured["change"].transpose("metric", ...) / n, measured["untouched"].values / n
    low[0], high[0] = intervals.unless_constant(low[0], high[0], change[0], n, least=-1)  # of accuracy
    variables: dict[str, tuple] = {}
    for i, name in enumerate(METRICS):
        for suffix, values in (("", change.values), ("_low", low), ("_high", high)):
            variables[f"{name}{suffix}"] = change.dims[1:], values[i]
        variables[f"untouched_{name}"] = (), untouched[i]
    return xr.Dataset(
        variables,
        coords={
            "kind": list(KINDS),
            "scope": list(SCOPES),
            "part": [part.name for part in ablated],
            "step": np.arange(config.n_steps),
        },
        attrs=dict(
            how=how,
            chance=1 / config.n_classes,
            n_measured=n,
            n_unreadable=measured.attrs["n_unreadable"],
            note=probe.note_on(n),
        ),
    )


def read(
    model: models.BViT,
    batch: stream.Batch,
    target: torch.Tensor,
    ablated: list[parts.Part],
    substitute: parts.Substitute,
    walk: probe.Pass,
) -> probe.Reading:
    """Sums over one batch of every change, and of its bootstrap resamples."""
    config, position = model.config, torch.as_tensor(np.asarray(batch.index))
    direction = parts.directions(position, config.n_steps, config.d_model, walk.seed).to(model.pos_embed)
    with torch.inference_mode():
        states = list(reading.states_of(model, batch.images))
        logits = model.read_out(states[-1])
        rival = reading.best_other(logits, target)
        before = scores(logits, target, rival)  # [metric image]
        change = torch.zeros(len(METRICS), len(KINDS), len(SCOPES), len(ablated), config.n_steps, len(target))
        for first, group in chunks(ablated, max(1, ROWS // (2 * len(target)))):
            switch = parts.Switch(model, group, substitute, position, direction)
            for t in range(config.n_steps):
                for i, scope in enumerate(SCOPES):
                    hooks = [hook for step in steps_of(scope, t, config.n_steps) for hook in switch.hooks(step)]
                    after = scores(run_from(model, states[t], t, hooks, 2 * len(group)), target, rival)
                    change[:, :, i, first : first + len(group), t] = (after - before[:, None, None]).cpu()
    weights = intervals.poisson_weights(walk.photographs(batch.index), means.RESAMPLES, walk.seed)
    dims = ("metric", "kind", "scope", "part", "step")
    return {
        "change": (dims, change.double().sum(-1)),
        "resampled": ((*dims, "resample"), change.double() @ torch.from_numpy(weights).T),
        "weight": ("resample", weights.sum(1)),
        "untouched": ("metric", before.double().sum(-1)),
    }


def chunks(items: list[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """Consecutive groups of at most `size` items, each with the place of its first."""
    for first in range(0, len(items), size):
        yield first, items[first : first + size]


def steps_of(scope: str, step: int, n_steps: int) -> range:
    """At which steps a part is missing."""
    return range(step, step + 1 if scope == "one" else n_steps)


def run_from(model: models.BViT, state: torch.Tensor, step: int, hooks: list[Any], n: int) -> torch.Tensor:
    """Logits of `n` copies of a state [image pos d_model] that enters a step: [2 part image class]."""
    with model.hooks(hooks):
        z = model.run_steps(state.expand(n, *state.shape).flatten(0, 1), step, model.config.n_steps)
    return model.read_out(z).unflatten(0, (2, n // 2, -1))


def scores(logits: torch.Tensor, target: torch.Tensor, rival: torch.Tensor) -> torch.Tensor:
    """Accuracy, loss (nats) and logit difference of each image, from [... image class]: [metric ... image]."""
    target_index, rival_index = (index.expand(logits.shape[:-1])[..., None] for index in (target, rival))
    logit_diff = (logits.gather(-1, target_index) - logits.gather(-1, rival_index))[..., 0]
    loss = -logits.log_softmax(-1).gather(-1, target_index)[..., 0]
    return torch.stack([(logits.argmax(-1) == target).float(), loss, logit_diff])


if __name__ == "__main__":
    probe.main(measure)
