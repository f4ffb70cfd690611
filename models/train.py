"""Train a bViT, or its stacked baseline, into a run folder.

    python -m models.train --data shapes --model bvit_shapes --out runs/mine
    python -m models.train --data folder:imagenet --model bvit_small --recipe deit --out runs/small
    accelerate launch -m models.train ...        # several processes, same loss to rounding

Everything random is a function of (seed, update, image), so a run that was killed at any moment and
resumed with --resume ends in the same weights, bit for bit on the same CPU. Cost on two cores: about
150 images/s for bvit_shapes (12 steps, width 96, 65 tokens).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.command import run as run_command
from models.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from models.config import ViTConfig
    from models.recipe import Recipe

SAVE_EVERY = 60  # seconds between the states that resuming starts from


def train(
    *,
    data: str = "shapes",
    model: str = "bvit_shapes",
    out: Path,
    recipe: Literal["deit", "small", "plain"] | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    fields: tuple[str, ...] = (),
    grow: float = 0.0,
    seed: int = 0,
    val_limit: int = 5000,
    workers: int = 1,
    precision: Literal["auto", "no", "bf16"] = "auto",
    device: str = "auto",
    stop_after: int | None = None,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Train a model and write ckpt.pt (best), last.pt, train.jsonl and TensorBoard events to a run folder.

    Args:
        data: data spec: shapes, shapes:N, shapes-easy, folder:PATH, imagenet-s:PATH, ...
        model: preset: bvit_tiny, vit_tiny, bvit_small, ..., bvit_shapes, bvit_easy, bvit_photos.
        out: run folder.
        recipe: deit, small or plain; by default plain for shapes, deit from 100,000 images, else small.
        epochs: passes over the data; the recipe's by default.
        batch_size: images per update over all processes; the recipe's by default.
        lr: peak learning rate; the recipe's by default.
        fields: fields of the model's config to override, as name=value (d_model=128 n_registers=4).
        grow: share of the run over which the number of steps grows from 2 to T; 0 trains all T from the start.
        seed: of initialisation, order and augmentation.
        val_limit: images of the validation split that are scored after each epoch.
        workers: processes that load data.
        precision: bf16 autocast or none; auto is bf16 where the device has it.
        device: auto, cpu or cuda.
        stop_after: end this sitting after so many updates; go on with --resume.
        resume: continue the run in --out; starts if it holds nothing, does nothing if it is finished.
        force: start over in a folder that holds a run.
    """
    options = {name: value for name, value in locals().items() if name not in ("out", "resume", "force", "stop_after", "workers", "device")}
    from models import run_folder

    with run_folder.owned(out, resume=resume, force=force):
        Trainer(options, out, device, workers).run(stop_after)


@dataclass
class Position:
    """How far a run is."""

    update: int = 0
    best: float = -1.0
    seconds: float = 0.0


