"""What do the states say? The answer as it forms, through six lenses, patch by patch, and part by part.

    python -m probes.lens runs/demo
    python -m probes.lens timm:vit_small_patch16_224 --data folder:PATH --jacobian-images 0

After every step the head reads the state as if it were the last (logit lens), or through a map fitted to what the
model will answer (`probes.methods.lenses`): one per state (tuned), one applied as often as steps are left (powers), one
for all (same), and the mean Jacobian of the steps left. Maps are fitted on some photographs, everything is measured on
the others: accuracy, agreement with the final answer and divergence from it; which class every patch says, held against
the mask; from which state an answer stands, and how often it flips; what every head and FFN adds to the class. Costs a
forward an image, a fit whose cost does not grow with the data, and d_model backwards for each of `--jacobian-images`.
An interrupted fit goes on when it is started again with the same options.
"""

from __future__ import annotations

from typing import Any

from etils import epy

from models.errors import InputError, require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr
    from scipy import special

    import models
    from analyses import lens as analysis
    from models import checkpoint
    from models.data import stream
    from probes.methods import contributions, lenses, means, pixels, pointing, reading, saying

N_SHOWN = 24  # images whose pixels the result keeps


@probe.measurement(lighter=dict(thumbnails=False))
def measure(
    model: models.BViT,
    images: Any,
    *,
    fit_images: int = 4096,
    updates: int = 500,
    jacobian_images: int = 32,
    thumbnails: bool = True,
) -> xr.Dataset:
    """What the model would answer after each step, through every lens, beside chance and the untrained model.

    Raises `InputError` for a model of fewer than two classes, classes that it lacks, fewer than two photographs, and
    where activations are not finite.

    Args:
        fit_images: lenses are fitted on this many photographs, drawn at random; at most half of them.
        updates: of the fit, on 256 images each; 0 leaves the fitted lenses at the logit lens.
        jacobian_images: behind the Jacobian lens, of those fitted on; 0 leaves it out.
        thumbnails: keep the pixels of a few images for figures and dashboard.
    """
    require(
        (fit_images >= 1, f"--fit-images is {fit_images}, it must be at least 1"),
        (updates >= 0, f"--updates is {updates}, it cannot be negative"),
        (jacobian_images >= 0, f"--jacobian-images is {jacobian_images}, it cannot be negative"),
    )
    if model.config.n_classes < 2:
        raise InputError("the model tells no classes apart, so its states say nothing; name a checkpoint with a head")
    class_of_label, (fitting, measuring) = images.classes_of(model), probe.split(images, fit_images)
    readout = reading.Readout(model)
    rows = fitting.over(lambda batch: {"rows": (("image", "state", "d"), rows_of(readout, batch.images))})
    by_name = fit(readout, fitting, rows, updates, jacobian_images)
    measured = measuring.over(lambda batch: read(readout, by_name, batch, class_of_label, measuring))
    result = summary(readout, measured, list(by_name), measuring)
    if thumbnails:
        result = result.assign(examples(readout, by_name, measuring, measured["position"].values, class_of_label))
    n = len(measured["position"])
    return result.assign_attrs(
        chance=1 / model.config.n_classes,
        classes=list(model.config.classes or map(str, range(model.config.n_classes))),
        n_fitted=rows.sizes["image"],
        n_measured=n,
        updates=updates,
        jacobian_images=min(jacobian_images, rows.sizes["image"]),
        n_unreadable=rows.attrs["n_unreadable"] + measured.attrs["n_unreadable"],
        note=probe.note_on(n),
    )


# Fitting


def rows_of(readout: reading.Readout, images: torch.Tensor) -> torch.Tensor:
    """What the head reads of every state: [batch state width]."""
    with torch.inference_mode():
        rows = torch.stack([readout.rows(z).float() for z in reading.states_of(readout.model, images)], 1)
    probe.refuse_nonfinite(rows[:, 1:].sum((0, 2)))
    return rows


