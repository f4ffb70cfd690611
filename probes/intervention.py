"""What does the recurrence need? Accuracy over the steps while each step is damped, held, told or masked otherwise.

    python -m probes.intervention runs/demo
    python -m probes.intervention runs/demo-te --what freeze_embedding extrapolate_embedding

An intervention changes what every step leaves behind, which step it is told to be, or the masks that it runs under; the
table of them is the docstring of `probes.methods.interventions`. Each stands beside the untouched model and beside a
random change of the same size. Costs a plain forward for each case, its null and its control, max_steps / T times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from etils import epy

from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import torch.nn.functional as F
    import xarray as xr

    import models
    from models.data import stream
    from probes.methods import interventions, unrolled

What = Literal[
    "damp",
    "reinject",
    "hold_patches",
    "hold_cls",
    "late_cls",
    "permute_embedding",
    "freeze_embedding",
    "extrapolate_embedding",
    "permute_masks",
    "freeze_masks",
]
NUMBERS = ("accuracy", "loss", "n_finite")


@probe.measurement(control=("accuracy", "loss"), lighter=dict(null=False))
def measure(
    model: models.BViT,
    images: Any,
    *,
    what: tuple[What, ...] = (),
    max_steps: int | None = None,
    null: bool = True,
) -> xr.Dataset:
    """Accuracy and loss after every step under interventions on the recurrence, beside the untouched model.

    States that overflow are counted as wrong, not an error. Raises `InputError` for a model without a head, classes
    that it lacks, steps beyond those of a stacked model, and interventions that do not apply to the model.

    Args:
        what: interventions by name; by default all that apply to the model.
        max_steps: run on to this many steps; 2 T by default (T for a stacked ViT, which has no more).
        null: also make random changes of the same size, which doubles the cost.
    """
    run_on, of_model = unrolled.to(model, max_steps, times=2), images.classes_of(model)
    cases, left_out = interventions.chosen(run_on, what, images.seed)
    nulls = [case.null(images.seed) for case in cases[1:]] if null else []
    seen = images.over(lambda batch: read([*cases, *nulls], batch, of_model))
    n = seen["position"].size
    numbers = means(seen["sums"].values, n)
    variables = {name: values[: len(cases)] for name, values in numbers.items()}
    if null:
        untouched = np.full((1, run_on.config.n_steps + 1), np.nan)  # to which nothing was done
        parts = {name: numbers[name][len(cases) :] for name in ("accuracy", "loss")}
        variables |= {f"null_{name}": np.concatenate([untouched, values]) for name, values in parts.items()}
    return xr.Dataset(
        {name: (("case", "state"), values) for name, values in variables.items()},
        coords={
            "case": [case.name for case in cases],
            "what": ("case", [case.what for case in cases]),
            "setting": ("case", [case.setting for case in cases]),
            "state": np.arange(run_on.config.n_steps + 1),
        },
        attrs=dict(
            trained_steps=model.trained.n_steps,
            chance=1 / model.trained.n_classes,
            n_read=n,
            left_out="; ".join(f"{name}: {reason}" for name, reason in left_out.items()),
            n_unreadable=seen.attrs["n_unreadable"],
            note="" if n >= 100 else f"only {n} images: read the confidence intervals",
        ),
    )


def means(sums: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Of sums [case state number]: accuracy over all `n` images, loss over those with a finite state: [case state]."""
    accuracy, loss, n_finite = np.moveaxis(sums, -1, 0)
    loss = np.divide(loss, n_finite, out=np.full(loss.shape, np.nan), where=n_finite > 0)
    return {"accuracy": accuracy / n, "loss": loss, "n_finite": n_finite.astype(np.int64)}


def read(cases: Sequence[interventions.Case], batch: stream.Batch, of_model: torch.Tensor) -> probe.Reading:
    """Sums over one batch in float64, of every case after every step: [case state number]."""
    device = cases[0].model.pos_embed.device
    images, target = batch.images.to(device).float(), of_model[batch.labels].to(device)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        sums = [[scored(case.model.read_out(z), target) for z in case.states(images)] for case in cases]
    return {"sums": (("case", "state", "number"), torch.stack([torch.stack(of_case) for of_case in sums]))}


def scored(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How many answers are right, the sum of the losses of those that are finite, and how many are: [number]."""
    finite = logits.isfinite().all(-1)
    right = (logits.argmax(-1) == target) & finite
    loss = F.cross_entropy(logits, target, reduction="none").where(finite, 0)
    return torch.stack([right.float(), loss, finite.float()]).cpu().double().sum(-1)


if __name__ == "__main__":
    probe.main(measure)
