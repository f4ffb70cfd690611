"""How do the states move? Steps as a dynamical system: how far, which way, what each step stretches, and where to.

    python -m probes.dynamics runs/demo
    python -m probes.dynamics runs/demo --with runs/demo-vit

One pass over all images: size and angle of every step, how near each state is to the last, how alike the tokens of an
image are, how many directions the images spread over, and debiased CKA of states and of increments between all steps
(and with another model's), from sums whose memory does not grow with the images. On a sample: the stable rank of the
update, what is left of a perturbation, and where states are far beyond the trained steps. On a few images the Jacobian
of every step: of the CLS row exactly, of the whole state by Lanczos (`probes.methods.jacobians`). Accuracy beyond the
trained steps is the recurrence probe's, ranks of activations the rank probe's.

Costs a plain forward an image; T / 2 + max_steps / T forwards for each of `--sample`; some 2 d_model for each of
`--jacobian-images`, and some 4 `--iterations` for each of `--state-images` and `--probes`.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from typing import Annotated, Any, Literal

import tyro
from etils import epy

from models.errors import InputError, require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import dynamics as analysis
    from analyses import phases
    from models.data import stream
    from probes.methods import jacobians, means, motion, orbits, reading, similarity

KINDS = {"cka": "state", "increment_cka": "increment"}
ENDS = ("", "_low", "_high")
TOLERANCE = 1e-3  # of its length: how close a state has to return to count as the same
LONGEST = 12  # period that is looked for, where the steps are fewer
N_EIGEN = 4  # images whose eigenvalues the result keeps
AT_ONCE = 8  # images whose Jacobians are taken together
LEAST = 1e-5  # perturbation that float32 does not round away
MOST = 1000  # vectors and iterations for the Jacobian of an image, and how often all trained steps are run


@probe.measurement
def measure(
    model: models.BViT,
    images: Any,
    *,
    beside: Annotated[str | None, tyro.conf.arg(name="with", metavar="SOURCE")] = None,
    token: Literal["cls", "mean"] | None = None,
    sample: int = 256,
    perturbation: float = 0.1,
    max_steps: int | None = None,
    jacobian_images: int = 16,
    state_images: int = 4,
    probes: int = 4,
    iterations: int = 32,
) -> xr.Dataset:
    """Size and direction of every step, its Jacobian, CKA between steps, recovery, and what lies far beyond T.

    Intervals: 95 %, bootstrap by photograph; of CKA and participation ratio, jackknife over groups of photographs. A
    photograph with several items counts once. Raises `InputError` for fewer than eight photographs, a second model that
    sees images differently, steps beyond those of a stacked model, and where activations are not finite.

    Args:
        beside: another model, named as the first is and run at its image size, whose steps are compared by CKA.
        token: rows of CKA and participation ratio: cls, or mean over the patches; by default what the head reads.
        sample: images behind stable rank, recovery, what lies beyond T, and the intervals of CKA.
        perturbation: how long it is, as a share of the length of every token.
        max_steps: run on to this many steps; 8 T by default (not at all for a stacked ViT, which has no more than T).
        jacobian_images: behind the Jacobians of the CLS row; 0 leaves them out.
        state_images: behind the Jacobians of the whole state; 0 leaves them out.
        probes: random vectors for each of them.
        iterations: of Lanczos, from each of those vectors.
    """
    refuse_unusable(token, sample, perturbation, jacobian_images, state_images, probes, iterations)
    images, last = once_each(images), furthest(model, max_steps)
    rows = motion.Rows(model, opened(beside, model), token)
    measured, grams = streamed(rows, images)
    result = paths(model, measured)
    few = images.sample(sample)
    sampled = few.over(lambda batch: read_sample(rows, batch, few, perturbation, last))
    result |= similarities(rows, grams, sampled["rows"].values, images.seed) | of_sample(model, sampled, few, last)
    if jacobian_images:
        part = replace(images.sample(jacobian_images), batch_size=AT_ONCE, label=f"{images.label} (CLS Jacobians)")
        result |= of_cls_jacobians(model, part)
    if state_images:
        part = replace(images.sample(state_images), batch_size=1, label=f"{images.label} (state Jacobians)")
        result |= of_state_jacobians(model, part, probes, iterations)
    return xr.Dataset(result, coords=coordinates(rows, result, last)).assign_attrs(
        about(rows, measured),
        max_steps=last,
        perturbation=perturbation,
        n_sample=sampled.sizes["image"],
    )


def about(rows: motion.Rows, measured: xr.Dataset) -> dict[str, Any]:
    """Attributes: the model, what stands for an image, and how many there were."""
    config, n = rows.model.config, len(measured["position"])
    return dict(
        token=rows.token(rows.model),
        beside=rows.name,
        d_model=config.d_model,
        n_tokens=config.n_tokens,
        trained_steps=config.n_steps,
        tolerance=TOLERANCE,
        n_measured=n,
        n_unreadable=measured.attrs["n_unreadable"],
        note=probe.note_on(n),
    )


def refuse_unusable(
    token: str | None,
    sample: int,
    perturbation: float,
    jacobian_images: int,
    state_images: int,
    probes: int,
    iterations: int,
) -> None:
    """Options that say nothing."""
    require(
        (token in ("cls", "mean", None), f"--token is {token!r}, not cls or mean"),
        (sample >= 8, f"--sample is {sample}, it must be at least 8"),
        (LEAST <= perturbation < 1, f"--perturbation is {perturbation}, it must lie between {LEAST} and 1"),
        (jacobian_images >= 0, f"--jacobian-images is {jacobian_images}, it cannot be negative"),
        (state_images >= 0, f"--state-images is {state_images}, it cannot be negative"),
        (2 <= probes <= MOST, f"--probes is {probes}, it must lie between 2, for a standard error, and {MOST}"),
        (4 <= iterations <= MOST, f"--iterations is {iterations}, it must lie between 4 and {MOST}"),
    )


def once_each(images: probe.Pass) -> probe.Pass:
    """Every photograph once: nothing here is about its classes, and CKA takes rows for independent."""
    photographs = images.photographs(np.arange(len(images)))
    first = np.sort(np.unique(photographs, return_index=True)[1])
    require((len(first) >= 8, f"{len(first)} photographs are too few to compare states over; give at least 8"))
    if len(first) == len(images):
        return images
    return replace(images, data=torch.utils.data.Subset(images.data, first.tolist()))


def furthest(model: models.BViT, max_steps: int | None) -> int:
    """How many steps are run; T where the model has no more."""
    n_steps, is_recurrent = model.config.n_steps, model.config.n_blocks == 1
    if max_steps is None:
        return 8 * n_steps if is_recurrent else n_steps
    if not is_recurrent and max_steps > n_steps:
        raise InputError(f"--max-steps is {max_steps}; only a model of one block runs beyond its {n_steps} steps")
    fewest, most = n_steps + 2 if is_recurrent else n_steps, MOST * n_steps
    require((fewest <= max_steps <= most, f"--max-steps is {max_steps}, it must lie between {fewest} and {most}"))
    return max_steps


def longest(n_steps: int, last: int) -> int:
    """The longest period that is looked for."""
    return min(max(n_steps, LONGEST), last - n_steps)


# Another model beside


def opened(source: str | None, model: models.BViT) -> models.BViT | None:
    """The model named by `--with`, untrained beside an untrained one; None, with a message, where there is none."""
    if source is None:
        return None
    is_control = model.origin.weights == "init"
    try:
        other = models.load(source, "init" if is_control else "ema", model.config.image_size)
    except InputError as error:
        if not is_control:
            raise
        print(f"no untrained control of {source}: {error}", file=sys.stderr)
        return None
    for name in ("mean", "std"):
        here, there = getattr(model.config, name), getattr(other.config, name)
        require((here == there, f"--with {source}: its {name} is {there}, here {here}; CKA needs the same images"))
    return other.to(model.pos_embed.device)


# All images


def streamed(rows: motion.Rows, images: probe.Pass) -> tuple[xr.Dataset, dict[str, similarity.Grams]]:
    """One pass: sums of what has a mean, and those behind CKA of states and increments."""

    def both(states: list[torch.Tensor], batch: stream.Batch) -> dict[str, torch.Tensor]:
        sets = rows.stacked(states, batch.images)
        is_finite = bool(sets[:, rows.counts[0] :].isfinite().all())
        require((is_finite, f"--with {rows.name}: its activations are not finite; {probe.DIVERGED}"))
        return {"cka": sets, "increment_cka": rows.increments(sets)}

    with torch.no_grad():
        first = next(iter(stream.Stream(torch.utils.data.Subset(images.data, range(min(8, len(images)))), 8)))
        of_first = both(list(reading.states_of(rows.model, first.images)), first)
        grams = {name: similarity.Grams.about(sets.double().mean(0)) for name, sets in of_first.items()}

        def read(batch: stream.Batch) -> probe.Reading:
            states = list(reading.states_of(rows.model, batch.images))
            probe.refuse_nonfinite(torch.stack([z.sum() for z in states[1:]]))
            for name, sets in both(states, batch).items():
                grams[name].add(sets)
            values, units = motion.moves(states, rows.model.config.n_prefix)
            return {
                **means.sums(values, images.photographs(batch.index), images.seed),
                "units": (("state", "pos", "d"), units.double()),
            }

        measured = images.over(read)
    return measured, {name: own.with_sums(images.sum(own.sums)) for name, own in grams.items()}


def paths(model: models.BViT, measured: xr.Dataset) -> dict[str, Any]:
    """Means with their intervals, and what the same would be between different images."""
    n, prefix, variables = len(measured["position"]), model.config.n_prefix, averaged(measured)
    units, patches = measured["units"].values, model.config.n_patches
    final = (units * units[-1]).sum(-1)
    final = np.stack([final[:, 0], final[:, prefix:].mean(1)]) - n * variables["cosine_to_final"].values
    together = units[:, prefix:].sum(1)
    own = n * patches * (variables["coherence"].values * (patches - 1) + 1)
    alike = ((together**2).sum(-1) - own) / (n * (n - 1) * patches**2)
    return variables | {
        "null_cosine_to_final": (("token", "state"), final / (n * (n - 1))),
        "null_coherence": ("state", alike),
    }


# CKA and participation ratio


def similarities(
    rows: motion.Rows, grams: dict[str, similarity.Grams], sampled: np.ndarray, seed: int
) -> dict[str, Any]:
    """CKA between all sets with its interval and null, phases, and participation ratios.

    Intervals are the jackknife's on the sampled rows [image set d], made as much narrower as all images are more. The
    null is the CKA of every set with the last one of other images.
    """
    states = torch.from_numpy(sampled).to(grams["cka"].total.device)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(states))).to(states.device)
    others = order[(order.argsort() + 1) % len(order)]
    narrower = float((len(states) / grams["cka"].count).sqrt())
    variables: dict[str, Any] = {}
    for name, sets in {"cka": states, "increment_cka": rows.increments(states)}.items():
        is_of_states = name == "cka"
        n = rows.counts[0] if is_of_states else rows.counts[0] - 1  # the first model's sets; the other's come after
        this, that = ("state", "other_state") if is_of_states else ("step", "other_step")
        replicates = [(part.cka(), part.participation_ratio()) for part in similarity.left_out_of(sets, order)]
        ckas, ratios = zip(*replicates, strict=True)
        cka = similarity.with_bounds(grams[name].cka(), ckas, narrower)
        for end, value in zip(ENDS, cka, strict=True):
            variables[f"{name}{end}"] = (this, that), value[:n, :n]
            if rows.other is not None:
                variables[f"cross_{name}{end}"] = (this, f"with_{this}"), value[:n, n:]
        shuffled = similarity.of_rows(torch.cat([sets[:, :n], sets[others, n - 1 : n]], 1))
        variables[f"null_{name}"] = this, shuffled.cka()[:n, n].cpu().numpy()
        steps = slice(n - rows.model.config.n_steps, n)  # of states, those after a step
        by_phase = phases.described(cka[0][steps, steps], [part[steps, steps].cpu().numpy() for part in ckas])
        variables |= {template.format(KINDS[name]): variable for template, variable in by_phase.items()}
        if is_of_states:
            spread = similarity.with_bounds(grams[name].participation_ratio(), ratios, narrower)
            for end, value in zip(ENDS, spread, strict=True):
                variables[f"participation_ratio{end}"] = "state", value[:n]
    independent = 1 / (1 / rows.model.config.d_model + 1 / float(grams["cka"].count))
    return variables | {"null_participation_ratio": ((), independent)}


# A sample


def read_sample(
    rows: motion.Rows, batch: stream.Batch, walk: probe.Pass, perturbation: float, last: int
) -> probe.Reading:
    """Rows for the jackknife, and of every image the stable rank of its updates, recovery, and where it goes."""
    model = rows.model
    n_steps = model.config.n_steps
    with torch.inference_mode():
        states = list(reading.states_of(model, batch.images))
        noise = orbits.noises(walk.indices(batch.index), (n_steps, *states[0].shape[1:]), walk.seed)
        left = orbits.recovery(model, states, noise.to(states[0]), perturbation)
        values = {
            "stable_rank": (("step",), torch.stack([motion.stable_rank(b - a) for a, b in itertools.pairwise(states)])),
            "recovery": (("form", "step", "state"), left),
        }
        per_image = {"rows": (("image", "set", "d"), rows.stacked(states, batch.images))}
        if last > n_steps:
            ahead = orbits.run_on(model, states[-1], n_steps, last, longest(n_steps, last))
            period = orbits.periods(ahead["returned"], TOLERANCE)
            values |= {
                "returned": (("form", "lag"), finite(ahead["returned"])),
                "turn": ((), finite(ahead["turn"])),
                "growth": ((), finite(ahead["growth"])),
                "fixed": (("form",), (period == 1).double()),
                "periodic": (("form",), (period > 1).double()),
                "overflowed": ((), (~ahead["growth"].isfinite()).double()),
            }
            per_image["period"] = ("image", "form"), period.T
    return per_image | means.sums(values, walk.photographs(batch.index), walk.seed)


def finite(values: torch.Tensor) -> torch.Tensor:
    return values.where(values.isfinite(), torch.nan)


def of_sample(model: models.BViT, sampled: xr.Dataset, walk: probe.Pass, last: int) -> dict[str, Any]:
    """Means with their intervals, the stable rank of a random update, and which image ends how."""
    config, variables = model.config, averaged(sampled)
    variables["null_stable_rank"] = (), analysis.random_stable_rank(config.n_tokens, config.d_model)
    if last > config.n_steps:
        variables["period"] = ("image", "form"), sampled["period"].values
        variables["index"] = "image", walk.indices(sampled["position"])
    return variables


# A few images


def of_cls_jacobians(model: models.BViT, images: probe.Pass) -> dict[str, Any]:
    """Of the CLS row's Jacobian of every step, beside a random one as large; eigenvalues of the first few images."""

    def read(batch: stream.Batch) -> probe.Reading:
        index = images.indices(batch.index)
        with torch.no_grad():
            entering = itertools.islice(reading.states_of(model, batch.images), model.config.n_steps)
            values, eigenvalues = jacobians.spectra(model, entering, index, images.seed)
        of_images = {"eigenvalue": (("image", "step", "rank", "part"), eigenvalues)}
        return of_images | means.sums(values, images.photographs(batch.index), images.seed)

    measured = images.over(read)
    few = measured["eigenvalue"].values[:N_EIGEN].astype(np.float32)
    return averaged(measured) | {"eigenvalue": (("place", "step", "rank", "part"), few)}