def fit(
    readout: reading.Readout, walk: probe.Pass, measured: xr.Dataset, updates: int, n_jacobian: int
) -> dict[str, lenses.Lens]:
    """Every lens by name, from the rows that the head reads of the images to fit on."""
    rows = torch.from_numpy(measured["rows"].values).to(readout.model.pos_embed.device)
    sha256 = checkpoint.state_sha256(readout.model.state_dict())
    key = dict(model=sha256, data=walk.about.fingerprint, seed=walk.seed, images=len(rows))
    by_name = {"logit": lenses.Lens.identity(rows.shape[1] - 1, rows.shape[2], rows.device)}
    by_name |= lenses.fitted(
        readout,
        rows,
        updates=updates,
        seed=walk.seed,
        kept=walk.unfinished(f"lenses-{sha256[:8]}"),
        key=key | {"updates": updates},
    )
    if n_jacobian:
        positions = measured["position"].values[stream.evenly(len(rows), n_jacobian)]
        weight = lenses.jacobian(
            readout,
            walk,
            positions,
            kept=walk.unfinished(f"jacobian-{sha256[:8]}"),
            key=key | {"n": len(positions), "shard": walk.shard},
        )
        by_name |= lenses.jacobian_lenses(weight, rows.mean(0))
    return by_name


# Measuring


def read(
    readout: reading.Readout,
    by_name: dict[str, lenses.Lens],
    batch: stream.Batch,
    class_of_label: torch.Tensor,
    walk: probe.Pass,
) -> probe.Reading:
    """What one batch leaves: sums of everything that has a mean, and depth and flips of each image."""
    model, device = readout.model, readout.model.pos_embed.device
    labels = class_of_label[batch.labels].to(device)
    added: dict[str, torch.Tensor] = {}  # what attention's heads and the FFN add at every step, pooled
    pooled_states, of_tokens, table = [], [], None
    if batch.masks is not None:
        table = pointing.score_table(batch.masks.to(device), batch.labels.to(device), model.config.patch_size)

    def keep(value: torch.Tensor, hook: Any) -> None:
        added[hook.name] = readout.pooled(value)

    with torch.inference_mode(), model.hooks([(f"blocks.*.{site}", keep) for site in contributions.SITES]):
        for z in reading.states_of(model, batch.images):
            pooled_states.append(readout.pooled(z).float())
            of_tokens.append(saying.of_tokens(readout, z, labels, table))
        rows = torch.stack(pooled_states, 1).flatten(2)
        logits = torch.stack([readout.logits(lens(rows)) for lens in by_name.values()])  # [lens image state class]
        answers, final = logits.argmax(-1), logits[0, :, -1]
        values = {
            **of_lenses(logits, answers, labels),
            **over_states(of_tokens),
            **({} if table is None else saying.baselines(table)),
            **contributions.of_batch(readout, added, pooled_states[0], pooled_states[-1], final, labels),
        }
        error = contributions.rest(values)
    is_right = answers[0, :, -1] == labels
    depth, flips = analysis.depth(answers.cpu().numpy()), analysis.flips(answers.cpu().numpy())
    values |= of_depths(depth, flips, is_right.cpu(), rows.shape[1])
    return {
        **means.sums(values, walk.photographs(batch.index), walk.seed),
        "answers": (("lens", "state", "class"), torch.nn.functional.one_hot(answers, logits.shape[-1]).sum(1)),
        "final": ("class", final.softmax(-1).double().sum(0)),
        "depth": (("lens", "image"), depth.astype(np.uint16)),
        "flips": (("lens", "image"), flips.astype(np.uint16)),
        "is_right": ("image", is_right),
        "error": ("image", error),
    }


def over_states(of_states: list[saying.Values]) -> saying.Values:
    """Values [... batch] of every state, as one with the states along the last dimension but one: [... state batch]."""
    return {
        name: ((*dims, "state"), torch.stack([values[name][1] for values in of_states], -2))
        for name, (dims, _) in of_states[0].items()
    }


def of_lenses(logits: torch.Tensor, answers: torch.Tensor, labels: torch.Tensor) -> means.Values:
    """What every lens says of every state, from logits [lens image state class] and the answers in them."""
    final = logits[0, :, -1:].log_softmax(-1)
    metrics = {
        "accuracy": answers == labels[:, None],
        "agreement": answers == answers[:1, :, -1:],
        "kl": lenses.divergence(final, logits),
    }
    by_state = {name: (("lens", "state"), values.transpose(1, 2)) for name, values in metrics.items()}
    return by_state | {"entropy": ((), -(final.exp() * final).sum((1, 2)))}


