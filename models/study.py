"""Train the grid of models that a study file describes; every cell is an ordinary run folder.

    python -m models.study studies/core.yaml --out runs/study --dry-run      # what it would train, and for how long
    python -m models.study studies/core.yaml --out runs/study --hours 8      # train for at most eight hours
    python -m models.study studies/core.yaml --out runs/study --only '*seed=0*'

Start one process per device, on any number of machines that share the folder: each process takes cells that no other
process is training. A killed cell is resumed, a finished one is not trained again, and ``study.csv`` has one line per
finished cell.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from beartype.door import is_bearable
from etils import epy
from tyro.conf import Positional

from models import command
from models.errors import InputError, brief, require

with epy.lazy_imports():
    import filelock
    import torch
    import yaml

    from models import checkpoint, config, data, flops, recipe, run_folder, train
    from models import device as devices

RATE_SECONDS = 1.5  # --dry-run times each size of model for at least this long


def study(
    file: Positional[Path],
    *,
    out: Path,
    hours: float | None = None,
    only: str = "*",
    dry_run: bool = False,
    workers: int = 0,
    device: str = "auto",
) -> None:
    """Train every cell of a study that no other process is training.

    Args:
        file: study file, such as studies/core.yaml.
        out: folder of the study; one run folder per cell.
        hours: stop after so many hours, between two updates; start again to resume.
        only: train only the cells whose names match this pattern, such as '*seed=0*'.
        dry_run: print the cells with parameters, FLOPs and expected training time on this device; train nothing.
        workers: number of data loading processes for each training.
        device: auto, cpu, cuda or mps.
    """
    described = read(file)
    cells = [cell for cell in described.cells() if fnmatch.fnmatchcase(cell.name, only)]
    example = next(described.cells()).name
    require(
        (bool(cells), f"--only {only!r} matches none of the cells of {file}; their names look like {example}"),
        (hours is None or hours > 0, f"--hours is {hours}, it must be above 0"),
    )
    if dry_run:
        print(plan(cells, out))
        return
    out.mkdir(parents=True, exist_ok=True)
    keep_file(file, out)
    until = None if hours is None else time.monotonic() + 3600 * hours
    n_open = sum(not trained(cell, out, workers, device, until) for cell in cells)
    n_finished = write_csv(described, out)
    remaining = f"; {n_open} are in training elsewhere or wait for the next start" if n_open else ""
    print(f"{out}: {n_finished} of {len(list(described.cells()))} cells are finished{remaining}")


# What a study is


@dataclass(frozen=True)
class Group:
    """A grid of trainings: every model, with every variant of its fields, at every learning rate."""

    name: str
    models: list[str]
    fields: dict[str, Any] = field(default_factory=dict)  # common to all models of the group
    vary: dict[str, list] | list[dict] = field(default_factory=list)  # lists that vary in parallel, or sets of fields
    lr: list[float | None] = field(default_factory=lambda: [None])  # None: the recipe's
    seeds: int | None = None  # None: the study's

    def settings(self) -> list[dict[str, Any]]:
        """The fields of each variant."""
        if isinstance(self.vary, list):
            return [self.fields | variant for variant in self.vary] or [self.fields]
        if len({len(values) for values in self.vary.values()}) > 1:
            raise InputError(f"group {self.name}: the lists under vary go together, so they must be equally long")
        rows = zip(*self.vary.values(), strict=True)
        return [self.fields | dict(zip(self.vary, row, strict=True)) for row in rows]


@dataclass(frozen=True)
class Study:
    """Data, recipe and length of every training, and the groups of models."""

    data: str
    images: int  # image passes of each cell
    groups: list[Group]
    recipe: str | None = None
    batch_size: int | None = None
    grow: float = 0.0
    seeds: int = 1
    val_limit: int = 5000

    def cells(self) -> Iterator[Cell]:
        """Yields every cell once, seed by seed, so that an interrupted study covers all groups with its first seeds."""
        n_train = len(data.open_data(self.data, "train", like=self._like()))
        names = set()
        for seed in range(max(group.seeds or self.seeds for group in self.groups)):
            for group in self.groups:
                for cell in self._of_group(group, seed, self.images / n_train):
                    if cell.name not in names:
                        names.add(cell.name)
                        yield cell

    def _like(self) -> config.ViTConfig:
        return config.ViTConfig.preset(self.groups[0].models[0])

    def _of_group(self, group: Group, seed: int, epochs: float) -> Iterator[Cell]:
        if seed >= (group.seeds or self.seeds):
            return
        for model in group.models:
            for setting in group.settings():
                for lr in group.lr:
                    yield self._cell(model, setting, lr, seed, epochs)

    def _cell(self, model: str, setting: dict[str, Any], lr: float | None, seed: int, epochs: float) -> Cell:
        preset = config.ViTConfig.preset(model)
        config.ViTConfig.preset(model, **setting)  # raises InputError for unknown fields and impossible values
        differing = {name: value for name, value in sorted(setting.items()) if getattr(preset, name) != value}
        pairs = tuple(f"{name}={value}" for name, value in differing.items())
        rate = [] if lr is None else [f"lr={lr:g}"]
        name = ",".join([model, *pairs, *rate, f"seed={seed}"])
        options = train.Options(
            data=self.data,
            model=model,
            recipe=self.recipe,
            epochs=epochs,
            batch_size=self.batch_size,
            lr=lr,
            fields=pairs,
            grow=self.grow,
            seed=seed,
            val_limit=self.val_limit,
        )
        return Cell(name, options)


@dataclass(frozen=True)
class Cell:
    """One training; its name, which is also its folder's, lists the options that distinguish it."""

    name: str
    options: train.Options

    def shape(self) -> config.ViTConfig:
        """The configuration of its model, with a head for the classes of its data."""
        plan = config.ViTConfig.preset(self.options.model, **train.parsed(self.options.fields))
        classes = tuple(data.open_data(self.options.data, "train", like=plan).classes)
        return replace(plan, n_classes=len(classes), classes=classes)

    def recipe(self) -> recipe.Recipe:
        options = self.options
        return recipe.named(
            options.recipe, options.data, n_images(options), batch_size=options.batch_size, lr=options.lr
        )


