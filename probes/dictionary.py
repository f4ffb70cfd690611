"""Do the states of all steps speak in the same few features? One sparse dictionary for them all, and one for the FFN.

    python -m probes.dictionary runs/demo
    python -m probes.dictionary timm:vit_small_patch16_224 --data folder:PATH --expansion 4 --k 32

A sparse autoencoder (BatchTopK, `probes.methods.dictionaries`) is trained on the states of all steps, for CLS and for
patches apart; beside it one for each state, of the same total size and each as large, the same dictionary turned by a
random rotation, and principal components. What a feature does is read from images that nothing was trained on: how
often it fires at each state, on which images and patches, which known factors it tells (chosen on the images of the
training, beside the values of other images), and what is lost when it is switched off. A transcoder learns what the FFN
does, one for all steps, and takes its place. Costs a forward for each image that an update needs anew (4 images an
update), the training, three passes over `--images`, and six forwards for each of `--effects` and 200 images. Memory
does not grow with the images. An interrupted training goes on when it is started again with the same options.
"""

from __future__ import annotations

from typing import Any

from etils import epy

from models.errors import require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import features as single
    from models.data import stream
    from probes.methods import activations, coding, concepts, features, means, pixels, reading, switching

KINDS = ("shared", "separate", "larger", "rotated", "pca")
N_CHOSEN = 500  # images that concepts are matched on
NOTHING = 1e-6  # variance of a row, of scaled states: where it is less, there is nothing to explain (CLS in z_0)
LARGEST = 256  # expansion
N_SHOWN = 48  # images whose pixels the result keeps
OF_IMAGES = ("top", "top_patch", "top_activation", "thumbnail", "shown")
OF_FEATURES = ("match", "match_value", "match_state", "best_feature", "importance", "tested", "rate", "rotated_rate")


def of_untrained(result: xr.Dataset) -> xr.Dataset:
    """All that is not of single images, or of single features alone."""
    return result[[name for name in result.data_vars if name not in (*OF_IMAGES, *OF_FEATURES)]]


@probe.measurement(control=of_untrained, lighter=dict(thumbnails=False, _separate=False))
def measure(
    model: models.BViT,
    data: Any,
    *,
    expansion: int = 4,
    k: int = 8,
    updates: int = 1000,
    fit_images: int = 4096,
    images: int = 1000,
    effects: int = 8,
    n_top: int = 4,
    thumbnails: bool = True,
    _separate: bool = True,
) -> xr.Dataset:
    """One dictionary for the states of all steps: what it explains, what its features do, and what sharing costs.

    Raises `InputError` for a model of fewer than two classes, classes that it lacks, fewer than two photographs, and
    where activations or a loss are not finite.

    Args:
        expansion: features for each dimension of a state, and of the transcoder.
        k: features that fire for a row, on average.
        updates: of the training, of all dictionaries together.
        fit_images: photographs that everything is trained on, at most half of all.
        images: others that everything is measured on, spread evenly.
        effects: features switched off, of CLS and of patches each; those that matter most to first order.
        n_top: images kept for each feature and state.
        thumbnails: keep the pixels of a few of them for figures and dashboard.
    """
    refuse_options(model, expansion, k, updates, fit_images, images, effects, n_top)
    class_of_label, (fitting, measuring) = data.classes_of(model), probe.split(data, fit_images)
    measuring, choosing = measuring.sample(images), fitting.sample(min(N_CHOSEN, images))
    trained = coding.train(model, fitting, dict(expansion=expansion, k=k, updates=updates, separate=_separate))
    of_chosen, known = (concepts.of_images(walk, model.config.patch_size) for walk in (choosing, measuring))
    choice = features.chosen(trained.coded, choosing, of_chosen)
    result = measured_by(trained, measuring, known, choice, n_top).assign(matches(known, choice))
    result = result.assign(switching.switched(trained, fitting, measuring, class_of_label, effects))
    result = result.assign(switching.replaced(trained, fitting, measuring, class_of_label))
    if thumbnails:
        result = result.assign(pictures(result, measuring, model.config))
    n = result.attrs["n_measured"]
    return result.assign_attrs(
        expansion=expansion,
        k=k,
        d_model=model.config.d_model,
        n_blocks=model.config.n_blocks,
        chance=1 / model.config.n_classes,
        updates=updates,
        n_fitted=len(fitting),
        n_chosen=len(choosing),
        n_switched=min(switching.N_SWITCHED, len(measuring)),
        side=model.config.side,
        note=probe.note_on(n),
    )