def of_depths(depth: np.ndarray, flips: np.ndarray, is_right: torch.Tensor, n_states: int) -> means.Values:
    """Depth and flips [lens image], whose answer stands at each state, and depth apart for right and wrong answers."""
    depth, flips = torch.from_numpy(depth).double(), torch.from_numpy(flips).double()
    stands = torch.stack([depth <= state for state in range(n_states)], 1)
    apart = torch.stack([depth.where(is_right == right, torch.nan) for right in (True, False)])
    return {
        "mean_depth": (("lens",), depth),
        "mean_flips": (("lens",), flips),
        "standing": (("lens", "state"), stands),
        "depth_of": (("answer", "lens"), apart),
    }


def summary(readout: reading.Readout, measured: xr.Dataset, names: list[str], walk: probe.Pass) -> xr.Dataset:
    """Means with their intervals, chance levels, and depth and flips of every image."""
    drawn, variables = means.drawn(measured), {}
    drawn["recovered"] = analysis.recovered(drawn["kl"].assign_coords(lens=names))
    for name, means_of_draws in drawn.items():
        variables |= means.with_interval(name, means_of_draws)
    answers = measured["answers"].values / len(measured["position"])
    final = measured["final"].values / len(measured["position"])
    standing, chance_flips = analysis.independent(answers)
    where = saying.kinds_of(readout.model.config.n_prefix, walk.about.has_masks)
    position = measured["position"].values
    result = xr.Dataset(variables).assign(
        {
            "constant_agreement": ((), answers[0, -1].max()),
            "constant_kl": ((), float(special.entr(final).sum() - variables["entropy"])),
            "chance_standing": (("lens", "state"), standing),
            "chance_flips": ("lens", chance_flips),
            "depth": (("image", "lens"), measured["depth"].values.T),
            "flips": (("image", "lens"), measured["flips"].values.T),
            "is_right": ("image", measured["is_right"].values),
            "rest": ((), float(measured["error"].max())),
            "index": ("image", walk.indices(position)),
            "image_label": ("image", walk.labels(position)),
        }
    )
    return result.assign_coords(
        {
            "lens": names,
            "state": np.arange(readout.model.config.n_steps + 1),
            "step": np.arange(readout.model.config.n_steps),
            "answer": ["right", "wrong"],
            "where": where,
            "to": list(contributions.TO),
            "part": contributions.names(readout.model),
            "whole": list(contributions.WHOLE),
        }
    )


def examples(
    readout: reading.Readout,
    by_name: dict[str, lenses.Lens],
    walk: probe.Pass,
    position: np.ndarray,
    class_of_label: torch.Tensor,
) -> dict[str, Any]:
    """Pixels of a few images, what each patch says at every state and how sure it is of the class, and the answers."""
    model, config = readout.model, readout.model.config
    shown = np.array(stream.evenly(len(position), N_SHOWN))
    items = [walk.data[int(i)] for i in position[shown]]
    labels = class_of_label[torch.tensor([int(item[1]) for item in items])].to(model.pos_embed.device)
    answer_of_patch, certainty, rows = [], [], []
    with torch.inference_mode():
        for z in reading.states_of(model, torch.stack([item[0] for item in items])):
            logits = readout.of_tokens(z[:, config.n_prefix :])
            answer_of_patch.append(logits.argmax(-1))
            of_class = labels[:, None, None].expand(*logits.shape[:2], 1)
            certainty.append(logits.softmax(-1).gather(-1, of_class)[..., 0])
            rows.append(readout.rows(z).float())
        states = torch.stack(rows, 1)
        answers = torch.stack([readout.logits(lens(states)).argmax(-1) for lens in by_name.values()], 1)
    patches, grid = ("place", "state", "row", "column"), (config.side, config.side)
    says, sure = (torch.stack(values, 1).unflatten(-1, grid).cpu() for values in (answer_of_patch, certainty))
    variables = {
        "shown": ("place", shown),
        "thumbnail": (("place", "y", "x", "channel"), pixels.shown(walk.data, position[shown], config)),
        "thumbnail_says": (patches, says.numpy().astype(np.int16)),
        "thumbnail_sure": (patches, (255 * sure).round().byte().numpy()),
        "thumbnail_answer": (("place", "lens", "state"), answers.cpu().numpy().astype(np.int16)),
        "thumbnail_class": ("place", labels.cpu().numpy().astype(np.int16)),
    }
    if walk.about.has_masks:
        masks = torch.stack([item[2] for item in items])
        variables["thumbnail_mask"] = ("place", "y", "x"), masks.numpy().astype(np.int16)
    return variables


if __name__ == "__main__":
    probe.main(measure)