def read(file: Path) -> Study:
    """A study file, checked as a whole before anything is trained."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as YAML ({brief(error)})") from None
    described = typed(Study, content, str(file), groups=lambda i, group: typed(Group, group, f"{file}, group {i + 1}"))
    images, seeds, name = described.images, described.seeds, described.recipe
    recipes = ", ".join(recipe.RECIPES)
    require(
        (bool(described.groups), f"{file}: groups is empty; name at least one"),
        (images >= 1, f"{file}: images is {images}, it must be at least 1"),
        (seeds >= 1, f"{file}: seeds is {seeds}, it must be at least 1"),
        (name in (None, *recipe.RECIPES), f"{file}: recipe is {name!r}, it must be one of {recipes}"),
    )
    for group in described.groups:
        require(
            (bool(group.models), f"{file}, group {group.name}: models is empty; name at least one preset"),
            (group.seeds is None or group.seeds >= 1, f"{file}, group {group.name}: seeds must be at least 1"),
        )
    list(described.cells())  # raises InputError for unknown fields and presets
    return described


def typed(kind: type, content: Any, where: str, **parts: Any) -> Any:
    """A dataclass from a mapping, whose keys and value types are checked against the dataclass's fields.

    `parts` gives, for a field that is a list, the function that makes an element from its index and content.
    """
    known = {field.name: field for field in fields(kind)}
    if not isinstance(content, Mapping):
        raise InputError(f"{where} is not a mapping; write it with the keys {', '.join(known)}")
    unknown = [str(name) for name in content if name not in known]
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in content]
    require(
        (not unknown, f"{where} has an unknown key {', '.join(unknown)}; the keys are {', '.join(known)}"),
        (not missing, f"{where} lacks {', '.join(missing)}; add a value for each"),
    )
    content = dict(content)
    for name, make in parts.items():
        require((isinstance(content[name], list), f"{where}: {name} must be a list"))
        content[name] = [make(i, part) for i, part in enumerate(content[name])]
    hints = get_type_hints(kind)
    for name in (name for name in content if name not in parts):
        is_whole_float = hints[name] is float and config.is_whole(content[name])
        value = float(content[name]) if is_whole_float else content[name]
        if not is_bearable(value, hints[name]):
            raise InputError(f"{where}: {name} is {content[name]!r}, it must be {known[name].type}")
    return kind(**content)


# Training


def trained(cell: Cell, out: Path, workers: int, device: str, until: float | None) -> bool:
    """Trains a cell unless it is finished, in training elsewhere, or time is up; whether it is finished afterwards."""
    run = out / cell.name
    if is_finished(cell, run) or (until is not None and time.monotonic() > until):
        return is_finished(cell, run)
    try:
        with run_folder.locked(run):
            if not is_finished(cell, run):
                train.Trainer(cell.options, run, device, workers).run(until=until)
            return is_finished(cell, run)
    except run_folder.Held:
        return False


def is_finished(cell: Cell, run: Path) -> bool:
    """Whether the run folder holds this training in full. Raises `InputError` if it holds another training."""
    scores = [record for record in train.read_log(run_folder.log(run)) if "top1" in record]
    if not scores or not run_folder.checkpoint(run).exists():
        return False
    used = checkpoint.read(run_folder.checkpoint(run))["provenance"].get("options", {})
    wanted = json.loads(json.dumps(asdict(cell.options)))
    differing = [name for name, value in wanted.items() if used.get(name, value) != value]
    if differing:
        raise InputError(f"{run} was trained with other {', '.join(differing)}; choose another --out")
    batch_size = math.ceil(scores[-1]["images"] / scores[-1]["update"])
    return scores[-1]["update"] >= round(cell.options.epochs * (n_images(cell.options) // batch_size))


def n_images(options: train.Options) -> int:
    """The number of training images."""
    return len(data.open_data(options.data, "train", like=config.ViTConfig.preset(options.model)))


def keep_file(file: Path, out: Path) -> None:
    """Copy the study file to the study's folder. Raises `InputError` if the folder holds another study."""
    copy, text = out / "study.yaml", file.read_text(encoding="utf-8-sig")
    if copy.exists() and yaml.safe_load(copy.read_text()) != yaml.safe_load(text):
        raise InputError(f"{out} holds another study (see {copy}); choose another --out")
    with run_folder.atomic(copy) as temporary:
        temporary.write_text(text)


