"""Train a grid of models, as a study file asks for it: every cell an ordinary run folder, dealt out among processes.

    python -m models.study studies/core.yaml --out runs/study --dry-run      # what it would train, and for how long
    python -m models.study studies/core.yaml --out runs/study --hours 8      # go on with it for eight hours
    python -m models.study studies/core.yaml --out runs/study --only '*seed=0*'

Start it as often as there are devices or machines that share the folder: each takes the cells that nobody holds. A
killed cell is resumed, a finished one never trained again, and ``study.csv`` has a line for each that is finished.
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

RATE_SECONDS = 1.5  # timed for --dry-run, for each size of model


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
    """Train every cell of a study that nobody else holds.

    Args:
        file: study file, such as studies/core.yaml.
        out: folder of the study; one run folder per cell.
        hours: stop after so many hours, between two updates; start again to go on.
        only: train the cells whose names match this pattern, as in '*seed=0*'.
        dry_run: print the cells with parameters, FLOPs and the time each will take here, and train nothing.
        workers: processes that load data for each training.
        device: auto, cpu, cuda or mps.
    """
    asked = read(file)
    cells = [cell for cell in asked.cells() if fnmatch.fnmatchcase(cell.name, only)]
    require(
        (bool(cells), f"--only {only!r} fits none of the cells of {file}; such as {next(asked.cells()).name}"),
        (hours is None or hours > 0, f"--hours is {hours}, it must be above 0"),
    )
    if dry_run:
        print(plan(cells, out))
        return
    out.mkdir(parents=True, exist_ok=True)
    keep_file(file, out)
    until = None if hours is None else time.monotonic() + 3600 * hours
    n_held = sum(not trained(cell, out, workers, device, until) for cell in cells)
    done = write_csv(asked, out)
    held = f"; {n_held} are held by others or wait for the next sitting" if n_held else ""
    print(f"{out}: {done} of {len(list(asked.cells()))} cells are finished{held}")


# What a study is


@dataclass(frozen=True)
class Group:
    """Models that differ in what varies: every model, with every set of fields, at every learning rate."""

    name: str
    models: list[str]
    fields: dict[str, Any] = field(default_factory=dict)  # of all of them
    vary: dict[str, list] | list[dict] = field(default_factory=list)  # lists that go together, or sets of fields
    lr: list[float | None] = field(default_factory=lambda: [None])  # None is the recipe's
    seeds: int | None = None  # the study's, if not said

    def settings(self) -> list[dict[str, Any]]:
        """The fields of each variant."""
        if isinstance(self.vary, list):
            return [self.fields | each for each in self.vary] or [self.fields]
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
        """Every cell once, seed by seed, so that a study that was cut short has some of everything."""
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
        config.ViTConfig.preset(model, **setting)  # refuses what is no field, or impossible
        differing = {name: value for name, value in sorted(setting.items()) if getattr(preset, name) != value}
        pairs = tuple(f"{name}={value}" for name, value in differing.items())
        name = ",".join([model, *pairs, *([] if lr is None else [f"lr={lr:g}"]), f"seed={seed}"])
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
    """One training: its folder's name says what it is."""

    name: str
    options: train.Options

    def shape(self) -> config.ViTConfig:
        """The model that it trains, with a head for the classes of its data."""
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
    asked = typed(Study, content, str(file), groups=lambda i, group: typed(Group, group, f"{file}, group {i + 1}"))
    recipes = ", ".join(recipe.RECIPES)
    require(
        (bool(asked.groups), f"{file}: groups is empty; name at least one"),
        (asked.images >= 1, f"{file}: images is {asked.images}, it must be at least 1"),
        (asked.seeds >= 1, f"{file}: seeds is {asked.seeds}, it must be at least 1"),
        (asked.recipe in (None, *recipe.RECIPES), f"{file}: recipe is {asked.recipe!r}, not {recipes}"),
    )
    for group in asked.groups:
        require(
            (bool(group.models), f"{file}, group {group.name}: models is empty; name at least one preset"),
            (group.seeds is None or group.seeds >= 1, f"{file}, group {group.name}: seeds must be at least 1"),
        )
    list(asked.cells())  # refuses fields and presets that are none
    return asked


def typed(kind: type, content: Any, where: str, **parts: Any) -> Any:
    """A dataclass from a mapping: no unknown keys, none missing, every value of its field's type."""
    known = {field.name: field for field in fields(kind)}
    if not isinstance(content, Mapping):
        raise InputError(f"{where} is no mapping of {', '.join(known)}")
    unknown = [str(name) for name in content if name not in known]
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in content]
    require(
        (not unknown, f"{where} has an unknown key {', '.join(unknown)}; the keys are {', '.join(known)}"),
        (not missing, f"{where} lacks {', '.join(missing)}"),
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
    """Whether the cell is finished after this process has done what it could; others may hold it, or time be up."""
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
    """Whether the run folder holds this training, whole. Raises `InputError` where it holds another."""
    scores = [record for record in train.read_log(run_folder.log(run)) if "top1" in record]
    if not scores or not run_folder.checkpoint(run).exists():
        return False
    used = checkpoint.read(run_folder.checkpoint(run))["provenance"].get("options", {})
    asked = json.loads(json.dumps(asdict(cell.options)))
    differing = [name for name, value in asked.items() if used.get(name, value) != value]
    if differing:
        raise InputError(f"{run} was trained with other {', '.join(differing)}; choose another --out")
    batch_size = math.ceil(scores[-1]["images"] / scores[-1]["update"])
    return scores[-1]["update"] >= round(cell.options.epochs * (n_images(cell.options) // batch_size))


def n_images(options: train.Options) -> int:
    """Training images of a cell's data."""
    return len(data.open_data(options.data, "train", like=config.ViTConfig.preset(options.model)))


def keep_file(file: Path, out: Path) -> None:
    """The study file beside its cells; another one is refused."""
    kept, text = out / "study.yaml", file.read_text(encoding="utf-8-sig")
    if kept.exists() and yaml.safe_load(kept.read_text()) != yaml.safe_load(text):
        raise InputError(f"{out} holds another study (see {kept}); choose another --out")
    with run_folder.atomic(kept) as temporary:
        temporary.write_text(text)


# Tables


def write_csv(asked: Study, out: Path) -> int:
    """``study.csv``, a line for each finished cell; how many there are."""
    groups = {cell.name: [] for cell in asked.cells()}
    for group in asked.groups:
        for cell in Study(**{**vars(asked), "groups": [group]}).cells():
            groups[cell.name].append(group.name)
    lines = [
        line_of(cell, out / cell.name, groups[cell.name])
        for cell in asked.cells()
        if is_finished(cell, out / cell.name)
    ]
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
    """What the csv says of a finished cell: `top1` is that of the averaged weights at the end, `best` of any epoch."""
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
    """What --dry-run prints: every cell with its size, and the time it takes at a rate measured here and now."""
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
    return "\n".join([*lines, f"{len(cells)} cells, {hours:.1f} hours on one such device as this"])


def rate(shape: config.ViTConfig, how: recipe.Recipe) -> float:
    """Training images per second of a model of this shape: the median of some updates on random images."""
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
