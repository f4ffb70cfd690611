"""What decides the answer, at which step, and can the states of two steps change places? Activation patching.

    python -m probes.patching runs/demo                       # pairs that differ in the shape, and in the fill
    python -m probes.patching runs/photos --factor image      # pairs of any two classes

A run on the corrupt image with one activation of the clean run put in (denoising), and the other way round (noising),
after Meng et al. (arXiv 2202.05262), Wang et al. (arXiv 2211.00593), Heimersheim & Nanda (arXiv 2404.15255). The effect
is (LD_patched - LD_run) / (LD_other - LD_run), with LD the logit of the clean answer minus that of the corrupt one: 0
where nothing changed, 1 where the run answers as the image that the patch is from. Both differences are summed over
pairs first, so that a pair whose answers hardly differ counts for as little. Beside it stands the effect of the same
patch from an unrelated image of a third class: what disturbing alone does (0.5 where it wipes out both answers).
Patches are made at the state that enters a step, at the attention's and the FFN's output, and at one head's z; for
groups of tokens, and for a few pairs token by token.

Step-shifted: what entered step s, or what a head gave there, put where step t expects its own, from the same image or
from one of another class. With one block and no step embedding, all tokens of step s put into step t is running s - t
steps more.

Patched runs start at the step of their patch, `batch_size` in a batch. A pair costs (24 + 2 H) (T + 1) plain forwards,
one of `maps` 3 x tokens x (T + 1), one of `shifts` (3 + H) (T + 1) T.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from etils import epy

from models.errors import InputError, require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import intervals
    from models.data import stream
    from probes.methods import pairs as of_images
    from probes.methods import patches, pixels

Factor = Literal["shape", "fill", "image"]
DIRECTIONS = {"denoising": (1, 0), "noising": (0, 1)}  # the run that is patched, and the one that a patch is from
UNRELATED = 2  # the third run
SOURCES = ("pair", "unrelated")
DONORS, PARTS = ("own", "other"), ("all", "cls", "patches")
ENDS = ("", "_low", "_high")  # of an interval, after the ratio itself


@probe.measurement(
    control=[f"{name}{end}" for name in ("effect", "head_effect") for end in ENDS],
    lighter=dict(pairs=8, maps=0, shifts=0, _right=False),
)
def measure(
    model: models.BViT,
    data: Any,
    *,
    factor: tuple[Factor, ...] = (),
    pairs: int = 32,
    maps: int = 2,
    shifts: int = 24,
    _right: bool = True,
) -> xr.Dataset:
    """Put activations of one run into another: of an image that differs in one factor, and of another step.

    Pairs on which the model is not right on both images are left out and counted. Intervals: 95 %, bootstrap by
    photograph. Raises `InputError` for a headless model, fewer than three classes, and where no pair is left.

    Args:
        factor: what the images of a pair differ in: shape, fill (both rendered by the embedded data) or image (some
            image of another class); by default what the data can render.
        pairs: of each factor, at most, spread evenly over the data.
        maps: pairs of each factor that are also patched token by token, 0 for none.
        shifts: images whose steps change places, 0 for none.
    """
    require(
        (pairs >= 1, f"--pairs is {pairs}, it must be at least 1"),
        (maps >= 0, f"--maps is {maps}, it cannot be negative"),
        (shifts >= 0, f"--shifts is {shifts}, it cannot be negative"),
        (model.trained.n_classes > 0, "the model has no classifier to read out; name a checkpoint with one"),
    )
    factors = tuple(dict.fromkeys(factor or of_images.default_factors(data.data)))
    class_of_label = data.classes_of(model)
    candidates = [of_pairs(data, of_images.differing(data.data, name, pairs), name) for name in factors]
    walks = [answered(model, walk, class_of_label) for walk in candidates] if _right else candidates
    result = xr.concat([of_factor(model, walk, class_of_label) for walk in walks], xr.Variable("factor", list(factors)))
    if maps:
        examples = [of_tokens(model, walk, class_of_label, maps) for walk in walks]
        of_example = np.repeat(factors, [example.sizes["pair"] for example in examples])
        result = result.merge(xr.concat(examples, "pair").assign(pair_factor=("pair", of_example)))
    if shifts:
        donors = of_pairs(data, of_images.differing(data.data, "image", shifts))
        result = result.merge(shifted(model, donors, class_of_label))
    n_kept = np.array([len(walk) for walk in walks])
    result = result.assign_coords(step=np.arange(model.config.n_steps), head=np.arange(model.config.n_heads))
    n_left_out = np.array([len(walk) for walk in candidates]) - n_kept
    return result.assign(n_pairs=("factor", n_kept), n_left_out=("factor", n_left_out)).assign_attrs(
        n_prefix=model.config.n_prefix,
        classes=list(data.about.classes),
        chance=1 / model.config.n_classes,
        note="" if n_kept.min() >= 20 else f"only {n_kept.min()} pairs: read the intervals",
    )


def of_pairs(data: probe.Pass, pairs: of_images.Pairs, what: str = "steps") -> probe.Pass:
    """A walk over pairs, each of which is many runs: a few at a time, so that the bar moves and processes share it."""
    return replace(data, data=pairs, batch_size=max(1, data.batch_size // 8), label=f"{data.label}, {what}")


def answered(model: models.BViT, walk: probe.Pass, class_of_label: torch.Tensor) -> probe.Pass:
    """The pairs of a walk whose images, both, the model is right on."""

    def read(batch: stream.Batch) -> probe.Reading:
        logits = plain_logits(model, batch.images.to(model.pos_embed.device))
        if not logits.isfinite().all():
            raise InputError("the model's answers are not finite; the checkpoint diverged, use an earlier one")
        answers = class_of_label[walk.data.answers[batch.index]].to(logits.device)
        return {"right": ("image", (logits.argmax(-1) == answers).all(1))}

    measured = walk.over(read)
    kept = measured["position"].values[measured["right"].values]
    if not len(kept):
        raise InputError(
            f"of {len(walk)} pairs there is none whose two images the model is right on; name a better checkpoint, or "
            "more --pairs"
        )
    return replace(walk, data=walk.data.only(kept))


def plain_logits(model: models.BViT, images: torch.Tensor) -> torch.Tensor:
    """Logits [pair run class] of the clean and the corrupt one of images [pair run 3 h w]."""
    with torch.inference_mode():
        return model(images[:, :UNRELATED].flatten(0, 1)).unflatten(0, (-1, UNRELATED))


# Effects


def of_factor(model: models.BViT, walk: probe.Pass, class_of_label: torch.Tensor) -> xr.Dataset:
    """Effects of patching groups of tokens, and heads, with their intervals."""
    config = model.config

    def read(batch: stream.Batch) -> probe.Reading:
        labels = walk.data.answers[batch.index]
        places = config.n_prefix, config.n_tokens, config.patch_size
        tokens = of_images.groups(batch.masks, torch.as_tensor(labels), *places).to(model.pos_embed.device)
        masks = dict.fromkeys(patches.SITES, tokens[..., None]) | {"z": patches.each_head(model, len(labels))}
        apart, moved = effects(model, batch.images, class_of_label[labels], masks, SOURCES, 8 * walk.batch_size)
        is_there = tokens.any(-1)[:, None, None, None, None]
        of_groups = torch.stack([moved[site] for site in patches.SITES], -2).where(is_there, torch.nan)
        return {
            "apart": ("image", apart),
            "effect": (("image", "source", "direction", "step", "site", "group"), of_groups),
            "head_effect": (("image", "source", "direction", "step", "head"), moved["z"]),
        }

    measured = walk.over(read)
    photographs, variables = walk.photographs(measured["position"]), {}
    for name in ("effect", "head_effect"):
        bounded = intervals.ratio_of_sums(measured[name].values, measured["apart"].values, photographs, seed=walk.seed)
        variables |= with_ends(name, measured[name].dims[1:], bounded)
    groups = of_images.GROUPS[walk.data.has_masks]
    names = {"source": SOURCES, "direction": tuple(DIRECTIONS), "site": patches.SITES, "group": groups}
    return xr.Dataset(variables, {dim: list(labels) for dim, labels in names.items()})


def with_ends(
    name: str, dims: tuple[str, ...], bounded: Sequence[np.ndarray]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """A ratio and the ends of its interval as variables."""
    return {f"{name}{end}": (dims, values) for end, values in zip(ENDS, bounded, strict=True)}


def effects(
    model: models.BViT,
    images: torch.Tensor,
    answers: torch.Tensor,
    masks: dict[str, torch.Tensor],
    sources: Sequence[str],
    rows: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """How far the logit differences of pairs are apart [pair], and how far every patch moves that of a run towards the
    other one's: [pair source direction step patch] at each site of masks.

    images: [pair run 3 h w] of the clean, the corrupt and the unrelated run, answers: the model's [pair 2], masks:
    [pair patch ...] as `patches.patched` takes them.
    """
    device, n_pairs, moved = model.pos_embed.device, len(images), {site: [] for site in masks}
    images, answers = images.to(device), answers.to(device)
    with torch.inference_mode():
        plain = difference(plain_logits(model, images), answers)
        for t, activations in enumerate(patches.steps(model, images.transpose(0, 1).flatten(0, 1))):
            runs = {site: value.unflatten(0, (-1, n_pairs)) for site, value in activations.items()}
            for site, source, (into, other) in itertools.product(masks, sources, DIRECTIONS.values()):
                value = runs[site][UNRELATED if source == "unrelated" else other]
                logits = patches.patched(model, runs["resid"][into], t, site, value, masks[site], rows)
                towards = (plain[:, other] - plain[:, into]).sign()[:, None]
                moved[site].append(towards * (difference(logits, answers) - plain[:, into, None]))
    shape = (model.config.n_steps, len(sources), len(DIRECTIONS))
    by_site = {site: torch.stack(values, 1).unflatten(1, shape).movedim(1, 3) for site, values in moved.items()}
    return (plain[:, 0] - plain[:, 1]).abs(), by_site


def difference(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Logit of the clean answer minus that of the corrupt one: [pair run], of logits [pair run class]."""
    clean, corrupt = logits.gather(-1, answers[:, None].expand(-1, logits.shape[1], -1)).unbind(-1)
    return clean - corrupt


