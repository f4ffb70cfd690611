"""When does each factor of the image become readable, from which tokens, and does one code serve all steps?

    python -m probes.factors runs/demo
    python -m probes.factors runs/demo --data shapes:20000 --fit-images 10000

On the embedded data all that an image was made from is known; on photographs the class alone. A linear probe of every
factor and state (ridge regression, `probes.methods.ridge`) is fitted on some photographs and measured on the others, on
four kinds of tokens as the final norm leaves them: CLS, the mean of all patches, the mean of those whose centre shows
the object, and of those whose centre does not. Position is not asked of the last two: which patches are averaged gives
it away. Each probe stands beside the best constant answer, the same probe of shuffled values (its selectivity: Hewitt &
Liang, arXiv 1909.03368), the untrained model, and every other state's probe read at this state. Costs two passes over
half of the images each; memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etils import epy

from models.errors import InputError, require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import factors as analysis
    from models.data import stream
    from probes.methods import means, reading, ridge, targets

GIVEN_AWAY = {"position": ("object", "background")}  # factors that the choice of the patches tells
DIMS = ("factor", "token", "state", "other_state")
DIMS_OF = {"error": DIMS, "shuffled": DIMS[:3], "constant": DIMS[:2], "base": DIMS[:2]}  # of every image


@probe.measurement
def measure(model: models.BViT, images: Any, *, fit_images: int = 4096) -> xr.Dataset:
    """How well a linear probe reads each factor after every step, beside chance, shuffled values and other steps'
    probes.

    The score is the accuracy of a class, and of numbers the share of their variance that is explained (R2, about the
    best constant answer; of angles, of their sine and cosine). Intervals: 95 %, bootstrap of the measured photographs.
    Raises `InputError` for fewer than two photographs, where nothing varies, and where activations are not finite.

    Args:
        fit_images: probes are fitted on this many photographs, drawn at random; at most half of them.
    """
    require((fit_images >= 1, f"--fit-images is {fit_images}, it must be at least 1"))
    fitting, measuring = probe.split(images, fit_images)
    groups, names = targets.of_parts(fitting, measuring), tokens_of(images)
    if not groups:
        raise InputError(
            f"{images.about.spec}: nothing varies over the images; name data of two classes, or more of it"
        )
    fitted_on, measured_on = zip(*groups, strict=True)
    linear, n_unreadable = fitted(model, fitting, fitted_on, names)
    probes = list(zip(linear, measured_on, strict=True))
    measured = measuring.over(lambda batch: read(model, batch, probes, names, measuring))
    n = len(measured["position"])
    return summary(measured, probes, names).assign_attrs(
        n_fitted=len(fitting),
        n_measured=n,
        n_unreadable=n_unreadable + measured.attrs["n_unreadable"],
        note=probe.note_on(n),
    )


# Features


def tokens_of(images: probe.Pass) -> list[str]:
    """The kinds of tokens that are read; without masks nobody knows which patches are the object's."""
    return ["CLS", "patches", *(["object", "background"] if images.about.has_masks else [])]


