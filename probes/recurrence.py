"""What does the model answer after k steps, up to far beyond those it was trained for? (Figure 8 of the paper.)

    python -m probes.recurrence runs/demo --max-steps 48

One unrolled run in float32 gives every read-out: top-1, loss, confidence, entropy and the relative update |B(h) - h| / |h| after k = 0, 1, ...
steps; the step at which each image's answer becomes final; and what leaving early would cost. Costs max_steps / T plain forwards.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from models.command import run
from models.errors import InputError
from probes.probe import Common

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from torch import Tensor

    from models.vit import BViT

CURVES = ("accuracy", "loss", "confidence", "entropy", "update")


def measure(
    model: BViT,
    data: Any,
    *,
    max_steps: int | None = None,
    control: BViT | None = None,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Read-outs of every state z_0 .. z_max_steps (default 4 T; T for a model of several blocks) on every image of `data`.

    `control` is the untrained model; its curves are stored beside. States that overflow are counted, not an error. Raises
    `InputError` for a model without a head, classes the model lacks, or steps beyond those of a stacked model.
    """
    import numpy as np
    import xarray as xr

    from analyses import recurrence as analysis
    from models.data import describe
    from probes.probe import attributes

    started, trained = time.time(), model.trained
    if not trained.n_classes:
        raise InputError("the model has no classifier to read out; name a checkpoint with one")
    last = max_steps if max_steps is not None else trained.n_steps * (4 if trained.n_blocks == 1 else 1)
    if last < trained.n_steps:
        raise InputError(f"--max-steps is {last}, it must be at least the model's {trained.n_steps} steps")
    seen = watch(model, data, last, batch_size=batch_size, workers=workers, label="recurrence")
    about, config = describe(data), trained
    labels = about.labels[seen["position"]]
    exits = analysis.early_exit(seen["confidence_per_image"], seen["entropy_per_image"], seen["correct_per_image"], config.n_classes)
    result = xr.Dataset(
        {name: ("state", seen[name]) for name in CURVES}
        | {
            "n_finite": ("state", seen["n_finite"]),
            "class_accuracy": (("state", "label"), seen["class_accuracy"]),
            "settled": ("image", analysis.settled(seen["answer"][:, : config.n_steps + 1])),
            "settled_by_max": ("image", analysis.settled(seen["answer"])),
            "index": ("image", about.indices[seen["position"]]),
            "image_label": ("image", labels),
            "exit_accuracy": (("criterion", "threshold"), exits[0]),
            "exit_steps": (("criterion", "threshold"), exits[1]),
        },
        coords={
            "state": np.arange(last + 1), "label": np.arange(len(about.classes)), "criterion": list(analysis.CRITERIA), "threshold": analysis.THRESHOLDS,
        },
    )  # fmt: skip
    if control is not None:
        plain = watch(control.to(model.pos_embed.device), data, last, batch_size=batch_size, workers=workers, label="untrained control")
        for name in CURVES:
            result[f"control_{name}"] = "state", plain[name]
    overflow = np.flatnonzero(seen["n_finite"] < len(labels))
    return result.assign_attrs(
        attributes(model, data, seed=seed, started=started),
        trained_steps=config.n_steps, chance=1 / len(about.classes), classes=list(about.classes),
        overflow_state=int(overflow[0]) if len(overflow) else -1, n_unreadable=len(data) - len(labels),
        note="" if len(labels) >= 100 else f"only {len(labels)} images: read the confidence intervals",
    )  # fmt: skip


