"""Are there patches of unusual norm, where, which neurons write them, and what do registers change?

    python -m probes.outliers runs/demo
    python -m probes.outliers runs/demo --registered runs/WITH_REGISTERS

In large ViTs a few patches of little content have norms many times those of the others (Darcet et al., 2024, arXiv
2309.16588). Here a patch is an outlier where its norm is so many times the median of its image's patches in that state.
What makes the largest patch of each image larger than the others is split exactly: what it had, what attention and
every neuron of the FFN add along its direction. The neurons that add most, chosen on one half of the photographs, are
then measured on the other half, and their activations moved from the patches to an added token (a test-time register,
`probes.methods.registers`), beside as many random neurons, the same neurons silenced without a register, and, where a
run is named, a model trained with registers. Costs two passes over half of the images each, the second of four
forwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etils import epy

from models.errors import require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from models.data import stream
    from probes.methods import means, reading, registers

TIMES = (1.5, 2.0, 5.0, 10.0)  # further multiples of the median, beside the one asked for
PARTS = ("stream", "attention", "FFN")  # what a patch's norm after a step is made of
CONDITIONS = ("untouched", "register", "random register", "silenced")
TRAINED = "trained registers"
LEAST = {"share": 0.0, "images": 0.0, "accuracy": 0.0, "accuracy_change": -1.0}  # of what is at most 1


@probe.measurement(lighter=dict(registered=None))
def measure(
    model: models.BViT, images: Any, *, times: float = 3.0, neurons: int = 10, registered: str | None = None
) -> xr.Dataset:
    """Norms of patches over the steps, who writes the largest, and what a register at test time changes.

    Intervals: 95 %, bootstrap of the measured photographs; of a share or an accuracy that is the same for all of them,
    what none in so many leaves open (Wilson). Raises `InputError` for a model without a head, classes that it lacks,
    fewer than two photographs, a run of other images, and where activations are not finite.

    Args:
        times: a patch is an outlier above so many times the median norm of its image's patches.
        neurons: how many are moved to the register.
        registered: a run trained with registers, measured on the same images.
    """
    config = model.config
    require(
        (1 < times < float("inf"), f"--times is {times}, it must be a number larger than 1"),
        (1 <= neurons <= config.d_mlp, f"--neurons is {neurons}, it must lie between 1 and {config.d_mlp}"),
        (config.n_classes >= 2, "the model tells no classes apart, so nothing can be lost; name one with a head"),
        (config.n_patches >= 2, "the model has one patch, which stands out from no other; name one of smaller patches"),
    )
    other = with_registers(registered, model)
    choosing, measuring = probe.split(images, len(images))
    score = written_on(model, choosing)
    blocks = [config.block_of(t) for t in range(config.n_steps)]
    by_block = torch.zeros(max(blocks) + 1, config.d_mlp, dtype=score.dtype).index_add(0, torch.tensor(blocks), score)
    strongest = registers.Neurons.strongest(by_block, neurons)
    random = registers.Neurons.random(*by_block.shape, len(strongest.neuron), images.seed)
    moved, limits = (strongest, random), sorted({*TIMES, times})
    class_of_label = images.classes_of(model)
    measured = measuring.over(lambda batch: read(model, other, batch, moved, limits, class_of_label, measuring))
    side, n, result = config.side, len(measured["position"]), xr.Dataset()
    for name, drawn in means.drawn(measured).items():
        bounded = dict(n=n, least=LEAST[name]) if name in LEAST else {}
        result = result.assign(means.with_interval(name, drawn, **bounded))
    return (
        result.assign(
            place=(("state", "row", "column"), measured["place"].values.reshape(-1, side, side) / n),
            written=(("step", "neuron"), score.numpy()),
            chosen_block=("rank", strongest.block.numpy()),
            chosen_neuron=("rank", strongest.neuron.numpy()),
        )
        .assign_coords(
            condition=[*CONDITIONS, *([TRAINED] if other else [])],
            times=limits,
            state=np.arange(config.n_steps + 1),
            step=np.arange(config.n_steps),
            part=list(PARTS),
            patch=["largest", "random"],
            which=["chosen", "random"],
        )
        .assign_attrs(
            threshold=times,
            chance=1 / config.n_classes,
            n_chosen_on=len(choosing),
            n_measured=n,
            n_unreadable=measured.attrs["n_unreadable"],
            note=probe.note_on(n),
        )
    )


def with_registers(run: str | None, model: models.BViT) -> models.BViT | None:
    """The other model, if one is named; it must take the same images and have registers."""
    if run is None:
        return None
    other = models.load(run).to(model.pos_embed.device)
    same = ("image_size", "patch_size", "mean", "std", "classes")
    differing = [name for name in same if getattr(other.config, name) != getattr(model.config, name)]
    require(
        (not differing, f"--registered {run} differs in {', '.join(differing)}; name a run of the same images"),
        (other.config.n_registers > 0, f"--registered {run} has no registers; name a run trained with n_registers > 0"),
    )
    return other


# Who writes the largest patch


def written_on(model: models.BViT, walk: probe.Pass) -> torch.Tensor:
    """What each neuron adds to the norm of the largest patch above the others, mean over images: [step neuron]."""
    config, n = model.config, 0
    total = torch.zeros(config.n_steps, config.d_mlp, dtype=torch.float64, device=model.pos_embed.device)
    for batch in walk.batches():
        with torch.inference_mode():
            z = model.embed(batch.images.to(model.pos_embed.device))
            for t in range(config.n_steps):
                step = step_of(model, z, t)
                z = step["resid_post"]
                total[t] += neurons_of(model, step, t, largest(model, z)).double().sum(0)
        n += len(batch.images)
    total, n = walk.sum([total, torch.tensor(n, device=total.device)])
    probe.refuse_nonfinite(total.sum(1))
    return (total / n).cpu()


def step_of(model: models.BViT, z: torch.Tensor, t: int) -> dict[str, torch.Tensor]:
    """Step t on a state: what the patches had, what attention, the FFN's neurons and the FFN add, and what they are
    then: [batch patch ...], but for ``resid_post``, which is of all tokens.
    """
    kept: dict[str, torch.Tensor] = {}
    sites = {
        "resid_pre": "hook_resid_pre",
        "attn_out": "hook_attn_out",
        "post": "mlp.hook_post",
        "mlp_out": "hook_mlp_out",
    }

    def keep(name: str) -> Any:
        return lambda value, hook: kept.update({name: value[:, model.config.n_prefix :]})

    with model.hooks([(f"blocks.{t}.{site}", keep(name)) for name, site in sites.items()]):
        return {"resid_post": model.run_steps(z, t, t + 1)} | kept


def largest(model: models.BViT, z: torch.Tensor) -> torch.Tensor:
    """The patch of largest norm of a state: [batch]."""
    return z[:, model.config.n_prefix :].norm(dim=-1).argmax(1)


def excess(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Of values [batch patch ...], those of one patch less the mean of the others: [batch ...]."""
    own = values[torch.arange(len(values), device=values.device), at]
    return own - (values.sum(1) - own) / (values.shape[1] - 1)


