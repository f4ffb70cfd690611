"""How many dimensions does each step use? Ranks of FFN activations and CLS states (figures 6 and 7, appendix A).

    python -m probes.rank runs/demo
    python -m probes.rank timm:vit_tiny_patch16_224 --data folder:photos --no-accuracy

Per site and step, second moments are summed while the data streams by, and one eigenvalue problem gives the spectrum,
centred and not. Sites: `mlp_pre` and `mlp_post` (fc1's output before and after GELU), `mlp_out` (what the FFN adds to
the stream), `cls` (the CLS state after the step). The first three see tokens drawn at random from the whole sequence
(CLS and registers included, the FFN treats them alike), the same ones whatever the batches are.

Costs a plain forward per image, another for the untrained control, and one per cut and rank for each of
`--accuracy-images`; memory is two d_mlp x d_mlp matrices per step, whatever the number of images.
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
    from analyses import rank as analysis
    from probes.methods import moments as second_moments
    from probes.methods import truncation

SITES = ("mlp_pre", "mlp_post", "mlp_out", "cls")
ROWS_PER_DIMENSION = 60  # wanted for a stable rank
MAX_TOKENS = 16  # of an image
PAIRS = ("site", "step", "other_step")


@probe.measurement(control=("k95", "overlap", "union_k95"), lighter=dict(accuracy=False))
def measure(
    model: models.BViT,
    images: Any,
    *,
    accuracy: bool = True,
    accuracy_images: int = 1000,
    tokens: int | None = None,
) -> xr.Dataset:
    """Rank of FFN activations and CLS states at every step, beside the untrained model; accuracy at truncated weights.

    Accuracy is left out where it cannot be read, and the result says why. Raises `InputError` where activations are not
    finite.

    Args:
        accuracy: also read the accuracy at truncated FFN weights, where model and data have classes in common.
        accuracy_images: at most this many images for it; it costs one forward for each of some 25 truncated models.
        tokens: tokens of each image that are seen; by default enough for 60 rows a hidden dimension, at most 16.
    """
    config = model.config
    if tokens is None:
        tokens = min(MAX_TOKENS, config.n_tokens, -(-ROWS_PER_DIMENSION * config.d_mlp // len(images)))
    require(
        (1 <= tokens <= config.n_tokens, f"--tokens is {tokens}, an image of this model has 1 to {config.n_tokens}"),
        (accuracy_images >= 1, f"--accuracy-images is {accuracy_images}; leave accuracy out with --no-accuracy"),
    )
    moments = second_moments.of_model(model, images, tokens)
    result = xr.Dataset(
        {
            "width": ("site", [moments[site].gram.shape[-1] for site in SITES]),
            "rows": ("site", [moments[site].rows for site in SITES]),
            **spectra(model, {site: moments[site] for site in SITES}),
            **truncation.utilised_ranks(model, moments),
        },
        coords={
            "site": list(SITES),
            "centred": [False, True],
            "step": np.arange(config.n_steps),
            "other_step": np.arange(config.n_steps),
            "rank": np.arange(1, max(config.d_mlp, config.d_model) + 1),
            "matrix": list(truncation.MATRICES),
            "block": np.arange(config.n_blocks),
        },
    )
    reason = truncation.why_no_accuracy(model, images) if accuracy else "not asked for"
    if reason is None:
        result = result.assign(truncation.truncated_accuracy(model, images.sample(accuracy_images), moments))
    return result.assign_attrs(
        tokens=tokens,
        d_model=config.d_model,
        n_blocks=config.n_blocks,
        energy=0.95,
        sparse_share=truncation.SPARSE,
        no_accuracy=reason or "",
        note=too_few(result),
    )


def too_few(result: xr.Dataset) -> str:
    """Names the sites with fewer rows than a stable rank wants; empty where there are none."""
    counts = zip(result.site.values, result.rows.values, result.width.values, strict=True)
    short = [f"{site} has {n} for {d} dimensions" for site, n, d in counts if n < ROWS_PER_DIMENSION * d]
    wanted = f"{ROWS_PER_DIMENSION} rows a dimension are wanted"
    return f"ranks may be too low: {', '.join(short)}, {wanted}" if short else ""


def spectra(model: models.BViT, moments: dict[str, second_moments.Moments]) -> dict[str, tuple]:
    """Spectrum, ranks, overlaps of the centred top subspaces with their chance level, and unions, of every site."""
    config, sites = model.config, {site: site_spectra(of_site) for site, of_site in moments.items()}
    spectrum = np.full((len(sites), 2, config.n_steps, max(config.d_mlp, config.d_model)), np.nan, np.float32)
    for i, site in enumerate(sites.values()):
        spectrum[i, ..., : site["spectrum"].shape[-1]] = site["spectrum"]
    k95 = analysis.energy_rank(spectrum)
    chance = [
        analysis.chance_overlap(k95[i, 1], room(config, site, of_site.gram.shape[-1]))
        for i, (site, of_site) in enumerate(moments.items())
    ]
    cells = ("site", "centred", "step")
    return {
        "spectrum": ((*cells, "rank"), spectrum),
        "k95": (cells, k95),
        "participation_ratio": (cells, analysis.participation_ratio(spectrum)),
        "stable_rank": (cells, analysis.stable_rank(spectrum)),
        "overlap": (PAIRS, np.stack([site["overlap"] for site in sites.values()])),
        "overlap_chance": (PAIRS, np.stack(chance)),
        "union_k95": (("site", "step"), np.stack([site["union"] for site in sites.values()])),
    }


def room(config: models.ViTConfig, site: str, width: int) -> np.ndarray:
    """Dimensions in which two steps' subspaces lie, [step other_step]: one fc1 reaches d_model of its d_mlp."""
    block = np.array([config.block_of(t) for t in range(config.n_steps)])
    same = (block[:, None] == block) & (site == "mlp_pre")
    return np.where(same, min(config.d_model, config.d_mlp), width)


