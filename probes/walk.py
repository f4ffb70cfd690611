"""One pass over the data, shared by the processes, that gives the same on any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from etils import epy

from models.errors import InputError, require

with epy.lazy_imports():
    import numpy as np
    import torch
    import tqdm
    import xarray as xr
    from accelerate import utils as processes

    import models
    from models import data as datasets
    from models import device
    from models.data import stream

Reading = Mapping[str, tuple[str | tuple[str, ...], Any]]  # variable -> (dimensions, values), as xarray takes them


@dataclass(frozen=True)
class Pass:
    """Images to walk over: a data set, and how. Processes share every walk, and each ends with what one would have."""

    data: Any
    batch_size: int = 64
    workers: int = 0
    seed: int = 0
    label: str = ""  # beside the progress bar
    out: Path | None = None  # the result's file, beside which unfinished work is kept
    shard: tuple[int, int] = field(default_factory=lambda: device.processes())

    def __post_init__(self) -> None:
        stream.refuse_options(self.batch_size, self.workers)  # before a probe works on anything else

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def about(self) -> datasets.About:
        """What the data set is: spec, classes, labels, fingerprint, ..."""
        return datasets.describe(self.data)

    @property
    def is_main(self) -> bool:
        return self.shard[0] == 0

    def batches(self, left_out: list[str] | None = None) -> Iterator[stream.Batch]:
        """This process's batches, in order, with a bar; the names of unreadable images are added to `left_out`."""
        rank, world = self.shard
        walk = stream.Stream(self.data, self.batch_size, workers=self.workers, shard=self.shard)
        total = -(-len(self) // world)
        with tqdm.tqdm(total=total, desc=self.label or None, unit=" images", disable=rank > 0, mininterval=1) as bar:
            for batch in walk:
                yield batch
                bar.update(len(batch.images))
        if left_out is not None:
            left_out += walk.unreadable

    def over(self, read: Callable[[stream.Batch], Reading]) -> xr.Dataset:
        """What `read` says of every batch, as one data set: joined along ``image``, summed where a variable has none.

        `read` may leave images out; then it also gives the ``position`` of those it kept. The coordinate ``position``
        holds the places in the data of the images behind the result. Raises `InputError` where no image is left.
        """
        parts: list[tuple[int, dict[str, xr.Variable]]] = []  # of every batch, by its first position
        sums: dict[str, xr.Variable] = {}
        unreadable: list[str] = []
        for batch in self.batches(unreadable):
            reading = {"position": ("image", batch.index), **read(batch)}
            variables = {name: xr.Variable(dims, as_array(values)) for name, (dims, values) in reading.items()}
            per_image = {name: variable for name, variable in variables.items() if "image" in variable.dims}
            parts.append((int(batch.index[0]), per_image))
            for name, variable in variables.items():
                if name not in per_image:
                    sums[name] = sums[name] + variable if name in sums else variable
        joined = self.gathered(parts)
        if not sum(part["position"].size for part in joined):
            raise InputError(f"{self.about.spec}: no image is left to measure; choose other data or a larger --limit")
        result = {name: xr.Variable.concat([part[name] for part in joined], "image") for name in joined[0]}
        for of_process in self.gathered([(self.shard[0], sums)]):
            for name, value in of_process.items():
                result[name] = result[name] + value if name in result else value
        n_unreadable = sum(self.gathered([(self.shard[0], len(unreadable))]))
        return xr.Dataset(result, {"position": result.pop("position")}, {"n_unreadable": n_unreadable})

    def sum(self, values: Any) -> Any:
        """A tensor, or several in a list or dict, summed over the processes."""
        return processes.reduce(values, "sum")

    def gathered(self, records: list[tuple[int, Any]]) -> list[Any]:
        """The (position, record) pairs of all processes as one list of records by position, on every process."""
        return [record for _, record in sorted(processes.gather_object(records), key=lambda pair: pair[0])]

    def once(self, make: Callable[[], Any]) -> Any:
        """What `make` returns, called on the main process alone and handed to all."""
        value = make() if self.is_main else None
        return processes.broadcast_object_list([value])[0]

    def sample(self, n: int) -> Pass:
        """At most `n` of the images, spread evenly."""
        return replace(self, data=limited(self.data, n))

    def unfinished(self, name: str) -> Path | None:
        """Where a long part of the measurement keeps its state, until the result is written; None in a notebook."""
        return self.out and self.out.with_name(f"{self.out.name}.{name}.partial")

    def labels(self, position: Any) -> np.ndarray:
        """Labels of images by their position: [image]."""
        return self.about.labels[np.asarray(position)]

    def photographs(self, position: Any) -> np.ndarray:
        """Which photograph each item is of, by its position; a photograph of several classes has several: [image]."""
        return self.about.photographs[np.asarray(position)]

    def factors(self) -> dict[str, np.ndarray] | None:
        """What the embedded data rendered each image from, by name: [image] each. None for any other data."""
        whole = datasets.unwrapped(self.data)
        return whole.factors(self.about.indices) if hasattr(whole, "factors") else None

    def classes_of(self, model: models.BViT) -> torch.Tensor:
        """The model's index of each class of the data [label]; raises `InputError` where it lacks one."""
        of_data = self.about.classes
        return torch.tensor(datasets.match_classes(of_data, datasets.names_of_classes(model.config, of_data)))

    def indices(self, position: Any) -> np.ndarray:
        """Numbers in the whole data set of images by their position in this part of it: [image]."""
        return self.about.indices[np.asarray(position)]


@contextmanager
def answering(model: models.BViT) -> Iterator[None]:
    """A model as it answers: one that is being trained draws which steps it leaves out, and goes on so afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, was_training in modes:
            part.training = was_training


def as_pass(images: Any, **fields: Any) -> Pass:
    """A `Pass` over a plain data set; a `Pass` as it is, but for the fields given (not None)."""
    fields = {name: value for name, value in fields.items() if value is not None}
    return replace(images, **fields) if isinstance(images, Pass) else Pass(images, **fields)


def as_array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def limited(data: Any, limit: int | None, option: str = "--limit") -> Any:
    """At most `limit` images of a data set, evenly spread; `option` is how a message names the limit."""
    require((limit is None or limit >= 1, f"{option} is {limit}, it must be at least 1"))
    if limit is None or limit >= len(data):
        return data
    return torch.utils.data.Subset(data, stream.evenly(len(data), limit))


def split(images: Pass, most: int) -> tuple[Pass, Pass]:
    """Images to fit on, at most `most` photographs drawn at random and half of all, and the others to measure on.

    Raises `InputError` for fewer than two photographs.
    """
    photographs = images.photographs(np.arange(len(images)))
    distinct = np.unique(photographs)
    require(
        (len(distinct) >= 2, f"{len(distinct)} photograph is too few to fit on some and measure on others; give two")
    )
    drawn = np.random.default_rng(images.seed).permutation(distinct)[: min(most, len(distinct) // 2)]
    is_fitted = np.isin(photographs, drawn)
    fitting, measuring = (
        replace(images, data=torch.utils.data.Subset(images.data, np.flatnonzero(is_part).tolist()))
        for is_part in (is_fitted, ~is_fitted)
    )
    return replace(fitting, label=f"{images.label} (to fit on)"), measuring