def along(model: models.BViT, step: dict[str, torch.Tensor]) -> torch.Tensor:
    """The directions of the patches after a step: [batch patch d_model]."""
    return torch.nn.functional.normalize(step["resid_post"][:, model.config.n_prefix :], dim=-1)


def neurons_of(model: models.BViT, step: dict[str, torch.Tensor], t: int, at: torch.Tensor) -> torch.Tensor:
    """What each neuron adds along the patch's direction, above the other patches: [batch neuron]."""
    return excess(step["post"] * (along(model, step) @ model.blocks[t].mlp.W_out.T), at)


def parts_of(model: models.BViT, step: dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """What a patch's norm is made of, above the others': [part batch], which sum to the difference of norms."""
    directions = along(model, step)
    lengths = [(step[name] * directions).sum(-1) for name in ("resid_pre", "attn_out", "mlp_out")]
    return torch.stack([excess(length, at) for length in lengths])


# Measuring


def read(
    model: models.BViT,
    other: models.BViT | None,
    batch: stream.Batch,
    neurons: tuple[registers.Neurons, registers.Neurons],
    limits: list[float],
    class_of_label: torch.Tensor,
    walk: probe.Pass,
) -> probe.Reading:
    """What one batch leaves: norms and answers under every condition, and who writes the largest patch."""
    labels, n_patches = class_of_label[batch.labels].to(model.pos_embed.device), model.config.n_patches
    with torch.inference_mode():
        states, written = of_steps(model, batch, neurons, walk)
        runs = conditions(model, other, states, batch, neurons)
        by_condition = [of_states(*run, limits, labels) for run in runs]
        places = torch.stack([largest(model, z) for z in states])
        values = {
            name: (("condition", *dims), torch.stack([measured[name][1] for measured in by_condition]))
            for name, (dims, _) in by_condition[0].items()
        }
        for name in ("accuracy", "largest"):
            dims, value = values[name]
            untouched, others = value[:1], value[1:]
            values[f"{name}_change"] = dims, torch.cat([torch.full_like(untouched, torch.nan), others - untouched])
        values |= written | where(batch, places, model.config.patch_size)
    counts = torch.nn.functional.one_hot(places, n_patches).sum(1)
    return means.sums(values, walk.photographs(batch.index), walk.seed) | {"place": (("state", "at"), counts)}


def conditions(
    model: models.BViT,
    other: models.BViT | None,
    states: list[torch.Tensor],
    batch: stream.Batch,
    neurons: tuple[registers.Neurons, registers.Neurons],
) -> Iterator[tuple[models.BViT, list[torch.Tensor], int]]:
    """Under every condition: the model, its states, and how many registers come before the patches."""
    n_registers, (strongest, _) = model.config.n_prefix - 1, neurons
    yield model, states, n_registers
    for moved in neurons:
        yield model, list(registers.states(model, batch.images, moved)), n_registers + 1
    yield model, list(registers.states(model, batch.images, strongest, has_register=False)), n_registers
    if other is not None:
        yield other, list(reading.states_of(other, batch.images)), other.config.n_prefix - 1


def of_states(
    model: models.BViT, states: list[torch.Tensor], n_registers: int, limits: list[float], labels: torch.Tensor
) -> means.Values:
    """Norms over the median patch, shares of outliers, and whether the answer is right: [... batch]."""
    norms = torch.stack([z.norm(dim=-1) for z in states]).double()  # [state batch pos]
    ratio = norms / norms[..., 1 + n_registers :].median(-1, keepdim=True).values
    patches, before = ratio[..., 1 + n_registers :], ratio[..., 1 : 1 + n_registers]
    above = torch.stack([patches > limit for limit in limits])  # [times state batch patch]
    last = states[-1] if n_registers < model.config.n_prefix else registers.without_register(model, states[-1])
    return {
        "largest": (("state",), patches.amax(-1)),
        "share": (("times", "state"), above.double().mean(-1)),
        "images": (("times", "state"), above.any(-1).double()),
        "cls": (("state",), ratio[..., 0]),
        "registers": (("state",), before.mean(-1)),
        "accuracy": ((), (model.read_out(last).argmax(-1) == labels).double()),
    }


def of_steps(
    model: models.BViT,
    batch: stream.Batch,
    neurons: tuple[registers.Neurons, registers.Neurons],
    walk: probe.Pass,
) -> tuple[list[torch.Tensor], means.Values]:
    """All states, and who writes the largest patch after each step, beside a random patch and random neurons."""
    config, device, n_patches = model.config, model.pos_embed.device, model.config.n_patches
    drawn = [np.random.default_rng([walk.seed, int(i)]).integers(n_patches) for i in batch.index]
    random, parts, written = torch.tensor(drawn, device=device), [], []
    states = [model.embed(batch.images.to(device))]
    for t in range(config.n_steps):
        step = step_of(model, states[-1], t)
        states.append(step["resid_post"])
        at = largest(model, states[-1])
        parts.append(torch.stack([parts_of(model, step, place) for place in (at, random)], 1))
        by_neuron = neurons_of(model, step, t, at).T
        by_which = []
        for group in neurons:
            is_of_block = (group.block == config.block_of(t)).to(device)[:, None]
            by_which.append(by_neuron[group.neuron].where(is_of_block, torch.nan))
        written.append(torch.stack(by_which))
    return states, {
        "parts": (("part", "patch", "step"), torch.stack(parts, 2)),
        "adds": (("which", "rank", "step"), torch.stack(written, 2)),
        "median": (("state",), torch.stack([z[:, config.n_prefix :].norm(dim=-1).median(1).values for z in states])),
    }


def where(batch: stream.Batch, places: torch.Tensor, patch: int) -> means.Values:
    """Whether the largest patch, by its place in every state [state batch], is of the object; and a random one."""
    if batch.masks is None:
        return {}
    centre = slice(patch // 2, None, patch)
    shown = (batch.masks[:, centre, centre].flatten(1) == batch.labels[:, None] + 1).to(places.device).double()
    return {
        "on_object": (("state",), shown.gather(1, places.T).T),
        "random_on_object": ((), shown.mean(1)),
    }


if __name__ == "__main__":
    probe.main(measure)