def site_spectra(moments: second_moments.Moments) -> dict[str, np.ndarray]:
    """One site: spectrum [centred step rank], overlap [step other_step], union [step].

    Overlap and union (the 95 % rank of steps 0..t together) are those of the centred rows; in the union every step
    weighs the same.
    """
    spectrum, bases, union, together = [[], []], [], [], None
    for t in range(len(moments.count)):
        about_zero = falling(eigenvalues(moments.second_moment(t)))
        covariance = moments.covariance(t)
        values, vectors = torch.linalg.eigh(covariance)
        about_mean = falling(values.flip(-1), constant=about_zero.sum())
        spectrum[0].append(about_zero)
        spectrum[1].append(about_mean)
        bases.append(vectors.flip(-1)[:, : int(analysis.energy_rank(about_mean))].cpu().numpy())
        if about_mean.any():
            unit = covariance / covariance.trace()
            together = unit if together is None else together + unit
        union.append(0 if together is None else int(analysis.energy_rank(falling(eigenvalues(together)))))
    overlap = [[analysis.subspace_overlap(a, b) for b in bases] for a in bases]
    overlap = np.round(overlap, 6).astype(np.float32)
    return {"spectrum": np.array(spectrum), "overlap": overlap, "union": np.array(union)}


def eigenvalues(matrix: torch.Tensor) -> torch.Tensor:
    """In falling order."""
    return torch.linalg.eigvalsh(matrix).flip(-1)


def falling(values: torch.Tensor, constant: float = 0.0) -> np.ndarray:
    """Eigenvalues in falling order, float32 [rank], without what float32 products cannot tell.

    They are rounded to 1e-7 of the largest, so that the order of the sums (batches over processes) leaves no trace. All
    zero below 1e-10 of `constant`, the energy about zero.
    """
    values = values.clamp(min=0).cpu().numpy()
    top = np.float32(values[0]) if values.sum() > 1e-10 * constant else np.float32(0)
    return np.round(values / top, 7).astype(np.float32) * top if top else np.zeros(len(values), np.float32)


if __name__ == "__main__":
    probe.main(measure)
