"""How well does the model transfer to other classes, and how many parameters must be trained for it?

    python -m probes.transfer runs/demo --data folder:photographs                    # all five ways, three seeds
    python -m probes.transfer runs/demo --data folder:photographs --how linear lora --rank 8 --seeds 5

Five ways, each with a fresh head for the classes of the data: `linear`, logistic regression on the CLS state after
every step; `block`, the shared block alone; `full`, every weight; `lora`, one low-rank adapter of the block's matrices
(Hu et al., 2021, arXiv 2106.09685) that all T steps use; `step-lora`, an adapter for each step. Trained on split train,
scored on another; beside the same from the untrained initialisation, and a majority guess. What was trained lies in
``transfer/<how>-<seed>/`` beside the result: adapters in peft's format (`models.adapters.load`), else a checkpoint. A
killed run goes on where it was. Memory is flat in the number of images, but for the linear probe's features, float32
[image state d]: at most 2 GiB of training images, twice that while they are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from etils import epy

from models.errors import require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from models import adapters
    from models import data as datasets
    from probes.methods import finetuning, linear

How = Literal["linear", "block", "full", "lora", "step-lora"]
HOWS: tuple[How, ...] = ("linear", "block", "full", "lora", "step-lora")
CURVES = ("accuracy", "state_accuracy", "state_held_out")


def beside(result: xr.Dataset) -> xr.Dataset:
    """What is kept of the untrained model."""
    return result[[name for name in CURVES if name in result]]


@probe.measurement(control=beside, lighter=dict(_keep=False))
def measure(
    model: models.BViT,
    images: Any,
    *,
    how: tuple[How, ...] = HOWS,
    rank: int = 4,
    seeds: int = 3,
    epochs: float = 10,
    lr: float | None = None,
    train_batch: int = 64,
    train_limit: int | None = None,
    _train: Any = None,
    _keep: bool = True,
) -> xr.Dataset:
    """Accuracy on other classes against trained parameters, of five ways to transfer, over seeds.

    Raises `InputError` for a model that does not answer from CLS, and for data without a split train of the same
    classes. From Python, `_train` is the training data set, by default the data's own.

    Args:
        how: linear, block, full, lora, step-lora: one or several; by default all.
        rank: of the adapters.
        seeds: transfers of each kind, from --seed on; each has its own head, adapters, order and flips (linear: its own
            choice of the penalty).
        epochs: passes over the training images.
        lr: peak learning rate; by default 1e-3 for block and full, 4e-3 for adapters.
        train_batch: images per update, over all processes.
        train_limit: at most so many training images, spread evenly over the split.
    """
    refuse_options(how, seeds, epochs, lr, train_batch, images)
    adapters.refuse_rank(model, rank)
    adapters.refuse_without_cls(model)
    train = training_images(model, images, train_limit, _train)
    if set(how) != {"linear"}:
        finetuning.refuse_small(train, train_batch, images.shard[1])
    numbers = [images.seed + i for i in range(seeds)]
    cells = []
    for name in how:
        if name == "linear":
            cells.append(by_probe(model, images, train, numbers, keeps=_keep))
        else:
            plans = [finetuning.Transfer(name, seed, rank, epochs, train_batch, lr) for seed in numbers]
            cells.append(by_training(model, images, train, plans, keeps=_keep))
    return joined(cells, how, numbers).assign_attrs(
        chance=1 / len(train.about.classes),
        majority=float((images.about.labels == np.bincount(train.about.labels).argmax()).mean()),
        n_classes=len(train.about.classes),
        n_train=len(train),
        train_fingerprint=train.about.fingerprint,
        rank=rank,
        epochs=epochs,
        train_batch=train_batch,
        trained_steps=model.config.n_steps,
        n_parameters=adapters.n_parameters(model, len(train.about.classes)),
        note=probe.note_on(len(images)),
    )


def joined(cells: list[dict[str, Any]], how: Sequence[str], seeds: list[int]) -> xr.Dataset:
    """What every way to transfer gives, under the names of the result."""
    per_how = {name: [cell.pop(name) for cell in cells] for name in ("accuracy", "trainable_parameters", "lr")}
    variables = {
        "accuracy": (("how", "seed"), np.stack(per_how["accuracy"])),
        "trainable_parameters": (("how", "seed"), np.array([per_how["trainable_parameters"]] * len(seeds)).T),
        "lr": ("how", per_how["lr"]),
    }
    states = {name: (("seed", "state"), values) for cell in cells for name, values in cell.items()}
    coords = {"how": list(how), "seed": seeds}
    if states:
        coords["state"] = np.arange(next(iter(states.values()))[1].shape[1])
    return xr.Dataset(variables | states, coords)


def refuse_options(
    how: Sequence[str], seeds: int, epochs: float, lr: float | None, batch: int, images: probe.Pass
) -> None:
    """Raise `InputError` for an option that no transfer can have."""
    unknown = [name for name in how if name not in HOWS]
    require(
        (bool(how), f"--how is empty; choose among {', '.join(HOWS)}"),
        (not unknown, f"--how is {', '.join(unknown)}; choose among {', '.join(HOWS)}"),
        (len(set(how)) == len(how), f"--how names one way twice: {', '.join(how)}"),
        (seeds >= 1, f"--seeds is {seeds}, it must be at least 1"),
        (0 < epochs < float("inf"), f"--epochs is {epochs}, it must be a number above 0"),
        (lr is None or 0 < lr < float("inf"), f"--lr is {lr}, it must be a number above 0"),
        (batch >= 1, f"--train-batch is {batch}, it must be at least 1"),
        (images.about.split != "train", "--split is train, on which the transfers are trained; score them on another"),
    )


def training_images(model: models.BViT, images: probe.Pass, limit: int | None, data: Any) -> probe.Pass:
    """The split train of the data that is scored, or `data`; `InputError` where its classes are not the same."""
    data = datasets.open_data(images.about.spec, "train", like=model) if data is None else data
    train = replace(images, data=probe.limited(data, limit, "--train-limit"))
    require(
        (
            train.about.classes == images.about.classes,
            f"{images.about.spec}: the classes of train and of the split "
            "that is scored differ; give both the same classes",
        ),
        (len(np.unique(train.about.labels)) > 1, f"{images.about.spec}: all training images are of one class"),
    )
    return train


def place(images: probe.Pass, name: str, *, keeps: bool) -> Path | None:
    """Where the weights of a transfer lie, beside the result; nowhere for the untrained model's, or in a notebook."""
    return images.out.parent / "transfer" / name if images.out is not None and keeps and images.is_main else None