def watch(model: BViT, data: Any, last: int, *, batch_size: int, workers: int, label: str) -> dict[str, Any]:
    """One pass over the data: means over images of every curve [state], and the little each image leaves."""
    import numpy as np

    from models.data import Stream, describe, match_classes
    from probes.probe import gathered, processes, progress

    where = np.array(match_classes(describe(data).classes, model.config.classes or list(map(str, range(model.config.n_classes)))))
    unrolled = model.at_steps(last) if last > model.config.n_steps else model
    batches = Stream(data, batch_size, workers=workers, shard=processes())
    records = [(int(batch.index[0]), watch_batch(unrolled, batch, where, last)) for batch in progress(batches, len(data), label)]
    everyone = gathered(records)
    joined = {name: np.concatenate([r[name] for r in everyone]) for name in ("position", "answer", *PER_IMAGE)}
    total = {name: np.sum([r[name] for r in everyone], 0) for name in (*CURVES, "n_finite", "class_correct", "class_count")}
    n = len(joined["position"])
    finite = np.maximum(total["n_finite"], 1)
    curves = {name: np.where(total["n_finite"] > 0, total[name] / finite, np.nan) for name in CURVES if name != "accuracy"}
    per_class = np.divide(total["class_correct"], total["class_count"], out=np.full_like(total["class_correct"], np.nan), where=total["class_count"] > 0)
    return joined | curves | {"accuracy": total["accuracy"] / n, "n_finite": total["n_finite"], "class_accuracy": per_class}


PER_IMAGE = ("confidence_per_image", "entropy_per_image", "correct_per_image")


def watch_batch(model: BViT, batch: Any, where: np.ndarray, last: int) -> dict[str, np.ndarray]:
    """Sums over one batch in float64 [state], and per image the answer of every state and the rest of states 1 .. T."""
    import numpy as np
    import torch

    device, trained = model.pos_embed.device, model.trained.n_steps
    target = torch.from_numpy(where)[batch.labels].to(device)
    states = []
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        z, update = model.embed(batch.images.to(device).float()), torch.full((len(target),), torch.nan, device=device)
        for k in range(last + 1):
            states.append(readings(model.read_out(z).float(), update, target))
            if k < last:
                after = model.run_steps(z, k, k + 1)
                update = (after - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
                z = after
    seen = {name: torch.stack([state[name] for state in states], 1).cpu() for name in states[0]}
    finite = seen.pop("finite")
    sums = {name: torch.where(finite, seen[name].double(), 0).sum(0).numpy() for name in CURVES}
    sums["update"][0] = np.nan
    one_hot = torch.nn.functional.one_hot(batch.labels, len(where)).double()
    return sums | {
        "position": batch.index,
        "answer": seen["answer"].numpy().astype(np.int16),
        "n_finite": finite.sum(0).numpy(),
        "class_correct": (seen["accuracy"].double().T @ one_hot).numpy(),
        "class_count": one_hot.sum(0).expand(last + 1, -1).numpy(),
        "confidence_per_image": seen["confidence"][:, 1 : trained + 1].numpy().astype(np.float32),
        "entropy_per_image": seen["entropy"][:, 1 : trained + 1].numpy().astype(np.float32),
        "correct_per_image": seen["accuracy"][:, 1 : trained + 1].numpy().astype(bool),
    }


def readings(logits: Tensor, update: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What one state says of each image: [batch] each; entropy in nats. An overflowed state is wrong and not `finite`."""
    import torch

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


def command(
    common: Annotated[Common, tyro.conf.arg(name="")],
    *,
    max_steps: int | None = None,
    control: bool = True,
) -> None:
    """Accuracy, confidence and update after every number of steps, beside chance and the untrained model.

    Args:
        common: the options of every probe.
        max_steps: run on to this many steps; 4 T by default (T for a stacked ViT, which has no more).
        control: also measure the untrained model (same config and seed), where the checkpoint can rebuild it.
    """
    from analyses import recurrence as analysis
    from probes import probe

    model = probe.open_model(common)
    data = probe.open_images(common, model)
    untrained = probe.untrained_of(common) if control and common.weights != "init" else None
    result = measure(model, data, max_steps=max_steps, control=untrained, batch_size=common.batch_size, workers=common.workers, seed=common.seed)
    probe.save(result, probe.result_path(common, model, "recurrence"))
    if probe.processes()[0] == 0:
        print(analysis.table(result))


if __name__ == "__main__":
    run(command, prog="python -m probes.recurrence")
