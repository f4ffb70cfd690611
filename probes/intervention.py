"""What does the recurrence need? Accuracy over the steps while each step is damped, held, told or masked otherwise.

    python -m probes.intervention runs/demo
    python -m probes.intervention runs/demo-te --what freeze_embedding extrapolate_embedding

An intervention changes what every step leaves behind, which step it is told to be, or the masks that it runs under; the
table of them is the docstring of `probes.methods.interventions`. Each stands beside the untouched model, image by
image, and beside a random change of the same size. Costs max_steps / T plain forwards for each setting, once more for
its random change, and once more for the untrained control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from etils import epy

from models.errors import require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import torch.nn.functional as F
    import xarray as xr

    import models
    from analyses import intervals
    from models.data import stream
    from probes.methods import interventions, means, unrolled

What = Literal[
    "damp",
    "reinject",
    "hold_patches",
    "hold_cls",
    "hold_registers",
    "late_cls",
    "permute_embedding",
    "freeze_embedding",
    "extrapolate_embedding",
    "permute_masks",
    "freeze_masks",
]


@probe.measurement(control=("accuracy", "loss"), lighter=dict(null=False))
def measure(
    model: models.BViT,
    data: Any,
    *,
    what: tuple[What, ...] = (),
    images: int = 500,
    max_steps: int | None = None,
    null: bool = True,
) -> xr.Dataset:
    """Accuracy and loss after every step under interventions on the recurrence, beside the untouched model.

    Intervals of the change of accuracy: 95 %, paired bootstrap by photograph (Poisson weights); where no answer
    changes, Wilson's of none in so many images. States that overflow are counted as wrong, not an error. Raises
    `InputError` for a model without a head, classes that it lacks, steps beyond those of a stacked model, and
    interventions that do not apply to the model.

    Args:
        what: interventions by name; by default all that apply to the model.
        images: how many are measured, spread evenly over the data.
        max_steps: run on to this many steps; 2 T by default (T for a stacked ViT, which has no more).
        null: also make random changes of the same size, which doubles the cost.
    """
    require((images >= 1, f"--images is {images}, it must be at least 1"))
    run_on, walk = unrolled.to(model, max_steps, times=2), data.sample(images)
    class_of_label = walk.classes_of(model)
    cases, left_out = interventions.chosen(run_on, what, walk.seed)
    nulls = [case.null(walk.seed) for case in cases[1:]] if null else []
    measured = walk.over(lambda batch: read([*cases, *nulls], batch, class_of_label, walk))
    n = measured["position"].size
    variables = numbers(measured, n, slice(len(cases)))
    if null:  # nothing was done to the untouched model, so that it is its own null
        rows = [0, *range(len(cases), len(cases) + len(nulls))]
        variables |= {f"null_{name}": values for name, values in numbers(measured, n, rows).items()}
    return xr.Dataset(
        variables,
        coords={
            "case": [case.name for case in cases],
            "what": ("case", [case.what for case in cases]),
            "setting": ("case", [case.setting for case in cases]),
            "state": np.arange(run_on.config.n_steps + 1),
        },
        attrs=dict(
            trained_steps=model.trained.n_steps,
            chance=1 / model.trained.n_classes,
            n_measured=n,
            left_out="; ".join(f"{name}: {reason}" for name, reason in left_out.items()),
            n_unreadable=measured.attrs["n_unreadable"],
            note=probe.note_on(n),
        ),
    )


def numbers(measured: xr.Dataset, n: int, rows: Any) -> dict[str, tuple[tuple[str, str], np.ndarray]]:
    """Of some runs [case state]: accuracy over all `n` images, its change from the untouched model's with an interval,
    loss over the images whose state is finite, and how many those are.
    """
    right, loss, n_finite = measured["sums"].values[:, rows]
    changes = (measured["changes"] / measured["weight"]).transpose("resample", "run", "state").values
    low, high = np.quantile(changes[:, rows], [0.025, 0.975], axis=0)
    change = (right - measured["sums"].values[0, :1]) / n
    low, high = intervals.unless_constant(low, high, change, n, least=-1)
    values = {
        "accuracy": right / n,
        "change": change,
        "change_low": low,
        "change_high": high,
        "loss": np.divide(loss, n_finite, out=np.full(loss.shape, np.nan), where=n_finite > 0),
        "n_finite": n_finite.astype(np.int64),
    }
    return {name: (("case", "state"), array) for name, array in values.items()}


def read(
    runs: Sequence[interventions.Case], batch: stream.Batch, class_of_label: torch.Tensor, walk: probe.Pass
) -> probe.Reading:
    """Sums over one batch of what every run answers after every step, and of resampled changes from the first run."""
    device = runs[0].model.pos_embed.device
    images, target = batch.images.to(device).float(), class_of_label[batch.labels].to(device)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        scores = [torch.stack([scored(run.model.read_out(z), target) for z in run.states(images)]) for run in runs]
    right, loss, finite = torch.stack(scores).movedim(2, 0).cpu().double()  # [run state image] each
    weights = intervals.poisson_weights(walk.photographs(batch.index), means.RESAMPLES, walk.seed)
    return {
        "sums": (("number", "run", "state"), torch.stack([right, loss, finite]).sum(-1)),
        "changes": (("run", "state", "resample"), (right - right[:1]) @ torch.from_numpy(weights).T),
        "weight": ("resample", weights.sum(1)),
    }


def scored(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Whether each answer is right, its loss (0 where it is not finite), and whether it is finite: [number image]."""
    finite = logits.isfinite().all(-1)
    right = (logits.argmax(-1) == target) & finite
    loss = F.cross_entropy(logits, target, reduction="none").where(finite, 0)
    return torch.stack([right.float(), loss, finite.float()])


if __name__ == "__main__":
    probe.main(measure)
