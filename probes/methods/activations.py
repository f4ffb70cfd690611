"""Rows of all states, and what goes into the FFN and comes out of it, streamed from a buffer and never kept whole.

The buffer holds the tokens of a few images. It is filled anew every few updates, and which images, tokens and rows an
update gets is a function of (seed, update) alone. Rows are centred and scaled by the spread of their own state, so that
no state is more than another; what the FFN does must not depend on the step, so its rows are scaled for all alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.data.stream import Stream, labelled
from models.loop import Order, generator
from models.vit import BViT
from probes.methods.dictionaries import Batch
from probes.methods.moments import Moments
from probes.methods.reading import states_of
from probes.probe import Pass, refuse_nonfinite

TOKENS = ("cls", "patch")
HELD = 128  # images in the buffer
PER_FILL = 32  # updates until it is filled anew
PATCHES, FFN_PATCHES = 64, 15  # of an image, at most: patches of its states, and of the FFN, beside CLS
ROWS = {"cls": 32, "patch": 128, "ffn_in": 128, "ffn_out": 128}  # of each state or step in an update
N_SCALED = 512  # images behind means and spreads
AT_ONCE = 32  # images in one forward


def tokens(model: BViT) -> dict[str, slice]:
    """Where each kind of tokens stands; registers are of neither."""
    return {"cls": slice(0, 1), "patch": slice(model.config.n_prefix, None)}


def ffn_input(model: BViT, step: int, stream: Tensor) -> Tensor:
    """What fc1 is given, from the stream [batch pos d_model] that enters the FFN's half of a step."""
    return model.blocks[step].shared.block.norm2(stream, model.blocks[step].ln2)


def rows_of(model: BViT, images: Tensor, places: Tensor, n_ffn: int | None = None) -> dict[str, Tensor]:
    """Rows of some patches [image patch] and of CLS: [state or step, row, d_model] by site; of the FFN, of CLS and of
    the first `n_ffn` of these patches, by default all.
    """
    at, places = torch.arange(len(images))[:, None], places + model.config.n_prefix
    of_ffn = torch.cat([torch.zeros_like(places[:, :1]), places[:, :n_ffn]], 1)
    rows: dict[str, list[Tensor]] = {site: [] for site in ROWS}

    def keep_input(x: Tensor, hook: object) -> None:
        rows["ffn_in"].append(ffn_input(model, hook.layer(), x[at, of_ffn]).flatten(0, 1))

    def keep_output(x: Tensor, hook: object) -> None:
        rows["ffn_out"].append(x[at, of_ffn].flatten(0, 1))

    hooks = [("blocks.*.hook_resid_mid", keep_input), ("blocks.*.hook_mlp_out", keep_output)]
    with torch.no_grad(), model.hooks(hooks):
        for z in states_of(model, images):
            rows["cls"].append(z[:, 0])
            rows["patch"].append(z[at, places].flatten(0, 1))
    return {site: torch.stack(of).float() for site, of in rows.items()}


@dataclass(frozen=True)
class Scale:
    """Centre and spread of the rows of each place (state or step): mean [place 1 width], size [place 1 1]."""

    mean: Tensor
    size: Tensor

    @classmethod
    def of(cls, moments: Moments, *, common: bool = False) -> Scale:
        """The spread is the root of the mean variance of a coordinate; where nothing varies it is 1."""
        mean = moments.mean
        variance = torch.stack([moments.covariance(place).diagonal().mean() for place in range(len(mean))])
        if common:
            centre = mean.mean(0, keepdim=True)
            variance = (variance + (mean - centre).square().mean(1)).mean().expand(len(mean))
            mean = centre.expand_as(mean)
        is_constant = variance <= 1e-10 * mean.square().mean(1)
        size = variance.clamp(min=0).sqrt().masked_fill(is_constant, 1)
        return cls(mean[:, None].float(), size[:, None, None].float())

    def inward(self, rows: Tensor, place: int | slice = slice(None)) -> Tensor:
        return (rows - self.mean[place]) / self.size[place]

    def outward(self, rows: Tensor, place: int | slice = slice(None)) -> Tensor:
        return rows * self.size[place] + self.mean[place]


def moments_of(model: BViT, images: Pass) -> dict[str, Moments]:
    """Moments of every site over a sample of images; every process walks over all of it, so that all have the same."""
    moments: dict[str, Moments] = {}
    n_patches = model.config.n_patches
    for batch in Stream(images.sample(N_SCALED).data, AT_ONCE):
        all_patches = torch.arange(n_patches).expand(len(batch.images), -1)
        for site, rows in rows_of(model, batch.images, all_patches).items():
            site_moments = moments.setdefault(site, Moments.about(rows.mean(1)))
            for place, place_rows in enumerate(rows):
                site_moments.add(place, place_rows)
    refuse_nonfinite(moments["patch"].gram[1:].sum((1, 2)) + moments["cls"].gram[1:].sum((1, 2)))
    return moments


@dataclass(frozen=True)
class Buffer:
    """Rows of a pass of images, in batches for training."""

    model: BViT
    images: Pass
    scales: dict[str, Scale]

    def filled(self, images: Tensor, number: int) -> dict[str, Tensor]:
        """What the buffer holds of its images when it is filled for the n-th time, scaled."""
        n_patches = self.model.config.n_patches
        draw = torch.rand(len(images), n_patches, generator=generator(self.images.seed, 0, number))
        places = draw.argsort(1)[:, :PATCHES]
        chunks = [
            rows_of(self.model, *of, FFN_PATCHES)
            for of in zip(images.split(AT_ONCE), places.split(AT_ONCE), strict=True)
        ]
        return {site: scale.inward(torch.cat([of[site] for of in chunks], 1)) for site, scale in self.scales.items()}

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """What updates `first` .. `last` - 1 are trained on."""
        order = Order(len(self.images), min(HELD, len(self.images)), self.images.seed)
        fills = range(first // PER_FILL, -(-last // PER_FILL))
        keys = (order.batch(number)[1].tolist() for number in fills)
        update, seed = first, self.images.seed
        for number, (images, _) in zip(
            fills, labelled(self.images.data, keys, self.images.workers, full=True), strict=False
        ):
            filled = self.filled(images, number)
            shuffled = {
                n: torch.randperm(n, generator=generator(seed, 1, number))
                for n in {site_rows.shape[1] for site_rows in filled.values()}
            }
            while update < min(last, (number + 1) * PER_FILL):
                rows = {}
                for site, site_rows in filled.items():
                    n = site_rows.shape[1]
                    places = (update * min(ROWS[site], n) + torch.arange(min(ROWS[site], n))) % n
                    rows[site] = site_rows[:, shuffled[n][places]]
                yield {token: (rows[token], rows[token]) for token in TOKENS} | {
                    "ffn": (rows["ffn_in"], rows["ffn_out"])
                }
                update += 1