def refuse_options(
    model: models.BViT, expansion: int, k: int, updates: int, fit_images: int, images: int, effects: int, n_top: int
) -> None:
    """Raise `InputError` for an option that nothing can be measured with."""
    for name, value in dict(k=k, updates=updates, images=images, n_top=n_top).items():
        require((value >= 1, f"--{name.replace('_', '-')} is {value}, it must be at least 1"))
    n_features = expansion * model.config.d_model
    most = n_features // (model.config.n_steps + 1)
    require(
        (1 <= expansion <= LARGEST, f"--expansion is {expansion}, it must lie between 1 and {LARGEST}"),
        (fit_images >= 2, f"--fit-images is {fit_images}, it must be at least 2"),
        (0 <= effects <= n_features, f"--effects is {effects}, it must lie between 0 and all {n_features} features"),
        (k < most, f"--k is {k}, but {most} features are left for each state; lower it, or raise --expansion"),
        (
            model.config.n_classes >= 2,
            "the model tells no classes apart, so no feature can matter; name a checkpoint with a head",
        ),
    )


# Measuring


def measured_by(
    trained: coding.Trained, images: probe.Pass, known: dict[str, concepts.Known], choice: features.Choice, n_top: int
) -> xr.Dataset:
    """What the dictionaries explain, how often and how much features fire, what they tell, and where they fire most."""
    top, config = features.Top(n_top), trained.model.config
    measured = images.over(lambda batch: read(trained, batch, known, choice, top, images))
    n = len(measured["position"])
    kinds = [kind for kind in KINDS if (kind, "cls") in trained.dictionaries or kind == "pca"]
    names = [(token, *name) for token in activations.TOKENS for name in known[token].names]
    told: dict[str, list[int]] = {}
    for i, (token, factor, _) in enumerate(names):
        told.setdefault(f"{token} {factor}", []).append(i)
    variables = {
        **of_means(means.drawn(measured)),
        **of_telling(measured["told"], told),
        "ffn_dead": ((), float((measured["ffn_fired"] == 0).all("step").mean())),
        **of_firing(measured, n * np.array([1, config.n_patches])),
        **never_fired(trained, measured, kinds),
        **places(top, images, config),
    }
    coords = {
        "kind": kinds,
        "token": list(activations.TOKENS),
        "state": np.arange(config.n_steps + 1),
        "step": np.arange(config.n_steps),
        "against": list(features.AGAINST),
        "told": list(told),
        "concept": [f"{token} {factor} {value}" for token, factor, value in names],
        "concept_token": ("concept", [token for token, _, _ in names]),
        "concept_factor": ("concept", [factor for _, factor, _ in names]),
        "concept_value": ("concept", [value for _, _, value in names]),
    }
    return xr.Dataset(variables, coords, dict(n_measured=n, n_unreadable=measured.attrs["n_unreadable"]))


def of_means(drawn: dict[str, xr.DataArray]) -> dict[str, Any]:
    """What is explained of states and of the FFN, with intervals, and how many features fire."""
    explained = 1 - drawn["error"] / drawn["total"].where(drawn["total"] > NOTHING)
    over_states = explained.mean("state")
    return {
        **means.with_interval("explained", explained),
        **means.with_interval("explained_by_all", over_states),
        **means.with_interval("sharing", over_states[{"kind": 0}] - over_states),
        **means.with_interval("ffn_explained", 1 - drawn["ffn_error"] / drawn["ffn_total"]),
        "l0": drawn["l0"][{"draw": 0}],
        "ffn_l0": drawn["ffn_l0"][{"draw": 0}],
    }


def of_telling(sums: xr.DataArray, told: dict[str, list[int]]) -> dict[str, Any]:
    """F1 of the best feature of every concept, and its mean over the concepts of a factor, with intervals."""
    both, fires, holds = sums
    score = 2 * both / (fires + holds).where(lambda counts: counts > 0)
    of_factors = xr.concat([score[{"concept": concepts}].mean("concept") for concepts in told.values()], "told")
    return {**means.with_interval("f1", score), **means.with_interval("f1_of_factor", of_factors)}


def of_firing(measured: xr.Dataset, n_rows: np.ndarray) -> dict[str, Any]:
    """How often each feature fires at each state, and its mean activation, over rows of either kind [token]."""
    variables = {}
    for kind, prefix in (("shared", ""), ("rotated", "rotated_")):
        for what, name in (("count", "rate"), ("amount", "profile")):
            sums = np.stack([measured[f"{what} {kind} {token}"].values.T for token in activations.TOKENS])
            values = (sums / n_rows[:, None, None]).astype(np.float32)
            variables[prefix + name] = ("token", "feature", "state"), values
    return variables