def of_state_jacobians(model: models.BViT, images: probe.Pass, probes: int, iterations: int) -> dict[str, Any]:
    """Of the whole state's Jacobian of every step: log|det| with its standard error, beside a random one's as large."""
    n_dimensions = model.config.n_tokens * model.config.d_model
    iterations = min(iterations, n_dimensions)

    def read(batch: stream.Batch) -> probe.Reading:
        index = images.indices(batch.index)
        with torch.no_grad():
            entering = itertools.islice(reading.states_of(model, batch.images), model.config.n_steps)
            values = jacobians.volumes(model, entering, index, probes=probes, iterations=iterations, seed=images.seed)
        return means.sums(values, images.photographs(batch.index), images.seed)

    measured = images.over(read)
    variables = averaged(measured)
    error = np.sqrt(variables["state_squared_error"].values / len(measured["position"]))
    null = analysis.random_log_det(variables["state_size"].values, n_dimensions)
    for end in ENDS:
        del variables[f"state_squared_error{end}"]
    return variables | {"state_log_det_error": ("step", error), "null_state_log_det": ("step", null)}


def averaged(measured: xr.Dataset) -> dict[str, Any]:
    """Every mean of a pass with its interval."""
    variables: dict[str, Any] = {}
    for name, drawn in means.drawn(measured).items():
        variables |= means.with_interval(name, drawn)
    return variables


def coordinates(rows: motion.Rows, result: dict[str, Any], last: int) -> dict[str, Any]:
    """Labels of the dimensions; those of another model's where there is one."""
    config = rows.model.config
    states, steps = np.arange(config.n_steps + 1), np.arange(config.n_steps)
    labels = {"token": list(motion.TOKENS), "form": list(orbits.FORMS), "phases": list(phases.PHASES)}
    labels |= {"state": states, "other_state": states, "step": steps, "other_step": steps}
    if "singular" in result:
        labels |= {"rank": np.arange(1, config.d_model + 1), "part": ["real", "imaginary"]}
    if last > config.n_steps:
        labels |= {"lag": np.arange(1, longest(config.n_steps, last) + 1)}
    if rows.other is not None:
        n = rows.other.config.n_steps
        labels |= {"with_state": np.arange(n + 1), "with_step": np.arange(n)}
    return labels


if __name__ == "__main__":
    probe.main(measure)
