"""What does a model cost? FLOPs, parameters, memory and time of inference and of training, beside the stacked ViT's.

    python -m probes.cost runs/demo                     # against the stacked ViT of the same width and steps
    python -m probes.cost bvit_base --batch-size 8      # a preset, with weights drawn from seed 0
    python -m probes.cost bvit_small --compile --device cuda

FLOPs are counted by torch and by formula, which must agree. Both models run in turn, in one process, on the same random
images, so that what else the machine does meets both; times are medians, and only their ratio is of interest. Memory is
the peak of what torch allocates: on a GPU by its own count, on a CPU by watching every tensor come and go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from etils import epy

from models.errors import InputError, require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from models import checkpoint, flops
    from probes.methods import metering

PHASES = ("inference", "training")


@probe.measurement(needs_data=False)
def measure(
    model: models.BViT,
    images: Any,
    *,
    against: Literal["vit", "none"] = "vit",
    rounds: int = 7,
    compile: bool = False,
) -> xr.Dataset:
    """FLOPs, parameters, peak memory and wall clock of inference and of a training step, bViT and ViT side by side.

    Args:
        against: vit, the stacked ViT of the same width and steps, or none.
        rounds: timed runs of each model and phase, in turn.
        compile: also run with compiled blocks, and say how long compiling takes.
    """
    require((rounds >= 1, f"--rounds is {rounds}, it must be at least 1"))
    config, device, batch = model.trained, model.pos_embed.device, images.batch_size
    contenders = {"bvit" if config.n_blocks < config.n_steps or config.n_steps == 1 else "vit": model}
    if against == "vit" and "vit" not in contenders:
        stacked = models.ViTConfig.from_dict(config.to_dict() | {"n_blocks": config.n_steps})
        contenders["vit"] = checkpoint.fresh(stacked, 0).to(device)
    generator = torch.Generator().manual_seed(images.seed)
    pictures = torch.randn(batch, 3, config.image_size, config.image_size, generator=generator).to(device)
    counted = metering.counted_flops(model, pictures[:1], config)
    refuse_disagreement(counted, config)
    names = list(contenders)
    runs = {(name, phase): metering.run_of(contenders[name], pictures, phase) for name in names for phase in PHASES}
    cells = ("model", "phase")
    result = xr.Dataset(
        {
            "flops": ("step", counted["step"]),
            "flops_embedding": ((), counted["embedding"]),
            "flops_head": ((), counted["head"]),
            "flops_forward": ((), flops.of_forward(config)),
            "parameters": ("model", [checkpoint.n_parameters(contenders[name].trained) for name in names]),
            "memory": (cells, grid(names, lambda *cell: metering.peak_memory(runs[cell], contenders[cell[0]], device))),
            "seconds_of_round": ((*cells, "repeat"), in_turn(names, runs, rounds)),
        },
        coords={"step": np.arange(config.n_steps), "model": names, "phase": list(PHASES)},
    )
    if compile:
        compiled = {name: metering.compiled(contenders[name], pictures) for name in names}
        result["compile_seconds"] = "model", [compiled[name] for name in names]
        result["compiled_seconds_of_round"] = (*cells, "repeat"), in_turn(names, runs, rounds)
        result["compiled_seconds"] = cells, np.median(result["compiled_seconds_of_round"], -1)
    result["seconds"] = cells, np.median(result["seconds_of_round"], -1)
    return result.assign_attrs(batch_size=batch, device=str(device), threads=torch.get_num_threads(), note="")


def refuse_disagreement(counted: dict[str, Any], config: models.ViTConfig) -> None:
    """The formula is held against torch's counter every time; a model for which they differ has a cost of its own."""
    total, formula = int(counted["embedding"] + counted["step"].sum() + counted["head"]), flops.of_forward(config)
    if total != formula:
        raise InputError(f"torch counts {total:,} FLOPs an image, the formula {formula:,}; this model has other parts")


def grid(names: list[str], measure: Callable[[str, str], float]) -> np.ndarray:
    """What is measured of every model and phase: [model phase]."""
    return np.array([[measure(name, phase) for phase in PHASES] for name in names])


def in_turn(names: list[str], runs: dict[tuple[str, str], Any], rounds: int) -> np.ndarray:
    """Seconds of every run, one model after the other within each round: [model phase repeat]."""
    for run in runs.values():
        run()  # warms up
    seconds = np.zeros((len(names), len(PHASES), rounds))
    for i in range(rounds):
        seconds[..., i] = grid(names, lambda *cell: metering.seconds(runs[cell]))
    return seconds


if __name__ == "__main__":
    probe.main(measure)