def never_fired(trained: coding.Trained, measured: xr.Dataset, kinds: list[str]) -> dict[str, Any]:
    """The share of each dictionary's features that never fire at a state, and at none; NaN for principal components."""
    dead = np.full((len(kinds), len(activations.TOKENS), trained.model.config.n_steps + 1), np.nan)
    dead_everywhere = np.full(dead.shape[:2], np.nan)
    for i, kind in enumerate(kinds[:-1]):
        for j, token in enumerate(activations.TOKENS):
            never = measured[f"count {kind} {token}"].values == 0  # [state feature]
            has_own_features = len(trained.dictionaries[kind, token].decoder) > 1  # at each state
            never_at_all = never if has_own_features else never.all(0)
            dead[i, j] = never.mean(1)
            dead_everywhere[i, j] = never_at_all.mean()
    return {"dead": (("kind", "token", "state"), dead), "dead_everywhere": (("kind", "token"), dead_everywhere)}


def read(
    trained: coding.Trained,
    batch: stream.Batch,
    known: dict[str, concepts.Known],
    choice: features.Choice,
    top: features.Top,
    images: probe.Pass,
) -> probe.Reading:
    """What one batch leaves: sums of errors, of what fires, and of what the chosen features tell."""
    match_counts = features.MatchCounts(known, choice, batch, images)
    of_ffn: dict[str, list[torch.Tensor]] = {"error": [], "total": [], "l0": [], "fired": []}
    error, l0, total, highest = ({token: [] for token in activations.TOKENS} for _ in range(4))  # lists over states
    sums: dict[tuple[str, str, str], list[torch.Tensor]] = {}  # by what is summed, kind of dictionary and token
    with torch.inference_mode(), trained.model.hooks(ffn_errors(trained, of_ffn)):
        for state, z in enumerate(reading.states_of(trained.model, batch.images)):
            for token in activations.TOKENS:
                rows = trained.coded["dictionary"].rows(z, token, state)
                codes = codes_of(trained, rows, token, state)
                total[token].append(rows.square().sum((1, 2)))
                error[token].append(errors_of(trained, rows, codes, token, state))
                n_fired = [(code > 0).sum(-1).float().mean(1) for code in codes.values()]
                n_components = torch.full_like(n_fired[0], trained.principal[token].shape[-1])
                l0[token].append(torch.stack([*n_fired, n_components]))
                for kind, code in codes.items():
                    sums.setdefault(("count", kind, token), []).append((code > 0).sum((0, 1)))
                    sums.setdefault(("amount", kind, token), []).append(code.sum((0, 1), dtype=torch.float64))
                highest[token].append(codes["shared"].max(1))
                match_counts.add(token, state, {"dictionary": codes["shared"], "rotated": codes["rotated"]})
    for token in activations.TOKENS:
        top.add(token, batch, highest[token], 1 if token == "cls" else trained.model.config.n_patches)
    dims = ("token", "state")
    values = {
        "error": (("kind", *dims), torch.stack([torch.stack(error[token], 1) for token in activations.TOKENS], 1)),
        "l0": (("kind", *dims), torch.stack([torch.stack(l0[token], 1) for token in activations.TOKENS], 1)),
        "total": (dims, torch.stack([torch.stack(total[token]) for token in activations.TOKENS])),
        **{f"ffn_{name}": (("step",), torch.stack(of_ffn[name])) for name in ("error", "total", "l0")},
    }
    return {
        **means.sums(values, images.photographs(batch.index), images.seed),
        **{
            f"{what} {kind} {token}": (("state", f"{kind} {token}"), torch.stack(over_states))
            for (what, kind, token), over_states in sums.items()
        },
        "ffn_fired": (("step", "ffn feature"), torch.stack(of_ffn["fired"])),
        "told": (("what", "against", "concept", "state", "draw"), match_counts.sums()),
    }


def codes_of(trained: coding.Trained, rows: torch.Tensor, token: str, state: int) -> dict[str, torch.Tensor]:
    """The features of rows [image row d] of one state, by the kind of dictionary: [image row feature]."""
    return {
        kind: dictionary.codes(rows, state)
        for (kind, of_token), dictionary in trained.dictionaries.items()
        if of_token == token
    }


