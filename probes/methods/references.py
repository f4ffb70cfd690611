"""What the parts of a model add in a reference run: on average over images, or on an image of another class.

A reference gives, for a batch, what every source adds there: [source batch pos d_model], or one for all images. Both
are made of a fixed sample, the same whatever the batches and the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.data import stream
from models.errors import InputError
from probes.methods.circuits import Circuits
from probes.walk import Pass, Reading

N_DONORS = 64
Reference = Callable[[stream.Batch], Tensor]


def mean(circuits: Circuits, images: Pass) -> Reference:
    """Mean ablation: the mean over `images` of CLS, of each register, and of all patches."""
    config, place = circuits.model.config, circuits.model.pos_embed

    def read(batch: stream.Batch) -> Reading:
        added = circuits.sources(embedded(circuits, batch.images)).double().sum(1)
        patches = added[:, config.n_prefix :].mean(1, keepdim=True)
        return {"sums": (("source", "token", "d"), torch.cat([added[:, : config.n_prefix], patches], 1).cpu())}

    measured = images.over(read)
    mean = torch.from_numpy(measured["sums"].values / measured.sizes["image"]).to(place)
    token = np.minimum(np.arange(config.n_tokens), config.n_prefix)
    added = mean[:, token][:, None]
    return lambda batch: added


def other_image(circuits: Circuits, images: Pass) -> Reference:
    """What an image of another class adds, out of at most `N_DONORS` spread evenly over `images`.

    Which one depends on the image's number in the whole data set alone. Raises `InputError` where all are of one class.
    """
    sample = stream.labelled(images.data, [stream.evenly(len(images), N_DONORS)], 0)
    pictures, labels = next(sample, (torch.empty(0), torch.empty(0)))
    if len(labels.unique()) < 2:
        raise InputError("--corrupt image needs images of two classes; use more images, or --corrupt mean")

    def donor(number: int, label: int) -> int:
        others = (labels != label).nonzero()[:, 0]
        return int(others[number % len(others)])

    def added(batch: stream.Batch) -> Tensor:
        numbers = images.indices(batch.index)
        donors = [donor(int(number), int(label)) for number, label in zip(numbers, batch.labels, strict=True)]
        return circuits.sources(embedded(circuits, pictures[donors]))

    return added


def embedded(circuits: Circuits, images: Tensor) -> Tensor:
    """z_0 of images: [batch pos d_model]."""
    model = circuits.model
    with torch.no_grad():
        return model.embed(images.to(model.pos_embed.device).float())
