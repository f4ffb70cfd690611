"""How many dimensions does each step use? Ranks of FFN activations and CLS states, accuracy at truncated weights (figures 6 and 7, appendix A).

    python -m probes.rank runs/demo
    python -m probes.rank timm:vit_tiny_patch16_224 --data folder:photos --no-accuracy

Per site and step, second moments are summed in float64 while the data streams by (float32 products, about a fixed point near the
mean), and one eigenvalue problem gives the spectrum, centred and not. Sites: `mlp_pre` and `mlp_post` (fc1's output before and
after GELU), `mlp_out` (what the FFN adds to the stream), `cls` (the CLS state after the step). The first three see tokens drawn at
random from the whole sequence (CLS and registers included, the FFN treats them alike), the same ones whatever the batches are.

Costs a plain forward per image, another for the untrained control, and one per method and rank for each of `--accuracy-images`;
memory is two d_mlp x d_mlp matrices a step, whatever the number of images.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from models.command import run
from models.errors import InputError
from probes import truncation
from probes.probe import Common

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from torch import Tensor

    from models.vit import BViT

SITES = {
    "mlp_pre": "blocks.*.mlp.hook_pre",
    "mlp_post": "blocks.*.mlp.hook_post",
    "mlp_out": "blocks.*.hook_mlp_out",
    "cls": "blocks.*.hook_resid_post",
}
ROWS_PER_DIMENSION = 60  # wanted for a stable rank
MAX_TOKENS = 16  # of an image


def measure(
    model: BViT,
    data: Any,
    *,
    control: BViT | None = None,
    accuracy: bool = True,
    accuracy_images: int = 1000,
    tokens: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Spectra and ranks of every site and step, overlap and union of the steps' subspaces, accuracy at truncated FFN weights.

    `control` is the untrained model; its ranks and overlaps are stored beside. `tokens` of each image are seen (default: enough
    for 60 rows a hidden dimension, at most 16). Accuracy is left out, with a word, where it cannot be read. Raises `InputError`
    where activations are not finite or options are out of range.
    """
    import numpy as np
    import xarray as xr

    from probes.probe import attributes

    started, config = time.time(), model.config
    if tokens is None:
        tokens = min(MAX_TOKENS, config.n_tokens, -(-ROWS_PER_DIMENSION * config.d_mlp // max(len(data), 1)))
    if not 1 <= tokens <= config.n_tokens:
        raise InputError(f"--tokens is {tokens}, an image of this model has 1 to {config.n_tokens}")
    if accuracy_images < 1:
        raise InputError(f"--accuracy-images is {accuracy_images}, it must be at least 1; leave accuracy out with --no-accuracy")
    options = dict(tokens=tokens, batch_size=batch_size, workers=workers, seed=seed)
    moments = watch(model, data, label="rank", **options)
    result = xr.Dataset(coords={
        "site": list(SITES), "centred": [False, True], "step": np.arange(config.n_steps), "other_step": np.arange(config.n_steps),
        "rank": np.arange(1, max(config.d_mlp, config.d_model) + 1), "matrix": list(truncation.MATRICES), "block": np.arange(config.n_blocks),
    })  # fmt: skip
    result["width"] = "site", [moments[site].gram.shape[-1] for site in SITES]
    result["rows"] = "site", [moments[site].rows for site in SITES]
    result = result.assign(spectra(model, moments)).assign(truncation.utilised_ranks(model, moments))
    if control is not None:
        untrained = spectra(control, watch(control.to(model.pos_embed.device), data, label="untrained control", **options))
        result = result.assign({f"control_{name}": untrained[name] for name in ("k95", "overlap", "union_k95")})
    reason = truncation.why_no_accuracy(model, data) if accuracy else "not asked for"
    if reason is None:
        result = result.assign(truncation.truncated_accuracy(model, data, moments, accuracy_images, batch_size, workers))
    elif accuracy:
        print(f"no accuracy at truncated weights: {reason}", file=sys.stderr)
    note = too_few(result)
    if note:
        print(f"warning: {note}", file=sys.stderr)
    return result.assign_attrs(
        attributes(model, data, seed=seed, started=started), tokens=tokens, d_model=config.d_model, n_blocks=config.n_blocks,
        energy=0.95, sparse_share=truncation.SPARSE, no_accuracy=reason or "", note=note,
    )  # fmt: skip


def too_few(result: xr.Dataset) -> str:
    """Names the sites with fewer rows than a stable rank wants; empty where there are none."""
    short = [
        f"{site} has {rows} for {width} dimensions"
        for site, rows, width in zip(result.site.values, result.rows.values, result.width.values, strict=True)
        if rows < ROWS_PER_DIMENSION * width
    ]
    return f"ranks may be too low: {', '.join(short)}, {ROWS_PER_DIMENSION} rows a dimension are wanted" if short else ""


# Watching


@dataclass
class Moments:
    """Streamed sums of rows x - shift, per step, float64: count [step], total [step d], gram [step d d].

    The shift [step d] is any fixed point near the mean: it keeps a large mean out of the float32 products.
    """

    shift: Tensor
    count: Tensor
    total: Tensor
    gram: Tensor

    @classmethod
    def about(cls, shift: Tensor) -> Moments:
        import torch

        zeros = torch.zeros_like(shift, dtype=torch.float64)
        return cls(shift.float(), zeros[:, 0].clone(), zeros, zeros.new_zeros(*zeros.shape, zeros.shape[-1]))

    def add(self, step: int, rows: Tensor) -> None:
        """One batch of rows [row d]."""
        rows = rows.float() - self.shift[step]
        self.count[step] += len(rows)
        self.total[step] += rows.double().sum(0)
        self.gram[step] += rows.T @ rows

    def reduced(self) -> Moments:
        """The sums of all processes."""
        from accelerate.utils import reduce

        return Moments(self.shift, *(reduce(sums, "sum") for sums in (self.count, self.total, self.gram)))

    @property
    def rows(self) -> int:
        return int(self.count[0])

    @property
    def mean(self) -> Tensor:
        """[step d]"""
        return self.shift.double() + self.total / self.count[:, None].clamp(min=1)

    def covariance(self, step: int) -> Tensor:
        """[d d]"""
        offset = self.total[step] / self.count[step]
        return self.gram[step] / self.count[step] - offset.outer(offset)

    def second_moment(self, step: int) -> Tensor:
        """The covariance about zero: [d d]."""
        mean = self.mean[step]
        return self.covariance(step) + mean.outer(mean)


def watch(model: BViT, data: Any, *, tokens: int, batch_size: int, workers: int, seed: int, label: str) -> dict[str, Moments]:
    """One pass: the moments of every site, and of `mlp_in`, what fc1 is given (those of its output follow from them)."""
    import torch
    from torch.utils.data import Subset

    from models.data import Stream, describe
    from probes.probe import processes, progress, refuse_nonfinite

    config, device, indices = model.config, model.pos_embed.device, describe(data).indices
    widths = {"mlp_in": config.d_model, "mlp_post": config.d_mlp, "mlp_out": config.d_model, "cls": config.d_model}

    def collect(batch: Any, moments: dict[str, Moments]) -> None:
        chosen = sampled_tokens(indices[batch.index], tokens, config.n_tokens, seed)
        add_batch(model, batch.images.to(device), torch.from_numpy(chosen).to(device), moments)

    moments = {site: Moments.about(torch.zeros(config.n_steps, width, device=device)) for site, width in widths.items()}
    for batch in Stream(Subset(data, range(min(4, len(data)))), 4):  # the same first images on every process
        collect(batch, moments)
    moments = {site: Moments.about(seen.mean) for site, seen in moments.items()}
    for batch in progress(Stream(data, batch_size, workers=workers, shard=processes()), len(data), label):
        collect(batch, moments)
    moments = {site: seen.reduced() for site, seen in moments.items()}
    refuse_nonfinite(sum(seen.total.sum(1) + seen.gram.sum((1, 2)) for seen in moments.values()))
    return moments | {"mlp_pre": through_fc1(model, moments["mlp_in"])}


def through_fc1(model: BViT, given: Moments) -> Moments:
    """The moments of fc1's output, exactly, from those of its input: a linear map of the rows is one of their moments."""
    import torch

    steps = range(model.config.n_steps)
    weight = torch.stack([truncation.weight_at(model, t, "fc1") for t in steps])
    bias = torch.stack([model.blocks[t].core.mlp.fc1.bias.detach().double() for t in steps])
    shift = (weight @ given.shift.double()[..., None])[..., 0] + bias
    return Moments(shift, given.count, (weight @ given.total[..., None])[..., 0], weight @ given.gram @ weight.mT)


def sampled_tokens(indices: np.ndarray, tokens: int, n_tokens: int, seed: int) -> np.ndarray:
    """Positions [image token] drawn without replacement, a function of seed and image alone."""
    import numpy as np

    return np.stack([np.random.default_rng([seed, int(i)]).permutation(n_tokens)[:tokens] for i in indices])


def add_batch(model: BViT, images: Tensor, chosen: Tensor, moments: dict[str, Moments]) -> None:
    """Adds one batch to the moments; chosen: [image token] positions."""
    import torch

    at = torch.arange(len(images), device=images.device)[:, None]

    def sampled(x: Tensor, step: int) -> Tensor:
        return x[at, chosen].flatten(0, 1)

    def normalised(x: Tensor, step: int) -> Tensor:
        block = model.blocks[step]
        return block.core.norm2(sampled(x, step)[None], block.ln2)[0]

    def keep(site: str, rows: Callable[[Tensor, int], Tensor]) -> Callable[..., None]:
        return lambda x, hook: moments[site].add(hook.layer(), rows(x, hook.layer()))

    rows = dict.fromkeys(SITES, sampled) | {"cls": lambda x, step: x[:, 0]}
    hooks = [(name, keep(site, rows[site])) for site, name in SITES.items() if site in moments] + [("blocks.*.hook_resid_mid", keep("mlp_in", normalised))]
    with torch.inference_mode():
        model.run_with_hooks(images, fwd_hooks=hooks)


# Spectra


def spectra(model: BViT, moments: dict[str, Moments]) -> dict[str, tuple]:
    """Variables of the result: spectrum, ranks, overlaps of the centred top subspaces with their chance level, and unions."""
    import numpy as np

    from analyses import rank as analysis

    config, found = model.config, {site: site_spectra(moments[site]) for site in SITES}
    spectrum = np.full((len(SITES), 2, config.n_steps, max(config.d_mlp, config.d_model)), np.nan, np.float32)
    for i, site in enumerate(found.values()):
        spectrum[i, ..., : site["spectrum"].shape[-1]] = site["spectrum"]
    k95 = analysis.energy_rank(spectrum)
    block = np.array([config.block_of(t) for t in range(config.n_steps)])
    shared = np.where(block[:, None] == block, min(config.d_model, config.d_mlp), config.d_mlp)  # one fc1 maps into d_model dimensions
    room = [shared if site == "mlp_pre" else moments[site].gram.shape[-1] for site in SITES]
    cells, pairs = ("site", "centred", "step"), ("site", "step", "other_step")
    return {
        "spectrum": ((*cells, "rank"), spectrum),
        "k95": (cells, k95),
        "participation_ratio": (cells, analysis.participation_ratio(spectrum)),
        "stable_rank": (cells, analysis.stable_rank(spectrum)),
        "overlap": (pairs, np.stack([site["overlap"] for site in found.values()])),
        "overlap_chance": (pairs, np.stack([analysis.chance_overlap(k95[i, 1], room[i]) for i in range(len(SITES))])),
        "union_k95": (("site", "step"), np.stack([site["union"] for site in found.values()])),
    }


def site_spectra(moments: Moments) -> dict[str, np.ndarray]:
    """One site: spectrum [centred step rank], overlap [step other_step], union [step], the 95 % rank of steps 0..t together.

    Overlap and union are those of the centred rows; in the union every step weighs the same.
    """
    import numpy as np
    import torch

    from analyses import rank as analysis

    spectrum, bases, union, together = [[], []], [], [], 0
    for t in range(len(moments.count)):
        about_zero = falling(torch.linalg.eigvalsh(moments.second_moment(t)).flip(-1))
        covariance = moments.covariance(t)
        values, vectors = torch.linalg.eigh(covariance)
        about_mean = falling(values.flip(-1), constant=about_zero.sum())
        spectrum[0].append(about_zero)
        spectrum[1].append(about_mean)
        bases.append(vectors.flip(-1)[:, : int(analysis.energy_rank(about_mean))].cpu().numpy())
        if about_mean.any():
            together = together + covariance / covariance.trace()
        union.append(int(analysis.energy_rank(falling(torch.linalg.eigvalsh(together).flip(-1)))) if torch.is_tensor(together) else 0)
    overlap = [[analysis.subspace_overlap(a, b) for b in bases] for a in bases]
    return {"spectrum": np.array(spectrum), "overlap": np.round(overlap, 6).astype(np.float32), "union": np.array(union)}


def falling(values: Tensor, constant: float = 0.0) -> np.ndarray:
    """Eigenvalues in falling order without what float32 products cannot tell: float32 [rank], rounded to 1e-7 of the largest.

    So the order of the sums (batches over processes) leaves no trace. All zero below 1e-10 of `constant`, the energy about zero.
    """
    import numpy as np

    values = values.clamp(min=0).cpu().numpy()
    top = np.float32(values[0]) if values.sum() > 1e-10 * constant else np.float32(0)
    return np.round(values / top, 7).astype(np.float32) * top if top else np.zeros(len(values), np.float32)


def command(
    common: Annotated[Common, tyro.conf.arg(name="")],
    *,
    control: bool = True,
    accuracy: bool = True,
    accuracy_images: int = 1000,
    tokens: int | None = None,
) -> None:
    """Rank of FFN activations and CLS states at every step, beside the untrained model, and accuracy at truncated FFN weights.

    Args:
        common: the options of every probe.
        control: also measure the untrained model (same config and seed), where the checkpoint can rebuild it.
        accuracy: also read the accuracy at truncated FFN weights, where model and data have classes in common.
        accuracy_images: at most this many images for it; it costs one forward for each of some 25 truncated models.
        tokens: tokens of each image that are seen; by default enough for 60 rows a hidden dimension, at most 16.
    """
    from analyses import rank as analysis
    from probes import probe

    model = probe.open_model(common)
    data = probe.open_images(common, model)
    untrained = probe.untrained_of(common) if control and common.weights != "init" else None
    options = dict(batch_size=common.batch_size, workers=common.workers, seed=common.seed)
    result = measure(model, data, control=untrained, accuracy=accuracy, accuracy_images=accuracy_images, tokens=tokens, **options)
    probe.save(result, probe.result_path(common, model, "rank"))
    if probe.processes()[0] == 0:
        print(analysis.table(result))


if __name__ == "__main__":
    run(command, prog="python -m probes.rank")
