"""The rounds of step-specific lottery pruning (appendix G of the paper): resumable stages, each run only once."""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from beartype.door import is_bearable
from tqdm import tqdm

from analyses import prune as analysis
from models import checkpoint, loop, masks, origin, recipe, run_folder
from models.data.held import InMemory
from models.device import accelerator
from models.errors import InputError
from models.vit import BViT
from probes.methods import grafts, lottery
from probes.methods.plan import Plan
from probes.probe import as_pass, attributes
from probes.saving import save

TRAIN, GRAFT = 0, 1  # seeds of the data order: of the model, and of the grafts; replicate r has GRAFT + r
ADVICE = "lower --lr or --graft-lr and start over with --force"

CUT = {"masks": torch.Tensor, "replicates": torch.Tensor, "graft_loss": torch.Tensor, "accuracy_cut": float}
SCORED = {"accuracy": float, "loss": float, "n_val": int}


def scored(path: Path) -> dict[str, float]:
    """The validation metrics of a finished training; raises `InputError` for a damaged file."""
    metrics = checkpoint.read(path)["metrics"]
    if not all(is_bearable(metrics.get(name), kind) for name, kind in SCORED.items()):
        raise InputError(f"{path} is damaged: it has no validation metrics; remove it and go on with --resume")
    return metrics


