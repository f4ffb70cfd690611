"""One transfer of a model to other classes: what of it is trained, and its training, which a killed run resumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from models import adapters, checkpoint, loop, origin, recipe, run_folder
from models.data import augmented, stream
from models.device import accelerator
from models.errors import InputError
from models.vit import BViT
from probes.walk import Pass

LR = {"block": 1e-3, "full": 1e-3, "lora": 4e-3, "step-lora": 4e-3}  # AdamW's; adapters start from zero


@dataclass(frozen=True)
class Transfer:
    """What decides the weights that a transfer ends in, beside the model and the data."""

    how: str
    seed: int
    rank: int
    epochs: float
    batch: int
    lr: float | None = None

    @property
    def name(self) -> str:
        return f"{self.how}-{self.seed}"

    @property
    def recipe(self) -> recipe.Recipe:
        """Flips, AdamW, and the `plain` recipe's warm-up and cosine."""
        return replace(
            recipe.RECIPES["plain"],
            epochs=self.epochs,
            batch_size=self.batch,
            lr=self.lr or LR[self.how],
            optimizer="adamw",
        )


class Tuning:
    """A model with a fresh head, of which a part is trained; `kept` is where a training in progress keeps its state."""

    def __init__(self, model: BViT, train: Pass, transfer: Transfer, kept: Path | None):
        self.transfer, self.train, self.kept = transfer, train, kept
        place = model.pos_embed.device
        self.accelerator = accelerator("no" if place.type == "cpu" else "auto", place.type)
        how, seed = transfer.how, transfer.seed
        self.source = model
        self.model = adapters.with_head(model, train.about.classes, seed)
        self.adapted = None
        if how in ("lora", "step-lora"):
            self.adapted = adapters.add(self.model, transfer.rank, per_step=how == "step-lora", seed=seed)
        else:
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(how == "full" or name.startswith(("core.", "head.")))

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def fit(self) -> None:
        """Train, or go on; updates are shared by the processes, and the same whatever their number but for rounding."""
        how, trained = self.transfer.recipe, self.trained
        order = loop.Order(len(self.train), how.batch_size, self.transfer.seed)
        n = max(1, round(order.per_epoch * how.epochs))
        optimizer = recipe.optimizer(self.model, how)
        schedule = recipe.schedule(optimizer, how, n, order.per_epoch)
        updates = loop.Loop(
            self.kept,
            {"weights": trained, "optimizer": optimizer},
            updates=n,
            key=key(self.source, self.train) | asdict(self.transfer),
            restart=True,
            images=how.batch_size,
            label=f"{self.train.label}: {self.transfer.name}",
            accelerator=self.accelerator,
            advice="lower the learning rate (--lr)",
        )
        for update, (images, labels) in zip(updates, self.batches(order, updates.update, n), strict=False):
            with self.accelerator.autocast():
                logits = self.model(images)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            loss.backward()
            for parameter in trained.values() if self.accelerator.num_processes > 1 else ():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
            torch.nn.utils.clip_grad_norm_(trained.values(), how.clip)
            schedule.step_update(update)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            updates.note(loss.detach())
        updates.averaged()  # which refuses one that diverged

    def batches(self, order: loop.Order, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's images and labels of updates `first` .. `last` - 1."""
        at = self.accelerator
        keys = order.shares(first, last, at.process_index, at.num_processes)
        drawn = augmented.Augmented(self.train.data, self.transfer.recipe, self.model.config, self.transfer.seed)
        for images, labels in stream.labelled(drawn, keys, self.train.workers, full=True):
            yield images.to(at.device), labels.to(at.device)

    def save(self, folder: Path, data: str) -> None:
        """Adapters and head as `models.adapters` loads them; other transfers as a checkpoint like any other."""
        if self.adapted is not None:
            adapters.save(self.adapted, folder)
        else:
            save_checkpoint(self.model, folder, data, self.transfer.seed)


def save_checkpoint(model: BViT, folder: Path, data: str, seed: int) -> None:
    """``ckpt.pt`` of a transferred model; its initialisation, which is not the seed's alone, cannot be rebuilt."""
    provenance = {"seed": seed, "from": origin.relative(model.origin.source)}
    checkpoint.save(run_folder.checkpoint(folder), model, data=data, provenance=provenance)


def key(model: BViT, train: Pass) -> dict[str, Any]:
    """What a transfer in progress was started with, beside its own options."""
    return {"weights": checkpoint.state_sha256(model.state_dict()), "images": train.about.fingerprint}


def refuse_small(train: Pass, batch: int, world: int) -> None:
    """Raise `InputError` where the training images do not make a batch, or a batch cannot be shared."""
    if len(train) < batch:
        raise InputError(f"{train.about.spec} has {len(train)} training images; lower --train-batch from {batch}")
    loop.refuse_unequal(batch, world)
