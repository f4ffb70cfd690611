"""Which sub-network of the shared block does each step need? Step-specific lottery pruning (figures 5 and 14, appendix G of the paper).

    python -m probes.prune --steps 30                    # 30 rounds on the embedded data, from a seed
    python -m probes.prune runs/demo --data shapes       # rewinds to that checkpoint's initialisation
    python -m probes.prune --control random              # a control of the rounds that are there
    python -m probes.prune --quick                       # under three minutes, to see it work

Each round trains the whole model from its initialisation, step t under its mask M_t; then trains, for every step, a graft (the
initialisation under M_t, used at that step alone, the rest frozen), and takes from M_t the smallest `rate` of the graft's weights. Masks
overlap whatever the steps do, since all grafts start from one initialisation: so beside random masks stand replicates
of one step, grafted with other data orders. Costs about four minutes a round on two cores by default.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from models.command import run
from models.errors import InputError

if TYPE_CHECKING:
    import torch
    import xarray as xr
    from torch import Tensor

    from models.vit import BViT

Control = Literal["random", "shuffled", "shared", "union", "swap"]
SAVE_EVERY = 60  # seconds between the states that resuming starts from
TRAIN, GRAFT, CONTROL = 0, 1, 1000  # what a data order is drawn for; replicate r of a graft has GRAFT + r


@dataclass(frozen=True)
class Plan:
    """The loop of appendix G: everything that decides its masks, beside the model and the data."""

    rounds: int = 8  # P
    epochs: float = 5.0  # E, of the whole model
    graft_epochs: float = 2.0  # G
    rate: float = 0.2  # r, the share of a step's remaining weights that goes each round
    scope: Literal["global", "matrix"] = "global"  # smallest over the block, or in each matrix
    replicates: int = 3  # grafts of the middle step with other data orders, the step's own among them
    batch_size: int = 64
    optimizer: str = "muon"  # of the whole model, by timm's name; grafts have AdamW
    lr: float = 4e-3
    graft_lr: float = 2e-3
    seed: int = 0
    grafts_at_once: int | None = None  # bounds memory; all of them by default

    def __post_init__(self) -> None:
        checks = [
            (self.rounds >= 1, f"--steps (pruning rounds) is {self.rounds}, it must be at least 1"),
            (self.epochs > 0 and self.graft_epochs > 0, "--epochs and --graft-epochs must be above 0"),
            (0 < self.rate < 1, f"--rate is {self.rate}, it must lie between 0 and 1"),
            (self.replicates >= 1, f"--replicates is {self.replicates}, it must be at least 1 (1 = no replicate null)"),
            (self.grafts_at_once is None or self.grafts_at_once >= 1, f"--grafts-at-once is {self.grafts_at_once}, it must be at least 1"),
        ]
        for holds, complaint in checks:
            if not holds:
                raise InputError(complaint)


PAPER = dict(rounds=30, epochs=200.0, graft_epochs=100.0, rate=0.2)
QUICK = dict(rounds=2, epochs=3.0, graft_epochs=1.0, replicates=2)
QUICK_DATA, QUICK_FIELDS = "shapes-easy:6000", ("n_steps=6",)


def measure(model: BViT, data: Any, *, val: Any, out: Path, plan: Plan | None = None, val_limit: int = 5000) -> xr.Dataset:
    """Prune an untrained `model` on `data` round by round into the folder `out`, continuing what is there; accuracy is on `val`.

    `model` is what every round rewinds to (``load(source, weights="init")`` or a new one with an ``origin``).
    Raises `InputError` for data that cannot be held in memory or classes that differ.
    """
    lottery = Lottery(model, data, val, plan or Plan(), out, val_limit)
    lottery.play()
    return lottery.result()


class Lottery:
    """The rounds in one folder: ``rounds/NN/ckpt.pt`` (trained under the masks of round NN), then ``rounds/NN/pruned.pt`` (the next masks).

    Each is written once, so what is there is finished; ``last.pt`` holds the training in progress.
    """

    def __init__(self, model: BViT, data: Any, val: Any, plan: Plan, out: Path, val_limit: int):
        from models import masks
        from models.checkpoint import state_sha256
        from models.train import accelerator

        self.plan, self.out, self.data, self.started = plan, out, data, time.time()
        device = model.pos_embed.device
        self.accelerator = accelerator("no" if device.type == "cpu" else "auto", device.type)
        if plan.batch_size % self.accelerator.num_processes:
            raise InputError(f"the batch of {plan.batch_size} cannot be shared by {self.accelerator.num_processes} processes evenly")
        self.model, self.config = model, model.config
        self.init = {name: value.clone() for name, value in model.state_dict().items()}
        self.init_sha256 = state_sha256(self.init)
        self.sizes = masks.sizes(model.config)
        self.images, self.labels = held(data, device)
        if len(self.labels) < plan.batch_size:
            raise InputError(f"{data_spec(data)} has {len(self.labels)} training images, fewer than one batch of {plan.batch_size}")
        self.val = held(val, device, val_limit)
        self.replicated = model.config.n_steps // 2  # the step of the replicate null

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

    def masks(self, number: int) -> tuple[Tensor, Tensor]:
        """The masks that round `number` trains under: of the steps [step weight] and of the replicates [replicate weight]."""
        import torch

        from models.masks import unpacked

        if number == 0:
            n = sum(self.sizes.values())
            shape = (self.config.n_steps, n), (self.plan.replicates - 1, n)
            return torch.ones(shape[0], dtype=torch.bool), torch.ones(shape[1], dtype=torch.bool)
        content = self.read(number - 1, "pruned")
        return unpacked(content["masks"], self.config), unpacked(content["replicates"], self.config)

    def trained(self, number: int) -> dict[str, float]:
        """Stage 1 of a round: the whole model, rewound and trained under the round's masks."""
        return self.train_under(self.masks(number)[0], self.path(number, "ckpt"), (number, TRAIN), f"round {number}/{self.plan.rounds}: model")

    def train_under(self, masks: Tensor, path: Path, keys: tuple[int, int], label: str) -> dict[str, float]:
        """Train the rewound model under masks [step weight], save it to `path`, and return its metrics; only the latter where `path` exists."""
        from models import checkpoint, recipe
        from models.masks import put_on

        if path.exists():
            return checkpoint.read(path)["metrics"]
        model = self.rewound(masks)
        chosen = replace(recipe.RECIPES["plain"], lr=self.plan.lr, optimizer=self.plan.optimizer, batch_size=self.plan.batch_size)
        parameters, alive = dict(model.named_parameters()), self.alive(masks)

        def descend(images: Tensor, labels: Tensor) -> Tensor:
            import torch

            with self.accelerator.autocast():
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            self.average(parameters)
            torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.clip)
            return loss.detach()[None]

        def keep_dead() -> None:
            for name, mask in alive.items():
                parameters[name].data.mul_(mask)

        optimizer = recipe.optimizer(model, chosen)
        loss = self.fit(path, parameters, optimizer, descend, self.plan.epochs, keys, label, keep_dead)
        metrics = {"accuracy": self.accuracy(model), "loss": float(loss), "n_val": len(self.val[1])}
        if self.accelerator.is_main_process:
            more = dict(init_sha256=self.init_sha256, provenance=checkpoint.provenance(self.plan.seed, plan=asdict(self.plan)))
            checkpoint.save(path, put_on(model, masks), data=data_spec(self.data), metrics=metrics, **more)
        self.accelerator.wait_for_everyone()
        return metrics

    def pruned(self, number: int) -> None:
        """Stages 2 and 3 of a round: train every graft, and take the smallest of its weights from its step's mask."""
        import torch

        from models.masks import packed, put_on
        from models.run_folder import write_tensors

        path = self.path(number, "pruned")
        if path.exists():
            return
        steps, replicates = self.masks(number)
        model = self.load(number)
        grafts, losses = self.grafted(model, range(self.config.n_steps), steps, number, GRAFT, "grafts")
        after = self.smallest_removed(grafts, steps)
        others = []
        for r, mask in enumerate(replicates, 1):
            graft, _ = self.grafted(model, [self.replicated], mask[None], number, GRAFT + r, f"replicate {r}/{len(replicates)}")
            others.append(self.smallest_removed(graft, mask[None]))
        cut = self.accuracy(put_on(model, after))
        if self.accelerator.is_main_process:
            joined = torch.cat(others) if others else replicates
            write_tensors(path, {"masks": packed(after), "replicates": packed(joined), "graft_loss": losses, "accuracy_cut": cut})
        self.accelerator.wait_for_everyone()

    def grafted(self, model: BViT, steps: Sequence[int], masks: Tensor, number: int, order: int, label: str) -> tuple[Tensor, Tensor]:
        """Train the grafts of `steps` in one pass: their weights [graft weight] and losses [graft] at the end."""
        import torch

        from models.masks import WEIGHTS, joined
        from models.recipe import RECIPES
        from probes import grafts

        masks = masks.to(self.images.device)
        stack = grafts.stack(self.untrained_source(), steps, masks)
        at_once = self.plan.grafts_at_once or len(steps)
        groups = [range(first, min(first + at_once, len(steps))) for first in range(0, len(steps), at_once)]

        def descend(images: Tensor, labels: Tensor) -> Tensor:
            losses = []
            for group in groups:
                part = slice(group.start, group.stop)
                with self.accelerator.autocast():
                    of_group = {name: value[part] for name, value in stack.items()}
                    loss = grafts.losses(model, of_group, masks[part], [steps[i] for i in group], images, labels)
                loss.sum().backward()
                losses.append(loss.detach())
            self.average(stack)
            grafts.clip(stack, RECIPES["plain"].clip)
            return torch.cat(losses)

        decayed = [stack[name] for name in WEIGHTS.values()]
        rest = [value for name, value in stack.items() if name not in WEIGHTS.values()]
        optimizer = torch.optim.AdamW([{"params": decayed}, {"params": rest, "weight_decay": 0.0}], lr=self.plan.graft_lr, weight_decay=0.05)
        stage, label = self.path(number, f"graft{order - GRAFT}"), f"round {number}/{self.plan.rounds}: {label}"
        losses = self.fit(stage, stack, optimizer, descend, self.plan.graft_epochs, (number, order), label)
        return joined({name: stack[name].detach().cpu() for name in WEIGHTS.values()}), losses.cpu()

    def smallest_removed(self, weights: Tensor, masks: Tensor) -> Tensor:
        """Masks [graft weight] without the smallest floor(rate n) of the n weights each keeps; ties go by position."""
        sizes = list(self.sizes.values())
        groups = [sum(sizes)] if self.plan.scope == "global" else sizes
        parts = zip(weights.abs().split(groups, 1), masks.split(groups, 1), strict=True)
        import torch

        return torch.cat([_without_smallest(magnitude, mask, self.plan.rate) for magnitude, mask in parts], 1)

    # Controls

    def control(self, name: Control, at: Sequence[int] = ()) -> xr.Dataset:
        """What other masks than the steps' own would reach, at the rounds that are there (or those named)."""
        import xarray as xr

        there = [number for number in range(1, self.plan.rounds + 1) if self.path(number, "ckpt").exists()]
        missing = sorted(set(at) - set(there))
        if missing or not there:
            raise InputError(f"{self.out} has no finished round {', '.join(map(str, missing)) or 1}; run python -m probes.prune --out {self.out}")
        chosen = [number for number in there if not at or number in at]
        if name == "swap":
            return xr.Dataset({"swap": (("round", "step", "other_step"), [self.swapped(n) for n in chosen])}, {"round": chosen})
        of = self.shared if name == "shared" else lambda number: self.altered(name, number)
        rounds = there[: there.index(chosen[-1]) + 1] if name == "shared" else chosen  # shared masks come from one another
        found = {number: of(number) for number in rounds}
        return xr.Dataset({"accuracy": ("round", [found[n]["accuracy"] for n in rounds])}, {"round": rounds})

    def altered(self, name: str, number: int) -> dict[str, float]:
        """The model trained under random masks of the steps' densities, the steps' masks in another order, or their union."""
        import torch

        masks = self.masks(number)[0]
        generator = torch.Generator().manual_seed(self.plan.seed * 1009 + number)
        if name == "random":
            altered = torch.cat([_shuffled_within(part, generator) for part in masks.split(list(self.sizes.values()), 1)], 1)
        elif name == "shuffled":
            altered = masks[_derangement(len(masks), generator)]
        else:
            altered = masks.any(0).expand_as(masks)
        keys = number, TRAIN
        return self.train_under(altered, self.path(number, name), keys, f"{name}, round {number}/{self.plan.rounds}")

    def shared(self, number: int) -> dict[str, float]:
        """Classic lottery pruning (Frankle & Carbin, 2019): one mask for all steps, the smallest trained weights go each round."""
        from models.checkpoint import load_file

        before = load_file(self.path(number - 1, "shared" if number > 1 else "ckpt"), "raw")
        from models.masks import WEIGHTS, joined, taken_from

        used = [before.core[self.config.block_of(t)] for t in range(self.config.n_steps)]
        weights = [joined({name: block.get_parameter(name).detach() for name in WEIGHTS.values()})[None] for block in used]
        old = taken_from(before)
        import torch

        masks = torch.cat([self.smallest_removed(weight, row[None]) for weight, row in zip(weights, old, strict=True)])
        return self.train_under(masks, self.path(number, "shared"), (number, TRAIN), f"shared, round {number}/{self.plan.rounds}")

    def swapped(self, number: int) -> Any:
        """Accuracy when step t runs under the mask of step s: [step other_step]."""
        import torch
        from tqdm import tqdm

        from models.masks import put_on

        masks, model = self.masks(number)[0], self.load(number)
        out = torch.zeros(len(masks), len(masks))
        for t in tqdm(range(len(masks)), desc=f"swap, round {number}", unit=" steps", disable=not self.accelerator.is_main_process):
            for s in range(len(masks)):
                other = masks.clone()
                other[t] = masks[s]
                out[t, s] = self.accuracy(put_on(model, other), limit=1000)
        return out.numpy()

    # Training, resumable

    def fit(
        self,
        path: Path,
        parameters: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        descend: Callable[[Tensor, Tensor], Tensor],
        epochs: float,
        keys: tuple[int, int],
        label: str,
        after: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Train `parameters` in place; `descend` leaves their gradients and returns the loss. The mean loss of the last quarter.

        The state is saved beside ``last.pt`` every minute and when done, so a stage that is asked for again goes on or is there.
        """
        from tqdm import tqdm

        from models import recipe

        per_epoch = len(self.labels) // self.plan.batch_size
        updates = max(1, round(per_epoch * epochs))
        plan = replace(recipe.RECIPES["plain"], batch_size=self.plan.batch_size)
        schedule = recipe.schedule(optimizer, plan, updates, per_epoch)
        state = State(self.state_path(path), parameters, optimizer, is_main=self.accelerator.is_main_process)
        bar = tqdm(
            total=updates * self.plan.batch_size, initial=state.update * self.plan.batch_size, desc=label, unit=" images", unit_scale=True,
            disable=not self.accelerator.is_main_process, mininterval=2, dynamic_ncols=True,
        )  # fmt: skip
        for images, labels in self.batches(state.update, updates, keys):
            schedule.step_update(state.update)
            loss = descend(images, labels)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            after()
            state.advance(loss, counts=state.update + 1 > 0.75 * updates)
            bar.update(self.plan.batch_size)
        bar.close()
        mean = self.accelerator.reduce(state.total / max(state.counted, 1), "mean")
        if not mean.isfinite().all():
            raise InputError(f"the loss of {label} is not finite; lower --lr or --graft-lr and start over with --force")
        state.save()
        return mean if len(mean) > 1 else mean[0]

    def batches(self, first: int, last: int, keys: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images and labels of updates `first` .. `last` - 1, in an order drawn from (seed, keys, epoch), flipped at random."""
        import torch

        from models.train import hash_of

        size, per_epoch = self.plan.batch_size, len(self.labels) // self.plan.batch_size
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        epoch, order, flips = -1, None, None
        for update in range(first, last):
            if update // per_epoch != epoch:
                epoch = update // per_epoch
                generator = torch.Generator().manual_seed(hash_of(self.plan.seed, *keys, epoch))
                order = torch.randperm(len(self.labels), generator=generator)
                flips = torch.rand(len(self.labels), generator=generator) < 0.5
            place = update % per_epoch * size
            chosen = order[place : place + size][rank::world]
            images, flip = self.images[chosen], flips[chosen].to(self.images.device)
            yield torch.where(flip[:, None, None, None], images.flip(-1), images), self.labels[chosen]

    def average(self, parameters: dict[str, Tensor]) -> None:
        """Gradients as the mean over processes."""
        if self.accelerator.num_processes > 1:
            for value in parameters.values():
                value.grad = self.accelerator.reduce(value.grad, "mean")

    # Models

    def untrained_source(self) -> BViT:
        """The model at its initialisation, without masks."""
        from models.vit import BViT

        model = BViT(self.config).to(self.images.device)
        model.load_state_dict(self.init)
        return model

    def rewound(self, masks: Tensor) -> BViT:
        """The initialisation under masks [step weight], weights that no step keeps set to zero."""
        import torch

        from models.masks import put_on

        model = self.untrained_source()
        with torch.no_grad():
            for name, mask in self.alive(masks).items():
                model.get_parameter(name).mul_(mask)
        return put_on(model.train(), masks)

    def alive(self, masks: Tensor) -> dict[str, Tensor]:
        """Which weights of each block any of its steps keeps, by parameter name."""
        from models.masks import WEIGHTS, split

        found = {}
        for k in range(self.config.n_blocks):
            rows = [t for t in range(self.config.n_steps) if self.config.block_of(t) == k]
            for name, mask in split(masks[rows].any(0), self.config).items():
                found[f"core.{k}.{WEIGHTS[name]}"] = mask.to(self.images.device)
        return found

    def load(self, number: int) -> BViT:
        """The trained model of a round, frozen, under its masks."""
        from models.checkpoint import load_file

        return load_file(self.path(number, "ckpt"), "raw").to(self.images.device).requires_grad_(False)

    def accuracy(self, model: BViT, limit: int | None = None) -> float:
        import torch

        images, labels = (part[:limit] for part in self.val)
        model.eval()
        with torch.inference_mode():
            right = [(model(x).argmax(-1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
        return float(sum(right)) / len(labels)

    # Files

    def path(self, number: int, name: str) -> Path:
        from models.run_folder import pruning_round

        return pruning_round(self.out, number) / f"{name}.pt"

    def state_path(self, path: Path) -> Path:
        return self.out / f"last.{path.parent.name}.{path.stem}.pt"

    def read(self, number: int, name: str) -> dict[str, Any]:
        from models.checkpoint import load_plain

        return load_plain(self.path(number, name))

    def result(self) -> xr.Dataset:
        """Everything the finished rounds say, with its statistics."""
        import numpy as np

        from analyses import prune as analysis
        from models.masks import packed

        rounds, metrics, graft_loss, cut, shown, others = [], [], [], [], [], []
        for number in range(self.plan.rounds + 1):
            if not self.path(number, "ckpt").exists():
                break
            steps, replicates = self.masks(number)
            rounds.append(number)
            metrics.append(self.read(number, "ckpt")["metrics"])
            shown.append(packed(steps).numpy())
            others.append(packed(replicates).numpy())
            after = self.read(number, "pruned") if self.path(number, "pruned").exists() else {}
            graft_loss.append(np.asarray(after.get("graft_loss", np.full(self.config.n_steps, np.nan)), dtype=float))
            cut.append(after.get("accuracy_cut", np.nan))
        found = analysis.statistics(np.stack(shown), np.stack(others), self.sizes)
        found["accuracy"] = "round", [m["accuracy"] for m in metrics]
        found["accuracy_cut"] = "round", [np.nan, *cut[:-1]]  # the round before's weights under this round's masks
        found["loss"] = "round", [m["loss"] for m in metrics]
        found["graft_loss"] = ("round", "step"), np.stack(graft_loss)
        return found.assign_attrs(self.attributes(metrics[0]["n_val"], metrics[0]["accuracy"]))

    def attributes(self, n_val: int, accuracy: float) -> dict[str, Any]:
        from probes.probe import attributes

        self.model.origin = replace(self.model.origin, sha256=self.model.origin.sha256 or self.init_sha256)
        chance = 1 / self.config.n_classes
        note = f"unpruned accuracy {accuracy:.3f} is below three times chance: the masks are noise" if accuracy < 3 * chance else ""
        plan = {name: value for name, value in asdict(self.plan).items() if value is not None}
        more = {"init_sha256": self.init_sha256, "chance": chance, "n_val": n_val, "replicated_step": self.replicated, "note": note}
        return attributes(self.model, self.data, seed=self.plan.seed, started=self.started, plan=json.dumps(plan), **more)

    def write(self, result: xr.Dataset, name: str) -> None:
        """The result, and beside it the unpruned model as the run's checkpoint."""
        from models import run_folder
        from probes.probe import save

        save(result, run_folder.result(self.out, name))
        if not run_folder.checkpoint(self.out).exists():
            with run_folder.atomic(run_folder.checkpoint(self.out)) as temporary:
                temporary.write_bytes(self.path(0, "ckpt").read_bytes())
        for path in self.out.glob("last.*.pt"):
            path.unlink(missing_ok=True)

    def warn_if_untrained(self, accuracy: float) -> None:
        chance = 1 / self.config.n_classes
        if self.accelerator.is_main_process:
            print(f"unpruned accuracy {100 * accuracy:.1f} % (chance {100 * chance:.1f} %, {len(self.val[1])} images)", file=sys.stderr)
            if accuracy < 3 * chance:
                print("warning: that is below three times chance; masks of an untrained model are noise, give more --epochs", file=sys.stderr)


class State:
    """One training in progress: its parameters, optimiser, position and losses, saved together."""

    def __init__(self, path: Path, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, *, is_main: bool):
        self.path, self.parameters, self.optimizer, self.is_main = path, parameters, optimizer, is_main
        self.update, self.total, self.counted, self.saved = 0, 0, 0, time.monotonic()
        if path.exists():
            self._restore()

    def _restore(self) -> None:
        import torch

        from models.checkpoint import load_plain

        content = load_plain(self.path)
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(content["parameters"][name])
        self.optimizer.load_state_dict(content["optimizer"])
        self.update, self.total, self.counted = content["update"], content["total"].to(next(iter(self.parameters.values())).device), content["counted"]

    def advance(self, loss: Tensor, *, counts: bool) -> None:
        self.update += 1
        self.total, self.counted = (self.total + loss, self.counted + 1) if counts else (loss * 0, 0)
        if time.monotonic() - self.saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        from models.run_folder import write_tensors

        if self.is_main:
            parameters = {name: value.detach() for name, value in self.parameters.items()}
            content = dict(parameters=parameters, optimizer=self.optimizer.state_dict(), update=self.update, total=self.total, counted=self.counted)
            write_tensors(self.path, content)
        self.saved = time.monotonic()


def _without_smallest(magnitude: Tensor, masks: Tensor, rate: float) -> Tensor:
    import torch

    order = magnitude.masked_fill(~masks, torch.inf).argsort(dim=1, stable=True)
    out = masks.clone()
    for row, places in zip(out, order, strict=True):
        row[places[: math.floor(rate * int(row.sum()) + 1e-9)]] = False
    return out


def _shuffled_within(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Each row's bits in random places."""
    import torch

    return torch.stack([row[torch.randperm(len(row), generator=generator)] for row in masks])


def _derangement(n: int, generator: torch.Generator) -> Tensor:
    """A random order in which nothing stays in its place."""
    import torch

    while True:
        order = torch.randperm(n, generator=generator)
        if n == 1 or (order != torch.arange(n)).all():
            return order


def held(data: Any, device: Any, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """All images [image 3 height width] and labels [image] of a small data set on the device."""
    import torch

    from models.data import Stream

    n = len(data) if limit is None else min(limit, len(data))
    n_bytes = n * data[0][0].numel() * 4
    if n_bytes > 16 * 2**30:
        raise InputError(f"{data_spec(data)} would take {n_bytes / 2**30:.0f} GiB of memory; this is a loop for small data, choose less or smaller images")
    subset = data if n == len(data) else torch.utils.data.Subset(data, [i * len(data) // n for i in range(n)])
    images, labels = zip(*((batch.images, batch.labels) for batch in Stream(subset, 500)), strict=True)
    return torch.cat(images).to(device), torch.cat(labels).to(device)


def data_spec(data: Any) -> str:
    from models.data import describe

    return describe(data).spec


def command(
    source: Positional[str | None] = None,
    *,
    steps: int = Plan.rounds,
    epochs: float = Plan.epochs,
    graft_epochs: float = Plan.graft_epochs,
    rate: float = Plan.rate,
    scope: Literal["global", "matrix"] = "global",
    preset: str = "bvit_easy",
    fields: tuple[str, ...] = (),
    data: str | None = None,
    replicates: int = Plan.replicates,
    batch_size: int = Plan.batch_size,
    optimizer: str = Plan.optimizer,
    lr: float = Plan.lr,
    graft_lr: float = Plan.graft_lr,
    seed: int = 0,
    grafts_at_once: int | None = None,
    val_limit: int = 5000,
    control: Control | None = None,
    at: tuple[int, ...] = (),
    out: Path = Path("runs/prune"),
    device: str = "auto",
    paper: bool = False,
    quick: bool = False,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Step-specific lottery pruning: masks of every round, how they overlap, and the accuracy under them, beside two nulls.

    Args:
        source: checkpoint to whose initialisation every round rewinds; from --preset and --seed by default.
        steps: pruning rounds (P).
        epochs: passes over the data for the whole model in each round (E).
        graft_epochs: passes for the grafts in each round (G).
        rate: share of a step's remaining weights that goes each round (r).
        scope: the smallest weights over the whole block (global), or in each matrix.
        preset: model to train from a seed; vit_easy gives a stacked ViT, pruned layer by layer.
        fields: fields of the model's config to override, as name=value.
        data: data spec; shapes-easy:12000 by default, or the checkpoint's own.
        replicates: grafts of the middle step with other data orders (its own among them): the second null.
        batch_size: images per update over all processes.
        optimizer: of the whole model, by timm's name; grafts are trained with AdamW.
        lr: peak learning rate of the whole model.
        graft_lr: peak learning rate of the grafts.
        seed: of initialisation and data order.
        grafts_at_once: train the grafts in groups of this many, to bound memory.
        val_limit: images of the validation split that are scored.
        control: of the finished rounds in --out: random, shuffled, shared or union masks, or swap (step t under M_s).
        at: rounds at which the control is run; all of them by default.
        out: folder of the run.
        device: auto, cpu or cuda.
        paper: the paper's values: 30 rounds, 200 and 100 epochs, rate 0.2.
        quick: two rounds on six steps and little data, to see it work.
        resume: continue the run in --out; starts if it holds nothing, does nothing if it is finished.
        force: start over in a folder that holds a run.
    """
    from models import run_folder
    from probes import probe

    if paper and quick:
        raise InputError("--paper and --quick exclude each other")
    names = dict(rounds=steps, epochs=epochs, graft_epochs=graft_epochs, rate=rate, scope=scope, replicates=replicates, batch_size=batch_size)
    plan = Plan(**names, optimizer=optimizer, lr=lr, graft_lr=graft_lr, seed=seed, grafts_at_once=grafts_at_once)
    plan = replace(plan, **(PAPER if paper else QUICK if quick else {}))
    if quick:
        data, fields = data or QUICK_DATA, fields or QUICK_FIELDS
    with run_folder.owned(out, resume=resume or control is not None, force=force):
        refuse_without_rounds(out)
        options = {"source": source, "preset": preset, "fields": list(fields), "data": data, "val_limit": val_limit, "plan": asdict(plan)}
        if control is not None:
            options = kept_options(out)
            plan = Plan(**options["plan"])
        else:
            keep_options(out, options)
        model, train_data, val_data = opened(options, plan.seed, probe.device(device))
        lottery = Lottery(model, train_data, val_data, plan, out, options["val_limit"])
        if control is not None:
            finish_control(lottery, control, at)
            return
        lottery.play()
        if probe.processes()[0] == 0:
            from analyses import prune as analysis

            print(analysis.table(lottery.result()))


def finish_control(lottery: Lottery, control: Control, at: Sequence[int]) -> None:
    found = lottery.control(control, at)
    found = found.assign_attrs(lottery.attributes(len(lottery.val[1]), float("nan")), control=control)
    if lottery.accelerator.is_main_process:
        from analyses import prune as analysis

        lottery.write(found, f"prune_{control}")
        print(analysis.control_table(found, lottery.result()))


def opened(options: dict[str, Any], seed: int, device: Any) -> tuple[BViT, Any, Any]:
    """The untrained model, its training data and its validation data."""
    from models import ViTConfig, load, open_data
    from models.checkpoint import Origin, fresh
    from models.data import describe
    from models.train import parsed

    if options["source"] is not None:
        model = load(options["source"], weights="init")
        spec = options["data"] or model.origin.data
        config = model.config
    else:
        spec = options["data"] or "shapes-easy:12000"
        config = ViTConfig.preset(options["preset"], **parsed(tuple(options["fields"])))
    train_data, val_data = (open_data(spec, split, like=config) for split in ("train", "val"))
    classes = describe(train_data).classes
    if options["source"] is None:
        config = ViTConfig.from_dict(config.to_dict() | {"n_classes": len(classes), "classes": list(classes)})
        model = fresh(config, seed)
        model.origin = Origin(f"{options['preset']}, seed {seed}", "init", data=spec)
    elif tuple(classes) != tuple(config.classes or ()):
        raise InputError(f"{spec} has other classes than {options['source']}; pruning trains on them, so they must be the same")
    return model.to(device), train_data, val_data


def keep_options(out: Path, options: dict[str, Any]) -> None:
    """Note what a run was started with; refuse to continue it with something else."""
    import os

    from models.run_folder import atomic

    path = out / "prune.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = sorted(name for name in options if before.get(name) != json.loads(json.dumps(options[name])))
        if changed:
            started = ", ".join(f"{name}={before.get(name)!r}" for name in changed if name != "plan")
            if "plan" in changed:
                plan = {name: value for name, value in before["plan"].items() if options["plan"].get(name) != value}
                started = ", ".join(filter(None, [started, *(f"{name}={value!r}" for name, value in plan.items())]))
            raise InputError(f"{out} was started with {started}; resume it with the same options, or start over with --force")
    elif int(os.environ.get("RANK", 0)) == 0:
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(options, indent=1))


def refuse_without_rounds(out: Path) -> None:
    """A result that was copied without its rounds can be looked at, but neither continued nor controlled, and must not be written over."""
    if (out / "prune.nc").exists() and not (out / "rounds").is_dir():
        raise InputError(f"{out} holds a pruning result without its rounds; make a run of your own with python -m probes.prune --out elsewhere, then go on")


def kept_options(out: Path) -> dict[str, Any]:
    path = out / "prune.json"
    if not path.exists():
        raise InputError(f"{out} holds no pruning run; make one with python -m probes.prune --out {out}")
    return json.loads(path.read_text())


if __name__ == "__main__":
    run(command, prog="python -m probes.prune")