def of_tokens(model: models.BViT, walk: probe.Pass, class_of_label: torch.Tensor, maps: int) -> xr.Dataset:
    """The effect of every token alone, of a few pairs spread evenly, and their pixels."""
    pairs, config = walk.data.only(np.array(stream.evenly(len(walk), maps))), model.config

    def read(batch: stream.Batch) -> probe.Reading:
        masks = dict.fromkeys(patches.SITES, patches.each_token(model, len(batch.images)))
        answers = class_of_label[pairs.answers[batch.index]]
        apart, moved = effects(model, batch.images, answers, masks, SOURCES[:1], 8 * walk.batch_size)
        tokens = torch.stack([moved[site][:, 0] for site in patches.SITES], -2)
        return {"token_effect": (("image", "direction", "step", "site", "token"), tokens / apart[:, *[None] * 4])}

    measured = replace(walk, data=pairs, batch_size=1, label=f"{walk.label} by token").over(read).rename(image="pair")
    both = (pairs.data, pairs.clean), (pairs.others, pairs.corrupt)
    pictures = np.stack([pixels.shown(data, positions, config) for data, positions in both], 1)
    return measured.drop_vars("position").assign(
        pair_label=(("pair", "run"), pairs.answers),
        pair_index=("pair", pairs.indices),
        thumbnail=(("pair", "run", "y", "x", "channel"), pictures),
    )