def unfinished(images: probe.Pass, name: str, *, keeps: bool) -> Path | None:
    """Where a transfer keeps its state; the untrained model's apart."""
    return images.unfinished(name if keeps else f"untrained-{name}")


def by_probe(
    model: models.BViT, images: probe.Pass, train: probe.Pass, seeds: list[int], *, keeps: bool
) -> dict[str, Any]:
    """Linear probes of every state: accuracy of the last [seed], of each and of its choice of penalty [seed state]."""
    classes, train = train.about.classes, linear.fitting(model, train)
    x, y = linear.features(model, replace(train, label=f"{images.label}: linear, train"))
    key = finetuning.key(model, train) | {"seeds": seeds}
    how = dict(kept=unfinished(images, "linear", keeps=keeps), key=key, label=f"{images.label}: linear")
    probes = train.once(lambda: linear.fitted_all(x, y, len(classes), seeds, **how))
    right = linear.accuracies(model, replace(images, label=f"{images.label}: linear scored"), probes)
    for seed, weight, bias in zip(seeds, probes["weight"], probes["bias"], strict=True):
        folder = place(images, f"linear-{seed}", keeps=keeps)
        if folder is not None:
            head = adapters.with_head(model, classes, seed)
            head.head.load_state_dict({"weight": weight[-1], "bias": bias[-1]})
            finetuning.save_checkpoint(head, folder, images.about.spec, seed)
    return {
        "accuracy": right[:, -1],
        "trainable_parameters": len(classes) * (model.config.d_model + 1),
        "lr": np.nan,
        "state_accuracy": right,
        "state_held_out": probes["held_out"].numpy(),
        "state_l2": probes["l2"].numpy(),
    }


def by_training(
    model: models.BViT, images: probe.Pass, train: probe.Pass, plans: list[finetuning.Transfer], *, keeps: bool
) -> dict[str, Any]:
    """Transfers of one kind, one after the other: accuracy [seed], and the parameters that each trains."""
    accuracy, n = [], 0
    for plan in plans:
        tuning = finetuning.Tuning(model, train, plan, unfinished(images, plan.name, keeps=keeps))
        tuning.fit()
        accuracy.append(accuracy_of(tuning.model, replace(images, label=f"{images.label}: {plan.name} scored")))
        n = sum(parameter.numel() for parameter in tuning.trained.values())
        folder = place(images, plan.name, keeps=keeps)
        if folder is not None:
            tuning.save(folder, images.about.spec)
    return {"accuracy": np.array(accuracy), "trainable_parameters": n, "lr": plans[0].recipe.lr}


def accuracy_of(model: models.BViT, images: probe.Pass) -> float:
    """Share of the images whose label the model answers."""

    def read(batch: Any) -> probe.Reading:
        with torch.inference_mode():
            answer = model(batch.images.to(model.pos_embed.device).float()).argmax(1)
        return {"right": ("image", answer.cpu() == batch.labels)}

    return float(images.over(read)["right"].mean())


if __name__ == "__main__":
    probe.main(measure)