class Trainer:
    """One run: its model, optimiser, data order and position, all of which `last.pt` holds."""

    def __init__(self, options: dict[str, Any], out: Path, device: str, workers: int):
        import torch

        from models import recipe as recipes
        from models.checkpoint import fresh, state_sha256

        self.options, self.out, self.workers = options, out, workers
        self.accelerator = accelerator(options["precision"], device)
        self.train_data, self.val_data, self.recipe, config = open_all(options)
        per_epoch = len(self.train_data) // self.recipe.batch_size
        if per_epoch < 1:
            raise InputError(
                f"{options['data']} has {len(self.train_data)} training images, fewer than one batch of {self.recipe.batch_size}"
            )
        self.updates_per_epoch, self.updates = per_epoch, max(1, round(per_epoch * self.recipe.epochs))
        self.model = fresh(config, options["seed"])
        self.init_sha256 = state_sha256(self.model.state_dict())
        self.model.to(self.accelerator.device)
        self.ema = recipes.ema(self.model, self.recipe)
        self.optimizer = recipes.optimizer(self.model, self.recipe)
        self.schedule = recipes.schedule(self.optimizer, self.recipe, self.updates, per_epoch)
        self.mixing = recipes.mixing(self.recipe, config.n_classes)
        self.position = Position()
        self._restore()
        self.parallel = self.accelerator.prepare_model(self.model) if self.accelerator.num_processes > 1 else self.model
        torch.backends.cuda.matmul.allow_tf32 = True

    # The state of a run

    def _restore(self) -> None:
        import torch

        from models import run_folder

        path = run_folder.last(self.out)
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        changed = sorted(name for name in self.options if state["options"][name] != _plain(self.options[name]))
        if changed:
            started = ", ".join(f"{name}={state['options'][name]!r}" for name in changed)
            raise InputError(f"{self.out} was started with {started}; resume it with the same options")
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = Position(**state["position"])

    def _save_last(self) -> None:
        from models import run_folder

        state = {
            "options": {name: _plain(value) for name, value in self.options.items()},
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": asdict(self.position),
        }
        run_folder.write_tensors(run_folder.last(self.out), state)

    def _save_best(self, metrics: dict[str, Any]) -> None:
        from models import checkpoint, run_folder

        more = dict(options=_jsonable(self.options), recipe=asdict(self.recipe), data_fingerprint=self.train_data.fingerprint)
        checkpoint.save(
            run_folder.checkpoint(self.out),
            self.model,
            ema=self.ema.module.state_dict(),
            data=self.options["data"],
            metrics=metrics,
            init_sha256=self.init_sha256,
            provenance=checkpoint.provenance(self.options["seed"], seconds=round(self.position.seconds), **more),
        )

    # The loop

    def run(self, stop_after: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        if self.position.update >= self.updates:
            print(f"{self.out} is finished: {self.updates} updates, best top-1 {100 * self.position.best:.2f} %")
            return
        end = self.updates if stop_after is None else min(self.updates, self.position.update + stop_after)
        is_main = self.accelerator.is_main_process
        log = Log(self.out, self.position.update) if is_main else None
        board = SummaryWriter(str(self.out), purge_step=self.position.update) if is_main else None
        bar = tqdm(
            total=self.updates * self.recipe.batch_size, initial=self.position.update * self.recipe.batch_size,
            unit=" images", unit_scale=True, disable=not is_main, mininterval=2, dynamic_ncols=True,
        )  # fmt: skip
        saved = started = time.monotonic()
        before, total, count = self.position.seconds, None, 0
        for images, labels in self._batches(end):
            loss = self._update(images, labels)
            total, count = loss if total is None else total + loss, count + 1
            bar.update(self.recipe.batch_size)
            self.position.update += 1
            self.position.seconds = before + time.monotonic() - started
            update = self.position.update
            if update % 100 == 0 or update == end:
                mean, total, count = self._mean(total / count), None, 0
                bar.set_postfix(loss=f"{mean:.3f}", steps=self.n_steps(update))
                if is_main:
                    self._write(
                        log,
                        board,
                        dict(update=update, images=update * self.recipe.batch_size, loss=mean, lr=self._lr(), steps=self.n_steps(update)),
                    )
                if not math.isfinite(mean):
                    raise InputError(f"the loss is {mean} at update {update}; lower --lr, the last good state is in {self.out}/last.pt")
            if update % self.updates_per_epoch == 0 or update == self.updates:
                metrics = self.evaluate()
                if is_main:
                    self._write(
                        log,
                        board,
                        dict(update=update, images=update * self.recipe.batch_size, seconds=round(self.position.seconds), **metrics),
                    )
                    if metrics["top1"] > self.position.best:
                        self.position.best = metrics["top1"]
                        self._save_best(metrics | {"update": update, "images": update * self.recipe.batch_size})
                    self._save_last()
                saved = time.monotonic()
            elif is_main and (time.monotonic() - saved > SAVE_EVERY or update == end):
                self._save_last()
                saved = time.monotonic()
        bar.close()
        if is_main:
            board.close()
            print(f"{self.out}: {self.position.update}/{self.updates} updates, best top-1 {100 * self.position.best:.2f} %")

    def n_steps(self, update: int) -> int:
        """How many steps run at this update: T, or growing from 2 to T over the first `grow` of the run."""
        last, grow = self.model.config.n_steps, self.options["grow"] * self.updates
        return last if update >= grow else min(last, 2 + int((last - 1) * update / grow))

    def _update(self, images: Tensor, labels: Tensor) -> Tensor:
        import torch

        seed_all(self.options["seed"], self.position.update, self.accelerator.process_index)
        images, targets = (images, labels) if self.mixing is None else self.mixing(images, labels)
        with self.accelerator.autocast():
            logits = self.parallel(images, n_steps=self.n_steps(self.position.update))
            loss = torch.nn.functional.cross_entropy(logits.float(), targets, label_smoothing=0 if self.mixing else self.recipe.smoothing)
        self.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.schedule.step_update(self.position.update)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, step=self.position.update)
        return loss.detach()

    def evaluate(self) -> dict[str, float]:
        """Top-1 (EMA and raw) and loss on the validation split."""
        import torch

        accelerator, batch = self.accelerator, max(256, self.recipe.batch_size)
        n = min(len(self.val_data), self.options["val_limit"])
        sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
        spread = [i * len(self.val_data) // n for i in range(n)]  # so that all classes of a sorted folder are scored
        order = [spread[i : i + batch] for i in range(0, n, batch)][accelerator.process_index :: accelerator.num_processes]
        self.model.eval()
        with torch.inference_mode(), accelerator.autocast():
            for images, labels in loader(self.val_data, order, self.workers):
                images, labels = images.to(accelerator.device), labels.to(accelerator.device)
                averaged, raw = self.ema.module(images).float(), self.model(images).float()
                loss = torch.nn.functional.cross_entropy(averaged, labels, reduction="sum")
                sums += torch.stack([(averaged.argmax(1) == labels).sum(), (raw.argmax(1) == labels).sum(), loss])
        self.model.train()
        top1, top1_raw, loss = (accelerator.reduce(sums) / n).tolist()
        return {"top1": top1, "top1_raw": top1_raw, "val_loss": loss}

    def _batches(self, end: int) -> Any:
        """Batches of this process from the current update to `end`."""
        self.model.train()
        order = [self._indices(update) for update in range(self.position.update, end)]
        augmented = Augmented(self.train_data, self.recipe, self.model.config, self.options["seed"])
        for images, labels in loader(augmented, order, self.workers):
            yield images.to(self.accelerator.device), labels.to(self.accelerator.device)

    def _indices(self, update: int) -> list[tuple[int, ...]]:
        """The key of every image of this process at one update: (epoch, index), and which of its repeats it is."""
        epoch, place = divmod(update, self.updates_per_epoch)
        first, size, repeats = place * self.recipe.batch_size, self.recipe.batch_size, self.recipe.repeats
        order = self._order(epoch)
        keys = [(epoch, order[i], i % repeats) if repeats > 1 else (epoch, order[i]) for i in range(first, first + size)]
        return keys[self.accelerator.process_index :: self.accelerator.num_processes]

    def _order(self, epoch: int) -> list[int]:
        """The epoch's order, a function of seed and epoch; with repeated augmentation each image stands `repeats` times in a row."""
        import torch

        if getattr(self, "_ordered", (None, None))[0] != epoch:
            order = torch.randperm(len(self.train_data), generator=torch.Generator().manual_seed(self.options["seed"] * 1_000_003 + epoch))
            self._ordered = epoch, order.repeat_interleave(self.recipe.repeats)[: len(order)].tolist()
        return self._ordered[1]

    def _lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _mean(self, loss: Tensor) -> float:
        return self.accelerator.reduce(loss, "mean").item()

    def _write(self, log: Log, board: Any, line: dict[str, float]) -> None:
        log.write(line)
        for name, value in line.items():
            if name not in ("update", "images", "seconds"):
                board.add_scalar(name, value, line["update"])


class Augmented:
    """The training images, each augmented by a generator seeded with (seed, epoch, index): the same in any process.

    With repeated augmentation a key holds the number of the repeat too, so that each repeat is drawn anew.
    """

    def __init__(self, data: Any, recipe: Recipe, config: ViTConfig, seed: int):
        from models import recipe as recipes

        self.data, self.seed, self.transform = data, seed, recipes.augmentation(recipe, config)

    def __getitems__(self, keys: list[tuple[int, ...]]) -> list[tuple[Tensor, int]]:
        if self.transform is None:
            items = getattr(self.data, "__getitems__", lambda indices: [self.data[i] for i in indices])([i for _, i, *_ in keys])
            return [(self._flipped(item[0], key), item[1]) for item, key in zip(items, keys, strict=True)]
        return [self._augmented(key) for key in keys]

    def _flipped(self, image: Tensor, key: tuple[int, ...]) -> Tensor:
        return image.flip(-1) if hash_of(self.seed, *key) % 2 else image

    def _augmented(self, key: tuple[int, ...]) -> tuple[Tensor, int]:
        seed_all(self.seed, *key)
        return self.transform(self.data.pil(key[1])), int(self.data.labels[key[1]])


class Log:
    """``train.jsonl``: a line per record; lines past the update that a run resumes from are dropped."""

    def __init__(self, out: Path, update: int):
        from models import run_folder

        self.path = run_folder.log(out)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        with run_folder.atomic(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["update"] <= update))

    def write(self, record: dict[str, float]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")


def open_all(options: dict[str, Any]) -> tuple[Any, Any, Recipe, ViTConfig]:
    """Training and validation data, the recipe and the config that the options ask for."""
    from models.config import ViTConfig
    from models.data import open_data
    from models.recipe import RECIPES, default_recipe

    fields = parsed(options["fields"])
    plan = ViTConfig.preset(options["model"], **{k: v for k, v in fields.items() if k != "n_classes"})
    train_data, val_data = (open_data(options["data"], split, like=plan) for split in ("train", "val"))
    if tuple(train_data.classes) != tuple(val_data.classes):
        raise InputError(f"{options['data']}: the classes of train and val differ; give both the same class folders")
    chosen = RECIPES[options["recipe"] or default_recipe(options["data"], len(train_data))]
    asked = {name: options[name] for name in ("epochs", "batch_size", "lr") if options[name] is not None}
    chosen = replace(chosen, **asked)
    drop_path = {} if "drop_path" in fields else {"drop_path": chosen.drop_path}
    config = replace(plan, n_classes=len(train_data.classes), classes=tuple(train_data.classes), **drop_path)
    return train_data, val_data, chosen, config


def parsed(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``--fields`` name=value as a dict; values are Python literals or plain words."""
    import ast

    fields: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise InputError(f"--fields takes name=value, not {pair!r}")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[name] = value
    return fields


def accelerator(precision: str, device: str) -> Accelerator:
    """Devices, processes and autocast; each use of a shared weight casts for itself, so that gradients sum in float32."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import AutocastKwargs

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device; use --device cpu")
    has_bf16 = torch.cuda.is_available() and device != "cpu"
    chosen = ("bf16" if has_bf16 else "no") if precision == "auto" else precision
    return Accelerator(cpu=device == "cpu", mixed_precision=chosen, kwargs_handlers=[AutocastKwargs(cache_enabled=False)])


def loader(data: Any, batches: list[Any], workers: int) -> Any:
    """A DataLoader over given batches of keys; each gives (images, labels)."""
    import torch
    from torch.utils.data import DataLoader

    def stacked(items: list[tuple]) -> tuple[Tensor, Tensor]:
        return torch.stack([item[0] for item in items]), torch.tensor([int(item[1]) for item in items])

    return DataLoader(data, batch_sampler=batches, num_workers=workers, collate_fn=stacked, prefetch_factor=4 if workers else None)


def hash_of(*keys: int) -> int:
    """A 32-bit seed from several integers, the same on every machine."""
    import hashlib

    return int.from_bytes(hashlib.blake2s(repr(keys).encode(), digest_size=4).digest())


def seed_all(*keys: int) -> None:
    """Seed every generator that augmentation, mixing and drop path draw from."""
    import random

    import numpy as np
    import torch

    seed = hash_of(*keys)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _jsonable(options: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else _plain(value) for name, value in options.items()}


if __name__ == "__main__":
    run_command(train, prog="python -m models.train")