# Step-shifted


def shifted(model: models.BViT, walk: probe.Pass, class_of_label: torch.Tensor) -> xr.Dataset:
    """Accuracy and margin when a step gets what another step of this image had, or of one of another class."""
    measured = walk.over(lambda batch: read_shifted(model, batch, class_of_label[batch.labels], 8 * walk.batch_size))
    photographs, n = walk.photographs(measured["position"]), measured.sizes["image"]
    variables = {"n_shifted": ((), n)}
    for name, margins in measured.data_vars.items():
        bounded = intervals.ratio_of_sums(margins.values, np.ones(n), photographs, seed=walk.seed)
        variables |= with_ends(f"{name}_margin", margins.dims[1:], bounded)
        variables[f"{name}_accuracy"] = margins.dims[1:], (margins.values > 0).mean(0)
    steps = np.arange(model.config.n_steps)
    return xr.Dataset(variables, {"donor": list(DONORS), "part": list(PARTS), "other_step": steps})


def read_shifted(model: models.BViT, batch: stream.Batch, target: torch.Tensor, rows: int) -> probe.Reading:
    """Margins of every image when a step gets all, CLS or the patches of a state, or the output of one head."""
    config, device, n = model.config, model.pos_embed.device, len(batch.images)
    tokens = torch.arange(config.n_tokens, device=device)
    parts = torch.stack([tokens >= 0, tokens == 0, tokens >= config.n_prefix])[:, None, None, :, None]
    cells = {"resid": parts, "z": patches.each_head(model, 1)[0, :, None, None]}  # [part or head, 1 1 ...]
    with torch.inference_mode():
        pictures = batch.images[:, : len(DONORS)].transpose(0, 1).flatten(0, 1).to(device)
        by_step = [
            {site: activations[site].unflatten(0, (-1, n)) for site in cells}  # [donor image ...]
            for activations in patches.steps(model, pictures)
        ]
        margins = {}
        for site, masks in cells.items():
            donated = torch.stack([at_step[site] for at_step in by_step], 2)  # [donor image step ...]
            logits = []
            for donor, mask, (t, at_step) in itertools.product(donated, masks, enumerate(by_step)):
                each_step = mask.expand(n, len(by_step), *mask.shape[2:])
                logits.append(patches.patched(model, at_step["resid"][0], t, site, donor, each_step, rows))
            shape = (len(DONORS), len(masks), len(by_step))
            margins[site] = margin(torch.stack(logits, 1), target.to(device)).unflatten(1, shape)
    return {
        "shift": (("image", "donor", "part", "step", "other_step"), margins["resid"]),
        "head_shift": (("image", "donor", "head", "step", "other_step"), margins["z"]),
    }


def margin(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logit of the own class over the highest other one: [image ...] of logits [image ... class]."""
    own = torch.nn.functional.one_hot(target, logits.shape[-1]).bool()
    own = own.view(len(target), *[1] * (logits.ndim - 2), -1)
    return logits.masked_fill(~own, 0).sum(-1) - logits.masked_fill(own, -torch.inf).amax(-1)


if __name__ == "__main__":
    probe.main(measure)