def features(model: models.BViT, batch: stream.Batch, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every kind of token in every state [token state image d], and whether an image has it [token image]."""
    config, device = model.config, model.pos_embed.device
    everywhere = torch.ones(len(batch.images), config.n_patches, device=device)
    kinds = {"CLS": everywhere, "patches": everywhere}
    if batch.masks is not None:
        centre = slice(config.patch_size // 2, None, config.patch_size)
        shown, labels = batch.masks.to(device)[:, centre, centre].flatten(1), batch.labels.to(device)[:, None]
        kinds |= {"object": shown == labels + 1, "background": (shown != labels + 1) & (shown >= 0)}
    patches = torch.stack([kinds[name].float() for name in names[1:]], 1)  # [image token patch]
    share = patches / patches.sum(-1, keepdim=True).clamp(min=1)
    with torch.inference_mode():
        states = []
        for z in reading.states_of(model, batch.images):
            z = model.norm(z)
            states.append(torch.cat([z[:, :1], share @ z[:, config.n_prefix :]], 1))
        return torch.stack(states).permute(2, 0, 1, 3), torch.stack([kinds[name].any(1) for name in names])


# Fitting


def fitted(
    model: models.BViT, walk: probe.Pass, groups: Sequence[targets.Group], names: list[str]
) -> tuple[list[ridge.Ridge], int]:
    """The probes of every group, cells [token state] in one, and how many images could not be read; one pass."""
    config, device, left_out = model.config, model.pos_embed.device, []
    cells = len(names) * (config.n_steps + 1)
    sums = [ridge.Sums.none(cells, config.d_model, group.parts[-1].stop, device) for group in groups]
    for batch in walk.batches(left_out):
        x, is_there = features(model, batch, names)
        is_there = is_there.repeat_interleave(x.shape[1], 0)
        for of_group, group in zip(sums, groups, strict=True):
            has = group.has[batch.index]
            columns = group.columns(batch.index[has]).to(device)
            has = torch.from_numpy(has).to(device)
            of_group.add(x[:, :, has].flatten(0, 1), columns, is_there[:, has])
    sums = [ridge.Sums(**walk.sum(vars(of_group))) for of_group in sums]
    probe.refuse_nonfinite(sum(of_group.x.unflatten(0, (len(names), -1))[:, 1:].sum((0, 2)) for of_group in sums))
    linear = [
        ridge.fitted(of_group, group.parts, len(group.factors)) for of_group, group in zip(sums, groups, strict=True)
    ]
    return linear, sum(walk.gathered([(walk.shard[0], len(left_out))]))


# Measuring


def read(
    model: models.BViT,
    batch: stream.Batch,
    probes: list[tuple[ridge.Ridge, targets.Group]],
    names: list[str],
    walk: probe.Pass,
) -> probe.Reading:
    """Sums over one batch of the errors of all probes, NaN where an image has no such factor or token."""
    x, is_there = features(model, batch, names)
    of_groups: dict[str, list[torch.Tensor]] = {name: [] for name in DIMS_OF}
    for linear, group in probes:
        has = torch.from_numpy(group.has[batch.index]).to(x.device)
        for name, of_group in errors(linear, group, x[:, :, has], batch.index[has.cpu().numpy()]).items():
            of_all = of_group.new_full((*of_group.shape[:-1], len(has)), torch.nan)
            of_all[..., has] = of_group
            counts = is_there.unflatten(1, (1,) * (of_group.ndim - 3) + (-1,))  # [token ... image]
            of_groups[name].append(of_all.where(counts, torch.nan))
    values = {name: (dims, torch.cat(of_groups[name])) for name, dims in DIMS_OF.items()}
    return means.sums(values, walk.photographs(batch.index), walk.seed)


def errors(linear: ridge.Ridge, group: targets.Group, x: torch.Tensor, images: np.ndarray) -> dict[str, torch.Tensor]:
    """How wrong images, by position, are read from features [token state image d]; under the names of `DIMS_OF`, of
    every image.

    A probe of one state is read at another about that state's own mean: what may be the same is the direction.
    """
    cells, parts = x.shape[:2], group.parts
    weight, x_mean = linear.weight.unflatten(0, cells), linear.x_mean.unflatten(0, cells)
    y_mean = linear.y_mean.unflatten(0, cells)[:, 0]  # [token column]; the same in every state
    x = x.double() - x_mean[:, :, None]
    split = parts[len(group.factors)].start  # where the columns of shuffled values start
    own_mean, shuffled_mean = y_mean[:, None, None, :split], y_mean[:, None, None, split:]

    def error_of(columns: torch.Tensor, factors: tuple[targets.Factor, ...]) -> torch.Tensor:
        """[factor ... image], of what is read [... image column]."""
        pairs = zip(factors, parts, strict=False)
        return torch.stack([factor.error(columns[..., part], images) for factor, part in pairs])

    by_probe = [error_of(x @ weight[:, s, None, :, :split] + own_mean, group.factors) for s in range(x.shape[1])]
    shuffled = error_of(x @ weight[..., split:] + shuffled_mean, group.shuffled)
    constant = error_of(y_mean[:, None, :split].expand(-1, len(images), -1), group.factors)
    is_class = torch.tensor([factor.n_classes > 0 for factor in group.factors], device=x.device)
    base = torch.where(is_class[:, None, None], 1.0, constant)
    return {"error": torch.stack(by_probe, 2), "shuffled": shuffled, "constant": constant, "base": base}


def summary(measured: xr.Dataset, probes: list[tuple[ridge.Ridge, targets.Group]], names: list[str]) -> xr.Dataset:
    """Scores with their intervals, chance, and where and how far a factor is read."""
    factors = [factor for _, group in probes for factor in group.factors]
    coords = {"factor": [factor.name for factor in factors], "token": names}
    drawn = {name: errors.assign_coords(coords) for name, errors in means.drawn(measured).items()}
    for factor, tokens in GIVEN_AWAY.items():
        is_asked = ~(drawn["base"]["factor"].isin([factor]) & drawn["base"]["token"].isin(tokens))
        drawn = {name: errors.where(is_asked) for name, errors in drawn.items()}
    transfer, shuffled, constant = (1 - drawn[name] / drawn["base"] for name in ("error", "shuffled", "constant"))
    score, chance = analysis.own(transfer), constant.sel(token="CLS", drop=True)
    scores = {"score": score, "shuffled": shuffled, "selectivity": score - shuffled, "transfer": transfer}
    result = xr.Dataset({"chance": chance[{"draw": 0}]})
    for name, values in scores.items():
        result = result.assign(means.with_interval(name, values))
    is_read = result["score_low"].max("state") > result["chance"]
    half = analysis.half(score, chance).where(is_read)
    clear = analysis.is_clear(score, chance)[{"draw": 0}] & is_read
    shared = analysis.shared(transfer, chance, clear)
    for name, values in (("half", half), ("shared", shared)):
        result = result.assign(means.with_interval(name, values))
    penalty = [
        linear.penalty[:, part.start].unflatten(0, (len(names), -1)).cpu().numpy()
        for linear, group in probes
        for part in group.parts[: len(group.factors)]
    ]
    result = result.assign(
        n_classes=("factor", [factor.n_classes for factor in factors]),
        penalty=(DIMS[:3], np.stack(penalty)),
    )
    n_states = result.sizes["state"]
    return result.assign_coords(state=np.arange(n_states), other_state=np.arange(n_states))


if __name__ == "__main__":
    probe.main(measure)