class Lottery:
    """The rounds in one folder.

    ``rounds/NN/ckpt.pt`` is the model trained under the masks of round NN, ``rounds/NN/pruned.pt`` holds the masks of
    the next round. Each file is written when its stage is complete; ``last.*.pt`` hold the training in progress.
    """

    def __init__(self, model: BViT, data: Any, val: Any, plan: Plan, out: Path, val_limit: int):
        self.plan, self.out, self.started = plan, out, time.time()
        self.images = as_pass(data, seed=plan.seed)
        device = model.pos_embed.device
        self.accelerator = accelerator("no" if device.type == "cpu" else "auto", device.type)
        loop.refuse_unequal(plan.batch_size, self.accelerator.num_processes)
        self.model, self.config = model, model.config
        self.init_sha256 = checkpoint.state_sha256(model.state_dict())
        self.groups = lottery.groups(model.config, plan.scope)
        self.train_set = InMemory.of(data, device)
        self.val_set = InMemory.of(val, device, val_limit)
        n = len(self.train_set)
        if n < plan.batch_size:
            raise InputError(f"{self.spec} has {n} training images, fewer than one batch of {plan.batch_size}")
        self.replicated = sorted({0, model.config.n_steps // 2})  # the steps of the replicate null

    def play(self) -> None:
        for number in range(self.plan.rounds + 1):
            metrics = self.trained(number)
            if number == 0:
                self.warn_if_untrained(metrics["accuracy"])
            if number < self.plan.rounds:
                self.pruned(number)
            if self.accelerator.is_main_process:
                self.write(self.result(), "prune")

    # The stages of a round, each done once

    def masks(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The masks that round `number` trains under: those of the steps [step weight], and those of the replicates
        [replicated replicate weight].
        """
        n, n_steps = sum(masks.sizes(self.config).values()), self.config.n_steps
        shape = len(self.replicated), self.plan.replicates - 1
        if number == 0:
            return torch.ones(n_steps, n, dtype=torch.bool), torch.ones(*shape, n, dtype=torch.bool)
        content, path = self.cut(number - 1), self.path(number - 1, "pruned")
        steps = masks.unpacked(content["masks"], self.config, n_steps, path)
        replicates = masks.unpacked(content["replicates"], self.config, math.prod(shape), path)
        return steps, replicates.view(*shape, n)

    def trained(self, number: int) -> dict[str, float]:
        """Stage 1 of a round: rewind the whole model, train it under the round's masks, and return its metrics."""
        return self.train_under(self.masks(number)[0], number, "ckpt", "model")

    def train_under(self, rows: torch.Tensor, number: int, name: str, label: str) -> dict[str, float]:
        """The metrics of the rewound model trained under masks [step weight]; trains and saves it as `name` once."""
        path = self.path(number, name)
        if path.exists():
            return scored(path)
        model = self.rewound(rows)
        parameters = dict(model.named_parameters())
        alive = {name: mask.to(parameters[name].device) for name, mask in lottery.alive(rows, self.config).items()}

        def descend(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            with self.accelerator.autocast():
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            self.average(parameters)
            torch.nn.utils.clip_grad_norm_(model.parameters(), how.clip)
            return loss.detach()

        def zero_pruned() -> None:
            for name, mask in alive.items():
                parameters[name].data.mul_(mask)

        how = replace(recipe.RECIPES["plain"], lr=self.plan.lr, optimizer=self.plan.optimizer)
        optimizer = recipe.optimizer(model, how)
        keys, label = (number, TRAIN), f"round {number}/{self.plan.rounds}: {label}"
        loss = self.fit(path, parameters, optimizer, descend, how, self.plan.epochs, keys, label, zero_pruned)
        metrics = {"accuracy": self.accuracy(model), "loss": float(loss), "n_val": len(self.val_set)}
        if self.accelerator.is_main_process:
            checkpoint.save(
                path,
                masks.put_on(model, rows),
                data=self.spec,
                metrics=metrics,
                init_sha256=self.init_sha256,
                provenance=origin.provenance(self.plan.seed, plan=asdict(self.plan)),
            )
        self.accelerator.wait_for_everyone()
        return metrics

    def pruned(self, number: int) -> None:
        """Stages 2 and 3 of a round: train every graft, and remove its smallest weights from its step's mask."""
        path = self.path(number, "pruned")
        if path.exists():
            return
        steps, replicates = self.masks(number)
        model = self.load(number)
        weights, losses = self.grafted(model, range(self.config.n_steps), steps, number, GRAFT, "grafts")
        next_steps = self.without_smallest(weights, steps)
        next_replicates = torch.empty_like(replicates)
        for r, rows in enumerate(replicates.unbind(1), 1):
            label = f"replicate {r}/{self.plan.replicates - 1}"
            weights, _ = self.grafted(model, self.replicated, rows, number, GRAFT + r, label)
            next_replicates[:, r - 1] = self.without_smallest(weights, rows)
        content = {
            "masks": masks.packed(next_steps),
            "replicates": masks.packed(next_replicates.flatten(0, 1)),
            "graft_loss": losses,
            "accuracy_cut": self.accuracy(masks.put_on(model, next_steps)),
        }
        if self.accelerator.is_main_process:
            run_folder.write_tensors(path, content)
        self.accelerator.wait_for_everyone()

    def grafted(
        self, model: BViT, steps: Sequence[int], rows: torch.Tensor, number: int, order: int, label: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Train the grafts of `steps` together; returns their final weights [graft weight] and losses [graft]."""
        rows = rows.to(self.train_set.images.device)
        stack = grafts.stack(self.untrained(), steps, rows)
        at_once = self.plan.grafts_at_once or len(steps)

        def descend(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            losses = []
            for first in range(0, len(steps), at_once):
                part = slice(first, first + at_once)
                with self.accelerator.autocast():
                    group = {name: value[part] for name, value in stack.items()}
                    loss = grafts.losses(model, group, rows[part], steps[part], images, labels)
                loss.sum().backward()
                losses.append(loss.detach())
            self.average(stack)
            grafts.clip(stack, how.clip)
            return torch.cat(losses)

        how = replace(recipe.RECIPES["plain"], lr=self.plan.graft_lr)
        optimizer = grafts.optimizer(stack, self.plan.graft_lr)
        stage = self.path(number, f"graft{order - GRAFT}")
        label = f"round {number}/{self.plan.rounds}: {label}"
        losses = self.fit(stage, stack, optimizer, descend, how, self.plan.graft_epochs, (number, order), label)
        weights = {name: stack[name].detach().cpu() for name in masks.WEIGHTS.values()}
        return masks.joined(weights), losses.cpu()

    def without_smallest(self, weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return lottery.without_smallest(weights, rows, self.plan.rate, self.groups)

    # Controls

    def control(self, name: str, at: Sequence[int] = ()) -> xr.Dataset:
        """Measures a control, at all finished rounds or at the rounds `at`, and writes the result."""
        result = self.controlled(name, at)
        result = result.assign_attrs(self.attributes(len(self.val_set), float("nan")), control=name)
        if self.accelerator.is_main_process:
            self.write(result, f"prune_{name}")
        return result

    def controlled(self, name: str, at: Sequence[int]) -> xr.Dataset:
        numbers = range(1, self.plan.rounds + 1)
        finished = list(itertools.takewhile(lambda number: self.path(number, "ckpt").exists(), numbers))
        missing = sorted(set(at) - set(finished))
        if missing or not finished:
            named = ", ".join(map(str, missing)) or 1
            raise InputError(f"{self.out} has no finished round {named}; run python -m probes.prune --out {self.out}")
        rounds = [number for number in finished if not at or number in at]
        if name == "swap":
            swapped = [self.swapped(number) for number in rounds]
            return xr.Dataset({"swap": (("round", "step", "other_step"), swapped)}, {"round": rounds})
        if name == "shared":  # each round's mask derives from the round before
            rounds = finished[: finished.index(rounds[-1]) + 1]
        accuracy = [self.under_other_masks(name, number)["accuracy"] for number in rounds]
        return xr.Dataset({"accuracy": ("round", accuracy)}, {"round": rounds})

    def under_other_masks(self, name: str, number: int) -> dict[str, float]:
        """The metrics of a round's model under a control's masks; "shared": one mask for all steps, as is classic."""
        if name == "shared":
            return self.train_under(self.shared_masks(number), number, name, name)
        sizes = list(masks.sizes(self.config).values())
        seed = self.plan.seed * 1009 + number
        return self.train_under(lottery.altered(self.masks(number)[0], name, seed, sizes), number, name, name)

    def shared_masks(self, number: int) -> torch.Tensor:
        """Classic lottery pruning (Frankle & Carbin, 2019): remove the previous round's smallest trained weights."""
        previous = checkpoint.load_file(self.path(number - 1, "shared" if number > 1 else "ckpt"), "raw")
        weights = []
        for t in range(self.config.n_steps):
            block = previous.core[self.config.block_of(t)]
            by_name = {name: block.get_parameter(name).detach() for name in masks.WEIGHTS.values()}
            weights.append(masks.joined(by_name))
        return self.without_smallest(torch.stack(weights), masks.taken_from(previous))

    def swapped(self, number: int) -> np.ndarray:
        """Accuracy when step t runs under the mask of step s: [step other_step]."""
        rows, model = self.masks(number)[0], self.load(number)
        accuracy = np.zeros((len(rows), len(rows)), np.float32)
        quiet = not self.accelerator.is_main_process
        for t in tqdm(range(len(rows)), desc=f"swap, round {number}", unit=" steps", disable=quiet):
            for s in range(len(rows)):
                other = rows.clone()
                other[t] = rows[s]
                accuracy[t, s] = self.accuracy(masks.put_on(model, other), limit=1000)
        return accuracy

    # Training

    def fit(
        self,
        path: Path,
        parameters: dict[str, torch.Tensor],
        optimizer: torch.optim.Optimizer,
        descend: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        how: recipe.Recipe,
        epochs: float,
        keys: tuple[int, int],
        label: str,
        after: Callable[[], None] = lambda: None,
    ) -> torch.Tensor:
        """Train `parameters` in place; returns the mean loss over the last quarter of the updates.

        `descend` computes the gradients and returns the loss of a batch; `after` runs after each optimiser step.
        """
        order = loop.Order(len(self.train_set), self.plan.batch_size, self.plan.seed, *keys)
        n = max(1, round(order.per_epoch * epochs))
        schedule = recipe.schedule(optimizer, how, n, order.per_epoch)
        updates = loop.Loop(
            self.out / f"last.{path.parent.name}.{path.stem}.pt",
            {"parameters": parameters, "optimizer": optimizer},
            updates=n,
            images=self.plan.batch_size,
            label=label,
            accelerator=self.accelerator,
            advice=ADVICE,
        )
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for update in updates:
            epoch, batch, _ = order.batch(update)
            own = torch.tensor(loop.share(batch.tolist(), rank, world))
            images, labels = self.train_set.flipped(own, self.plan.seed, *keys, epoch, 1)
            schedule.step_update(update)
            loss = descend(images, labels)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            after()
            if update + 1 > 0.75 * n:
                updates.note(loss)
        return updates.averaged()

    def average(self, parameters: dict[str, torch.Tensor]) -> None:
        """Average the gradients over processes, in place."""
        if self.accelerator.num_processes > 1:
            for value in parameters.values():
                value.grad = self.accelerator.reduce(value.grad, "mean")

    # Models

    def untrained(self) -> BViT:
        """The model at its initialisation, without masks."""
        return copy.deepcopy(self.model)

    def rewound(self, rows: torch.Tensor) -> BViT:
        """The initialisation under masks [step weight], with all weights that no step keeps set to zero."""
        model = self.untrained()
        with torch.no_grad():
            for name, mask in lottery.alive(rows, self.config).items():
                model.get_parameter(name).mul_(mask.to(self.train_set.images.device))
        return masks.put_on(model.train(), rows)

    def load(self, number: int) -> BViT:
        """The trained model of a round, frozen, under its masks."""
        model = checkpoint.load_file(self.path(number, "ckpt"), "raw")
        return model.to(self.train_set.images.device).requires_grad_(False)

    def accuracy(self, model: BViT, limit: int | None = None) -> float:
        images, labels = self.val_set.images[:limit], self.val_set.labels[:limit]
        model.eval()
        with torch.inference_mode():
            batches = zip(images.split(500), labels.split(500), strict=True)
            n_correct = sum((model(x).argmax(-1) == y).sum() for x, y in batches)
        return float(n_correct) / len(labels)

    # Files and results

    @property
    def spec(self) -> str:
        return self.images.about.spec

    def path(self, number: int, name: str) -> Path:
        return run_folder.pruning_round(self.out, number) / f"{name}.pt"

    def cut(self, number: int) -> dict[str, Any]:
        """The content of a round's ``pruned.pt``; raises `InputError` for a damaged file."""
        path = self.path(number, "pruned")
        content = checkpoint.load_plain(path)
        is_whole = isinstance(content, dict) and all(is_bearable(content.get(name), kind) for name, kind in CUT.items())
        if not is_whole:
            raise InputError(f"{path} is damaged: it is no record of a round; remove it and go on with --resume")
        return content

    def result(self) -> xr.Dataset:
        """The measurements of all finished rounds, and their statistics."""
        rounds = [number for number in range(self.plan.rounds + 1) if self.path(number, "ckpt").exists()]
        metrics = [scored(self.path(number, "ckpt")) for number in rounds]
        pairs = [self.masks(number) for number in rounds]
        steps = np.stack([masks.packed(of_steps).numpy() for of_steps, _ in pairs])
        replicates = np.stack([masks.packed(of_replicates).numpy() for _, of_replicates in pairs])
        unknown = {"graft_loss": np.full(self.config.n_steps, np.nan), "accuracy_cut": np.nan}
        cuts = [self.cut(n) if self.path(n, "pruned").exists() else unknown for n in rounds]
        # `accuracy_cut`: the previous round's weights under this round's masks.
        accuracy_cut = [np.nan, *(cut["accuracy_cut"] for cut in cuts[:-1])]
        result = analysis.statistics(steps, replicates, masks.sizes(self.config), self.replicated)
        result["accuracy"] = "round", [scores["accuracy"] for scores in metrics]
        result["accuracy_cut"] = "round", accuracy_cut
        result["loss"] = "round", [scores["loss"] for scores in metrics]
        result["graft_loss"] = ("round", "step"), [np.asarray(cut["graft_loss"], float) for cut in cuts]
        return result.assign_attrs(self.attributes(metrics[0]["n_val"], metrics[0]["accuracy"]))

    def attributes(self, n_val: int, accuracy: float) -> dict[str, Any]:
        origin, chance = self.model.origin, 1 / self.config.n_classes
        self.model.origin = replace(origin, sha256=origin.sha256 or self.init_sha256)
        plan = {name: value for name, value in asdict(self.plan).items() if value is not None}
        note = f"unpruned accuracy {accuracy:.3f} is below three times chance: the masks are noise"
        return attributes(self.model, self.images, started=self.started) | {
            "plan": json.dumps(plan),
            "init_sha256": self.init_sha256,
            "chance": chance,
            "n_val": n_val,
            "note": note if accuracy < 3 * chance else "",
        }

    def write(self, result: xr.Dataset, name: str) -> None:
        """Write the result and, as the run's checkpoint, the unpruned model; remove finished training states."""
        save(result, run_folder.result(self.out, name))
        if not run_folder.checkpoint(self.out).exists():
            with run_folder.atomic(run_folder.checkpoint(self.out)) as temporary:
                temporary.write_bytes(self.path(0, "ckpt").read_bytes())
        for path in self.out.glob("last.*.pt"):
            path.unlink(missing_ok=True)

    def warn_if_untrained(self, accuracy: float) -> None:
        chance = 1 / self.config.n_classes
        if self.accelerator.is_main_process:
            beside = f"chance {100 * chance:.1f} %, {len(self.val_set)} images"
            print(f"unpruned accuracy {100 * accuracy:.1f} % ({beside})", file=sys.stderr)
            if accuracy < 3 * chance:
                advice = "masks of an untrained model are noise, give more --epochs"
                print(f"warning: that is below three times chance; {advice}", file=sys.stderr)