def errors_of(
    trained: coding.Trained, rows: torch.Tensor, codes: dict[str, torch.Tensor], token: str, state: int
) -> torch.Tensor:
    """What each kind of dictionary leaves unexplained of rows, principal components last: squared and summed,
    [kind image].
    """
    reconstructions = [trained.dictionaries[kind, token].decoded(code, state) for kind, code in codes.items()]
    components = trained.principal[token][state]
    reconstructions.append(rows @ components @ components.T)
    return torch.stack([(rows - reconstruction).square().sum((1, 2)) for reconstruction in reconstructions])


def ffn_errors(trained: coding.Trained, into: dict[str, list[torch.Tensor]]) -> list[tuple[str, Any]]:
    """Hooks that hold what comes out of the FFN against what the transcoder makes of what goes in."""
    inputs: dict[int, torch.Tensor] = {}  # of the FFN, by step

    def keep(x: torch.Tensor, hook: Any) -> None:
        rows = activations.ffn_input(trained.model, hook.layer(), x)
        inputs[hook.layer()] = trained.scales["ffn_in"].inward(rows, hook.layer())

    def compare(x: torch.Tensor, hook: Any) -> None:
        step, scale = hook.layer(), trained.scales["ffn_out"]
        codes = trained.transcoder.codes(inputs.pop(step), step)
        unexplained = x - scale.outward(trained.transcoder.decoded(codes, step), step)
        into["error"].append(unexplained.square().sum((1, 2)))
        into["total"].append((x - trained.ffn_mean[step]).square().sum((1, 2)))
        into["l0"].append((codes > 0).sum(-1).float().mean(1))
        into["fired"].append((codes > 0).sum((0, 1)))

    return [("blocks.*.hook_resid_mid", keep), ("blocks.*.hook_mlp_out", compare)]


def matches(known: dict[str, concepts.Known], choice: features.Choice) -> dict[str, Any]:
    """How well each feature tells each factor on the images of the training, and the feature that tells each concept
    best; where a kind of token lacks a factor, NaN and -1.
    """
    names = list(dict.fromkeys(factor.name for of_token in known.values() for factor in of_token.factors))
    shape = (len(features.AGAINST), len(known), choice.match["cls"].shape[1], len(names))
    match = np.full(shape, np.nan, np.float32)
    value, state = np.full(shape, -1, np.int16), np.full(shape, -1, np.int16)
    for i, (token, of_token) in enumerate(known.items()):
        columns = [names.index(factor.name) for factor in of_token.factors]
        match[:, i][..., columns] = choice.match[token]
        value[:, i][..., columns], state[:, i][..., columns] = choice.value[token], choice.state[token]
    dims = ("against", "token", "feature", "factor")
    told = [torch.cat([choice.feature[against, token] for token in known], 1).T for against in features.AGAINST]
    return {
        "factor": names,
        "match": (dims, match),
        "match_value": (dims[1:], value[0]),
        "match_state": (dims[1:], state[0]),
        "best_feature": (("against", "concept", "state"), torch.stack(told).numpy().astype(np.int32)),
    }


# Pictures


def places(top: features.Top, images: probe.Pass, config: models.ViTConfig) -> dict[str, Any]:
    """The images on which each feature is most active at each state, and the patch; -1 where it never fires."""
    value, image, patch = [], [], []
    for token in activations.TOKENS:
        activation, place = top.gathered(images, token)
        n_rows = 1 if token == "cls" else config.n_patches
        fires = activation > 0
        value.append(np.where(fires, activation, np.nan))
        image.append(np.where(fires, images.indices(place // n_rows), -1))
        patch.append(np.where(fires, place % n_rows, -1))
    dims = ("token", "feature", "state", "place")
    return {
        "top": (dims, np.stack(image).astype(np.int32)),
        "top_patch": (dims, np.stack(patch).astype(np.int16)),
        "top_activation": (dims, np.stack(value).astype(np.float32)),
    }


def pictures(result: xr.Dataset, images: probe.Pass, config: models.ViTConfig) -> dict[str, Any]:
    """Pixels of the first images of the features that a figure shows, each image once; none where nothing fires."""
    rows = [result["top"].sel(token=token).values[feature, :, 0] for token, feature, _ in single.shown(result)]
    numbers = [number for row in rows for number in row[single.states_shown(result)] if number >= 0]
    shown = list(dict.fromkeys(numbers))[:N_SHOWN]
    if not shown:
        return {}
    positions = np.searchsorted(images.about.indices, shown)
    return {
        "thumbnail": (("shown", "y", "x", "channel"), pixels.shown(images.data, positions, config)),
        "shown": ("shown", shown),
    }


if __name__ == "__main__":
    probe.main(measure)
