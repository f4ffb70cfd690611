"""Train a bViT, or its stacked baseline, into a run folder.

    python -m models.train --data shapes --model bvit_shapes --out runs/mine
    python -m models.train --data folder:imagenet --model bvit_small --recipe deit --out runs/small
    accelerate launch -m models.train ...        # several processes, same loss to rounding

Everything random is a function of (seed, update, image), so a run that was killed at any moment and resumed with
--resume ends in the same weights, bit for bit on the same CPU. Cost on two cores: about 150 images/s for bvit_shapes
(12 steps, width 96, 65 tokens).
"""

from __future__ import annotations

import ast
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from etils import epy

from models import command
from models.errors import InputError, quoted, require

with epy.lazy_imports():
    import torch
    from torch.utils import tensorboard

    from models import checkpoint, config, data, device, loop, origin, run_folder
    from models import recipe as recipes
    from models.data import augmented, stream

LOG_EVERY = 100  # updates


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
        lr: peak learning rate; the recipe's by default. A run that diverged may be resumed with a lower one.
        fields: fields of the model's config to override, as name=value (d_model=128 n_registers=4).
        grow: share of the run over which the number of steps grows from 2 to T; 0 trains all T from the start.
        seed: of initialisation, order and augmentation.
        val_limit: images of the validation split, spread evenly, that are scored after each epoch.
        workers: processes that load data.
        precision: bf16 autocast or none; auto is bf16 where the device has it.
        device: auto, cpu, cuda or mps.
        stop_after: end this sitting after so many updates; go on with --resume.
        resume: continue the run in --out; starts if it holds nothing, does nothing if it is finished.
        force: start over in a folder that holds a run.
    """
    stream.refuse_workers(workers)
    options = Options(
        data=data,
        model=model,
        recipe=recipe,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        fields=tuple(fields),
        grow=grow,
        seed=seed,
        val_limit=val_limit,
        precision=precision,
    )
    require((stop_after is None or stop_after >= 1, f"--stop-after is {stop_after}, it must be at least 1 update"))
    run_folder.refuse_taken(out, resume=resume, force=force)
    trainer = Trainer(options, out, device, workers)  # says what is wrong before --force removes anything
    with run_folder.owned(out, resume=resume, force=force):
        trainer.run(stop_after)


@dataclass(frozen=True)
class Options:
    """What decides the weights that a run ends in."""

    data: str = "shapes"
    model: str = "bvit_shapes"
    recipe: str | None = None
    epochs: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    fields: tuple[str, ...] = ()
    grow: float = 0.0
    seed: int = 0
    val_limit: int = 5000
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("lr", self.lr)):
            require((value is None or 0 < value < float("inf"), f"--{name} is {value}, it must be a number above 0"))
        has_batches = self.batch_size is None or self.batch_size >= 1
        require(
            (has_batches, f"--batch-size is {self.batch_size}, it must be at least 1"),
            (0 <= self.grow <= 1, f"--grow is {self.grow}, it is a share of the run, from 0 to 1"),
            (self.val_limit >= 1, f"--val-limit is {self.val_limit}, it must be at least 1"),
            (0 <= self.seed < 2**31, f"--seed is {self.seed}, it must lie between 0 and {2**31 - 1}"),
        )


class Trainer:
    """One run: its model, optimiser, data order and position, all of which `last.pt` holds."""

    def __init__(self, options: Options, out: Path, device_name: str = "auto", workers: int = 0):
        self.options, self.out, self.workers = options, out, workers
        self.accelerator = device.accelerator(options.precision, device_name)
        self.train_data, self.val_data, self.recipe, shape = open_all(options)
        self.order = loop.Order(len(self.train_data), self.recipe.batch_size, options.seed, repeats=self.recipe.repeats)
        self.updates = max(1, round(self.order.per_epoch * self.recipe.epochs))
        loop.refuse_unequal(self.recipe.batch_size, self.accelerator.num_processes)
        self.model = checkpoint.fresh(shape, options.seed)
        self.init_sha256 = checkpoint.state_sha256(self.model.state_dict())
        self.model.to(self.accelerator.device)
        self.ema = recipes.ema(self.model, self.recipe)
        self.optimizer = recipes.optimizer(self.model, self.recipe)
        self.schedule = recipes.schedule(self.optimizer, self.recipe, self.updates, self.order.per_epoch)
        self.mixing = recipes.mixing(self.recipe, shape.n_classes)
        self.position: dict[str, float] = {"best": -1.0, "seconds": 0.0, "evaluated": 0}
        torch.backends.cuda.matmul.allow_tf32 = True

    def resumed(self, stop_after: int | None = None, until: float | None = None) -> loop.Loop:
        """The loop over updates, at the place where the run was left."""
        parts = dict(model=self.model, ema=self.ema.module, optimizer=self.optimizer, position=self.position)
        data = {"classes": self.train_data.classes, "images": self.train_data.fingerprint}
        key = asdict(self.options) | data | {"lr": self.recipe.lr}
        return loop.Loop(
            run_folder.last(self.out),
            parts,
            updates=self.updates,
            key=key,
            may_fall=("lr",),
            stop_after=stop_after,
            until=until,
            images=self.recipe.batch_size,
            accelerator=self.accelerator,
            advice="lower the learning rate (--lr) and go on with --resume, or start over",
        )

    def run(self, stop_after: int | None = None, until: float | None = None) -> None:
        """Train to the end, for `stop_after` updates, or until that time on the clock of `time.monotonic`."""
        updates = self.resumed(stop_after, until)
        if updates.update >= self.updates and not self.is_due(updates.update):
            print(f"{self.out} is finished: {self.updates} updates, best top-1 {100 * self.position['best']:.2f} %")
            return
        self.parallel = self.accelerator.prepare_model(self.model) if self.accelerator.num_processes > 1 else self.model
        self.log = Log(self.out, updates.update) if self.accelerator.is_main_process else None
        for update, (images, labels) in zip(updates, self.batches(updates.update, updates.end), strict=False):
            if self.is_due(update):
                self.score(updates)
            started = time.monotonic()
            updates.note(self.learn(update, images, labels))
            self.position["seconds"] += time.monotonic() - started
            if (update + 1) % LOG_EVERY == 0 or update + 1 == updates.end:
                self.write(update + 1, loss=float(updates.averaged()), lr=self.lr, steps=self.n_steps(update))
        if self.is_due(updates.update):
            self.score(updates)
            updates.save()
        if self.log:
            self.log.close()
            best = f"best top-1 {100 * self.position['best']:.2f} %"
            print(f"{self.out}: {updates.update}/{self.updates} updates, {best}")

    def n_steps(self, update: int) -> int:
        """How many steps run at this update: T, or growing from 2 to T over the first `grow` of the run."""
        last, grow = self.model.config.n_steps, self.options.grow * self.updates
        return last if update >= grow else min(last, 2 + int((last - 1) * update / grow))

    def learn(self, update: int, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One update of the weights; its loss."""
        seed = self.options.seed
        loop.seed_all(seed, update)  # mixing is the same on every process
        targets, smoothing = labels, self.recipe.smoothing
        if self.mixing is not None:
            (images, targets), smoothing = self.mixing(images, labels), 0.0
        loop.seed_all(seed, update, self.accelerator.process_index)  # drop path is not
        with self.accelerator.autocast():
            logits = self.parallel(images, n_steps=self.n_steps(update))
            loss = torch.nn.functional.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        self.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.schedule.step_update(update)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, step=update)
        return loss.detach()

    def is_due(self, update: int) -> bool:
        """Whether the model is to be scored as it is after `update` updates: at the ends of epochs and of the run."""
        at_end = update % self.order.per_epoch == 0 or update == self.updates
        return at_end and update > self.position["evaluated"]

    def score(self, updates: loop.Loop) -> None:
        """Score the model on the validation split, and keep it if it is the best so far."""
        metrics = self.evaluate(updates.stop_if_asked)
        self.position["evaluated"] = updates.update
        so_far = {"update": updates.update, "images": updates.update * self.recipe.batch_size}
        self.write(updates.update, seconds=round(self.position["seconds"]), **metrics)
        if metrics["top1"] > self.position["best"]:
            self.position["best"] = metrics["top1"]
            self.save_best(metrics | so_far)

    def evaluate(self, after_batch: Any = lambda: None) -> dict[str, float]:
        """Top-1 (EMA and raw) and loss on at most `val_limit` images of the validation split, spread evenly."""
        accelerator, batch = self.accelerator, max(256, self.recipe.batch_size)
        spread = stream.evenly(len(self.val_data), self.options.val_limit)
        batches = [spread[i : i + batch] for i in range(0, len(spread), batch)]
        sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
        self.model.eval()
        with torch.inference_mode(), accelerator.autocast():
            mine = batches[accelerator.process_index :: accelerator.num_processes]
            for images, labels in stream.labelled(self.val_data, mine, self.workers):
                images, labels = images.to(accelerator.device), labels.to(accelerator.device)
                averaged, raw = self.ema.module(images).float(), self.model(images).float()
                loss = torch.nn.functional.cross_entropy(averaged, labels, reduction="sum")
                right = [(logits.argmax(1) == labels).sum() for logits in (averaged, raw)]
                sums += torch.stack([*right, loss, torch.tensor(len(labels), device=accelerator.device)])
                if accelerator.num_processes == 1:
                    after_batch()
        self.model.train()
        top1, top1_raw, loss, count = accelerator.reduce(sums).tolist()
        return {"top1": top1 / count, "top1_raw": top1_raw / count, "val_loss": loss / count}

    def batches(self, first: int, last: int) -> Any:
        """This process's images and labels of updates `first` .. `last` - 1."""
        self.model.train()
        accelerator = self.accelerator
        keys = self.order.shares(first, last, accelerator.process_index, accelerator.num_processes)
        drawn = augmented.Augmented(self.train_data, self.recipe, self.model.config, self.options.seed)
        for images, labels in stream.labelled(drawn, keys, self.workers, full=True):
            yield images.to(accelerator.device), labels.to(accelerator.device)

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def write(self, update: int, **values: float) -> None:
        if self.log is not None:
            self.log.write({"update": update, "images": update * self.recipe.batch_size} | values)

    def save_best(self, metrics: dict[str, Any]) -> None:
        """Write ckpt.pt, if the weights are finite."""
        if not self.accelerator.is_main_process or not loop.is_finite(self.ema.module.state_dict()):
            return
        checkpoint.save(
            run_folder.checkpoint(self.out),
            self.model,
            ema=self.ema.module.state_dict(),
            data=self.options.data,
            metrics=metrics,
            init_sha256=self.init_sha256,
            provenance=origin.provenance(
                self.options.seed,
                seconds=round(self.position["seconds"]),
                options=json.loads(json.dumps(asdict(self.options))),
                recipe=asdict(self.recipe),
                data_fingerprint=self.train_data.fingerprint,
            ),
        )


