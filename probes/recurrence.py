"""What does the model answer after k steps, up to far beyond those it was trained for? (Figure 8 of the paper.)

    python -m probes.recurrence runs/demo --max-steps 48

One unrolled run in float32 gives every read-out: top-1, loss, confidence, entropy and the relative update
|B(h) - h| / |h| after k = 0, 1, ... steps; the step at which each image's answer becomes final; and what leaving early
would cost. Costs max_steps / T plain forwards.
"""

from __future__ import annotations

from typing import Any

from etils import epy

from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import recurrence as analysis
    from models.data import stream
    from probes.methods import unrolled

CURVES = ("accuracy", "loss", "confidence", "entropy", "update")


@probe.measurement(control=CURVES)
def measure(model: models.BViT, images: Any, *, max_steps: int | None = None) -> xr.Dataset:
    """Accuracy, confidence and update after every number of steps, beside chance and the untrained model.

    States that overflow beyond the trained steps are counted as wrong, not an error. Raises `InputError` for those that
    do so before, for a model without a head, classes that it lacks, or steps beyond those of a stacked model.

    Args:
        max_steps: run on to this many steps; 4 T by default (T for a stacked ViT, which has no more).
    """
    run_on = unrolled.to(model, max_steps, times=4)
    config, last, class_of_label, about = model.trained, run_on.config.n_steps, images.classes_of(model), images.about
    joined = images.over(lambda batch: read(run_on, batch, class_of_label, last))
    labels = images.labels(joined["position"])
    early = [joined[name].values for name in ("early_confidence", "early_entropy", "early_correct")]
    exit_accuracy, exit_steps = analysis.early_exit(*early, config.n_classes)
    n_finite = joined["n_finite"].values
    probe.refuse_nonfinite(torch.from_numpy(np.where(n_finite < len(labels), np.nan, 0)[1 : config.n_steps + 1]))
    return xr.Dataset(
        {
            **curves(joined, len(labels)),
            "n_finite": ("state", n_finite),
            "class_accuracy": (("state", "label"), share(joined["class_correct"].values, joined["class_count"].values)),
            "settled": ("image", analysis.settled(joined["answer"].values[:, : config.n_steps + 1])),
            "settled_by_max": ("image", analysis.settled(joined["answer"].values)),
            "index": ("image", images.indices(joined["position"])),
            "image_label": ("image", labels),
            "exit_accuracy": (("criterion", "threshold"), exit_accuracy),
            "exit_steps": (("criterion", "threshold"), exit_steps),
        },
        coords={
            "state": np.arange(last + 1),
            "label": np.arange(len(about.classes)),
            "criterion": list(analysis.CRITERIA),
            "threshold": analysis.THRESHOLDS,
        },
        attrs=dict(
            trained_steps=config.n_steps,
            chance=1 / config.n_classes,
            constant=float(np.bincount(labels).max() / len(labels)),
            classes=list(about.classes),
            overflow_state=int(np.argmax(n_finite < len(labels))) if (n_finite < len(labels)).any() else -1,
            n_unreadable=joined.attrs["n_unreadable"],
            note=probe.note_on(len(labels)),
        ),
    )


def curves(joined: xr.Dataset, n: int) -> dict[str, tuple[str, np.ndarray]]:
    """Means over images: of accuracy over all `n`, of the rest over those whose state is finite."""
    sums, finite = joined["sums"], joined["n_finite"].values
    means = {name: ("state", share(sums.values[i], finite)) for i, name in enumerate(CURVES)}
    means["update"][1][0] = np.nan  # nothing was updated yet
    return means | {"accuracy": ("state", sums.values[0] / n)}


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where there is nothing."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def read(model: models.BViT, batch: stream.Batch, class_of_label: torch.Tensor, last: int) -> probe.Reading:
    """Sums over one batch in float64 [state], and of each image the answer of every state and what early exit needs."""
    device, trained = model.pos_embed.device, slice(1, model.trained.n_steps + 1)
    target, states = class_of_label[batch.labels].to(device), []
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        z = model.embed(batch.images.to(device).float())
        update = torch.full((len(target),), torch.nan, device=device)
        for k in range(last + 1):
            states.append(readings(model.read_out(z).float(), update, target))
            if k < last:
                after = model.run_steps(z, k, k + 1)
                update = (after - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
                z = after
    per_image = {name: torch.stack([state[name] for state in states], 1).cpu() for name in states[0]}
    finite = per_image["finite"]
    sums = [torch.where(finite, per_image[name].double(), 0).sum(0) for name in CURVES]
    one_hot = torch.nn.functional.one_hot(batch.labels, len(class_of_label)).double()
    return {
        "sums": (("curve", "state"), torch.stack(sums)),
        "n_finite": ("state", finite.sum(0)),
        "class_correct": (("state", "label"), per_image["accuracy"].double().T @ one_hot),
        "class_count": (("state", "label"), one_hot.sum(0).expand(last + 1, -1)),
        "answer": (("image", "state"), per_image["answer"].short()),
        "early_confidence": (("image", "step"), per_image["confidence"][:, trained].float()),
        "early_entropy": (("image", "step"), per_image["entropy"][:, trained].float()),
        "early_correct": (("image", "step"), per_image["accuracy"][:, trained].bool()),
    }


def readings(logits: torch.Tensor, update: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    """What one state says of each image: [batch] each; entropy in nats. An overflowed one is wrong and not `finite`."""
    logp = logits.log_softmax(-1)
    p, answer = logp.exp(), logits.argmax(-1)
    finite = logits.isfinite().all(-1)
    return {
        "finite": finite,
        "answer": torch.where(finite, answer, -1),
        "accuracy": (answer == target) & finite,
        "loss": -logp.gather(1, target[:, None])[:, 0],
        "confidence": p.amax(-1),
        "entropy": torch.special.entr(p).sum(-1),
        "update": update,
    }


if __name__ == "__main__":
    probe.main(measure)
