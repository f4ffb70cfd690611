"""Moments worth a look: single images that stand out in a run's results, each with where in its story it is seen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

SURE_BY = 2  # steps after which an answer that stands came at once


@dataclass(frozen=True)
class Moment:
    """An image by its number in the split, what is remarkable, and the step and head of the story that show it."""

    index: int
    title: str
    step: int
    head: int = 0


def worth_a_look(results: Mapping[str, xr.Dataset]) -> list[Moment]:
    """About a dozen, of as many different images, from the results that there are, by the probe's name."""
    finders = (forming, after_training, wavering, deciding, looking)
    every = [moment for finder in finders for moment in finder(results)]
    return list({moment.index: moment for moment in reversed(every)}.values())[::-1]


def aligned(results: Mapping[str, xr.Dataset], *names: str) -> xr.Dataset | None:
    """What several results say of the images that all of them have, by index; None where one is missing."""
    if any(name not in results for name in names):
        return None
    parts = []
    for name in names:
        result = results[name]
        single = [variable for variable, of in result.data_vars.items() if "image" in of.dims and variable != "index"]
        part = result[single].assign_coords(index=("image", result["index"].values)).swap_dims(image="index")
        parts.append(part.drop_duplicates("index"))
    joined = xr.merge(parts, join="inner", compat="override")
    return joined if joined.sizes["index"] else None


def pick(images: xr.Dataset, score: xr.DataArray, where: xr.DataArray) -> int | None:
    """The index of the image that scores highest among some; the first of several."""
    score = np.where(where.values, score.values.astype(np.float64), -np.inf)
    best = int(score.argmax())
    return int(images["index"][best]) if np.isfinite(score[best]) else None


def forming(results: Mapping[str, xr.Dataset]) -> Iterator[Moment]:
    """When the answer became final, for images answered right or wrong."""
    images = aligned(results, "recurrence", "lens")
    if images is None:
        return
    settled, right, last = images["settled"], images["is_right"], int(results["recurrence"].attrs["trained_steps"])
    for score, where, said in (
        (settled, right, "right only from step {} on"),
        (-abs(settled - last // 2), right, "wrong until step {}"),
        (-settled, right & (settled <= SURE_BY) & (settled > 0), "right from step {} on"),
        (-settled, ~right, "wrong, and sure of it from step {} on"),
        (settled, ~right, "wrong in the end, decided at step {}"),
    ):
        index = pick(images, score, where)
        if index is not None:
            step = int(settled.sel(index=index))
            yield Moment(index, said.format(step), max(step - 1, 0))


def after_training(results: Mapping[str, xr.Dataset]) -> Iterator[Moment]:
    """What running on does to the answer."""
    images = aligned(results, "recurrence", "lens")
    if images is None:
        return
    until, last = results["recurrence"].sizes["state"] - 1, int(results["recurrence"].attrs["trained_steps"])
    final, right = images["settled_by_max"], images["is_right"]
    index = pick(images, -final, right & (final > last))
    if index is not None and until > last:
        yield Moment(index, f"right at step {last}, forgotten by step {until}", last - 1)
    index = pick(images, -images["settled"], right & (final <= last))
    if index is not None and until > last:
        yield Moment(index, f"still right after {until} steps", last - 1)


def wavering(results: Mapping[str, xr.Dataset]) -> Iterator[Moment]:
    """The answer that changes most often."""
    images = aligned(results, "lens")
    if images is None:
        return
    flips = images["flips"].sel(lens="logit")
    index = pick(images, flips, images["is_right"])
    if index is not None and (n := int(flips.sel(index=index))) > 1:
        yield Moment(index, f"changes its mind {n} times and ends right", 0)


def deciding(results: Mapping[str, xr.Dataset]) -> Iterator[Moment]:
    """How much of what the heads add to the answer one head at one step adds."""
    images = aligned(results, "attribution")
    if images is None:
        return
    heads = [part for part in images["part"].values if str(part).startswith("h") and str(part)[1:].isdigit()]
    worth = abs(images["node_of_image"].isel(how=-1).sel(part=heads))
    most, total = worth.max(("step", "part")), worth.sum(("step", "part"))
    share = most / total.clip(min=1e-12)
    for score, said in ((share, "one head does {:.0f} % of what the heads do"), (-share, "no head does over {:.0f} %")):
        index = pick(images, score, total > 0)
        if index is None:
            continue
        of = worth.sel(index=index).transpose("step", "part").values
        step, part = np.unravel_index(of.argmax(), of.shape)
        yield Moment(index, said.format(100 * float(share.sel(index=index))), int(step), int(str(heads[part])[1:]))


def looking(results: Mapping[str, xr.Dataset]) -> Iterator[Moment]:
    """How many heads and steps point at the object, of images answered right and wrong."""
    images = aligned(results, "pointing_game", "lens")
    if images is None:
        return
    hit = images["hit"].isel(radius=0).sel(target="class")
    hit = hit.where(hit >= 0)  # images without the class
    share = hit.mean(("step", "head"))
    shape = hit.sizes["step"], hit.sizes["head"]
    n = shape[0] * shape[1]
    for score, where, said in (
        (share, images["is_right"], "{} of {} pointers on the object"),
        (-share, images["is_right"], "right, with {} of {} pointers on the object"),
        (share, ~images["is_right"], "wrong, with {} of {} pointers on the object"),
    ):
        index = pick(images, score, where & share.notnull())
        if index is not None:
            most = hit.sel(index=index).transpose("step", "head").values.argmax()
            step, head = np.unravel_index(most, shape)
            yield Moment(index, said.format(round(float(share.sel(index=index)) * n), n), int(step), int(head))