class Log:
    """``train.jsonl`` and TensorBoard: a record each; lines past the update that a run resumes from are dropped."""

    def __init__(self, out: Path, update: int):
        self.path = run_folder.log(out)
        kept = [line for line in read_log(self.path) if line["update"] <= update]
        with run_folder.atomic(self.path) as temporary:
            temporary.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
        self.board = tensorboard.SummaryWriter(str(out), purge_step=update, filename_suffix=run_folder.EVENTS)

    def write(self, record: dict[str, float]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        for name in record.keys() - {"update", "images", "seconds"}:
            self.board.add_scalar(name, record[name], record["update"])

    def close(self) -> None:
        self.board.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The records of a ``train.jsonl``; lines that are torn or no records are left out."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); move it away") from None
    return [record for record in map(as_record, lines) if record]


def as_record(line: str) -> dict[str, float] | None:
    """A line of a log: numbers by name, among them which update it is of; None for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(type(value) in (int, float) for value in record.values()):
        return None
    counts = (record.get("update"), record.get("images"))
    return record if all(type(count) is int and 0 < count < 2**53 for count in counts) else None


def open_all(options: Options) -> tuple[Any, Any, recipes.Recipe, config.ViTConfig]:
    """Training and validation data, the recipe and the config that the options ask for."""
    fields = parsed(options.fields)
    plan = config.ViTConfig.preset(options.model, **fields)
    train_data, val_data = (data.open_data(options.data, split, like=plan) for split in ("train", "val"))
    if tuple(train_data.classes) != tuple(val_data.classes):
        raise InputError(f"{options.data}: the classes of train and val differ; give both the same class folders")
    recipe = recipes.named(
        options.recipe,
        options.data,
        len(train_data),
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
    )
    if len(train_data) < recipe.batch_size:
        raise InputError(
            f"{options.data} has {len(train_data)} training images, fewer than one batch of {recipe.batch_size}"
        )
    drop_path = {} if "drop_path" in fields else {"drop_path": recipe.drop_path}
    classes = tuple(train_data.classes)
    return train_data, val_data, recipe, replace(plan, n_classes=len(classes), classes=classes, **drop_path)


def parsed(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``--fields`` name=value as a dict; values are Python literals or plain words."""
    fields: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise InputError(f"--fields takes name=value, not {quoted(pair)}")
        if name in fields:
            raise InputError(f"--fields gives {name} twice; leave one of them out")
        if name in ("n_classes", "classes"):
            raise InputError(f"--fields: {name} is what the data says, leave it out")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            fields[name] = value
    return fields


if __name__ == "__main__":
    command.run(train, prog="python -m models.train")