# Tables


def write_csv(described: Study, out: Path) -> int:
    """Write ``study.csv``, one line for each finished cell; returns the number of lines."""
    groups = {cell.name: [] for cell in described.cells()}
    for group in described.groups:
        for cell in replace(described, groups=[group]).cells():
            groups[cell.name].append(group.name)
    finished = [cell for cell in described.cells() if is_finished(cell, out / cell.name)]
    lines = [line_of(cell, out / cell.name, groups[cell.name]) for cell in finished]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with filelock.FileLock(out / "csv.lock"), run_folder.atomic(out / "study.csv") as temporary:
        temporary.write_text(text.getvalue())
    return len(lines)


COLUMNS = (
    "cell",
    "groups",
    "model",
    "fields",
    "seed",
    "lr",
    "n_steps",
    "n_blocks",
    "d_model",
    "n_heads",
    "step_embedding",
    "n_registers",
    "norm",
    "n_classes",
    "parameters",
    "flops",
    "images",
    "top1",
    "top1_raw",
    "best",
    "val_loss",
    "n_val",
    "seconds",
    "init_sha256",
)


def line_of(cell: Cell, run: Path, groups: list[str]) -> dict[str, Any]:
    """A finished cell's line of the csv. `top1` is that of the averaged weights at the end, `best` the best epoch's."""
    content = checkpoint.read(run_folder.checkpoint(run))
    shape = config.ViTConfig.from_dict(content["config"])
    scores = [record for record in train.read_log(run_folder.log(run)) if "top1" in record]
    n_val = len(data.open_data(cell.options.data, "val", like=shape))
    return {
        "cell": cell.name,
        "groups": ";".join(groups),
        "model": cell.options.model,
        "fields": ";".join(cell.options.fields),
        "seed": cell.options.seed,
        "lr": content["provenance"]["recipe"]["lr"],
        **{name: getattr(shape, name) for name in COLUMNS if hasattr(shape, name) and name != "classes"},
        "parameters": checkpoint.n_parameters(shape),
        "flops": flops.of_forward(shape),
        **{name: scores[-1].get(name) for name in ("images", "top1", "top1_raw", "val_loss", "seconds")},
        "best": max(record["top1"] for record in scores),
        "n_val": min(n_val, cell.options.val_limit),
        "init_sha256": content["init_sha256"],
    }


def plan(cells: list[Cell], out: Path) -> str:
    """The text that --dry-run prints: every cell's size, and its training time at the speed measured on this device."""
    lines = [f"{'cell':56}{'parameters':>12}{'MFLOPs':>9}{'images/s':>10}{'minutes':>9}"]
    rates: dict[config.ViTConfig, float] = {}
    hours = 0.0
    for cell in cells:
        shape, how = cell.shape(), cell.recipe()
        if shape not in rates:
            rates[shape] = rate(shape, how)
        seconds = cell.options.epochs * n_images(cell.options) / rates[shape]
        is_done = is_finished(cell, out / cell.name)
        hours += 0 if is_done else seconds / 3600
        size = f"{checkpoint.n_parameters(shape):12,}{flops.of_forward(shape) / 1e6:9.1f}{rates[shape]:10.0f}"
        lines.append(f"{cell.name:56}{size}" + (f"{'done':>9}" if is_done else f"{seconds / 60:9.1f}"))
    return "\n".join([*lines, f"{len(cells)} cells, {hours:.1f} hours on one device like this"])


def rate(shape: config.ViTConfig, how: recipe.Recipe) -> float:
    """Training images per second of a model of this shape: the median over a few updates on random images."""
    model = checkpoint.fresh(shape, 0).to(devices.device())
    optimizer, seconds = recipe.optimizer(model, how), []
    images = torch.randn(how.batch_size, 3, shape.image_size, shape.image_size, device=model.pos_embed.device)
    while len(seconds) < 3 or sum(seconds) < RATE_SECONDS:
        started = time.perf_counter()
        loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return how.batch_size / statistics.median(seconds)


if __name__ == "__main__":
    command.run(study, prog="python -m models.study")
